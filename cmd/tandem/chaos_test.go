//go:build unix

package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"tandem/internal/tandemtest"
)

// TestChaos runs clusters of three nodes, each on a database of its own and under load, has something happen
// to each of them again and again, and then looks for anything lost: every acknowledged request has ended and its
// receiver was called, nobody was called for a request that is not in the database, the figures of every node are
// those of a recount, and no job is left. What others take over from a node that is dead they do within 15 s of its death,
// by the clock of the database. TANDEM_CHAOS_ROUNDS has it all happen so many times as often; `make chaos`.
//
// The scenarios wait most of the time, so they run at the same time whatever -parallel says.
func TestChaos(t *testing.T) {
	t.Parallel()
	scenarios := map[string]func(*testing.T, int){
		"nodes killed":       nodesKilled,
		"node stopped":       nodeStopped,
		"database restarted": databaseRestarted,
		"connections killed": connectionsKilled,
		"network cut":        networkCut,
		"nodes replaced":     nodesReplaced,
	}
	rounds := 1
	if text := os.Getenv("TANDEM_CHAOS_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil || rounds < 1 {
			t.Fatalf("TANDEM_CHAOS_ROUNDS=%q: want a number of rounds", text)
		}
		scenarios["clock off"] = clockOff // builds a tandem of its own, for which there is no time otherwise
	}
	var running sync.WaitGroup
	for name, run := range scenarios {
		running.Go(func() { t.Run(name, withPermit(func(t *testing.T) { run(t, rounds) })) })
	}
	running.Wait()
}

// withPermit is a test of a cluster that waits until there is room for one more.
func withPermit(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		clusters <- struct{}{}
		t.Cleanup(func() { <-clusters }) // after those of the test
		test(t)
	}
}

// pause lets time pass, in which callers call and faults have their effect.
func pause(d time.Duration) { <-time.After(d) }

// nodesKilled kills a node every few seconds, the leader of River's among them, and starts it again.
func nodesKilled(t *testing.T, rounds int) {
	c := newCluster(t, clusterDatabase(t), nil)
	stop := c.callAll(t)
	for i := range 3 * rounds {
		m := c.members[rand.IntN(len(c.members))]
		if i%3 == 0 {
			m = c.leader(t)
		}
		c.kill(t, m)
		pause(2 * time.Second)
		m.start(t)
		pause(2 * time.Second)
	}
	stop()
	c.finish(t)
	if len(c.takeovers) == 0 {
		t.Error("no dead node left anything to take over")
	}
}

// nodeStopped stops a process for longer than the others wait, and has it go on: what it says then
// of the work that others have taken over is not heard.
func nodeStopped(t *testing.T, rounds int) {
	c := newCluster(t, clusterDatabase(t), nil)
	stop := c.callAll(t)
	for i := range rounds {
		m := c.members[i%len(c.members)]
		held, died := m.stopBusy(t)
		late := m.tooLate()
		c.awaitTakeover(t, m.name, m.id, died)
		pause(3 * time.Second) // the others end what they took over
		before := c.ended(t, held)
		if len(before) == 0 {
			t.Errorf("%s: nothing that it worked on has ended without it", m.name)
		}
		m.process.signal(t, syscall.SIGCONT)
		if err := poll("late results of "+m.name, func() error {
			if m.tooLate() == late {
				return errors.New("not in its log")
			}
			return awaitOK(m.callers.url + "/readyz")
		}); err != nil {
			t.Error(err)
		}
		after := c.ended(t, held)
		for id, row := range before {
			if diff := cmp.Diff(row, after[id]); diff != "" {
				t.Errorf("%s: a row that had ended has changed (-before +after):\n%s", id, diff)
			}
		}
	}
	stop()
	c.finish(t)
}

// stopBusy stops a member's process while it does work that nobody waits for, and returns what it holds.
func (m *member) stopBusy(t *testing.T) (held []holding, died time.Time) {
	t.Helper()
	for range 100 {
		m.burden(t)
		_, died = m.cluster.heldBy(t, m.id)
		m.process.signal(t, syscall.SIGSTOP)
		pause(200 * time.Millisecond) // a commit that the database has been told of happens
		held, _ = m.cluster.heldBy(t, m.id)
		if slices.ContainsFunc(held, func(h holding) bool { return h.job != 0 && h.begun }) {
			return held, died
		}
		m.process.signal(t, syscall.SIGCONT) // it was quicker
	}
	t.Fatalf("%s is never busy", m.name)
	return nil, died
}

// tooLate is how often a member has found that work was no longer its own.
func (m *member) tooLate() int {
	return strings.Count(m.process.stderr.String(), "a result came too late")
}

// ended returns what is written of those requests whose work and callback have ended.
func (c *cluster) ended(t *testing.T, held []holding) map[string]string {
	t.Helper()
	ids := make([]string, len(held))
	for i, h := range held {
		ids[i] = h.id
	}
	rows := map[string]string{}
	c.query(t, "rows that have ended", func(ctx context.Context, db *pgx.Conn) error {
		found, err := db.Query(ctx, `
			SELECT requests.id::text, requests::text || coalesce(string_agg(attempts::text, ' ' ORDER BY number), '')
			FROM requests LEFT JOIN attempts ON request = requests.id
			WHERE requests.id = ANY($1::uuid[]) AND job_id IS NULL AND status <> 'processing'
			GROUP BY requests.id`, ids)
		if err != nil {
			return err
		}
		var id, row string
		_, err = pgx.ForEachRow(found, []any{&id, &row}, func() error {
			rows[id] = row
			return nil
		})
		return err
	})
	return rows
}

// databaseRestarted restarts PostgreSQL every few seconds, in turn orderly and as if it had crashed.
func databaseRestarted(t *testing.T, rounds int) {
	server := tandemtest.NewPostgres(t, tandemtest.Durable)
	c := newCluster(t, server.Database(t), nil)
	stop := c.callAll(t)
	for i := range 4 * rounds {
		pause(3 * time.Second)
		how := tandemtest.Fast
		if i%2 == 1 {
			how = tandemtest.Immediate
		}
		server.Restart(t, how)
	}
	c.awaitReady(t)
	stop()
	c.finish(t)
}

// connectionsKilled ends all connections of all nodes, again and again.
func connectionsKilled(t *testing.T, rounds int) {
	c := newCluster(t, clusterDatabase(t), nil)
	stop := c.callAll(t)
	killed := 0
	for range 12 * rounds {
		pause(time.Second)
		c.query(t, "the end of all connections", func(ctx context.Context, db *pgx.Conn) error {
			var n int
			err := db.QueryRow(ctx, `
				SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name <> $1`, ofTests).Scan(&n)
			killed += n
			return err
		})
	}
	c.awaitReady(t)
	stop()
	c.finish(t)
	if t.Logf("%d connections killed", killed); killed < 12*rounds*len(c.members) {
		t.Errorf("%d connections killed: too few to show anything", killed)
	}
}

// networkCut cuts one node off from the database in every way there is: it refuses work and says so, and
// recovers by itself.
func networkCut(t *testing.T, rounds int) {
	database := clusterDatabase(t)
	network, throughCable := cabled(t, database)
	c := newCluster(t, database, map[int]string{0: throughCable})
	m := c.members[0]
	stop := c.callAll(t)
	for range rounds {
		for _, cut := range []struct {
			what  string
			state wear
			dead  bool // for so long that others take its work over
		}{{"refused", refused, false}, {"reset", reset, false}, {"stalled", stalled, true}} {
			pause(time.Second)
			if cut.dead {
				m.burden(t)
			}
			_, died := c.heldBy(t, m.id)
			begun := time.Now()
			network.set(cut.state)
			if cut.dead {
				c.watching.Go(func() { c.awaitTakeover(t, m.name, m.id, died) })
			}
			unready := m.awaitStatus(t, "/readyz", http.StatusServiceUnavailable)
			refusing := m.awaitStatus(t, "/async", http.StatusServiceUnavailable)
			if took := refusing.Sub(begun); took > 8*time.Second {
				t.Errorf("%s: callers were kept waiting for %v", cut.what, took)
			}
			m.awaitStatus(t, "/livez", http.StatusOK)
			if cut.dead {
				c.watching.Wait()
			}
			network.set(whole)
			mended := time.Now()
			m.awaitStatus(t, "/readyz", http.StatusOK)
			m.awaitStatus(t, "/async", http.StatusAccepted)
			t.Logf("%s: /readyz said so after %v, POST after %v; well %v after it was mended", cut.what,
				unready.Sub(begun).Round(time.Millisecond), refusing.Sub(begun).Round(time.Millisecond), time.Since(mended).Round(time.Millisecond))
		}
	}
	stop()
	c.finish(t)
}

// awaitStatus asks a member until it answers with a status within a few seconds, and returns when that was. POST for /async.
func (m *member) awaitStatus(t *testing.T, path string, want int) time.Time {
	t.Helper()
	client := &http.Client{Transport: m.callers.client.Transport, Timeout: 3 * time.Second}
	if err := poll(fmt.Sprintf("%s of %s to say %d", path, m.name, want), func() error {
		var response *http.Response
		var err error
		if path == "/async" {
			response, err = client.Post(m.callers.url+path, "application/json",
				strings.NewReader(fmt.Sprintf(`{"data":{"n":1},"task":"echo","callback_url":%q}`, m.callers.callback)))
		} else {
			response, err = client.Get(m.callers.url + path)
		}
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		if response.StatusCode == http.StatusServiceUnavailable && path == "/async" && response.Header.Get("Retry-After") == "" {
			t.Errorf("503 without Retry-After: %s", text)
		}
		if response.StatusCode != want {
			return fmt.Errorf("%s: %.200s", response.Status, text)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	return time.Now()
}

// awaitReady waits until every member is ready.
func (c *cluster) awaitReady(t *testing.T) {
	t.Helper()
	for _, m := range c.members {
		m.awaitStatus(t, "/readyz", http.StatusOK)
	}
}

// nodesReplaced replaces every node in turn, politely, behind a round robin that goes by /readyz: no call fails.
func nodesReplaced(t *testing.T, rounds int) {
	c := newCluster(t, clusterDatabase(t), nil, "--drain-delay", "2s")
	b := newBalancer(t, c)
	callers := newCrash(t, b.url, c.secret)
	callers.load = crashLoad{async: 3, sync: 3, pause: 40 * time.Millisecond, order: func(dice *rand.Rand) map[string]any {
		order := clusterOrder(dice)
		if dice.IntN(4) == 0 {
			order["task"], order["complexity"] = "sleep", 10
		}
		return order
	}}
	c.members[0].callers = callers // the others have none
	stop := callers.callers(t, rand.Uint64())
	for i := range clusterNodes * rounds {
		m := c.members[i%clusterNodes]
		b.awaitReady(t, clusterNodes)
		m.process.signal(t, terminate)
		if code := m.process.exitCode(t); code != 0 {
			t.Errorf("%s: exit code %d\n%s", m.name, code, m.process.stderr.String())
		}
		m.start(t)
	}
	b.awaitReady(t, clusterNodes)
	stop()
	for _, failed := range callers.failed {
		t.Errorf("a call failed: %s", failed)
	}
	for i, served := range b.served() {
		if served < 10 {
			t.Errorf("node %d served %d calls: too few to show anything", i+1, served)
		}
	}
	callers.url = "http://" + c.members[0].address
	c.finish(t)
}
