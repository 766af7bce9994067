package sqlite_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

const busySite = "https://busy.example:443"

// endedFor is work that has ended, whose callback goes to a destination.
func endedFor(destination string) store.Next {
	return store.Finished(goodOutcome(`{}`), destination)
}

// parkedRows counts the rows that are parked on disk.
func parkedRows(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(),
		`SELECT count(*) FROM requests WHERE waits_for IS NOT NULL`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Callbacks for a busy destination wait in memory: no step, no write. They are counted, others pass them, and what its
// breaker holds back is parked by its step.
func TestBusyDestinationIsAwaited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	var room, steps, at, most atomic.Int64
	room.Store(2)
	free := make(chan struct{})
	release := sync.OnceFunc(func() { close(free) })
	defer release()
	capacity := everyLane
	capacity.Room = func(destination, _ string) int {
		if destination != busySite {
			return 100
		}
		return int(room.Load())
	}
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane != store.LaneDeliver && job.Request.Owner == "well":
			return endedFor("https://well.example:443")
		case job.Lane != store.LaneDeliver:
			return endedFor(busySite)
		case job.Request.Owner == "well":
			return sent
		}
		steps.Add(1)
		if room.Load() == 0 {
			return store.Postpone(time.Time{}, busySite)
		}
		n := at.Add(1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		<-free
		at.Add(-1)
		job.Answered()
		return sent
	})
	waiting := append(accepted(t, s, "a", 50), accepted(t, s, "b", 50)...)
	for _, id := range accepted(t, s, "well", 20) {
		waitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	tandemtest.WaitFor(t, "98 to be counted", func() bool {
		u := mustUndelivered(t, s)
		return len(u.Sites) == 1 && u.Sites[0].Site == busySite && u.Sites[0].Count == 98 && !u.Sites[0].Oldest.IsZero()
	})
	if n, rows := steps.Load(), parkedRows(t, path); n != 2 || rows > 0 {
		t.Errorf("%d were dispatched and %d parked, want 2 and none: there is room for two", n, rows)
	}
	room.Store(0)
	tandemtest.WaitFor(t, "those that wait to be parked", func() bool { return parkedRows(t, path) == 98 })
	room.Store(2)
	release()
	for _, id := range waiting {
		waitStatus(t, s, id, tandem.StatusCallbackSent)
	}
	if n := most.Load(); n > 2 {
		t.Errorf("%d were with their destination at the same time, which has room for 2", n)
	}
	if u := mustUndelivered(t, s); len(u.Sites) > 0 {
		t.Errorf("after all were delivered: %+v", u)
	}
}

// A callback that is parked while others of its group are about to be read is read with them.
func TestParkedDuringRefill(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	var room atomic.Int64
	capacity := everyLane
	capacity.Room = func(string, string) int { return int(room.Load()) }
	first, second := newAsync(), newAsync()
	begun, again := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.OnRefilling(func(lane store.Lane) {
		select {
		case <-begun: // second is parked on disk, and the queue does not know it yet
		default:
			return
		}
		if lane == store.LaneDeliver {
			once.Do(func() {
				close(again)
				tandemtest.WaitFor(t, "second to be parked", func() bool { return s.Running(store.LaneDeliver) == 0 })
			})
		}
	})
	var steps sync.Map // :: id → *atomic.Int64, steps of its callback
	s.OnCommitted(func(id string, from store.Lane) {
		count, ok := steps.Load(id)
		if ok && id == second.ID && from == store.LaneDeliver && count.(*atomic.Int64).Load() == 2 {
			close(begun)
			<-again
		}
	})
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return endedFor(busySite)
		}
		count, _ := steps.LoadOrStore(job.Request.ID, new(atomic.Int64))
		switch n := count.(*atomic.Int64).Add(1); {
		case n > 2:
			return sent
		case n == 2 && job.Request.ID == first.ID:
			<-begun
		}
		return store.Postpone(time.Time{}, busySite)
	})
	accept(t, s, first, store.LaneIO)
	accept(t, s, second, store.LaneIO)
	tandemtest.WaitFor(t, "both to be parked", func() bool {
		u := mustUndelivered(t, s)
		return len(u.Sites) == 1 && u.Sites[0].Count == 2 && s.Running(store.LaneDeliver) == 0
	})
	room.Store(2)
	waitStatus(t, s, first.ID, tandem.StatusCallbackSent)
	waitStatus(t, s, second.ID, tandem.StatusCallbackSent)
}

// What waits in memory for a busy destination is dispatched when it is too old.
func TestAwaitingBecomesTooOld(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	capacity := everyLane
	capacity.MaxAge = time.Second
	capacity.Room = func(string, string) int { return 1 }
	free := make(chan struct{})
	defer close(free)
	var delivering atomic.Bool
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane != store.LaneDeliver:
			return endedFor(busySite)
		case delivering.CompareAndSwap(false, true):
			<-free // hangs
			return sent
		case time.Since(job.Request.CompletedAt) < capacity.MaxAge:
			t.Error("dispatched before it was too old")
		}
		return store.GiveUp(attempt(0, tandem.OutcomeExpired))
	})
	first := accepted(t, s, "a", 1)
	tandemtest.WaitFor(t, "the first one to be delivered", delivering.Load)
	for _, id := range accepted(t, s, "a", 10) {
		waitStatus(t, s, id, tandem.StatusCallbackFailed)
	}
	waitStatus(t, s, first[0], tandem.StatusCompleted)
}

// Memory holds a bounded number of callbacks that wait for a busy destination. The others are parked in the commit
// that ends their work, and all are delivered, the longest wait first.
func TestAwaitingIsBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	const count = 9000
	requests := make([]*tandem.Request, count)
	for i := range requests {
		requests[i] = newAsync()
		requests[i].Owner = "a"
	}
	for batch := range 9 {
		if err := s.Accept(t.Context(), store.LaneIO, requests[batch*1000:(batch+1)*1000]...); err != nil {
			t.Fatal(err)
		}
	}
	free := make(chan struct{})
	release := sync.OnceFunc(func() { close(free) })
	defer release()
	capacity := everyLane
	capacity.Room = func(string, string) int { return 4 }
	var worked atomic.Int64
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			worked.Add(1)
			return endedFor(busySite)
		}
		<-free
		job.Answered()
		return sent
	})
	tandemtest.WaitFor(t, "all work to end", func() bool {
		u := mustUndelivered(t, s)
		return worked.Load() == count && len(u.Sites) == 1 && u.Sites[0].Count >= count-100
	})
	if n := parkedRows(t, path); n < 500 || n > 1500 {
		t.Errorf("%d of %d rows are parked, want what memory has no room for (about 800)", n, count)
	}
	release()
	for _, r := range requests {
		waitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	}
}
