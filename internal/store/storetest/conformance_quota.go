package storetest

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// owned are new requests of an owner.
func owned(owner string, n int) (all []*tandem.Request) {
	for range n {
		r := NewAsync()
		r.Owner = owner
		all = append(all, r)
	}
	return all
}

// An owner that has used up its share of the queue is refused, with the flag in the message, and others are
// not. Once some of its work has ended it is accepted again. A batch counts as many as it has.
func conformQueueShare(t *testing.T, open func(t *testing.T, cfg store.Config) store.Store) {
	s := open(t, store.Config{Counted: Counted, MaxQueue: 20, MaxPerOwner: 5})
	add := func(owner string, n int) error {
		return s.Accept(t.Context(), store.LaneIO, owned(owner, n)...)
	}
	if err := add("a", 6); tandem.CodeOf(err) != tandem.CodeQueueFull {
		t.Errorf("a batch larger than the share: %v", err)
	}
	for range 5 {
		if err := add("a", 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("a", 1); tandem.CodeOf(err) != tandem.CodeQueueFull ||
		!strings.Contains(err.Error(), "at most 5 requests of one API key") ||
		!strings.Contains(err.Error(), "--max-queue-per-key") {
		t.Errorf("at its share: %v", err)
	}
	if err := add("b", 4); err != nil {
		t.Errorf("the other owner: %v", err)
	}
	if err := add("b", 2); tandem.CodeOf(err) != tandem.CodeQueueFull {
		t.Errorf("a batch beyond the share: %v", err)
	}
	if err := add("b", 1); err != nil {
		t.Errorf("the last one of the other's share: %v", err)
	}
	if got := MustStats(t, s); got.Unfinished != 10 {
		t.Errorf("%d are unfinished, want 10", got.Unfinished)
	}
	WorkWith(t, s, EveryLane, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return Sent
		}
		return WorkEnded(`{}`)
	})
	tandemtest.WaitFor(t, "all to be done", func() bool { return MustStats(t, s).Unfinished == 0 })
	for range 3 {
		if err := add("a", 5); err != nil {
			t.Errorf("when all has ended: %v", err)
		}
		tandemtest.WaitFor(t, "all to be done", func() bool { return MustStats(t, s).Unfinished == 0 })
	}
}

// The data and the results of what an owner has unfinished are bounded, parked callbacks included.
func conformBytesShare(t *testing.T, open func(t *testing.T, cfg store.Config) store.Store) {
	s := open(t, store.Config{Counted: Counted, MaxBytesPerOwner: 1000})
	add := func(owner string, bytes int) error {
		r := owned(owner, 1)[0]
		r.Data = json.RawMessage(`"` + strings.Repeat("x", bytes-2) + `"`)
		return s.Accept(t.Context(), store.LaneIO, r)
	}
	if err := add("a", 400); err != nil {
		t.Fatal(err)
	}
	if err := add("a", 601); tandem.CodeOf(err) != tandem.CodeQuotaExceeded ||
		!strings.Contains(err.Error(), "--max-bytes-per-key") {
		t.Errorf("beyond the bound: %v", err)
	}
	if err := add("b", 1000); err != nil {
		t.Errorf("the other owner: %v", err)
	}
	capacity := EveryLane
	capacity.Room = func(string, string) int { return 0 }
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Postpone(time.Time{}, "http://dead.example:80")
		}
		return WorkEnded(`"` + strings.Repeat("y", 498) + `"`)
	})
	tandemtest.WaitFor(t, "the work to be done", func() bool {
		return MustStats(t, s).Now[tandem.StatusPending]+MustStats(t, s).Now[tandem.StatusProcessing] == 0
	})
	// What the owner has is read again before it is refused, now with the result.
	if err := add("a", 601); tandem.CodeOf(err) != tandem.CodeQuotaExceeded {
		t.Errorf("beyond the bound, again: %v", err)
	}
	if err := add("a", 101); tandem.CodeOf(err) != tandem.CodeQuotaExceeded {
		t.Errorf("beyond the bound with the result: %v", err)
	}
	if err := add("a", 100); err != nil {
		t.Errorf("up to the bound: %v", err)
	}
}

// ConformQuotas checks the bounds of one owner, each on a store that open opens as cfg says.
func ConformQuotas(t *testing.T, open func(t *testing.T, cfg store.Config) store.Store) {
	t.Helper()
	for name, check := range map[string]func(*testing.T, func(*testing.T, store.Config) store.Store){
		"requests": conformQueueShare, "bytes": conformBytesShare,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, open)
		})
	}
}
