package sqlite_test

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/tandemtest"
)

// A retry waits as long as it was told to, whatever somebody does to the clock
// meanwhile: set back by an hour it does not wait an hour more.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	const wait = 1200 * time.Millisecond
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	var mu sync.Mutex
	tries := map[string][]time.Time{}
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{}`)
		}
		mu.Lock()
		defer mu.Unlock()
		tries[job.Request.ID] = append(tries[job.Request.ID], time.Now())
		if len(tries[job.Request.ID]) == 1 {
			return store.Redeliver(attempt(1, tandem.OutcomeTimeout), time.Now().Add(wait), "")
		}
		return store.Delivered(attempt(2, tandem.OutcomeDelivered))
	})
	before, after := newAsync(), newAsync()
	accept(t, s, before, store.LaneIO)
	tandemtest.WaitFor(t, "the first try", func() bool { return mustRequest(t, s, before.ID).CallbackAttempts == 1 })
	s.ShiftClock(-time.Hour)
	accept(t, s, after, store.LaneIO) // is neither late nor hurried
	for _, r := range []*tandem.Request{before, after} {
		waitStatus(t, s, r.ID, tandem.StatusCallbackSent)
		mu.Lock()
		if made := tries[r.ID]; len(made) != 2 || made[1].Sub(made[0]) < wait-wait/100 { // clocks may be slewed
			t.Errorf("tries at %v, want two that are at least %v apart", made, wait)
		}
		mu.Unlock()
	}
	if age := mustStats(t, s).OldestDue; !age.IsZero() {
		t.Errorf("something has waited since %v", age)
	}
}

// The clock is set back while nothing is written and nobody asks: what waits is
// brought forward all the same.
func TestClockSetBackWhileIdle(t *testing.T) {
	t.Parallel()
	s := openMemory(t)
	tries := make(chan int, 10)
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{}`)
		}
		tries <- job.Request.CallbackAttempts
		if job.Request.CallbackAttempts == 0 {
			return store.Redeliver(attempt(1, tandem.OutcomeTimeout), time.Now().Add(time.Second), "")
		}
		return store.Delivered(attempt(2, tandem.OutcomeDelivered))
	})
	r := newAsync()
	accept(t, s, r, store.LaneIO)
	tandemtest.WaitFor(t, "the first try", func() bool { return mustRequest(t, s, r.ID).CallbackAttempts == 1 })
	<-tries
	s.ShiftClock(-time.Hour)
	select {
	case <-tries:
	case <-time.After(time.Minute):
		t.Fatal("the retry waits for the clock")
	}
}

// A backlog on disk, larger than memory holds, is worked off in its order although
// its due times seem to lie in the future.
func TestClockSetBackUnderABacklog(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	const n = sqlite.MaxReady + 500
	acceptMany(t, s, n, store.LaneIO)
	s.ShiftClock(-time.Hour)
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		return workEnded(`{}`)
	})
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return mustStats(t, s).Ended[tandem.StatusCallbackSent] == n
	})
}

// The clock is set forward, or the machine slept: what has become due meanwhile
// is dispatched soon, once, and what is due later still is not.
func TestClockSetForward(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	soon, late := newAsync(), newAsync()
	var second atomic.Int64
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{}`)
		}
		if job.Request.CallbackAttempts > 0 {
			second.Add(1)
			return store.Delivered(attempt(2, tandem.OutcomeDelivered))
		}
		at := time.Now().Add(time.Hour)
		if job.Request.ID == late.ID {
			at = at.Add(time.Hour)
		}
		return store.Redeliver(attempt(1, tandem.OutcomeTimeout), at, "")
	})
	for _, r := range []*tandem.Request{soon, late} {
		accept(t, s, r, store.LaneIO)
		tandemtest.WaitFor(t, "the first try", func() bool { return mustRequest(t, s, r.ID).CallbackAttempts == 1 })
	}
	s.ShiftClock(time.Hour)
	waitStatus(t, s, soon.ID, tandem.StatusCallbackSent)
	if r := mustRequest(t, s, late.ID); r.Status != tandem.StatusCompleted || second.Load() != 1 {
		t.Errorf("due in another hour: %s; %d second tries in all, want 1", r.Status, second.Load())
	}
	s.ShiftClock(time.Hour)
	waitStatus(t, s, late.ID, tandem.StatusCallbackSent)
}

// The clock was set back while no process ran: what was accepted before runs at
// the next start, and not when the clock is where it was.
func TestClockSetBackWhileDown(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	s.ShiftClock(time.Hour)
	r := newAsync()
	raw := uuid.Must(uuid.NewV7())
	ahead := binary.BigEndian.Uint64(raw[:8]) + uint64(time.Hour.Milliseconds())<<16
	binary.BigEndian.PutUint64(raw[:8], ahead)
	r.ID = tandem.ID(raw)
	accept(t, s, r, store.LaneIO)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openFile(t, path)
	work(t, again, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		return workEnded(`{}`)
	})
	waitStatus(t, again, r.ID, tandem.StatusCallbackSent)
}
