package load_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/load"
)

// TestInboxCounts: requests are sent, answered, refused and called back in any order and number;
// the counters are those of a table that remembers everything.
func TestInboxCounts(t *testing.T) {
	t.Parallel()
	type fate struct{ answered, refused, came bool }
	rapid.Check(t, func(t *rapid.T) {
		inbox := load.NewInbox()
		var fates []fate
		var want load.Callbacks
		pick := func(suits func(fate) bool) (int, bool) {
			var some []int
			for i, f := range fates {
				if suits(f) {
					some = append(some, i)
				}
			}
			if len(some) == 0 {
				return 0, false
			}
			return rapid.SampledFrom(some).Draw(t, "number"), true
		}
		open := func(f fate) bool { return !f.answered && !f.refused }
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"expect", "expect", "answer", "answer", "refuse", "arrive", "arrive",
				"arrive"}).Draw(t, "step") {
			case "expect":
				number, err := inbox.Expect()
				if err != nil || number != uint64(len(fates)) {
					t.Fatalf("number %d, %v; want %d", number, err, len(fates))
				}
				fates = append(fates, fate{})
			case "answer":
				if i, ok := pick(open); ok {
					inbox.Answered(uint64(i), fmt.Sprint("req_", i))
					fates[i].answered = true
					want.Expected++
					if fates[i].came {
						want.BeforeAnswer++
						want.Delivered++
					}
				}
			case "refuse":
				if i, ok := pick(open); ok {
					inbox.Refused(uint64(i))
					fates[i].refused = true
					if fates[i].came {
						want.Unanswered++
					}
				}
			case "arrive":
				if i, ok := pick(func(fate) bool { return true }); ok {
					inbox.Arrive(uint64(i))
					switch {
					case fates[i].came:
						want.Duplicate++
					case fates[i].answered:
						want.Delivered++
					case fates[i].refused:
						want.Unanswered++
					}
					fates[i].came = true
				}
			}
		}
		for i, f := range fates { // a phase ends when every request has its answer
			if open(f) {
				inbox.Refused(uint64(i))
				fates[i].refused = true
				if f.came {
					want.Unanswered++
				}
			}
		}
		want.Missing = want.Expected - want.Delivered
		missing := inbox.End()
		if int64(len(missing)) != min(want.Missing, 100) {
			t.Fatalf("%d ids of the missing, want %d", len(missing), want.Missing)
		}
		for i, f := range fates { // everything comes once more
			inbox.Arrive(uint64(i))
			switch {
			case f.came:
				want.Duplicate++
			case f.answered:
				want.Late++
			default:
				want.Unanswered++
			}
		}
		if diff := cmp.Diff(want, inbox.Callbacks()); diff != "" {
			t.Fatalf("counters (-want +got)\n%s", diff)
		}
	})
}

// TestInboxKnowsItsKeys: keys of other runs are unknown.
func TestInboxKnowsItsKeys(t *testing.T) {
	t.Parallel()
	inbox := load.NewInbox()
	for range 2 {
		if _, err := inbox.Expect(); err != nil {
			t.Fatal(err)
		}
	}
	key := inbox.Key(1)
	prefix := strings.TrimSuffix(key, "1")
	for key, want := range map[string]int{
		key: 200, prefix + "0": 200, prefix + "2": 404, prefix + "01": 404, prefix + "+1": 404, prefix + "-1": 404,
		prefix: 404,
		"1":    404, "": 404, strings.ToUpper(prefix) + "x": 404, prefix + "18446744073709551616": 404,
	} {
		if got := inbox.ArriveAt(key); got != want {
			t.Errorf("key %q: answered %d, want %d", key, got, want)
		}
	}
	if got := inbox.Callbacks().Unknown; got != 9 {
		t.Errorf("%d unknown, want 9", got)
	}
}

// TestInboxMemoryIsFlat: 200,000 requests that are over take two bits each, and are known all the same.
func TestInboxMemoryIsFlat(t *testing.T) { //nolint:paralleltest // it reads the heap of the whole process
	inbox := load.NewInbox()
	heap := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	send := func(n int) {
		for range n {
			number, err := inbox.Expect()
			if err != nil {
				t.Fatal(err)
			}
			inbox.Answered(number, "req_0")
			inbox.Arrive(number)
		}
	}
	send(1000)
	before := heap()
	send(200_000)
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes, want 50,000 and what an append reserves", grown)
	}
	inbox.Arrive(0)
	if got := inbox.Callbacks(); got.Delivered != 201_000 || got.Duplicate != 1 {
		t.Errorf("%+v: want every one delivered, and the oldest known when it comes again", got)
	}
	runtime.KeepAlive(inbox)
}

// TestTooLate judges the generator's own lag beside the answers that it measured.
func TestTooLate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		own, median float64 // ms
		late        bool
	}{
		{0, 0, false}, {0.9, 0.5, false}, {1, 1, false}, {1.1, 1, true}, {1.1, 10, true}, {1.1, 12, false},
		{9.9, 100, false}, {10, 1000, false}, {10.1, 1000, true}, {5, 0, false}, {11, 0, true},
	} {
		phase := load.Phase{Sync: &load.Side{Response: load.Latency{Count: 1, P50MS: test.median}}}
		if got := load.TooLate(test.own, &phase); (got != "") != test.late {
			t.Errorf("own lag %v ms, median %v ms: %q, want late: %t", test.own, test.median, got, test.late)
		}
	}
}

// TestResultsAreRecordedBeforeAnybodyIsTold: after the last result every result is
// in the figures, because the phase is reported then.
func TestResultsAreRecordedBeforeAnybodyIsTold(t *testing.T) {
	t.Parallel()
	for range 200 {
		inbox := load.NewInbox()
		number, err := inbox.Expect()
		if err != nil {
			t.Fatal(err)
		}
		inbox.Answered(number, "req_0")
		all := inbox.AllIn()
		var arriving sync.WaitGroup
		arriving.Go(func() { inbox.Arrive(number) })
		<-all
		if got := inbox.Completed(); got != 1 {
			t.Errorf("%d results recorded when none was missing, want one", got)
		}
		arriving.Wait()
	}
}

// TestPolledAfterTheEnd: a result polled after the end is not
// counted twice, and the next phase does not wait one too few.
func TestPolledAfterTheEnd(t *testing.T) {
	t.Parallel()
	inbox := load.NewInbox()
	for want := range uint64(2) {
		if number, err := inbox.Expect(); err != nil || number != want {
			t.Fatalf("number %d, %v; want %d", number, err, want)
		}
		inbox.Answered(want, "req_0")
	}
	inbox.Polled(0)
	inbox.End()
	inbox.Polled(1)
	want := load.Callbacks{Expected: 2, Polled: 1, Missing: 1}
	if diff := cmp.Diff(want, inbox.Callbacks()); diff != "" {
		t.Errorf("counters (-want +got)\n%s", diff)
	}
	if left, completed := inbox.Outstanding(), inbox.Completed(); left != 0 || completed != 1 {
		t.Errorf("%d outstanding, %d completed; want none and the one that came in time", left, completed)
	}
}
