package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// Undelivered callbacks are shown by site, the longest wait first. Those of one path of a site are shown there too.
func conformUndelivered(t *testing.T, s store.Store) {
	if u := MustUndelivered(t, s); !u.Oldest.IsZero() || len(u.Sites) > 0 {
		t.Errorf("before there was any callback: %+v", u)
	}
	began := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	after := func(minutes int) time.Time { return began.Add(time.Duration(minutes) * time.Minute) }
	waits := []struct {
		owner, destination string
		ended              time.Time
	}{
		{"a", "https://b.example:443", after(5)},
		{"a", "http://a.example:80/hook|1", after(9)},
		{"b", "http://a.example:80/hook|1", after(1)}, // the oldest is neither the first owner's nor the one due first
		{"b", "http://a.example:80/hook|1", after(2)},
		{"a", "http://a.example:80", after(3)},
		{"a", "http://a.example:8080", after(4)},
	}
	type wait struct {
		ended       time.Time
		destination string
	}
	var mu sync.Mutex
	byID := map[string]wait{} // guarded by mu
	parkedNow, free := make(chan struct{}, len(waits)), make(chan struct{})
	capacity := EveryLane
	capacity.Room = func(string, string) int {
		select {
		case <-free:
			return 10
		default:
			return 0
		}
	}
	step := func(_ context.Context, job store.Job) store.Next {
		mu.Lock()
		w := byID[job.Request.ID]
		mu.Unlock()
		if job.Lane != store.LaneDeliver {
			o := GoodOutcome(`{}`)
			o.StartedAt, o.CompletedAt = w.ended, w.ended
			return store.Finished(o, "")
		}
		select {
		case <-free:
			return Sent.Freeing(w.destination)
		default:
			parkedNow <- struct{}{}
			return store.Postpone(time.Time{}, w.destination)
		}
	}
	for _, w := range waits {
		r := NewAsync()
		r.Owner = w.owner
		mu.Lock()
		byID[r.ID] = wait{w.ended, w.destination}
		mu.Unlock()
		Accept(t, s, r, store.LaneIO)
	}
	WorkWith(t, s, capacity, step)
	for range waits {
		<-parkedNow
	}
	want := store.Undelivered{Oldest: after(1), Sites: []store.UndeliveredSite{
		{Site: "http://a.example:80", Count: 4, Oldest: after(1)},
		{Site: "http://a.example:8080", Count: 1, Oldest: after(4)},
		{Site: "https://b.example:443", Count: 1, Oldest: after(5)},
	}}
	total := func(u store.Undelivered) (n int64) {
		for _, site := range u.Sites {
			n += site.Count
		}
		return n
	}
	tandemtest.WaitFor(t, "all to be on record as parked", func() bool {
		return total(MustUndelivered(t, s)) == int64(len(waits))
	})
	if diff := cmp.Diff(want, MustUndelivered(t, s), cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want.Sites = want.Sites[:2]
	want.Sites[0].Count, want.Sites[0].More = 2, true // one for each of its two destinations
	want.Sites[1].More = true
	few, err := s.(interface {
		UndeliveredWithin(ctx context.Context, sites, Counted int) (store.Undelivered, error)
	}).UndeliveredWithin(t.Context(), 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, few, cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Errorf("two sites, three counted (-want +got):\n%s", diff)
	}
	close(free)
	for id := range byID {
		WaitStatus(t, s, id, "callback_sent")
	}
	if u := MustUndelivered(t, s); len(u.Sites) > 0 || !u.Oldest.IsZero() {
		t.Errorf("after all were delivered: %+v", u)
	}
}

// A callback that nobody has tried yet counts from the moment it was due.
func conformUndeliveredAtOnce(t *testing.T, s store.Store) {
	began := time.Now().Add(-time.Millisecond)
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 1}} // nobody delivers
	WorkWith(t, s, capacity, func(context.Context, store.Job) store.Next { return WorkEnded(`{}`) })
	id := AcceptedFor(t, s, "a", 1)[0]
	WaitStatus(t, s, id, "completed")
	u := MustUndelivered(t, s)
	if len(u.Sites) > 0 || u.Oldest.Before(began) || u.Oldest.After(time.Now()) {
		t.Errorf("%+v, want one that waits since now (%v)", u, began)
	}
}

// MustUndelivered returns what a store could not deliver yet.
func MustUndelivered(t *testing.T, s store.Store) store.Undelivered {
	t.Helper()
	u, err := s.Undelivered(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}
