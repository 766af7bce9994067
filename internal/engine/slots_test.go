package engine_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"tandem"
	"tandem/internal/engine"
)

func TestSlotsAreSharedThreeToOne(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		waiting string // those who wait, in order of arrival
		want    string // the order in which they are served
	}{
		{"both wait", "aaaaaassssssss", "sssasssassaaaa"},
		{"sync alone", "ssss", "ssss"},
		{"async alone", "aaaa", "aaaa"},
		{"async never starves", "assssssss", "sssasssss"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				slots := engine.NewSlots(1, 100)
				if err := slots.Acquire(t.Context(), tandem.ModeSync); err != nil {
					t.Fatal(err)
				}
				type turn struct {
					side  rune
					place int
				}
				served := make(chan turn, len(tt.waiting))
				for i, side := range tt.waiting {
					mode := tandem.ModeSync
					if side == 'a' {
						mode = tandem.ModeAsync
					}
					go func() {
						if err := slots.Acquire(t.Context(), mode); err != nil {
							t.Error(err)
						}
						served <- turn{side, i}
					}()
					synctest.Wait() // it stands in its queue
				}
				var order strings.Builder
				last := map[rune]int{'a': -1, 's': -1}
				for range tt.waiting {
					slots.Release()
					synctest.Wait()
					next := <-served
					order.WriteRune(next.side)
					if next.place < last[next.side] {
						t.Errorf("%c: number %d served after number %d", next.side, next.place, last[next.side])
					}
					last[next.side] = next.place
				}
				if order.String() != tt.want {
					t.Errorf("served %s, want %s", order.String(), tt.want)
				}
				slots.Release()
				if slots.Free() != 1 || slots.Waiting() != 0 {
					t.Errorf("%d free, %d waiting; want 1, 0", slots.Free(), slots.Waiting())
				}
			})
		})
	}
}

func TestSlotsBoundSyncOrders(t *testing.T) {
	t.Parallel()
	slots := engine.NewSlots(2, 8)
	for i, owner := range []string{"a", "a", "a", "a", "a", "b", "b", "b", "c"} {
		if !slots.Join(owner) {
			t.Fatalf("order %d of %s refused", i+1, owner)
		}
		switch {
		case i == 4 && slots.Join("a"):
			t.Error("one owner has more than half of 10")
		case i == 7 && slots.Join("b"):
			t.Error("the second owner has more than half of what the first one leaves")
		}
	}
	if !slots.Join("d") {
		t.Error("the tenth order is refused")
	}
	if slots.Join("e") {
		t.Error("an eleventh order let in")
	}
	slots.Part("d")
	if !slots.Join("e") {
		t.Error("refused although one has left")
	}
}

func TestSlotsGiveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slots := engine.NewSlots(1, 10)
		why := errors.New("gone home")
		ended, cancel := context.WithCancelCause(t.Context())
		cancel(why)
		if err := slots.Acquire(ended, tandem.ModeSync); !errors.Is(err, why) || slots.Free() != 1 {
			t.Errorf("with a free slot and an ended context: %v, %d free; want the cause and 1", err, slots.Free())
		}
		if err := slots.Acquire(t.Context(), tandem.ModeAsync); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancelCause(t.Context())
		left := make(chan error)
		go func() { left <- slots.Acquire(ctx, tandem.ModeSync) }()
		synctest.Wait()
		leave(why)
		if err := <-left; !errors.Is(err, why) {
			t.Errorf("left the queue with %v, want the cause", err)
		}
		if slots.Waiting() != 0 {
			t.Errorf("%d still wait", slots.Waiting())
		}
		slots.Release()
		if slots.Free() != 1 {
			t.Errorf("%d free, want 1", slots.Free())
		}
	})
}

// TestSlotsAreNeverLost has many come and go, some of whom leave at the moment they are served.
func TestSlotsAreNeverLost(t *testing.T) {
	t.Parallel()
	const count = 3
	slots := engine.NewSlots(count, 1000)
	var mu sync.Mutex
	holding := 0
	var crowd sync.WaitGroup
	for i := range 200 {
		crowd.Go(func() {
			mode := tandem.Modes[i%2]
			for range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				if rand.N(2) == 0 {
					go cancel() // ends at once; cancel does nothing else
				}
				if slots.Acquire(ctx, mode) == nil {
					mu.Lock()
					if holding++; holding > count {
						t.Errorf("%d hold one of %d slots", holding, count)
					}
					mu.Unlock()
					mu.Lock()
					holding--
					mu.Unlock()
					slots.Release()
				}
				cancel()
			}
		})
	}
	crowd.Wait()
	if slots.Free() != count || slots.Waiting() != 0 {
		t.Errorf("%d free, %d waiting; want %d and 0", slots.Free(), slots.Waiting(), count)
	}
}

// A slot that comes free in the moment a waiter's time is up goes to the next
// one: the waiter would only find that there is no time left to work.
func TestSlotTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slots := engine.NewSlots(1, 100)
		if err := slots.Acquire(t.Context(), tandem.ModeSync); err != nil {
			t.Fatal(err)
		}
		over := &justOver{Context: t.Context()}
		late := make(chan error)
		go func() { late <- slots.Acquire(over, tandem.ModeSync) }()
		synctest.Wait() // it stands in its queue
		over.ended.Store(true)
		slots.Release()
		if err := <-late; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("acquired after the end: %v, want %v", err, context.DeadlineExceeded)
		}
		if err := slots.Acquire(t.Context(), tandem.ModeSync); err != nil { // the slot is not lost
			t.Fatal(err)
		}
	})
}

// justOver is a context that has ended while whoever waits for it has not been told yet.
type justOver struct {
	context.Context
	ended atomic.Bool
}

func (c *justOver) Err() error {
	if c.ended.Load() {
		return context.DeadlineExceeded
	}
	return nil
}
