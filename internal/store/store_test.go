package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/keys"
	"tandem/internal/store"
)

// counted is the task that is counted on its own.
const counted = "submission"

// openFile opens a database file and, at the end of the test, closes it and
// checks that the file is sound and its counters tell the truth.
func openFile(t testing.TB, path string) *store.SQLite {
	t.Helper()
	s, err := store.OpenSQLite(context.Background(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		checkFile(t, path)
	})
	return s
}

func openMemory(t testing.TB) *store.SQLite {
	t.Helper()
	s, err := store.OpenSQLite(context.Background(), store.Config{Counted: counted, URL: ":memory:", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

// closeAtEnd closes a store when the test has ended.
func closeAtEnd(t testing.TB, s store.Store) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// checkFile runs PRAGMA integrity_check on a closed database and recounts what
// the counters claim.
func checkFile(t testing.TB, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path)+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity_check: %s, %v", verdict, err)
	}
	recounts := map[string]string{
		"unfinished/all":  `SELECT count(*) FROM requests WHERE lane IS NOT NULL OR status IN ('pending', 'processing')`,
		"rows/all":        `SELECT count(*) FROM requests`,
		"submission/rows": `SELECT count(*) FROM requests WHERE task = 'submission'`,
		"now/pending":     `SELECT count(*) FROM requests WHERE status = 'pending'`,
		"now/processing":  `SELECT count(*) FROM requests WHERE status = 'processing'`,
		"queue/cpu":       `SELECT count(*) FROM requests WHERE lane = 'cpu'`,
		"queue/io":        `SELECT count(*) FROM requests WHERE lane = 'io'`,
		"queue/deliver":   `SELECT count(*) FROM requests WHERE lane = 'deliver'`,
		"attempts in all": `SELECT count(*) FROM attempts WHERE request NOT IN (SELECT seq FROM requests)`, // orphans: none
	}
	var wrong int64
	err = db.QueryRow(`
		SELECT count(*)
		FROM (SELECT key_id, count(*) AS n FROM requests WHERE task = 'submission' AND key_id IS NOT NULL GROUP BY key_id) AS own
		FULL JOIN key_totals ON own.key_id = key_totals.key_id
		WHERE coalesce(n, 0) <> coalesce(submissions, 0)`).Scan(&wrong)
	if err != nil || wrong != 0 {
		t.Errorf("the submissions of %d keys are counted wrongly, %v", wrong, err)
	}
	for name, query := range recounts {
		var counted, kept int64
		if err := db.QueryRow(query).Scan(&counted); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		err := db.QueryRow(`SELECT value FROM counters WHERE name = ?`, name).Scan(&kept)
		if err != nil && err != sql.ErrNoRows {
			t.Error(err)
		}
		if counted != kept {
			t.Errorf("counter %s says %d, the table has %d", name, kept, counted)
		}
	}
}

func newRequest(mode tandem.Mode) *tandem.Request {
	id := tandem.ID(uuid.Must(uuid.NewV7()))
	created, err := tandem.IDTime(id)
	if err != nil {
		panic(err)
	}
	return &tandem.Request{
		ID: id, Mode: mode, Task: "echo", Status: tandem.StatusPending, Data: json.RawMessage(`{"n": 1}`), Complexity: 1, CreatedAt: created,
	}
}

func newAsync() *tandem.Request {
	r := newRequest(tandem.ModeAsync)
	r.CallbackStatus, r.CallbackURL = tandem.CallbackPending, "http://127.0.0.1:1/hook"
	return r
}

func newSync() *tandem.Request {
	r := newRequest(tandem.ModeSync)
	r.Status, r.StartedAt = tandem.StatusProcessing, time.Now().UTC().Truncate(time.Microsecond)
	return r
}

var everyLane = store.Capacity{Jobs: map[store.Lane]int{store.LaneCPU: 4, store.LaneIO: 64, store.LaneDeliver: 256}}

// work runs Work until the test ends or the returned function is called.
func work(t testing.TB, s store.Store, step store.Step) (stop func()) {
	t.Helper()
	return workWith(t, s, everyLane, step)
}

func workWith(t testing.TB, s store.Store, capacity store.Capacity, step store.Step) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Work(ctx, capacity, step); err != nil {
			t.Errorf("work: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func mustRequest(t testing.TB, s store.Store, id string) tandem.Request {
	t.Helper()
	r, err := s.Request(context.Background(), id)
	if err != nil {
		t.Fatalf("request %s: %v", id, err)
	}
	return r
}

func accept(t testing.TB, s store.Store, r *tandem.Request, lane store.Lane) {
	t.Helper()
	if err := s.Accept(context.Background(), lane, r); err != nil {
		t.Fatal(fmt.Errorf("accept %s: %w", r.ID, err))
	}
}

// workEnded is what a step returns for work that ended well.
func workEnded(result string) store.Next {
	return store.Finished(goodOutcome(result), "")
}

func goodOutcome(result string) store.Outcome {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Outcome{
		Result: json.RawMessage(result), StartedAt: now, CompletedAt: now, Processing: 1500 * time.Microsecond,
	}
}

func attempt(number int, outcome tandem.Outcome) tandem.Attempt {
	return tandem.Attempt{Number: number, StartedAt: time.Now().UTC().Truncate(time.Microsecond), DurationMS: 2.5, StatusCode: 200, Outcome: outcome}
}

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
