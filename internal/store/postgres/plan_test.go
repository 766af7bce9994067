package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// planRows is how much history the plans of PostgreSQL are looked at with, and mostRead how many rows a statement may
// read: a batch is 2,048 rows, a chunk of retention no more, and none reads a share of the history.
const (
	planRows = 100_000
	mostRead = 20_000
)

// wholeIndexes are the indexes that a statement may read from end to end, each with the reason.
var wholeIndexes = map[string]string{
	"requests_processing":                  "what is being worked on, for those whose node is gone",
	"counters_writers":                     "a row for each writer of each node",
	"nodes_pkey":                           "a row for each node",
	"requests_job":                         "what is unfinished, once a minute, for those whose job is gone",
	"river_job_pkey":                       "the same",
	"river_job_prioritized_fetching_index": "the same",
}

// explained is a statement that has run, as auto_explain tells of it.
type explained struct {
	Text string   `json:"Query Text"` //nolint:tagliatelle // as PostgreSQL has it
	Plan planStep `json:"Plan"`       //nolint:tagliatelle // as PostgreSQL has it
}

// planStep is a step of a plan, with what it did each time that it ran.
type planStep struct {
	Type     string     `json:"Node Type"`                   //nolint:tagliatelle // as PostgreSQL has it
	Relation string     `json:"Relation Name"`               //nolint:tagliatelle // as PostgreSQL has it
	Index    string     `json:"Index Name"`                  //nolint:tagliatelle // as PostgreSQL has it
	Cond     string     `json:"Index Cond"`                  //nolint:tagliatelle // as PostgreSQL has it
	Rows     float64    `json:"Actual Rows"`                 //nolint:tagliatelle // as PostgreSQL has it
	Loops    float64    `json:"Actual Loops"`                //nolint:tagliatelle // as PostgreSQL has it
	Filtered float64    `json:"Rows Removed by Filter"`      //nolint:tagliatelle // as PostgreSQL has it
	Joined   float64    `json:"Rows Removed by Join Filter"` //nolint:tagliatelle // as PostgreSQL has it
	Hit      float64    `json:"Shared Hit Blocks"`           //nolint:tagliatelle // as PostgreSQL has it
	Read     float64    `json:"Shared Read Blocks"`          //nolint:tagliatelle // as PostgreSQL has it
	Steps    []planStep `json:"Plans"`                       //nolint:tagliatelle // as PostgreSQL has it
}

// read is how many rows the step and those below it have looked at.
func (p *planStep) read() float64 {
	n := (p.Rows + p.Filtered + p.Joined) * p.Loops
	for i := range p.Steps {
		n += p.Steps[i].read()
	}
	return n
}

// wrong says what a plan does that takes longer the longer the history is; "": nothing.
func (p *planStep) wrong() string {
	large := p.Relation == "requests" || p.Relation == "attempts" || p.Relation == "river_job"
	switch {
	case large && p.Type == "Seq Scan":
		return "reads all of " + p.Relation
	case strings.Contains(p.Type, "Index") && p.Cond == "" && (large || p.Relation == "") && wholeIndexes[p.Index] == "":
		return "reads all of the index " + p.Index
	}
	for i := range p.Steps {
		if text := p.Steps[i].wrong(); text != "" {
			return text
		}
	}
	return ""
}

// TestPostgresPlans: whatever the store asks of PostgreSQL, none of it goes through the history, or
// through a long queue for each of its jobs. The plans are those that were run, as the server tells them.
func TestPostgresPlans(t *testing.T) {
	t.Parallel()
	address := explainedPostgres(t)
	livePostgres(t, address)
	plans := readPlans(t, address)
	checkCompletePostgres(t, plans)
	told := map[string]bool{}
	for i := range plans {
		p := &plans[i]
		wrong := p.Plan.wrong()
		if n := p.Plan.read(); n > mostRead {
			wrong = fmt.Sprintf("reads %.0f rows", n)
		}
		// What an index is searched for in vain is not among the rows. The first pages of a list are ten rows for each range.
		ranges := strings.Count(p.Text, "FROM requests")
		if blocks := p.Plan.Hit + p.Plan.Read; strings.HasPrefix(p.Text, "WITH page") && blocks > float64(100+40*ranges) {
			wrong = fmt.Sprintf("looks at %.0f blocks for %d ranges", blocks, ranges)
		}
		if wrong != "" && !told[p.Text] { // each statement once
			told[p.Text] = true
			t.Errorf("%s:\n%s", wrong, p.Text)
		}
	}
}

// explainedPostgres makes a database with a history that tells of all plans in the server's log.
func explainedPostgres(t *testing.T) string {
	t.Helper()
	address := emptyPostgres(t, tandemtest.Volatile)
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `LOAD 'auto_explain'`); err != nil {
		t.Skipf("PostgreSQL has no auto_explain, which comes with its contrib modules: %v", err)
	}
	statements := []string{
		// An empty queue that is known to be empty: plans that are made now are kept.
		`VACUUM ANALYZE river_job`,
		fmt.Sprintf(`
		INSERT INTO requests (id, mode, task, status, callback_status, complexity, callback_attempts,
		                      started_at, completed_at, node, callback_url, key_id, batch_id, waits_for, data, result)
		SELECT (lpad(to_hex(1767225600000 + i), 12, '0') || '7000' || '8' || lpad(to_hex(i), 15, '0'))::uuid,
		       CASE WHEN i %% 10 = 0 THEN 'sync' ELSE 'async' END,
		       CASE WHEN i %% 100 = 7 THEN 'compute' ELSE 'echo' END,
		       CASE WHEN i %% 10 = 0 THEN 'completed' WHEN i %% 1000 = 1 THEN 'callback_failed' ELSE 'callback_sent' END,
		       CASE WHEN i %% 10 = 0 THEN '' ELSE 'sent' END,
		       1, 1, '2026-01-01', now(), 'filled', '',
		       CASE WHEN i %% 3 = 0 THEN 'key_b' END, CASE WHEN i %% 500 = 0 THEN 'batch_b' END,
		       CASE WHEN i %% 20 = 1 THEN 'http://' || i %% 1000 || '.example:80' END, '{"n":1}', '{}'
		FROM generate_series(1::bigint, %d) AS i`, planRows),
		`INSERT INTO attempts (request, number, outcome, started_at, duration_us, status_code, error) SELECT id, 1, 'delivered', now(), 500, 200, '' FROM requests`,
		fmt.Sprintf(`UPDATE counters SET counts = '{"rows/all": %d, "task/echo": %d, "task/compute": %d}' WHERE node = ''`, planRows, planRows-planRows/100, planRows/100),
		`VACUUM ANALYZE requests, attempts`,
	}
	for _, setting := range []string{
		"session_preload_libraries = 'auto_explain'", "auto_explain.log_min_duration = 0", "auto_explain.log_format = json", "auto_explain.log_analyze = on", "auto_explain.log_buffers = on",
		"auto_explain.log_timing = off", "log_min_messages = log", "log_statement = none",
	} {
		statements = append(statements, `ALTER DATABASE `+conn.Config().Database+` SET `+setting)
	}
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return address
}

// livePostgres leads requests through everything that can happen to one.
func livePostgres(t *testing.T, address string) {
	t.Helper()
	s, err := postgres.Open(t.Context(), store.Config{Counted: counted, URL: address, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.SigningSecret(t.Context(), tandem.NewSecret()); err != nil {
		t.Fatal(err)
	}
	large := newAsync()
	large.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 200_000) + `"}`)
	stop := work(t, s, storetest.EveryEnd(t, s, large.ID))
	for range 20 { // each plan is made anew for the first five times, and then kept
		acceptMany(t, s, 1, store.LaneIO)
		tandemtest.WaitFor(t, "the queue to be empty again", func() bool { return mustStats(t, s).Unfinished == 0 })
	}
	accept(t, s, large, store.LaneCPU)
	submission := newSubmission("batch_a")
	submission.KeyID = "key_a"
	accept(t, s, submission, store.LaneIO)
	if err := s.Finish(t.Context(), submissionJob(submission), called("")); err != nil {
		t.Fatal(err)
	}
	r := newSync()
	accept(t, s, r, store.LaneNone)
	if err := s.Finish(t.Context(), store.Job{Request: *r}, store.Finished(store.Outcome{Result: json.RawMessage(`1`)}, "")); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		stray := newSubmission("")
		accept(t, s, stray, store.LaneIO)
		s.CallerLeaves(stray.ID)
		if err := s.EndStrays(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	waitStatus(t, s, large.ID, tandem.StatusCallbackFailed)
	tandemtest.WaitFor(t, "all to end", func() bool { return mustStats(t, s).Unfinished == 0 })
	stop()

	acceptMany(t, s, 3000, store.LaneIO) // a long queue: what nobody works on, and then all at once
	mustStats(t, s)
	for range 7 {
		if err := s.SweepDeep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Reclaim(t.Context()), s.ExpireParked(t.Context(), time.Hour),
			s.CountOwners(t.Context())); err != nil {
			t.Fatal(err)
		}
		storetest.MustUndelivered(t, s)
	}
	storetest.Look(t, s)
	if _, err := s.Requests(t.Context(), store.Filter{Task: counted, Key: "key_a", Limit: 10}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = joinPostgres(t, address)
	work(t, s, delivered)
	tandemtest.WaitFor(t, "the long queue to be worked off", func() bool { return mustStats(t, s).Unfinished == 0 })
	if n, err := s.Retain(t.Context(), time.UnixMilli(1767225600000+5000)); n == 0 || err != nil {
		t.Fatalf("deleted %d, %v", n, err)
	}
}

// readPlans reads what the server has told of the plans of a database. It writes no other statements than ours
// into its log, because no other database asks for it.
func readPlans(t *testing.T, address string) (plans []explained) {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(parsed.Query().Get("host"), "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), " plan:\n")[1:] {
		var p explained
		if err := json.NewDecoder(strings.NewReader(part)).Decode(&p); err != nil {
			t.Fatalf("%v\n%.300s", err, part)
		}
		p.Text = strings.Join(strings.Fields(p.Text), " ")
		plans = append(plans, p)
	}
	return plans
}

// checkCompletePostgres: every statement about a large table that stands in the package was seen. What is copied goes
// into an empty database.
func checkCompletePostgres(t *testing.T, plans []explained) {
	t.Helper()
	tables := regexp.MustCompile(`^(SELECT|INSERT|UPDATE|DELETE|WITH)\b.*\b(requests|attempts|river_job)\b`)
	storetest.CheckComplete(t, []string{"[^c]*.go", "c[^o]*.go", "counters.go"}, tables.MatchString, func(p *regexp.Regexp) bool {
		return slices.ContainsFunc(plans, func(e explained) bool { return p.MatchString(e.Text) })
	})
}
