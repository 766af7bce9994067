package storetest

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/store"
)

// Counted is the task that is counted on its own.
const Counted = "submission"

// CloseAtEnd closes a store when the test has ended.
func CloseAtEnd(t testing.TB, s store.Store) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// Quiet logs nothing.
func Quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// CheckFile runs PRAGMA integrity_check on a closed database and recounts what
// the counters claim.
func CheckFile(t testing.TB, path string) {
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
		var Counted, kept int64
		if err := db.QueryRow(query).Scan(&Counted); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		err := db.QueryRow(`SELECT value FROM counters WHERE name = ?`, name).Scan(&kept)
		if err != nil && err != sql.ErrNoRows {
			t.Error(err)
		}
		if Counted != kept {
			t.Errorf("counter %s says %d, the table has %d", name, kept, Counted)
		}
	}
}

// CheckPostgres recounts what the counters of a database claim that nobody uses.
func CheckPostgres(t testing.TB, url string) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
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
		if err := db.QueryRow(query).Scan(&counted); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		err := db.QueryRow(`SELECT coalesce(sum((counts::jsonb ->> $1)::bigint), 0) FROM counters`, name).Scan(&kept)
		if err != nil {
			t.Error(err)
		}
		if counted != kept {
			t.Errorf("counter %s says %d, the table has %d", name, kept, counted)
		}
	}
}

// NewRequest is a pending request of a mode.
func NewRequest(mode tandem.Mode) *tandem.Request {
	id := tandem.ID(uuid.Must(uuid.NewV7()))
	created, err := tandem.IDTime(id)
	if err != nil {
		panic(err)
	}
	return &tandem.Request{
		ID: id, Mode: mode, Task: "echo", Status: tandem.StatusPending, Data: json.RawMessage(`{"n": 1}`), Complexity: 1, CreatedAt: created,
	}
}

// NewAsync is an async request as it is accepted.
func NewAsync() *tandem.Request {
	r := NewRequest(tandem.ModeAsync)
	r.CallbackStatus, r.CallbackURL = tandem.CallbackPending, "http://127.0.0.1:1/hook"
	return r
}

// NewSync is a sync request as it is accepted.
func NewSync() *tandem.Request {
	r := NewRequest(tandem.ModeSync)
	r.Status, r.StartedAt = tandem.StatusProcessing, time.Now().UTC().Truncate(time.Microsecond)
	return r
}

// EveryLane has room for some jobs in every lane.
var EveryLane = store.Capacity{Jobs: map[store.Lane]int{store.LaneCPU: 4, store.LaneIO: 64, store.LaneDeliver: 256}}

// Work runs Work until the test ends or the returned function is called.
func Work(t testing.TB, s store.Store, step store.Step) (stop func()) {
	t.Helper()
	return WorkWith(t, s, EveryLane, step)
}

// WorkWith is Work with a capacity.
func WorkWith(t testing.TB, s store.Store, capacity store.Capacity, step store.Step) (stop func()) {
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

// MustRequest returns a request with its attempts.
func MustRequest(t testing.TB, s store.Store, id string) tandem.Request {
	t.Helper()
	r, err := s.Request(context.Background(), id)
	if err != nil {
		t.Fatalf("request %s: %v", id, err)
	}
	return r
}

// Accept accepts a request.
func Accept(t testing.TB, s store.Store, r *tandem.Request, lane store.Lane) {
	t.Helper()
	if err := s.Accept(context.Background(), lane, r); err != nil {
		t.Fatal(fmt.Errorf("accept %s: %w", r.ID, err))
	}
}

// WorkEnded is what a step returns for work that ended well.
func WorkEnded(result string) store.Next {
	return store.Finished(GoodOutcome(result), "")
}

// GoodOutcome is work that ended well.
func GoodOutcome(result string) store.Outcome {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Outcome{
		Result: json.RawMessage(result), StartedAt: now, CompletedAt: now, Processing: 1500 * time.Microsecond,
	}
}

// Attempt is an attempt that took 2.5 ms.
func Attempt(number int, outcome tandem.Outcome) tandem.Attempt {
	return tandem.Attempt{Number: number, StartedAt: time.Now().UTC().Truncate(time.Microsecond), DurationMS: 2.5, StatusCode: 200, Outcome: outcome}
}

// ChangeFile changes a file that nobody uses.
func ChangeFile(t testing.TB, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// Crash copies the files of an open database as a dead process would leave
// them: the write-ahead log not checkpointed, nothing said goodbye.
func Crash(t testing.TB, path string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "tandem.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

// ExecPostgres does something behind the store's back.
func ExecPostgres(t testing.TB, url, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatal(err)
	}
}

// AskPostgres returns the text that a query yields.
func AskPostgres(t testing.TB, url, query string) (text string) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}
