package tandemtest

import (
	"context"
	"database/sql"
	"log/slog"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
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
	if postgres.Names(url) {
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
	k, err := app.OpenKeys(context.Background(), store.HandleConfig{URL: url, Create: true, Log: quiet})
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

// MakeKey makes a key.
func MakeKey(t testing.TB, k *keys.Keys, name string, scopes ...tandem.Scope) keys.Made {
	t.Helper()
	made, err := k.Create(t.Context(), keys.NewKey{Name: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// ValidToken reports whether a token is taken, and fails the test for any error but a refusal.
func ValidToken(t testing.TB, k *keys.Keys, token tandem.Token, now time.Time) bool {
	t.Helper()
	_, err := k.Authenticate(token, now)
	if err != nil && tandem.CodeOf(err) != tandem.CodeUnauthenticated {
		t.Fatal(err)
	}
	return err == nil
}

// Revealed are the texts of secrets.
func Revealed(secrets []tandem.Secret) (texts []string) {
	for _, s := range secrets {
		texts = append(texts, s.Reveal())
	}
	return texts
}

// WithoutKeys are the statements that take a file back to the schema before there were API keys.
var WithoutKeys = []string{
	`DROP INDEX requests_undelivered`, `DROP INDEX requests_parked`, `DROP INDEX requests_queue`,
	`ALTER TABLE requests DROP COLUMN waits_for`, `ALTER TABLE requests DROP COLUMN owner`,
	`CREATE INDEX requests_queue ON requests (lane, due_at, seq) WHERE lane IS NOT NULL`,
	`DROP TABLE key_totals`, `DROP INDEX requests_key`, `ALTER TABLE requests DROP COLUMN key_id`, `DROP TABLE keys`,
	`DELETE FROM goose_db_version WHERE version_id >= 3`,
}
