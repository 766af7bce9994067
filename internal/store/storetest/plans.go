package storetest

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
)

// CheckComplete reports every statement that stands in the files of some patterns, tests left out, that wanted takes
// and that did not run. What is not written out in a statement can be anything.
func CheckComplete(
	t *testing.T, files []string, wanted func(statement string) bool, ran func(statement *regexp.Regexp) bool,
) {
	t.Helper()
	var sources []string
	for _, pattern := range files {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, found...)
	}
	found := 0
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
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
			if !ok || !wanted(pattern) {
				return true
			}
			found++
			if !ran(regexp.MustCompile(pattern)) {
				t.Errorf("%s: this statement was not run:\n%s", source, pattern)
			}
			return false
		})
	}
	if found < 10 {
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

// Look reads the history at every combination of filters.
func Look(t *testing.T, s store.Store) {
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
				for _, task := range []string{"", "echo", Counted} {
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

// EveryEnd has jobs end in every way, so that every statement is asked: work that computes once its row says that it
// has begun, and callbacks with success, but for those of one request, which are tried again and then given up.
func EveryEnd(t *testing.T, s store.Store, givenUp string) store.Step {
	t.Helper()
	return func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane == store.LaneCPU:
			job.Started()
			WaitStatus(t, s, job.Request.ID, tandem.StatusProcessing)
			return WorkEnded(`{}`)
		case job.Lane == store.LaneIO:
			return WorkEnded(`{}`)
		case job.Request.ID != givenUp:
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		case job.Request.CallbackAttempts == 0:
			failed := Attempt(1, tandem.OutcomeTimeout)
			failed.NextAt = time.Now().Add(50 * time.Millisecond).UTC()
			return store.Redeliver(failed, failed.NextAt, "http://127.0.0.1:1")
		default:
			MustRequest(t, s, job.Request.ID) // looks for when the next attempt is due
			return store.GiveUp(Attempt(2, tandem.OutcomeGone))
		}
	}
}
