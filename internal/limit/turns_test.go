package limit_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tandem/internal/limit"
)

// drain takes everything out, in the order in which it is served.
func drain(turns *limit.Turns[string], may func(owner, value string) bool) string {
	var order []string
	for {
		value, ok := turns.Peek(may)
		if !ok {
			return strings.Join(order, " ")
		}
		order = append(order, value)
		turns.Take()
	}
}

func everybody(string, string) bool { return true }

func TestTurns(t *testing.T) {
	t.Parallel()
	type push struct {
		owner string
		cost  int
		value string
	}
	for name, tt := range map[string]struct {
		pushes []push
		may    func(owner, value string) bool
		want   string
	}{
		"nobody":              {nil, everybody, ""},
		"one owner, in order": {[]push{{"a", 1, "a1"}, {"a", 1, "a2"}, {"a", 1, "a3"}}, everybody, "a1 a2 a3"},
		"a late owner has its turn": {
			[]push{{"a", 1, "a1"}, {"a", 1, "a2"}, {"a", 1, "a3"}, {"b", 1, "b1"}}, everybody, "a1 b1 a2 a3",
		},
		"dear values come less often": {
			[]push{
				{"a", 3, "a1"}, {"a", 3, "a2"},
				{"b", 1, "b1"}, {"b", 1, "b2"}, {"b", 1, "b3"}, {"b", 1, "b4"}, {"b", 1, "b5"}, {"b", 1, "b6"},
			}, everybody,
			"b1 b2 a1 b3 b4 b5 a2 b6",
		},
		"who may not is passed over": {
			[]push{{"a", 1, "a1"}, {"a", 1, "a2"}, {"b", 1, "b1"}},
			func(owner, _ string) bool { return owner != "a" }, "b1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var turns limit.Turns[string]
			for _, p := range tt.pushes {
				turns.Push(p.owner, p.cost, p.value)
			}
			if got := drain(&turns, tt.may); got != tt.want {
				t.Errorf("served %q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever is pushed, taken and removed: nothing is lost or served twice, each owner's values come in order, Peek is
// steady, and between two values of one owner every other that waits has had its turn.
func TestTurnsAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var turns limit.Turns[int]
		waiting := map[string][]int{}
		served := map[string]int{} // since when each that waits was last served, in values
		n, all := 0, 0
		owners := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				owner := owners.Draw(t, "owner")
				if len(waiting[owner]) == 0 {
					served[owner] = all
				}
				waiting[owner] = append(waiting[owner], n)
				turns.Push(owner, 1, n)
				n++
			},
			"take": func(t *rapid.T) {
				value, ok := turns.Peek(func(owner string, value int) bool { return waiting[owner][0] == value })
				again, _ := turns.Peek(func(string, int) bool { return true })
				if !ok || value != again {
					t.Skip("nothing waits")
				}
				turns.Take()
				for owner, values := range waiting {
					if len(values) > 0 && values[0] == value {
						waiting[owner], served[owner] = values[1:], all
					} else if len(values) > 0 && all-served[owner] > 3 {
						t.Fatalf("%s waits while %d others are served", owner, all-served[owner])
					}
				}
				all++
			},
			"remove": func(t *rapid.T) {
				owner := owners.Draw(t, "owner")
				if len(waiting[owner]) == 0 {
					t.Skip("nothing waits")
				}
				i := rapid.IntRange(0, len(waiting[owner])-1).Draw(t, "i")
				value := waiting[owner][i]
				if !turns.Remove(owner, func(other int) bool { return other == value }) {
					t.Fatalf("%d is not there", value)
				}
				waiting[owner] = append(waiting[owner][:i:i], waiting[owner][i+1:]...)
			},
			"": func(t *rapid.T) {
				if sum := len(waiting["a"]) + len(waiting["b"]) + len(waiting["c"]); turns.Len() != sum {
					t.Fatalf("%d wait, want %d", turns.Len(), sum)
				}
			},
		})
	})
}
