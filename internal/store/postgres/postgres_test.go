package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

const counted = storetest.Counted

var (
	accept        = storetest.Accept
	acceptMany    = storetest.AcceptMany
	attempt       = storetest.Attempt
	called        = storetest.Called
	everyLane     = storetest.EveryLane
	mustRequest   = storetest.MustRequest
	mustStats     = storetest.MustStats
	newAsync      = storetest.NewAsync
	newSubmission = storetest.NewSubmission
	newSync       = storetest.NewSync
	pause         = storetest.Pause
	quiet         = storetest.Quiet
	submissionJob = storetest.SubmissionJob
	waitStatus    = storetest.WaitStatus
	work          = storetest.Work
	workEnded     = storetest.WorkEnded
	workWith      = storetest.WorkWith
)

// TestConformance is what every store must keep.
func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Conform(t, func(t *testing.T) store.Store { return openPostgres(t) })
}

// TestQuotas is how much of the queue an owner may use.
func TestQuotas(t *testing.T) {
	t.Parallel()
	storetest.ConformQuotas(t, func(t *testing.T, cfg store.Config) store.Store {
		cfg.URL, cfg.Log = emptyPostgres(t, tandemtest.Volatile), quiet()
		s, err := postgres.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		storetest.CloseAtEnd(t, s)
		return s
	})
}

// emptyPostgres returns the URL of a database that has the schema and nothing else.
func emptyPostgres(t testing.TB, kind tandemtest.Durability) string {
	t.Helper()
	return tandemtest.PostgresFrom(t, kind, "tandem_empty", func(url string) error {
		return postgres.Migrate(context.Background(), url)
	})
}

// openPostgres opens an empty database and, at the end of the test, closes it and
// checks that its counters tell the truth.
func openPostgres(t testing.TB) *postgres.Store {
	t.Helper()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		storetest.CheckPostgres(t, url)
	})
	return s
}

// joinPostgres opens one more node on a database.
func joinPostgres(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, _ := joinNodes(t, url, "")
	return s
}

// beginPostgres opens a transaction on a connection of its own, which the caller closes.
func beginPostgres(t testing.TB, url string) pgx.Tx {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	open, err := conn.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return open
}
