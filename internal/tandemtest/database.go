package tandemtest

import (
	"context"
	"database/sql"
	"log/slog"
	"testing"
	"time"

	"tandem/internal/keys"
	"tandem/internal/store"
)

// WaitFor polls a condition, for tests that watch what others do to a database: there is nothing else to wait for.
func WaitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(5 * time.Minute) // only a hang takes so long, even on a busy machine
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// OpenDB opens a database of either kind for statements of the test's own, which are the same for both.
func OpenDB(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver := "sqlite"
	if store.IsPostgres(url) {
		driver = "pgx"
	}
	db, err := sql.Open(driver, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// OpenKeys opens the keys of a database of either kind until the test ends.
func OpenKeys(t testing.TB, url string) *keys.Keys {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	k, err := keys.Open(context.Background(), store.HandleConfig{URL: url, Create: true, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("close keys: %v", err)
		}
	})
	return k
}

// WithoutKeys are the statements that take a file back to the schema before there were API keys.
var WithoutKeys = []string{
	`DROP INDEX requests_undelivered`, `DROP INDEX requests_parked`, `DROP INDEX requests_queue`,
	`ALTER TABLE requests DROP COLUMN waits_for`, `ALTER TABLE requests DROP COLUMN owner`,
	`CREATE INDEX requests_queue ON requests (lane, due_at, seq) WHERE lane IS NOT NULL`,
	`DROP TABLE key_totals`, `DROP INDEX requests_key`, `ALTER TABLE requests DROP COLUMN key_id`, `DROP TABLE keys`,
	`DELETE FROM goose_db_version WHERE version_id >= 3`,
}
