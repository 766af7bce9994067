package sqlite_test

import (
	"context"
	"flag"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

func TestMain(m *testing.M) {
	// The tests mostly wait for clocks and disks: six run at a time, however few cores there are, unless -parallel says otherwise.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// A store is opened, used from all sides and closed in the middle of it, again
// and again: every call ends, what was accepted is kept, and nothing stays behind (TestMain).
func TestStartAndStopOften(t *testing.T) {
	t.Parallel()
	const times = 60
	for name, url := range map[string]func(*testing.T) string{
		"memory":      func(*testing.T) string { return ":memory:" },
		"more memory": func(*testing.T) string { return ":memory:" },
		"file":        func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "tandem.db") },
		"other file":  func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "tandem.db") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			name := url(t)
			var total, refused int
			for round := range times {
				accepted, failed := startAndStop(t, name, time.Duration(round%8)*time.Millisecond)
				if name == ":memory:" {
					total = 0
				}
				total += accepted
				refused += failed
			}
			t.Logf("%d accepted at the end, %d refused while closing", total, refused)
			if name == ":memory:" {
				return
			}
			s := openFile(t, name)
			if stats := mustStats(t, s); stats.Requests[tandem.ModeAsync] < int64(total) {
				t.Errorf("%d of %d accepted requests are kept", stats.Requests[tandem.ModeAsync], total)
			}
		})
	}
}

// startAndStop opens a store, closes it a moment later and returns how many
// requests it accepted and refused meanwhile.
func startAndStop(t *testing.T, url string, moment time.Duration) (accepted, refused int) {
	t.Helper()
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var working, asking sync.WaitGroup
	working.Go(func() {
		err := s.Work(ctx, everyLane, func(_ context.Context, job store.Job) store.Next {
			job.Started()
			if job.Lane == store.LaneDeliver {
				return store.Delivered(attempt(1, tandem.OutcomeDelivered))
			}
			return workEnded(`{}`)
		})
		if err != nil {
			t.Errorf("work: %v", err)
		}
	})
	var mu sync.Mutex
	for range 3 {
		asking.Go(func() {
			for {
				err := s.Accept(context.Background(), store.LaneIO, newAsync())
				mu.Lock()
				if err != nil {
					refused++
				} else {
					accepted++
				}
				mu.Unlock()
				if err != nil {
					if code := tandem.CodeOf(err); code != tandem.CodeStoreUnavailable {
						t.Errorf("while closing: %v, want %s", err, tandem.CodeStoreUnavailable)
					}
					return
				}
				if _, err := s.Stats(context.Background()); err != nil && tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
					t.Errorf("stats while closing: %v", err)
				}
			}
		})
	}
	pause(moment)
	cancel()
	working.Wait()
	var closing sync.WaitGroup
	for range 2 {
		closing.Go(func() {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	closing.Wait()
	asking.Wait()
	return accepted, refused
}
