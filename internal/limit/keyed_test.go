package limit_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tandem/internal/limit"
)

func keys(k *limit.Keyed[string, *int]) []string {
	var all []string
	for key := range k.All() {
		all = append(all, key)
	}
	return all
}

func hold(t *testing.T, k *limit.Keyed[string, *int], key string) *int {
	t.Helper()
	value, ok := k.Hold(key, func() *int { return new(int) })
	if !ok {
		t.Fatalf("Hold(%s) found no place in %v", key, keys(k))
	}
	return value
}

func TestKeyedForgetsTheLongestUnused(t *testing.T) {
	t.Parallel()
	k := limit.NewKeyed[string, *int](3)
	first := hold(t, k, "a")
	if hold(t, k, "a") != first {
		t.Fatal("a second Hold made a second value")
	}
	hold(t, k, "b")
	hold(t, k, "c")
	if _, ok := k.Hold("d", func() *int { return new(int) }); ok {
		t.Error("a held value was dropped")
	}
	if got := keys(k); !slices.Equal(got, []string{"c", "b", "a"}) {
		t.Errorf("order %v, want the last asked for first", got)
	}
	k.Release("a") // still held once
	k.Release("b")
	k.Release("c")
	hold(t, k, "d")
	if got := keys(k); !slices.Equal(got, []string{"d", "a", "c"}) {
		t.Errorf("order %v: want b forgotten, the idle ones behind those in use", got)
	}
	k.Release("a")
	k.Release("d")
	hold(t, k, "a")
	k.Release("a")
	hold(t, k, "e")
	if got := keys(k); !slices.Equal(got, []string{"e", "a", "d"}) {
		t.Errorf("order %v, want c forgotten", got)
	}
	if hold(t, k, "a") != first {
		t.Error("a known value was made anew")
	}
}

func TestKeyedReleaseOfWhatIsNotHeldPanics(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"never held", "given back"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			k := limit.NewKeyed[string, *int](3)
			hold(t, k, "given back")
			k.Release("given back")
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			k.Release(key)
		})
	}
}

// Whatever is done: never more than capacity, never a held value forgotten, and a
// place is refused only when all are held.
func TestKeyedProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(1, 5).Draw(t, "capacity")
		k := limit.NewKeyed[string, *int](capacity)
		held := make(map[string]int)
		values := make(map[string]*int) // of those held
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			key := fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "key"))
			if held[key] > 0 && rapid.Bool().Draw(t, "release") {
				k.Release(key)
				if held[key]--; held[key] == 0 {
					delete(held, key)
					delete(values, key)
				}
				continue
			}
			value, ok := k.Hold(key, func() *int { return new(int) })
			if !ok {
				if len(held) != capacity || held[key] > 0 {
					t.Fatalf("no place for %s with %v held of %d", key, held, capacity)
				}
				continue
			}
			if known := values[key]; known != nil && known != value {
				t.Fatalf("%s was forgotten while held", key)
			}
			held[key]++
			values[key] = value
			if k.Len() > capacity || len(keys(k)) != k.Len() {
				t.Fatalf("%d known, %d listed, capacity %d", k.Len(), len(keys(k)), capacity)
			}
		}
	})
}
