package app_test

import (
	"context"
	"testing"

	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

const counted = storetest.Counted

var (
	accept        = storetest.Accept
	attempt       = storetest.Attempt
	called        = storetest.Called
	mustRequest   = storetest.MustRequest
	mustStats     = storetest.MustStats
	newAsync      = storetest.NewAsync
	newSubmission = storetest.NewSubmission
	newSync       = storetest.NewSync
	quiet         = storetest.Quiet
	submissionJob = storetest.SubmissionJob
	waitStatus    = storetest.WaitStatus
	work          = storetest.Work
	workEnded     = storetest.WorkEnded
	workWith      = storetest.WorkWith
)

// openFile opens a database file until the test ends.
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

// emptyPostgres returns the URL of a database that has the schema and nothing else.
func emptyPostgres(t testing.TB, kind tandemtest.Durability) string {
	t.Helper()
	return tandemtest.PostgresFrom(t, kind, "tandem_empty", func(url string) error {
		return postgres.Migrate(context.Background(), url)
	})
}

// joinPostgres opens a node on a database until the test ends.
func joinPostgres(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	storetest.CloseAtEnd(t, s)
	return s
}
