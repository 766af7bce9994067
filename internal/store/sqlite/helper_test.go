package sqlite_test

import (
	"context"
	"path/filepath"
	"testing"

	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
)

const counted = storetest.Counted

var (
	accept          = storetest.Accept
	acceptMany      = storetest.AcceptMany
	accepted        = storetest.AcceptedFor
	attempt         = storetest.Attempt
	called          = storetest.Called
	everyLane       = storetest.EveryLane
	goodOutcome     = storetest.GoodOutcome
	mustRequest     = storetest.MustRequest
	mustUndelivered = storetest.MustUndelivered
	mustStats       = storetest.MustStats
	newAsync        = storetest.NewAsync
	newSubmission   = storetest.NewSubmission
	newSync         = storetest.NewSync
	pause           = storetest.Pause
	quiet           = storetest.Quiet
	sent            = storetest.Sent
	submissionJob   = storetest.SubmissionJob
	waitStatus      = storetest.WaitStatus
	work            = storetest.Work
	workEnded       = storetest.WorkEnded
	workWith        = storetest.WorkWith
)

// TestConformance is what every store must keep.
func TestConformance(t *testing.T) {
	t.Parallel()
	for kind, open := range map[string]func(t *testing.T) store.Store{
		"file":   func(t *testing.T) store.Store { return openFile(t, filepath.Join(t.TempDir(), "tandem.db")) },
		"memory": func(t *testing.T) store.Store { return openMemory(t) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			storetest.Conform(t, open)
		})
	}
}

// TestQuotas is how much of the queue an owner may use.
func TestQuotas(t *testing.T) {
	t.Parallel()
	for kind, url := range map[string]func(t *testing.T) string{
		"file":   func(t *testing.T) string { return filepath.Join(t.TempDir(), "tandem.db") },
		"memory": func(*testing.T) string { return ":memory:" },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			storetest.ConformQuotas(t, func(t *testing.T, cfg store.Config) store.Store {
				cfg.URL, cfg.Log = url(t), quiet()
				s, err := sqlite.Open(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				storetest.CloseAtEnd(t, s)
				return s
			})
		})
	}
}

// openFile opens a database file and, at the end of the test, closes it and
// checks that the file is sound and its counters tell the truth.
func openFile(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		storetest.CheckFile(t, path)
	})
	return s
}

func openMemory(t testing.TB) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: ":memory:", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	storetest.CloseAtEnd(t, s)
	return s
}
