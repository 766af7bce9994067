//go:build unix

package main_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tandem"
	"tandem/internal/tandemtest"
)

const (
	clusterNodes = 3
	// takeoverBound is how long the work of a dead node may lie, by the clock of the database.
	takeoverBound = 15 * time.Second
	// ofTests is what the connections are called that no fault is meant for.
	ofTests = "test"
)

// clusters are permits: with more clusters than these at a time two cores are starved, and tests show that instead.
var clusters = make(chan struct{}, 6)

// cluster is three nodes of the real binary on one PostgreSQL, with callers at each of them who
// remember what they were promised.
type cluster struct {
	t        *testing.T
	database string        // URL
	pool     *pgxpool.Pool // of the test's own connections
	secret   tandem.Secret
	members  []*member

	mu        sync.Mutex      // guards the fields below
	known     map[string]bool // :: every id that a node has had
	takeovers []time.Duration
	watching  sync.WaitGroup
}

// member is one place in a cluster: an address, the processes that listen there one after the other, and
// the callers who use it.
type member struct {
	cluster  *cluster
	name     string
	address  string
	database string // URL, as this node reaches it
	args     []string
	binary   string   // "": the one under test
	extra    []string // variables
	callers  *crash

	process *process
	id      string // of the node that process is
}

// clusterDatabase is a durable database with tandem's schema, so that clusters which start at the same time
// do not wait for each other's.
func clusterDatabase(t *testing.T) string {
	t.Helper()
	return tandemtest.PostgresFrom(t, tandemtest.Durable, "migrated", func(url string) error {
		if out, err := exec.Command(binary, "migrate", "--db", url).CombinedOutput(); err != nil {
			return fmt.Errorf("migrate: %w\n%s", err, out)
		}
		return nil
	})
}

// newCluster starts the nodes. Those of which via has a URL reach the database there.
func newCluster(t *testing.T, database string, via map[int]string, args ...string) *cluster {
	t.Helper()
	c := &cluster{
		t: t, database: database, pool: poolOfTests(t, database), secret: tandem.NewSecret(), known: map[string]bool{},
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, m := range c.members {
			t.Logf("%s %s:\n%s", m.name, m.id, tail(m.process.stderr.String(), 40))
		}
	})
	for i := range clusterNodes {
		address := crashAddress(t)
		m := &member{cluster: c, name: fmt.Sprintf("node %d", i+1), address: address, database: database, args: args}
		if url, ok := via[i]; ok {
			m.database = url
		}
		m.callers = newCrash(t, "http://"+address, c.secret)
		m.callers.load = crashLoad{async: 2, sync: 1, pause: 120 * time.Millisecond, order: clusterOrder}
		c.members = append(c.members, m)
		m.start(t)
	}
	return c
}

// clusterOrder is mostly cheap work, with some that is in the middle of things when a node dies.
func clusterOrder(dice *rand.Rand) map[string]any {
	order := map[string]any{"data": map[string]any{"n": dice.IntN(1000)}, "task": "echo"}
	if dice.IntN(5) < 2 {
		order["task"], order["complexity"] = "sleep", 1+dice.IntN(4)
	}
	return order
}

// start starts the member's next process and waits until it takes part.
func (m *member) start(t *testing.T) {
	t.Helper()
	args := append([]string{"serve", "--listen", m.address, "--db", m.database, "--task-timeout", crashPatience.String(), "--drain-delay", "0s"}, m.args...)
	m.process = startCommand(t, exec.Command(cmp.Or(m.binary, binary), args...),
		append([]string{"TANDEM_SIGNING_SECRET=" + m.cluster.secret.Reveal()}, m.extra...))
	m.process.awaitReady(t)
	m.cluster.query(t, "the new node", func(ctx context.Context, db *pgx.Conn) error {
		rows, err := db.Query(ctx, `SELECT id FROM nodes`)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		m.cluster.mu.Lock()
		defer m.cluster.mu.Unlock()
		for _, id := range ids {
			if !m.cluster.known[id] {
				m.id, m.cluster.known[id] = id, true
				return nil
			}
		}
		return errors.New("not among the nodes")
	})
}

// callAll has callers ask every member for work until the returned function is called, which waits for
// their last answers.
func (c *cluster) callAll(t *testing.T) (stop func()) {
	t.Helper()
	var stops []func()
	for _, m := range c.members {
		stops = append(stops, m.callers.callers(t, rand.Uint64()))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// query asks the database, again and again while it does not answer.
func (c *cluster) query(t *testing.T, what string, ask func(context.Context, *pgx.Conn) error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(crashPatience)
	defer deadline.Stop()
	for {
		err := c.ask(ask)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}

// ask is query once.
func (c *cluster) ask(ask func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.pool.AcquireFunc(ctx, func(db *pgxpool.Conn) error { return ask(ctx, db.Conn()) })
}

// poolOfTests keeps the test's own connections to a database: a new one for every look at it would cost the machine
// more than the nodes do.
func poolOfTests(t *testing.T, database string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["application_name"] = ofTests
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// leader returns the member whose node leads River's others, once there is one.
func (c *cluster) leader(t *testing.T) *member {
	t.Helper()
	var found *member
	c.query(t, "a leader of River's", func(ctx context.Context, db *pgx.Conn) error {
		var id string
		if err := db.QueryRow(ctx, `SELECT leader_id FROM river_leader`).Scan(&id); err != nil {
			return err
		}
		i := slices.IndexFunc(c.members, func(m *member) bool { return m.id == id })
		if i < 0 {
			return fmt.Errorf("%s leads, which is dead", id)
		}
		found = c.members[i]
		return nil
	})
	return found
}

// holding is a request that a node works on.
type holding struct {
	id    string
	job   int64 // 0: a caller waits for it
	begun bool  // its work has
}

// heldBy is what the node works on, by its database.
func (c *cluster) heldBy(t *testing.T, node string) (held []holding, at time.Time) {
	t.Helper()
	c.query(t, "what a node works on", func(ctx context.Context, db *pgx.Conn) error {
		if err := db.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&at); err != nil {
			return err
		}
		rows, err := db.Query(ctx, `
			SELECT id::text, coalesce(job_id, 0), status = 'processing'
			FROM requests
			WHERE (status = 'processing' AND node = $1 AND job_id IS NULL) OR job_id IN (
				SELECT id FROM river_job WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1)`, node)
		if err != nil {
			return err
		}
		held = nil
		var h holding
		_, err = pgx.ForEachRow(rows, []any{&h.id, &h.job, &h.begun}, func() error {
			held = append(held, h)
			return nil
		})
		return err
	})
	return held, at
}

// burden has a member work on a few things that take half a second, and returns while it does.
func (m *member) burden(t *testing.T) {
	t.Helper()
	for range 3 {
		for range 4 {
			m.cluster.watching.Go(func() {
				m.callers.sync(map[string]any{"data": map[string]any{"n": 1}, "task": "sleep", "complexity": 10})
			})
			m.callers.async(map[string]any{"data": map[string]any{"n": 1}, "task": "sleep", "complexity": 10})
		}
	}
	m.cluster.query(t, m.name+" to be busy", func(ctx context.Context, db *pgx.Conn) error {
		var begun int
		err := db.QueryRow(ctx, `
			SELECT least(count(*) FILTER (WHERE job_id IS NULL), count(job_id)) FROM requests WHERE status = 'processing' AND node = $1`, m.id).Scan(&begun)
		if err == nil && begun == 0 {
			m.callers.async(map[string]any{"data": map[string]any{"n": 1}, "task": "sleep", "complexity": 10})
			m.cluster.watching.Go(func() {
				m.callers.sync(map[string]any{"data": map[string]any{"n": 1}, "task": "sleep", "complexity": 10})
			})
			err = errors.New("it is idle")
		}
		return err
	})
}

// kill kills a member in the middle of things, and watches what becomes of them.
func (c *cluster) kill(t *testing.T, m *member) {
	t.Helper()
	m.burden(t)
	id := m.id
	_, died := c.heldBy(t, id)
	m.process.kill()
	c.watching.Go(func() { c.awaitTakeover(t, m.name, id, died) })
}

// awaitTakeover waits until others work on what a dead node worked on, or have ended it,
// and notes how long after its death that was.
func (c *cluster) awaitTakeover(t *testing.T, name, node string, died time.Time) {
	t.Helper()
	held, _ := c.heldBy(t, node)
	if len(held) == 0 {
		t.Logf("%s left nothing behind", name)
		return
	}
	left := map[string]*holding{}
	for _, h := range held {
		left[h.id] = &h
	}
	successor := map[string]int64{} // the first job after the one that died
	var last time.Time
	c.query(t, "the takeover from "+name, func(ctx context.Context, db *pgx.Conn) error {
		ids := make([]string, 0, len(left))
		for id := range left {
			ids = append(ids, id)
		}
		rows, err := db.Query(ctx, `
			SELECT requests.id::text, coalesce(job_id, 0), status = 'processing', coalesce(state = 'running', false), clock_timestamp()
			FROM requests LEFT JOIN river_job ON river_job.id = job_id
			WHERE requests.id = ANY($1::uuid[])`, ids)
		if err != nil {
			return err
		}
		var id string
		var job int64
		var processing, running bool
		var now time.Time
		_, err = pgx.ForEachRow(rows, []any{&id, &job, &processing, &running, &now}, func() error {
			before := left[id].job
			if job != before && successor[id] == 0 {
				successor[id] = job
			}
			switch {
			case before == 0 && processing, job == before && job != 0:
				return nil
			case job != 0 && job == successor[id] && !running:
				return nil // dispatched anew, and nobody has begun
			}
			delete(left, id)
			last = now
			return nil
		})
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d of %d requests lie still", len(left), len(held))
		}
		return err
	})
	took := last.Sub(died)
	if took > takeoverBound {
		t.Errorf("%s: others took over after %v, want at most %v", name, took, takeoverBound)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeovers = append(c.takeovers, took.Round(100*time.Millisecond))
}

// finish waits until nothing is left to do, compares what callers and receivers know with the
// database, and the figures with a recount, and stops the nodes.
func (c *cluster) finish(t *testing.T) {
	t.Helper()
	c.watching.Wait()
	c.query(t, "the end of all work", func(ctx context.Context, db *pgx.Conn) error {
		var unfinished, jobs int
		var some string
		err := db.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM requests WHERE job_id IS NOT NULL OR status IN ('pending', 'processing')),
			       (SELECT count(*) FROM river_job),
			       left(coalesce((
			         SELECT string_agg(
			           concat_ws(' ', id, mode, task, status, 'lane', lane, 'job', job_id, 'node', node), ', ')
			         FROM requests
			         WHERE job_id IS NOT NULL OR status IN ('pending', 'processing')), ''), 1000)`).
			Scan(&unfinished, &jobs, &some)
		if err == nil && unfinished+jobs > 0 {
			err = fmt.Errorf("%d requests are unfinished, %d jobs are left: %s", unfinished, jobs, some)
		}
		return err
	})
	c.auditRows(t)
	c.auditCounters(t)
	for _, m := range c.members {
		m.process.signal(t, terminate)
	}
	for _, m := range c.members {
		if code := m.process.exitCode(t); code != 0 {
			t.Errorf("%s: exit code %d at the end", m.name, code)
		}
	}
	promised, answered, callbacks, repeats := 0, 0, int64(0), int64(0)
	for _, m := range c.members {
		counts := m.callers.receiver.Counts()
		promised, answered = promised+len(m.callers.promised), answered+len(m.callers.answered)
		callbacks, repeats = callbacks+counts.Received, repeats+counts.Duplicates
		if counts.BadSignature+counts.Malformed > 0 {
			t.Errorf("%s: callbacks with a bad signature or body: %+v", m.name, counts)
		}
	}
	t.Logf("%d acknowledged, %d answered, %d callbacks, %d of them repeats; takeovers %v", promised, answered, callbacks, repeats, c.takeovers)
	if promised < 50 || answered < 20 {
		t.Errorf("%d acknowledged and %d answered: too few to show anything", promised, answered)
	}
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}

// auditRows looks for what was promised and not kept, and for what nobody promised.
func (c *cluster) auditRows(t *testing.T) {
	t.Helper()
	promised, answered, called := map[string]bool{}, map[string]bool{}, map[string]int{}
	for _, m := range c.members {
		m.callers.mu.Lock()
		for id := range m.callers.promised {
			promised[id] = true
		}
		for id := range m.callers.answered {
			answered[id] = true
		}
		for id, n := range m.callers.called {
			called[id] += n
		}
		for _, odd := range m.callers.odd {
			t.Errorf("%s: %s", m.name, odd)
		}
		m.callers.mu.Unlock()
	}
	kept := map[string]bool{}
	c.query(t, "all rows", func(ctx context.Context, db *pgx.Conn) error {
		rows, err := db.Query(ctx, `
			SELECT 'req_' || replace(id::text, '-', ''), mode, status, error_code,
			       (SELECT count(*) FROM attempts WHERE request = id AND outcome = 'delivered')
			FROM requests`)
		if err != nil {
			return err
		}
		clear(kept)
		var id, mode, status, code string
		var delivered int
		_, err = pgx.ForEachRow(rows, []any{&id, &mode, &status, &code, &delivered}, func() error {
			kept[id] = true
			switch {
			case mode == "async":
				if status != string(tandem.StatusCallbackSent) || delivered != 1 || called[id] == 0 {
					t.Errorf("async %s (promised: %t) is %s with %d attempts delivered and %d callbacks received", id, promised[id], status, delivered, called[id])
				}
			case answered[id]:
				if status != string(tandem.StatusCompleted) {
					t.Errorf("sync %s was answered 200 and is %s %s", id, status, code)
				}
			case status != string(tandem.StatusCompleted) && (status != string(tandem.StatusFailed) || code != tandem.FailedInterrupted):
				t.Errorf("sync %s is %s %s, want completed, or failed as interrupted", id, status, code)
			}
			return nil
		})
		return err
	})
	for what, ids := range map[string]map[string]bool{"was promised": promised, "was answered": answered} {
		for id := range ids {
			if !kept[id] {
				t.Errorf("%s %s and is not in the database", id, what)
			}
		}
	}
	for id := range called {
		if !kept[id] {
			t.Errorf("a callback came for %s, which is not in the database", id)
		}
	}
}

// clusterFigures are those of /stats that can be counted again.
type clusterFigures struct {
	Total      int64 `json:"total_requests"`
	Sync       int64 `json:"sync_requests"`
	Async      int64 `json:"async_requests"`
	Completed  int64 `json:"completed_requests"`
	Failed     int64 `json:"failed_requests"`
	Pending    int64 `json:"pending_requests"`
	Processing int64 `json:"processing_requests"`
	Sent       int64 `json:"callback_sent"`
	Undone     int64 `json:"callback_failed"`
}

// auditCounters compares /stats of every node with a recount of the rows.
func (c *cluster) auditCounters(t *testing.T) {
	t.Helper()
	var want clusterFigures
	c.query(t, "a recount", func(ctx context.Context, db *pgx.Conn) error {
		return db.QueryRow(ctx, `
			SELECT count(*), count(*) FILTER (WHERE mode = 'sync'), count(*) FILTER (WHERE mode = 'async'),
			       count(*) FILTER (WHERE status IN ('completed', 'callback_sent', 'callback_failed')), count(*) FILTER (WHERE status = 'failed'),
			       count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'processing'),
			       count(*) FILTER (WHERE callback_status = 'sent'), count(*) FILTER (WHERE callback_status = 'failed')
			FROM requests`).Scan(&want.Total, &want.Sync, &want.Async, &want.Completed, &want.Failed, &want.Pending, &want.Processing, &want.Sent, &want.Undone)
	})
	for _, m := range c.members {
		if err := poll("the figures of "+m.name, func() error {
			response, err := m.callers.client.Get(m.callers.url + "/stats")
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if response.StatusCode != http.StatusOK {
				return errors.New(response.Status)
			}
			var stats struct {
				Requests clusterFigures `json:"request_statistics"`
			}
			if err := json.NewDecoder(response.Body).Decode(&stats); err != nil {
				return err
			}
			if stats.Requests != want {
				return fmt.Errorf("/stats says %+v, the rows %+v", stats.Requests, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}
