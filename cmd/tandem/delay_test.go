//go:build unix

package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// delay holds a cluster's database, or the way to it, up for a while.
type delay struct {
	name  string
	quick time.Duration // what CI does; 0: nothing
	own   bool          // it takes a server of its own: what is stopped may hold up others there
	hold  func(*testing.T, *delayed, time.Duration)
}

// allDelays lie around the timeouts of tandem: 10 s for a commit and a caller, 8 s of missed heartbeats.
var allDelays = []time.Duration{9 * time.Second, 11 * time.Second, 13 * time.Second}

// TestChaosDelays runs the clusters of TestChaos, each on a database of its own, with submissions,
// batches and changes of API keys among the load. Their databases answer late instead of not at all.
// Then it looks for what late answers can leave behind: requests that stay in processing, jobs without
// requests, attempts with gaps, partial batches, and keys whose change was reported wrongly. CI has
// one delay for each kind but the last; TANDEM_CHAOS_ROUNDS repeats every delay of every kind that often.
func TestChaosDelays(t *testing.T) {
	t.Parallel()
	delays := []delay{
		{"queue locked", 13 * time.Second, false, locked("river_job")},
		{"history and keys locked", 11 * time.Second, false, locked("requests, keys")},
		{"network stalled", 9 * time.Second, false, networkStalled},
		{"connections stopped", 11 * time.Second, true, connectionsStopped},
		{"node held", 0, false, nodeHeld}, // TestChaos stops one as well
	}
	rounds := 0
	if text := os.Getenv("TANDEM_CHAOS_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil || rounds < 1 {
			t.Fatalf("TANDEM_CHAOS_ROUNDS=%q: want a number of rounds", text)
		}
	}
	var running sync.WaitGroup
	for _, d := range delays {
		holds := slices.Repeat(allDelays, rounds)
		if rounds == 0 && d.quick > 0 {
			holds = []time.Duration{d.quick}
		}
		if len(holds) > 0 {
			running.Go(func() { t.Run(d.name, withPermit(func(t *testing.T) { runDelays(t, d, holds) })) })
		}
	}
	running.Wait()
}

// delayed is a cluster whose database answers late, with more callers.
type delayed struct {
	*cluster

	network *cable // between the first node and the database

	mu      sync.Mutex             // guards the fields below
	pending map[string]bool        // :: id of a submission whose call is to be repeated
	keys    map[string]*delayedKey // :: name
}

// enoughKeys is how many have to be made for the changes to show anything.
const enoughKeys = 5

// delayedKey is what is known of an API key.
type delayedKey struct{ made, revoked fate }

// fate is how a change was reported.
type fate int

const (
	never  fate = iota // it was refused, or never asked for
	unsure             // it may have happened
	done
)

// runDelays has a cluster held up, again and again, and looks at what is left.
func runDelays(t *testing.T, d delay, holds []time.Duration) {
	var database string
	if d.own {
		database = tandemtest.NewPostgres(t, tandemtest.Durable).Database(t)
	} else {
		database = clusterDatabase(t)
	}
	network, throughCable := cabled(t, database)
	c := &delayed{
		cluster: newCluster(t, database, map[int]string{0: throughCable},
			"--callback-attempts", "20", "--callback-backoff", "50ms"),
		network: network, pending: map[string]bool{}, keys: map[string]*delayedKey{},
	}
	for _, m := range c.members {
		m.callers.callback = flaky(t, m.callers.receiver)
	}
	stopCalls, stopMore := c.callAll(t), c.callMore(t, throughCable)
	for _, hold := range holds {
		pause(2 * time.Second)
		c.watching.Go(c.crowd)
		d.hold(t, c, hold)
		c.awaitReady(t)
	}
	if err := poll("enough keys to show anything", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		made := 0
		for _, key := range c.keys {
			if key.made == done {
				made++
			}
		}
		if made < enoughKeys {
			return fmt.Errorf("%d were made", made)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	stopCalls()
	stopMore()
	c.watching.Wait()
	c.endLeases(t)
	c.finish(t)
	c.auditDelays(t)
}

// crowd has many wait for an answer while the database is held up: some leave while their request is being written.
func (c *delayed) crowd() {
	var waiting sync.WaitGroup
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 40 {
		<-tick.C
		for _, m := range c.members {
			waiting.Go(func() { m.callers.sync(map[string]any{"data": map[string]any{"n": 1}, "task": "echo"}) })
		}
	}
	waiting.Wait()
}

// flaky refuses every fifth callback, so that there are attempts to be counted.
func flaky(t *testing.T, receiver http.Handler) string {
	t.Helper()
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%5 == 0 {
			http.Error(w, "not now", http.StatusInternalServerError)
			return
		}
		receiver.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// locked holds tables locked.
func locked(tables string) func(*testing.T, *delayed, time.Duration) {
	return func(t *testing.T, c *delayed, d time.Duration) {
		c.query(t, "the lock on "+tables, func(ctx context.Context, db *pgx.Conn) error {
			tx, err := db.Begin(ctx)
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx)
			if _, err := tx.Exec(ctx, `LOCK TABLE `+tables); err != nil {
				return err
			}
			pause(d)
			return nil
		})
	}
}

// networkStalled has nothing come through between the first node and its database.
func networkStalled(_ *testing.T, c *delayed, d time.Duration) {
	c.network.set(stalled)
	pause(d)
	c.network.set(whole)
}

// connectionsStopped stops the server's processes of all connections that there are.
func connectionsStopped(t *testing.T, c *delayed, d time.Duration) {
	var pids []int32
	c.query(t, "all connections", func(ctx context.Context, db *pgx.Conn) error {
		rows, err := db.Query(ctx, `
			SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> $1`, ofTests)
		if err != nil {
			return err
		}
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int32])
		return err
	})
	send := func(signal syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(int(pid), signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Errorf("%v to a process of PostgreSQL: %v", signal, err)
			}
		}
	}
	goOn := sync.OnceFunc(func() { send(syscall.SIGCONT) })
	t.Cleanup(goOn)
	send(syscall.SIGSTOP)
	pause(d)
	goOn()
	if len(pids) < clusterNodes {
		t.Errorf("%d connections stopped: too few to show anything", len(pids))
	}
}

// nodeHeld stops the process of a node.
func nodeHeld(t *testing.T, c *delayed, d time.Duration) {
	p := c.members[0].process
	p.signal(t, syscall.SIGSTOP)
	pause(d)
	p.signal(t, syscall.SIGCONT)
}

// callMore has submissions and batches sent to every member, and API keys made and revoked beside them.
func (c *delayed) callMore(t *testing.T, database string) (stop func()) {
	t.Helper()
	quit := make(chan struct{})
	var callers sync.WaitGroup
	every := func(interval time.Duration, call func()) {
		callers.Go(func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				call()
				select {
				case <-tick.C:
				case <-quit:
					return
				}
			}
		})
	}
	for _, m := range c.members {
		every(150*time.Millisecond, func() { c.submit(m, adaBody) })
		every(250*time.Millisecond, func() {
			c.submit(m, `{"submissions":[`+strings.Join(slices.Repeat([]string{adaBody}, batchEntries), ",")+`]}`)
		})
	}
	k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: database, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	every(200*time.Millisecond, func() { c.changeKeys(t, k) })
	stop = sync.OnceFunc(func() {
		close(quit)
		callers.Wait()
		if err := k.Close(); err != nil {
			t.Errorf("close the keys: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// batchEntries is how many submissions come in a batch.
const batchEntries = 3

// submit sends a submission or a batch, and notes what the answer promises.
func (c *delayed) submit(m *member, body string) {
	path := "/api/submit"
	if strings.HasPrefix(body, `{"submissions"`) {
		path = "/api/submit/batch"
	}
	response, err := m.callers.client.Post(m.callers.url+path, "application/json", bytes.NewReader([]byte(body)))
	var text []byte
	if err == nil {
		defer response.Body.Close()
		text, err = io.ReadAll(response.Body)
	}
	type entry struct {
		ID   string `json:"submissionId"` //nolint:tagliatelle // the submissions API is camelCase
		Fate string `json:"external"`
	}
	var answer struct {
		entry
		Results []entry `json:"results"`
	}
	m.callers.mu.Lock()
	defer m.callers.mu.Unlock()
	switch {
	case err != nil:
		m.callers.failed = some(m.callers.failed, fmt.Sprintf("%s: %v", path, err))
		return
	case response.StatusCode == http.StatusServiceUnavailable:
		return
	case response.StatusCode != http.StatusOK || json.Unmarshal(text, &answer) != nil:
		m.callers.odd = some(m.callers.odd, fmt.Sprintf("%s answered %d: %.200s", path, response.StatusCode, text))
		return
	case answer.ID != "":
		answer.Results = []entry{answer.entry}
	case len(answer.Results) != batchEntries:
		m.callers.odd = some(m.callers.odd,
			fmt.Sprintf("%s answered with %d entries: %.200s", path, len(answer.Results), text))
	}
	for _, one := range answer.Results {
		m.callers.answered[one.ID] = true
		if one.Fate == "pending" {
			c.mu.Lock()
			c.pending[one.ID] = true
			c.mu.Unlock()
		}
	}
}

// changeKeys makes a key and revokes the one before.
func (c *delayed) changeKeys(t *testing.T, k *keys.Keys) {
	fateOf := func(err error) fate {
		switch {
		case err == nil:
			return done
		case strings.Contains(err.Error(), "may have happened"):
			return unsure
		default:
			return never
		}
	}
	name := func(n int) string { return "key " + strconv.Itoa(n) }
	c.mu.Lock()
	n := len(c.keys)
	c.mu.Unlock()
	_, err := k.Create(context.Background(), keys.NewKey{Name: name(n), Scopes: []tandem.Scope{tandem.ScopeRead}})
	c.mu.Lock()
	c.keys[name(n)] = &delayedKey{made: fateOf(err)}
	before := c.keys[name(n-1)]
	c.mu.Unlock()
	if before == nil || before.made != done {
		return
	}
	_, err = k.Revoke(context.Background(), name(n-1))
	c.mu.Lock()
	defer c.mu.Unlock()
	if before.revoked = fateOf(err); errors.Is(err, keys.ErrNotFound) {
		t.Errorf("%s was made, and cannot be found: %v", name(n-1), err)
	}
}

// endLeases waits until only submissions that were answered as pending are unfinished. Then it ends
// their leases, because the test has no time to wait for that.
func (c *delayed) endLeases(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	pending := make([]string, 0, len(c.pending))
	for id := range c.pending {
		pending = append(pending, strings.TrimPrefix(id, "req_"))
	}
	c.mu.Unlock()
	c.query(t, "all to end but what waits for its lease", func(ctx context.Context, db *pgx.Conn) error {
		var left int
		var some string
		err := db.QueryRow(ctx, `
			SELECT count(*),
			       left(coalesce(string_agg(
			         concat_ws(' ', id, mode, task, status, 'lane', lane, 'job', job_id, 'node', node),
			         ', '), ''), 1000)
			FROM requests
			WHERE (job_id IS NOT NULL OR status IN ('pending', 'processing')) AND id <> ALL ($1::uuid[])`, pending).
			Scan(&left, &some)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d requests are unfinished: %s", left, some)
		}
		return err
	})
	c.query(t, "the end of the leases", func(ctx context.Context, db *pgx.Conn) error {
		tag, err := db.Exec(ctx, `
			UPDATE river_job SET scheduled_at = now()
			WHERE scheduled_at > now() AND id IN (
			  SELECT job_id FROM requests WHERE id = ANY ($1::uuid[]) AND status = 'processing')`, pending)
		if err == nil {
			t.Logf("%d submissions were answered as pending, %d of them wait for their lease",
				len(pending), tag.RowsAffected())
		}
		return err
	})
}

// auditDelays looks for what late answers leave behind in the tables.
func (c *delayed) auditDelays(t *testing.T) {
	t.Helper()
	for what, find := range map[string]string{
		"attempts have gaps, or are not as many as their request says": `
			SELECT request::text
			FROM attempts JOIN requests ON id = request
			GROUP BY request, callback_attempts
			HAVING min(number) <> 1 OR max(number) <> count(DISTINCT number) OR max(number) <> callback_attempts`,
		"attempts without a request": `
			SELECT request::text FROM attempts WHERE request NOT IN (SELECT id FROM requests)`,
		"jobs without a request": `
			SELECT id::text FROM river_job
			WHERE id NOT IN (SELECT job_id FROM requests WHERE job_id IS NOT NULL)`,
		"requests left in processing": `
			SELECT id::text FROM requests WHERE status IN ('pending', 'processing') OR job_id IS NOT NULL`,
		"batches that were kept in part": fmt.Sprintf(`
			SELECT batch_id FROM requests
			WHERE batch_id IS NOT NULL
			GROUP BY batch_id
			HAVING count(*) <> %d`, batchEntries),
	} {
		c.query(t, what, func(ctx context.Context, db *pgx.Conn) error {
			rows, err := db.Query(ctx, find)
			if err != nil {
				return err
			}
			found, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if len(found) > 0 {
				t.Errorf("%s: %d, such as %s", what, len(found), found[0])
			}
			return err
		})
	}
	revoked := map[string]bool{} // :: name of a key that is there → whether it is revoked
	var retried, submitted int
	c.query(t, "all keys", func(ctx context.Context, db *pgx.Conn) error {
		err := db.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM attempts WHERE number > 1),
			       (SELECT count(*) FROM requests WHERE task = 'submission' AND status = 'completed')`).
			Scan(&retried, &submitted)
		if err != nil {
			return err
		}
		rows, err := db.Query(ctx, `SELECT name, revoked_at IS NOT NULL FROM keys`)
		if err != nil {
			return err
		}
		var name string
		var over bool
		_, err = pgx.ForEachRow(rows, []any{&name, &over}, func() error {
			revoked[name] = over
			return nil
		})
		return err
	})
	changes := map[fate]int{}
	for name, k := range c.keys {
		over, there := revoked[name]
		if k.made == done && !there || k.made == never && there {
			t.Errorf("%s: reported as made %d, and there is one: %t", name, k.made, there)
		}
		if k.revoked == done && !over || k.revoked == never && over {
			t.Errorf("%s: reported as revoked %d, and it is: %t", name, k.revoked, over)
		}
		changes[k.made]++
	}
	t.Logf("%d submissions, %d callbacks repeated, %d keys made, %d refused, %d unsure",
		submitted, retried, changes[done], changes[never], changes[unsure])
	if submitted < 50 || retried < 10 || changes[done] < enoughKeys {
		t.Error("too few to show anything")
	}
}
