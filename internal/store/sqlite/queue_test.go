package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/tandemtest"
)

// A request that comes while its lane is about to read the index, and is left to the index because older ones are
// there, is read: nothing else would look for it.
func TestAcceptedDuringRefill(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	older, late := newAsync(), newAsync()
	accept(t, s, older, store.LaneIO)
	var once sync.Once
	s.OnRefilling(func(lane store.Lane) {
		if lane == store.LaneIO {
			once.Do(func() { accept(t, s, late, store.LaneIO) })
		}
	})
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{}`)
		}
		return store.Delivered(attempt(1, tandem.OutcomeDelivered))
	})
	waitStatus(t, s, older.ID, tandem.StatusCallbackSent)
	waitStatus(t, s, late.ID, tandem.StatusCallbackSent)
}

// The index shows a row in its next lane as soon as it is committed, which is
// before the goroutine that committed it has handed it on. It is dispatched once.
func TestHandedOnOnce(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	restless, r := newAsync(), newAsync()
	delivered := make(chan struct{}) // closed when r is, in the index's way
	s.OnCommitted(func(id string, from store.Lane) {
		switch {
		case id != r.ID:
		case from == store.LaneDeliver:
			select {
			case <-delivered:
			default:
				close(delivered)
			}
		default:
			select {
			case <-delivered:
			case <-time.After(200 * time.Millisecond): // as it should be: nobody else delivers it
			}
		}
	})
	var times atomic.Int64
	var ended atomic.Bool
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane != store.LaneDeliver:
			return workEnded(`{}`)
		case job.Request.ID == r.ID:
			times.Add(1)
		case !ended.Load(): // has the lane look at its index again and again
			return store.Postpone(time.Now().Add(time.Millisecond), "")
		}
		return store.Delivered(attempt(1, tandem.OutcomeDelivered))
	})
	accept(t, s, restless, store.LaneIO)
	accept(t, s, r, store.LaneIO)
	waitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	ended.Store(true)
	waitStatus(t, s, restless.ID, tandem.StatusCallbackSent)
	if n := times.Load(); n != 1 {
		t.Errorf("delivered %d times, want once", n)
	}
}

// A result whose row has gone is nothing to try for ever, and no fault of the database.
func TestRowDeletedByHand(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var steps atomic.Int64
	stepped := make(chan struct{})
	stop := work(t, s, func(context.Context, store.Job) store.Next {
		if steps.Add(1) == 1 {
			defer close(stepped)
		}
		outside(t, path, `DELETE FROM requests`)
		return workEnded(`{}`)
	})
	accept(t, s, newAsync(), store.LaneIO)
	<-stepped
	stop()
	if n := steps.Load(); n != 1 {
		t.Errorf("worked on it %d times, want once", n)
	}
	if got := mustStats(t, s); got.Commits.Failed != 0 || got.Unavailable != nil {
		t.Errorf("%d commits failed, the database is %v; want none, and well", got.Commits.Failed, got.Unavailable)
	}
}

// outside runs a statement on a connection of its own, as the sqlite3 shell would.
func outside(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Error(err)
		return
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Error(err)
	}
}

// locked holds the lock for writing from outside, as the sqlite3 shell would,
// until the returned function is called.
func locked(t *testing.T, path string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

// While another program holds the lock on the database nobody's write is to
// blame, so those that came together fail together instead of each waiting in turn.
func TestLockedByAnotherProgram(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	if err := s.SetPatience(100 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	unlock := locked(t, path)
	const n = 50
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			if err := s.Accept(context.Background(), store.LaneIO, newAsync()); tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
				t.Errorf("accept: %v, want %s", err, tandem.CodeStoreUnavailable)
			}
		})
	}
	group.Wait()
	if got := mustStats(t, s); got.Commits.Failed >= n || got.Unavailable == nil {
		t.Errorf("%d commits failed for %d writes, unavailable: %v", got.Commits.Failed, n, got.Unavailable)
	}
	unlock()
	tandemtest.WaitFor(t, "the store to find by itself that the lock is free",
		func() bool { return mustStats(t, s).Unavailable == nil })
	accept(t, s, newAsync(), store.LaneIO)
}

// Jobs step back during a burst, but not for long after it: work that takes its
// time commits nothing by which the end of the burst would be noticed.
func TestBurstEnds(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	var running atomic.Int64
	release := make(chan struct{})
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		running.Add(1)
		defer running.Add(-1)
		<-release
		return workEnded(`{}`)
	})
	defer close(release)
	acceptMany(t, s, 1000, store.LaneIO)
	tandemtest.WaitFor(t, "every slot of one owner to be used", func() bool {
		return running.Load() == int64(everyLane.Jobs[store.LaneIO])/2
	})
}

// A large job is let through although small ones of other lanes would always fill
// the bytes that are given back.
func TestLargeJobsAreNotStarved(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	large := newAsync()
	large.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 1900) + `"}`)
	const n = 100
	started := make(chan struct{}, n+1) // a token for each small job
	var small, before atomic.Int64
	for range n {
		r := newAsync()
		r.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 900) + `"}`)
		accept(t, s, r, store.LaneIO)
	}
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneCPU: 1, store.LaneIO: 2}, Bytes: 2500}
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneCPU {
			before.Store(small.Load())
			return workEnded(`{}`)
		}
		switch small.Add(1) {
		case 1:
			accept(t, s, large, store.LaneCPU)
		default:
			started <- struct{}{}
		}
		select { // so that one small job always runs
		case <-started:
		case <-time.After(20 * time.Millisecond):
		}
		return workEnded(`{}`)
	})
	tandemtest.WaitFor(t, "all work to be done", func() bool {
		return mustStats(t, s).Ended[tandem.StatusCompleted] == n+1
	})
	if got := before.Load(); got > n/2 {
		t.Errorf("%d of %d small jobs went first", got, n)
	}
}
