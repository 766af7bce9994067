package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// Statements that have a plan, but for those about the schema; the rest are
// transactions and settings of the database.
var (
	planned = regexp.MustCompile(`^(SELECT|INSERT|UPDATE|DELETE|WITH)\b`)
	schema  = regexp.MustCompile(`goose_|sqlite_`)
)

// scans are the statements that may scan a table of requests or attempts, each
// with the reason.
var scans = map[string]string{
	"SELECT id FROM requests ORDER BY seq DESC LIMIT 1": "one row, from the end of the table",
	"SELECT count(*), max(seq) FROM requests":           "a copy, which reads all of it anyway",
}

// sorts are the statements that may sort what they have found.
var sorts = map[string]string{
	"SELECT number, outcome, started_at, duration_us, status_code, error, next_at FROM attempts WHERE request = ? ORDER BY number, started_at": "the few attempts of one request",
}

// statements collects what is asked of databases, from any goroutine.
type statements struct {
	mu   sync.Mutex
	seen map[string]bool // guarded by mu; white space reduced to single blanks
}

func (s *statements) add(text string) {
	text = strings.Join(strings.Fields(text), " ")
	if !planned.MatchString(text) || schema.MatchString(text) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	s.seen[text] = true
}

func (s *statements) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.seen))
}

// TestPlans: no statement that the store runs reads through the whole history, with
// an empty table, with a thousand rows, and when SQLite knows how they are distributed.
func TestPlans(t *testing.T) {
	t.Parallel()
	var all statements
	empty, full := filepath.Join(t.TempDir(), "empty.db"), filepath.Join(t.TempDir(), "full.db")
	openTraced(t, empty, &all)
	live(t, full, &all)
	liveInMemory(t, &all)
	liveKeys(t, full, &all)
	if err := sqlite.ReadTraced(t.Context(), full, all.add); err != nil {
		t.Fatal(err)
	}

	checkComplete(t, all.list())
	checkPlans(t, "an empty table", empty, all.list())
	checkPlans(t, "1,000 rows", full, all.list())
	db, err := sql.Open("sqlite", full)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`ANALYZE`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	checkPlans(t, "1,000 rows and ANALYZE", full, all.list())
}

// checkPlans asks a new connection, which knows what ANALYZE found, how it would
// run each statement.
func checkPlans(t *testing.T, with, path string, statements []string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	scanned, sorted := map[string]string{}, map[string]string{}
	for _, statement := range statements {
		for _, step := range plan(t, db, statement) {
			if regexp.MustCompile(`^SCAN (requests|attempts)\b`).MatchString(step) {
				scanned[statement] = step
			}
			if strings.Contains(step, "TEMP B-TREE") {
				sorted[statement] = step
			}
		}
	}
	for _, rule := range []struct{ found, allowed map[string]string }{{scanned, scans}, {sorted, sorts}} {
		for statement, step := range rule.found {
			if rule.allowed[statement] == "" {
				t.Errorf("with %s: %s\n%s", with, step, statement)
			}
		}
		for statement := range rule.allowed {
			if rule.found[statement] == "" {
				t.Errorf("with %s: no exception is needed any more for\n%s", with, statement)
			}
		}
	}
}

// plan returns the steps of a statement's plan.
func plan(t *testing.T, db *sql.DB, statement string) (steps []string) {
	t.Helper()
	n := strings.Count(statement, "?")
	for strings.Contains(statement, "$"+strconv.Itoa(n+1)) { // numbered, in statements that PostgreSQL runs as well
		n++
	}
	args := make([]any, n)
	for i := range args {
		args[i] = 1
	}
	rows, err := db.Query(`EXPLAIN QUERY PLAN `+statement, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, statement)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return steps
}

// checkComplete: every statement for SQLite that stands in the package, in store or in keys, was seen.
func checkComplete(t *testing.T, statements []string) {
	t.Helper()
	wanted := func(pattern string) bool { return planned.MatchString(pattern) && !schema.MatchString(pattern) }
	storetest.CheckComplete(t, []string{"*.go", "../*.go", "../../keys/*.go"}, wanted, func(p *regexp.Regexp) bool {
		return slices.ContainsFunc(statements, p.MatchString)
	})
}

// openTraced opens a database until the test ends or the returned function is called.
func openTraced(t *testing.T, url string, all *statements) (s *sqlite.Store, closeStore func()) {
	t.Helper()
	s, err := sqlite.OpenTraced(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()}, all.add)
	if err != nil {
		t.Fatal(err)
	}
	closeStore = sync.OnceFunc(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(closeStore)
	return s, closeStore
}

// live leads a thousand requests through everything that can happen to one.
func live(t *testing.T, path string, all *statements) {
	t.Helper()
	s, closeStore := openTraced(t, path, all)
	acceptMany(t, s, 970, store.LaneIO)
	large := newAsync()
	large.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 8000) + `"}`)
	accept(t, s, large, store.LaneCPU)
	closeStore()

	s, closeStore = openTraced(t, path, all) // now all of it is read from the index
	if _, _, err := s.SigningSecret(t.Context(), tandem.NewSecret()); err != nil {
		t.Fatal(err)
	}
	capacity := everyLane
	capacity.MaxAge = time.Hour
	stop := workWith(t, s, capacity, storetest.EveryEnd(t, s, large.ID))
	submission := newSubmission("batch_a")
	submission.KeyID = "key_a"
	accept(t, s, submission, store.LaneIO)
	if err := s.Finish(t.Context(), submissionJob(submission), called("")); err != nil {
		t.Fatal(err)
	}
	for range 28 {
		r := newSync()
		accept(t, s, r, store.LaneNone)
		if err := s.Finish(t.Context(), store.Job{Request: *r}, store.Finished(store.Outcome{Result: json.RawMessage(`1`)}, "")); err != nil {
			t.Fatal(err)
		}
	}
	waitStatus(t, s, large.ID, tandem.StatusCallbackFailed)
	tandemtest.WaitFor(t, "all to end", func() bool { return mustStats(t, s).Unfinished == 0 })
	stop()
	if got := mustStats(t, s).Requests; got[tandem.ModeAsync]+got[tandem.ModeSync] != 1000 {
		t.Errorf("%v requests, want 1,000", got)
	}
	mustUndelivered(t, s)
	storetest.Look(t, s)
	if err := s.CountOwners(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ShiftClock(-time.Hour)
	accept(t, s, newSync(), store.LaneNone)
	fill(t, s, all)
	if _, err := s.Retain(t.Context(), time.UnixMilli(1)); err != nil { // finds nothing to delete
		t.Fatal(err)
	}
	closeStore()
}

// fill has the store run out of room and find some again.
func fill(t *testing.T, s *sqlite.Store, all *statements) {
	t.Helper()
	pages, err := s.Pages()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LimitPages(pages); err != nil {
		t.Fatal(err)
	}
	tandemtest.WaitFor(t, "the database to be full", func() bool {
		return s.Accept(t.Context(), store.LaneNone, newSync()) != nil
	})
	tandemtest.WaitFor(t, "a probe", func() bool {
		return slices.ContainsFunc(all.list(), func(text string) bool { return strings.Contains(text, "probe") })
	})
	if err := s.LimitPages(0); err != nil {
		t.Fatal(err)
	}
	tandemtest.WaitFor(t, "room", func() bool { return mustStats(t, s).Unavailable == nil })
}

// liveKeys does everything that can be done with keys.
func liveKeys(t *testing.T, path string, all *statements) {
	t.Helper()
	handle, err := sqlite.OpenHandleTraced(t.Context(), store.HandleConfig{URL: path, Log: quiet()}, all.add)
	if err != nil {
		t.Fatal(err)
	}
	k, err := keys.On(t.Context(), handle, quiet())
	if err != nil {
		t.Fatal(err)
	}
	made := tandemtest.MakeKey(t, k, "a", tandem.ScopeRead)
	tandemtest.ValidToken(t, k, made.Token, time.Now())
	for _, overlap := range []time.Duration{0, time.Hour} {
		_, err := k.Rotate(t.Context(), "a", tandem.NewToken(), overlap)
		_, errSigning := k.RotateSigning(t.Context(), "a", tandem.NewSecret(), overlap)
		if err := errors.Join(err, errSigning); err != nil {
			t.Fatal(err)
		}
	}
	_, errRevoke := k.Revoke(t.Context(), "a")
	if err := errors.Join(errRevoke, k.Refresh(t.Context()), k.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	storetest.ChangeFile(t, path, fmt.Sprintf(`
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO keys (id, name, scopes, token_hash, secret, created_at)
		SELECT 'key_' || i, 'n' || i, '', x'', '', 1 FROM n`, keys.Max))
	if _, err := k.Create(t.Context(), keys.NewKey{Name: "b", Scopes: tandem.Scopes}); err == nil {
		t.Error("there was room: the test shows nothing")
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

// liveInMemory has a database trimmed, and rows deleted.
func liveInMemory(t *testing.T, all *statements) {
	t.Helper()
	s, _ := openTraced(t, ":memory:", all)
	work(t, s, func(context.Context, store.Job) store.Next { return workEnded(`{}`) })
	r := newSync()
	accept(t, s, r, store.LaneNone)
	if err := s.Finish(t.Context(), store.Job{Request: *r}, store.Finished(store.Outcome{Result: json.RawMessage(`1`)}, "")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Retain(t.Context(), time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatalf("deleted %d, %v", n, err)
	}
	tandemtest.WaitFor(t, "a look at its size", func() bool {
		return slices.ContainsFunc(all.list(), func(text string) bool { return strings.Contains(text, "page_count") })
	})
}
