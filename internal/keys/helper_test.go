package keys_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/tandemtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// emptyPostgres returns the URL of a database that has the schema and nothing else.
func emptyPostgres(t testing.TB) string {
	t.Helper()
	return tandemtest.PostgresFrom(t, tandemtest.Volatile, "tandem_empty", func(url string) error {
		return postgres.Migrate(context.Background(), url)
	})
}

// keysDatabases are those that keys are kept in, each with what makes an empty one.
func keysDatabases() map[string]func(t testing.TB) string {
	return map[string]func(t testing.TB) string{
		"file":     keysPath,
		"postgres": emptyPostgres,
	}
}

// onEveryDatabase runs a check with an empty database of each kind.
func onEveryDatabase(t *testing.T, check func(t *testing.T, url string)) {
	t.Helper()
	for kind, empty := range keysDatabases() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			check(t, empty(t))
		})
	}
}

// openStore opens a database as a server does.
func openStore(t testing.TB, url string) store.Store {
	t.Helper()
	s, err := app.OpenStore(context.Background(), store.Config{URL: url, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// accept has a server write to its database.
func accept(t testing.TB, s store.Store) {
	t.Helper()
	r := &tandem.Request{
		ID: tandem.ID(uuid.Must(uuid.NewV7())), Mode: tandem.ModeSync, Task: "echo", Status: tandem.StatusProcessing,
		Data: []byte(`{}`), Complexity: 1, StartedAt: time.Now(),
	}
	if err := s.Accept(t.Context(), store.LaneNone, r); err != nil {
		t.Fatal(err)
	}
}

// runKeys keeps keys as they are in the database until the test ends or the returned function is called.
func runKeys(t testing.TB, k *keys.Keys) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func keysPath(t testing.TB) string { return filepath.Join(t.TempDir(), "tandem.db") }

func makeKey(t testing.TB, k *keys.Keys, name string, scopes ...tandem.Scope) keys.Made {
	t.Helper()
	made, err := k.Create(t.Context(), keys.NewKey{Name: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// valid reports whether a token is taken, and fails the test for any error but a refusal.
func valid(t testing.TB, k *keys.Keys, token tandem.Token, now time.Time) bool {
	t.Helper()
	_, err := k.Authenticate(token, now)
	if err != nil && tandem.CodeOf(err) != tandem.CodeUnauthenticated {
		t.Fatal(err)
	}
	return err == nil
}

func revealed(secrets []tandem.Secret) (texts []string) {
	for _, s := range secrets {
		texts = append(texts, s.Reveal())
	}
	return texts
}
