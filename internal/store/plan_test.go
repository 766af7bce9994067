package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
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
	if err := store.ReadTraced(t.Context(), full, all.add); err != nil {
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

// checkComplete: every statement for SQLite that stands in the package, or in keys, was seen.
func checkComplete(t *testing.T, statements []string) {
	t.Helper()
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	ofKeys, err := filepath.Glob("../keys/*.go")
	if err != nil {
		t.Fatal(err)
	}
	sources = append(sources, ofKeys...)
	found := 0
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") || strings.HasPrefix(source, "postgres") { // another planner's
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			expression, ok := node.(ast.Expr)
			if !ok {
				return true
			}
			pattern, ok := textOf(expression)
			if !ok || !planned.MatchString(pattern) || schema.MatchString(pattern) {
				return true
			}
			found++
			if !slices.ContainsFunc(statements, regexp.MustCompile(pattern).MatchString) {
				t.Errorf("%s: this statement was not run:\n%s", source, pattern)
			}
			return false
		})
	}
	if found < 20 {
		t.Errorf("only %d statements found in the sources: is the pattern still right?", found)
	}
}

// textOf turns a string, or a sum of strings, into a pattern: what is not written
// out in it can be anything.
func textOf(expression ast.Expr) (pattern string, ok bool) {
	switch e := expression.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if e.Kind != token.STRING || err != nil {
			return "", false
		}
		return regexp.QuoteMeta(strings.Join(strings.Fields(text), " ")), true
	case *ast.BinaryExpr:
		left, ok := textOf(e.X)
		right, rightOK := textOf(e.Y)
		if !rightOK {
			right = ""
		}
		return left + ".*" + right, ok && e.Op == token.ADD
	default:
		return "", false
	}
}

// openTraced opens a database until the test ends or the returned function is called.
func openTraced(t *testing.T, url string, all *statements) (s *store.SQLite, closeStore func()) {
	t.Helper()
	s, err := store.OpenTraced(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()}, all.add)
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
	stop := workWith(t, s, capacity, everyEnd(t, s, large.ID))
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
	look(t, s)
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

// look reads the history at every combination of filters.
func look(t *testing.T, s store.Store) {
	t.Helper()
	if _, err := s.Requests(t.Context(), store.Filter{Batch: "batch_a", Limit: 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Requests(t.Context(), store.Filter{Batch: "batch_a", Key: "key_a", Limit: 10}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "key_a"} {
		for _, mode := range append(tandem.Modes, "") {
			for _, status := range append(tandem.Statuses, "") {
				for _, task := range []string{"", "echo", counted} {
					for _, since := range []time.Time{{}, time.Now().Add(-time.Hour)} {
						filter := store.Filter{Key: key, Mode: mode, Status: status, Task: task, Since: since, Until: since, Limit: 10}
						if _, err := s.Requests(t.Context(), filter); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		}
	}
}

// fill has the store run out of room and find some again.
func fill(t *testing.T, s *store.SQLite, all *statements) {
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
	handle, err := store.OpenHandleTraced(t.Context(), store.HandleConfig{URL: path, Log: quiet()}, all.add)
	if err != nil {
		t.Fatal(err)
	}
	k, err := keys.On(t.Context(), handle, quiet())
	if err != nil {
		t.Fatal(err)
	}
	made := makeKey(t, k, "a", tandem.ScopeRead)
	valid(t, k, made.Token, time.Now())
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
	changeFile(t, path, fmt.Sprintf(`
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

// everyEnd has jobs end in every way, so that every statement is asked: work that computes once its row says that it
// has begun, and callbacks with success, but for those of one request, which are tried again and then given up.
func everyEnd(t *testing.T, s store.Store, givenUp string) store.Step {
	t.Helper()
	return func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane == store.LaneCPU:
			job.Started()
			waitStatus(t, s, job.Request.ID, tandem.StatusProcessing)
			return workEnded(`{}`)
		case job.Lane == store.LaneIO:
			return workEnded(`{}`)
		case job.Request.ID != givenUp:
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		case job.Request.CallbackAttempts == 0:
			failed := attempt(1, tandem.OutcomeTimeout)
			failed.NextAt = time.Now().Add(50 * time.Millisecond).UTC()
			return store.Redeliver(failed, failed.NextAt, "http://127.0.0.1:1")
		default:
			mustRequest(t, s, job.Request.ID) // looks for when the next attempt is due
			return store.GiveUp(attempt(2, tandem.OutcomeGone))
		}
	}
}
