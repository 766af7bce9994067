package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// lossy is a way to a database on which connections break just when an answer is due: what was asked for
// has been done, and nobody is told.
type lossy struct {
	upstream string // a socket
	worse    atomic.Int64
	lost     atomic.Int64
	last     atomic.Bool // the next commit is the last thing that gets through
	cut      atomic.Bool // nothing does
	running  sync.WaitGroup
}

// newLossy returns the way and the URL that leads over it. It loses nothing until worse is set: then one answer in so many.
func newLossy(t *testing.T, direct string) (*lossy, string) {
	t.Helper()
	database, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{upstream: filepath.Join(database.Query().Get("host"), ".s.PGSQL.5432")}
	l.running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			l.running.Go(func() { l.carry(near) })
		}
	})
	t.Cleanup(func() { // the stores that use it are closed by now
		listener.Close()
		l.running.Wait()
	})
	return l, "postgres://postgres@" + listener.Addr().String() + database.Path + "?sslmode=disable"
}

func (l *lossy) carry(near net.Conn) {
	defer near.Close()
	if l.cut.Load() {
		return
	}
	far, err := net.Dial("unix", l.upstream)
	if err != nil {
		return
	}
	defer far.Close()
	var asking sync.WaitGroup
	asking.Go(func() {
		pass(far, near, func(said []byte) bool {
			if bytes.Contains(said, []byte("commit")) && l.last.Swap(false) {
				l.cut.Store(true)
			}
			return false
		})
		far.Close()
	})
	pass(near, far, func([]byte) bool {
		if l.cut.Load() {
			return true
		}
		worse := l.worse.Load()
		if worse == 0 || rand.Int64N(worse) > 0 {
			return false
		}
		l.lost.Add(1)
		return true
	})
	near.Close()
	asking.Wait()
}

// pass carries what one side says to the other until either is gone or something is lost.
func pass(to, from net.Conn, lost func(said []byte) bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || lost(buffer[:n]) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// When answers of the database are lost, whatever they are to, every request comes to its end once, the figures are
// right, and what was reported as done is.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	direct := emptyPostgres(t, tandemtest.Volatile)
	way, lossyURL := newLossy(t, direct)
	s := joinPostgres(t, lossyURL)
	stop := work(t, s, delivered)

	way.worse.Store(40)
	var mu sync.Mutex
	promised := map[string]tandem.Status{} // :: id → how it has to end
	expect := func(id string, status tandem.Status) {
		mu.Lock()
		defer mu.Unlock()
		promised[id] = status
	}
	var asking sync.WaitGroup
	over, enough := context.WithCancel(t.Context())
	defer enough()
	for range 4 {
		asking.Go(func() {
			for over.Err() == nil {
				r := newAsync()
				switch err := s.Accept(context.Background(), store.LaneIO, r); {
				case err == nil:
					expect(r.ID, tandem.StatusCallbackSent)
				case tandem.CodeOf(err) != tandem.CodeStoreUnavailable:
					t.Errorf("accept: %v", err)
				}
				pause(5 * time.Millisecond)
			}
		})
		asking.Go(func() {
			for over.Err() == nil {
				r := newSync()
				switch err := s.Accept(context.Background(), store.LaneNone, r); {
				case err == nil:
					if !finish(t, s, r) {
						t.Errorf("%s was ended by somebody else, it seems", r.ID)
					}
					expect(r.ID, tandem.StatusCompleted)
				case errors.Is(err, store.ErrUnsure):
					finish(t, s, r) // nobody else would
				case tandem.CodeOf(err) != tandem.CodeStoreUnavailable:
					t.Errorf("accept: %v", err)
				}
				pause(5 * time.Millisecond)
			}
		})
	}
	asking.Go(func() {
		for over.Err() == nil {
			page, err := s.Requests(context.Background(), store.Filter{Limit: 1000})
			if err != nil && tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
				t.Errorf("read: %v", err)
			}
			for i := 1; i < len(page.Requests); i++ {
				if page.Requests[i-1].ID <= page.Requests[i].ID {
					t.Errorf("a page goes on with %s after %s", page.Requests[i].ID, page.Requests[i-1].ID)
				}
			}
			pause(5 * time.Millisecond)
		}
	})
	tandemtest.WaitFor(t, "enough to be promised and lost", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(promised) >= 200 && way.lost.Load() >= 40
	})
	enough()
	asking.Wait()
	way.worse.Store(0)

	tandemtest.WaitFor(t, "all to be done", func() bool {
		stats, err := s.Stats(context.Background())
		return err == nil && stats.Unavailable == nil && stats.Unfinished == 0
	})
	for id, want := range promised {
		if r := mustRequest(t, s, id); r.Status != want {
			t.Errorf("%s is %s, want %s", id, r.Status, want)
		}
	}
	t.Logf("%d promised, %d answers lost", len(promised), way.lost.Load())
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, direct)
}

// finish ends a sync request, however often that takes, and reports whether it was this call that has: one
// that finds it ended after an earlier try was refused goes by that.
func finish(t *testing.T, s store.Store, r *tandem.Request) bool {
	next := workEnded(`{}`)
	for tries := 1; ; tries++ {
		err := s.Finish(context.Background(), store.Job{Request: *r}, next)
		switch {
		case err == nil:
			return true
		case tandem.CodeOf(err) == tandem.CodeNotFound:
			return tries > 1
		case tandem.CodeOf(err) != tandem.CodeStoreUnavailable:
			t.Errorf("finish: %v", err)
			return false
		}
		pause(10 * time.Millisecond)
	}
}

// The fate of a commit whose answer was lost, and after which nothing was written, is found out: the figures say
// what the rows say.
func TestLastAnswerLost(t *testing.T) {
	t.Parallel()
	direct := emptyPostgres(t, tandemtest.Volatile)
	way, lossyURL := newLossy(t, direct)
	s := joinPostgres(t, lossyURL)
	accept(t, s, newAsync(), store.LaneIO)

	way.last.Store(true)
	for !way.cut.Load() { // any commit may be the last, the heartbeat's too
		r := newAsync()
		if err := s.Accept(t.Context(), store.LaneIO, r); err != nil && tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
			t.Fatalf("accept: %v", err)
		}
	}
	way.cut.Store(false)
	tandemtest.WaitFor(t, "the store to be well", func() bool { return mustStats(t, s).Unavailable == nil })
	tandemtest.WaitFor(t, "the figures to say what is there", func() bool {
		page, err := s.Requests(t.Context(), store.Filter{Limit: 1000})
		if err != nil {
			return false
		}
		stats := mustStats(t, s)
		kept := int64(len(page.Requests))
		return stats.Requests[tandem.ModeAsync] == kept && stats.Unfinished == kept
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, direct)
}
