package store_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// emptyPostgres returns the URL of a database that has the schema and nothing else.
func emptyPostgres(t testing.TB, kind tandemtest.Durability) string {
	t.Helper()
	return tandemtest.PostgresFrom(t, kind, "tandem_empty", func(url string) error {
		return store.MigratePostgres(context.Background(), url)
	})
}

// openPostgres opens an empty database and, at the end of the test, closes it and
// checks that its counters tell the truth.
func openPostgres(t testing.TB) *store.Postgres {
	t.Helper()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		checkPostgres(t, url)
	})
	return s
}

// joinPostgres opens one more node on a database.
func joinPostgres(t testing.TB, url string) *store.Postgres {
	t.Helper()
	s, _ := joinNodes(t, url, "")
	return s
}

// execPostgres does something behind the store's back.
func execPostgres(t testing.TB, url, statement string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statement, args...); err != nil {
		t.Fatal(err)
	}
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

// askPostgres returns the text that a query yields.
func askPostgres(t testing.TB, url, query string) (text string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), query).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// checkPostgres recounts what the counters of a database claim that nobody uses.
func checkPostgres(t testing.TB, url string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	recounts := map[string]string{
		"unfinished/all":  `SELECT count(*) FROM requests WHERE lane IS NOT NULL OR status IN ('pending', 'processing')`,
		"rows/all":        `SELECT count(*) FROM requests`,
		"submission/rows": `SELECT count(*) FROM requests WHERE task = 'submission'`,
		"now/pending":     `SELECT count(*) FROM requests WHERE status = 'pending'`,
		"now/processing":  `SELECT count(*) FROM requests WHERE status = 'processing'`,
		"queue/cpu":       `SELECT count(*) FROM requests WHERE lane = 'cpu'`,
		"queue/io":        `SELECT count(*) FROM requests WHERE lane = 'io'`,
		"queue/deliver":   `SELECT count(*) FROM requests WHERE lane = 'deliver'`,
		"attempts left":   `SELECT count(*) FROM attempts WHERE request NOT IN (SELECT id FROM requests)`,
		"lanes alone":     `SELECT count(*) FROM requests WHERE (lane IS NULL) <> (job_id IS NULL)`,
		"jobs gone":       `SELECT count(*) FROM requests WHERE job_id IS NOT NULL AND job_id NOT IN (SELECT id FROM river_job)`,
		"jobs alone":      `SELECT count(*) FROM river_job WHERE id NOT IN (SELECT job_id FROM requests WHERE job_id IS NOT NULL)`,
	}
	for name, query := range recounts {
		var counted, kept int64
		if err := conn.QueryRow(context.Background(), query).Scan(&counted); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		err := conn.QueryRow(context.Background(), `SELECT coalesce(sum((counts::jsonb ->> $1)::bigint), 0) FROM counters`, name).Scan(&kept)
		if err != nil {
			t.Error(err)
		}
		if counted != kept {
			t.Errorf("counter %s says %d, the table has %d", name, kept, counted)
		}
	}
}
