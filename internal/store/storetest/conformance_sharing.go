package storetest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// AcceptedFor accepts requests of an owner.
func AcceptedFor(t *testing.T, s store.Store, owner string, n int) (ids []string) {
	t.Helper()
	for range n {
		r := NewAsync()
		r.Owner = owner
		Accept(t, s, r, store.LaneIO)
		ids = append(ids, r.ID)
	}
	return ids
}

// Sent is what comes of a callback that was delivered.
var Sent = store.Delivered(Attempt(1, tandem.OutcomeDelivered))

// A single job of one owner does not wait for all those that another one asked for before.
func conformTurns(t *testing.T, s store.Store) {
	first := AcceptedFor(t, s, "a", 60)
	second := AcceptedFor(t, s, "b", 1)[0]
	var mu sync.Mutex
	var order []string
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 1, store.LaneDeliver: 64}}
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return Sent
		}
		mu.Lock()
		defer mu.Unlock()
		order = append(order, job.Request.ID)
		return WorkEnded(`{}`)
	})
	for _, id := range append(first, second) {
		WaitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	mu.Lock()
	defer mu.Unlock()
	if before := slices.Index(order, second); before > 5 {
		t.Errorf("the other owner's job came after %d of the first one's 60, want it among the first", before)
	}
	ofFirst := slices.DeleteFunc(order, func(id string) bool { return id == second })
	if !slices.Equal(ofFirst, first) {
		t.Error("jobs of one owner were not done in the order in which they came")
	}
}

// An owner whose jobs all hang leaves room for another one.
func conformShare(t *testing.T, s store.Store) {
	hang := make(chan struct{})
	var running atomic.Int64
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 8, store.LaneDeliver: 64}}
	stop := WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane == store.LaneDeliver:
			return Sent
		case job.Request.Owner == "a":
			running.Add(1)
			<-hang
		}
		return WorkEnded(`{}`)
	})
	defer stop()
	defer close(hang)
	AcceptedFor(t, s, "a", 100)
	tandemtest.WaitFor(t, "half of the slots to be taken", func() bool { return running.Load() == 4 })
	for _, id := range AcceptedFor(t, s, "b", 3) {
		WaitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	if n := running.Load(); n != 4 {
		t.Errorf("%d of 8 slots are the first owner's, want 4", n)
	}
}

// Parked callbacks are left alone until their destination can take them, and then as many as it can take; others
// are delivered meanwhile.
func conformParked(t *testing.T, s store.Store) {
	const dead = "dead.example:443"
	var room, at, most, steps atomic.Int64
	capacity := EveryLane
	capacity.Room = func(destination, _ string) int {
		if destination != dead {
			t.Errorf("asked for room at %q", destination)
		}
		return int(room.Load())
	}
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane != store.LaneDeliver:
			return WorkEnded(`{}`)
		case job.Request.Owner == "well":
			return Sent
		}
		steps.Add(1)
		if room.Load() == 0 {
			return store.Postpone(time.Time{}, dead)
		}
		n := at.Add(1)
		defer at.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		return Sent.Freeing(dead)
	})
	parked := append(AcceptedFor(t, s, "a", 50), AcceptedFor(t, s, "b", 50)...)
	tandemtest.WaitFor(t, "all to be parked", func() bool { return steps.Load() == 100 })
	for _, id := range AcceptedFor(t, s, "well", 20) {
		WaitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	if n := steps.Load(); n != 100 {
		t.Errorf("parked callbacks were dispatched %d times while there was no room, want once each", n-100)
	}
	room.Store(2)
	for _, id := range parked {
		WaitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	if n := steps.Load(); n != 200 {
		t.Errorf("100 callbacks were dispatched %d times, want twice each", n)
	}
	if n := most.Load(); n > 2 {
		t.Errorf("%d were with their destination at the same time, which has room for 2", n)
	}
}

// A parked callback that is too old is dispatched, so that it can be marked as failed.
func conformParkedTooOld(t *testing.T, s store.Store) {
	var steps atomic.Int64
	capacity := EveryLane
	capacity.MaxAge = time.Second
	capacity.Room = func(string, string) int { return 0 }
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane != store.LaneDeliver:
			return WorkEnded(`{}`)
		case steps.Add(1) == 1:
			return store.Postpone(time.Time{}, "dead.example:443")
		case time.Since(job.Request.CompletedAt) < capacity.MaxAge:
			t.Error("dispatched before it was too old")
		}
		return store.GiveUp(Attempt(0, tandem.OutcomeExpired))
	})
	WaitStatus(t, s, AcceptedFor(t, s, "a", 1)[0], tandem.StatusCallbackFailed)
}
