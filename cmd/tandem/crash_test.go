//go:build unix

package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"tandem"
	"tandem/internal/receiver"
)

// crashPatience is long because computing has a low priority, and other tests may want the machine.
const crashPatience = 5 * time.Minute

// crashLoad is callers with one request under way each, and a pause between two of them that
// keeps the backlog well below what can be worked off between two faults.
type crashLoad struct {
	async, sync int
	pause       time.Duration
	order       func(*rand.Rand) map[string]any
}

// crash is what the outside world knows of a server that is killed again and again.
type crash struct {
	url      string // of the server, in all rounds
	callback string // of the receiver
	receiver *receiver.Receiver
	client   *http.Client
	load     crashLoad

	mu       sync.Mutex
	promised map[string]bool // :: request id of a 202 that was read to its end
	answered map[string]bool // :: request id of a sync 200
	called   map[string]int  // :: request id → callbacks that came, repeats included
	failed   []string        // calls that were refused or not answered, the first of them
	odd      []string        // answers that nobody should get, the first of them
}

// TestCrash kills the real binary at random moments under load and starts it
// again on the same file, at least 25 times, then checks that nothing that was promised is
// lost. TANDEM_CRASH_ROUNDS sets another number of rounds.
func TestCrash(t *testing.T) {
	t.Parallel()
	rounds := 25
	if testing.Short() {
		rounds = 4
	}
	if text := os.Getenv("TANDEM_CRASH_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil || rounds < 1 {
			t.Fatalf("TANDEM_CRASH_ROUNDS=%q: want a number of rounds", text)
		}
	}
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d rounds, seed %d", rounds, seed)

	address := crashAddress(t)
	secret := tandem.NewSecret()
	c := newCrash(t, "http://"+address, secret)
	database := filepath.Join(t.TempDir(), "crash.db")
	serve := func() *process {
		p := start(t, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, "serve", "--listen", address, "--db", database,
			"--task-timeout", crashPatience.String())
		p.awaitReady(t)
		return p
	}

	stop := c.callers(t, seed)
	var slowest time.Duration // start to ready
	for round := range rounds {
		started := time.Now()
		p := serve()
		slowest = max(slowest, time.Since(started))
		select {
		case <-p.exited:
			t.Fatalf("round %d: tandem ended by itself: %v\n%s", round, p.err, p.stderr.String())
		case <-time.After(time.Duration(50+dice.IntN(700)) * time.Millisecond):
			p.kill()
		}
	}
	p := serve()
	stop()
	c.drain(t)
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("clean stop at the end: exit code %d\n%s", code, p.stderr.String())
	}
	c.audit(t, database)

	counts := c.receiver.Counts()
	t.Logf("%d promised, %d answered, %d callbacks, %d of them repeats; slowest start %v",
		len(c.promised), len(c.answered), counts.Received, counts.Duplicates, slowest.Round(time.Millisecond))
	if counts.BadSignature+counts.Malformed > 0 {
		t.Errorf("callbacks with a bad signature or body: %+v", counts)
	}
	// Guards the test itself: without load it would show nothing.
	if len(c.promised) < rounds || len(c.answered) < rounds {
		t.Errorf("%d promised and %d answered in %d rounds: too few to show anything", len(c.promised), len(c.answered), rounds)
	}
}

// crashAddress finds a free port that no outgoing connection takes while the
// server is down: below the range from which systems take those.
func crashAddress(t *testing.T) string {
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 15_000+rand.IntN(10_000))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

func newCrash(t *testing.T, url string, secret tandem.Secret) *crash {
	c := &crash{
		url:      url,
		client:   &http.Client{Timeout: crashPatience, Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
		load:     crashLoad{async: 6, sync: 3, pause: 20 * time.Millisecond, order: crashOrder},
		promised: map[string]bool{},
		answered: map[string]bool{},
		called:   map[string]int{},
	}
	var err error
	c.receiver, err = receiver.New(receiver.Config{Secret: secret, OnArrival: func(a receiver.Arrival) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.called[a.ID]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.receiver)
	t.Cleanup(server.Close)
	t.Cleanup(c.client.CloseIdleConnections)
	c.callback = server.URL
	return c
}

// callers ask for work, whether the server is up or not, until the returned
// function is called; it waits for their last answers.
func (c *crash) callers(t *testing.T, seed uint64) (stop func()) {
	quit := make(chan struct{})
	var callers sync.WaitGroup
	for i := range c.load.async + c.load.sync {
		dice := rand.New(rand.NewPCG(seed, uint64(i+1)))
		call := c.async
		if i >= c.load.async {
			call = c.sync
		}
		callers.Go(func() {
			pause := time.NewTicker(c.load.pause)
			defer pause.Stop()
			for {
				call(c.load.order(dice))
				select {
				case <-pause.C:
				case <-quit:
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(quit)
		callers.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// crashOrder is mostly cheap work, with some that is in the middle of things
// when the server dies.
func crashOrder(dice *rand.Rand) map[string]any {
	order := map[string]any{"data": map[string]any{"n": dice.IntN(1000)}, "complexity": 1}
	switch n := dice.IntN(100); {
	case n < 70:
		order["task"] = "echo"
	case n < 97:
		order["task"] = "sleep"
	default:
		order["task"] = "compute"
	}
	return order
}

func (c *crash) async(order map[string]any) {
	order["callback_url"] = c.callback + "/crash"
	c.call("/async", order, http.StatusAccepted, c.promised)
}

func (c *crash) sync(order map[string]any) {
	c.call("/sync", order, http.StatusOK, c.answered)
}

// call sends one order. An answer counts when it was read to its end; that
// there is none, or a 503, is what callers of a dying server get.
func (c *crash) call(path string, order map[string]any, want int, ids map[string]bool) {
	body, err := json.Marshal(order)
	if err != nil {
		panic(err)
	}
	response, err := c.client.Post(c.url+path, "application/json", bytes.NewReader(body))
	var text []byte
	if err == nil {
		defer response.Body.Close()
		text, err = io.ReadAll(response.Body)
	}
	var answer struct {
		RequestID string `json:"request_id"`
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.failed = some(c.failed, fmt.Sprintf("%s: %v", path, err))
	case response.StatusCode == want && json.Unmarshal(text, &answer) == nil && answer.RequestID != "":
		ids[answer.RequestID] = true
	case response.StatusCode == http.StatusServiceUnavailable:
		c.failed = some(c.failed, fmt.Sprintf("%s answered 503: %.200s", path, text))
	default:
		c.odd = some(c.odd, fmt.Sprintf("%s answered %d: %.200s", path, response.StatusCode, text))
	}
}

// some adds to a list of at most ten.
func some(list []string, more string) []string {
	if len(list) < 10 {
		list = append(list, more)
	}
	return list
}

// drain waits until the server has nothing left to do.
func (c *crash) drain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), crashPatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		depth, err := c.depth()
		if err == nil && depth == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the queue does not drain: depth %d, %v", depth, err)
		}
	}
}

// depth reads how many requests are unfinished.
func (c *crash) depth() (int, error) {
	response, err := c.client.Get(c.url + "/stats")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var stats struct {
		Queue struct {
			Depth *int `json:"depth"`
		} `json:"queue"`
	}
	if err := json.NewDecoder(response.Body).Decode(&stats); err != nil {
		return 0, err
	}
	if stats.Queue.Depth == nil {
		return 0, errors.New("/stats has no queue.depth")
	}
	return *stats.Queue.Depth, nil
}

// audit compares what the callers and the receiver know with the database.
func (c *crash) audit(t *testing.T, database string) {
	t.Helper()
	for _, odd := range c.odd {
		t.Error(odd)
	}
	db, err := sql.Open("sqlite", "file:"+database+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	checkIntegrity(t, db)

	rows, err := db.Query(`SELECT id, mode, status, error_code FROM requests`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	kept := map[string]bool{}
	interrupted := 0
	for rows.Next() {
		var id, mode, status, code string
		if err := rows.Scan(&id, &mode, &status, &code); err != nil {
			t.Fatal(err)
		}
		kept[id] = true
		switch {
		case mode == "async":
			if status != string(tandem.StatusCallbackSent) || c.called[id] == 0 {
				t.Errorf("async %s (promised: %t) is %s with %d callbacks, want callback_sent", id, c.promised[id], status, c.called[id])
			}
		case c.answered[id]:
			if status != string(tandem.StatusCompleted) {
				t.Errorf("sync %s was answered 200 and is %s %s", id, status, code)
			}
		case status == string(tandem.StatusFailed) && code == tandem.FailedInterrupted:
			interrupted++
		case status != string(tandem.StatusCompleted):
			t.Errorf("sync %s is %s %s, want completed, or failed as interrupted", id, status, code)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for id := range c.promised {
		if !kept[id] {
			t.Errorf("async %s was promised and is not in the database", id)
		}
	}
	for id := range c.answered {
		if !kept[id] {
			t.Errorf("sync %s was answered and is not in the database", id)
		}
	}
	for id := range c.called {
		if !kept[id] {
			t.Errorf("a callback came for %s, which is not in the database", id)
		}
	}
	t.Logf("%d rows, %d sync requests interrupted", len(kept), interrupted)
}
