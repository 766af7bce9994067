//go:build unix

package main_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tandem"
)

// TestNodeCutOff stalls, or cuts, the network between a node and its database: the node says so, answers 503 within a
// bounded time, and recovers by itself.
func TestNodeCutOff(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]wear{"stalled": stalled, "refused": refused} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCutOff(t)
			c.network.set(state)
			cut := time.Now()
			for status := http.StatusOK; status == http.StatusOK; {
				status, _, _, _ = c.ask(t, "/readyz")
			}
			t.Logf("not ready after %v", time.Since(cut).Round(time.Millisecond))
			if took := time.Since(cut); took > 8*time.Second {
				t.Errorf("/readyz noticed after %v", took)
			}
			status, header, body, took := c.ask(t, "/async")
			t.Logf("the first POST is answered %d after %v", status, took.Round(time.Millisecond))
			if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" ||
				!strings.Contains(body, string(tandem.CodeStoreUnavailable)) || took > 15*time.Second {
				t.Errorf("the first POST is answered %d after %v, Retry-After %q: %s",
					status, took, header.Get("Retry-After"), body)
			}
			for _, probe := range []struct {
				path string
				want int
			}{
				{"/readyz", 503}, {"/async", 503}, {"/sync", 503}, {"/requests", 503},
				{"/stats", 200}, {"/livez", 200}, {"/healthz", 200},
			} {
				status, _, body, took := c.ask(t, probe.path)
				if status != probe.want || took > 3*time.Second {
					t.Errorf("%s is answered %d after %v, want %d at once: %s", probe.path, status, took, probe.want, body)
				}
			}
			c.network.set(whole)
			mended := time.Now()
			if err := awaitOK(c.url + "/readyz"); err != nil {
				t.Fatalf("%v\n%s", err, c.node.stderr.String())
			}
			t.Logf("ready %v after it was mended", time.Since(mended).Round(time.Millisecond))
			c.finish(t, c.work(t))
		})
	}
}

// TestStopWhileCutOff: a node that is told to stop while its network stalls does, and the next one does what it had
// promised.
func TestStopWhileCutOff(t *testing.T) {
	t.Parallel()
	c := newCutOff(t)
	stop := c.work(t)
	c.network.set(stalled)
	<-time.After(time.Second) // and what comes of it waits
	c.node.signal(t, terminate)
	told := time.Now()
	select {
	case <-c.node.exited:
		t.Logf("stopped %v after it was told to, exit code %d", time.Since(told).Round(time.Millisecond), c.node.exitCode(t))
	case <-time.After(time.Minute):
		t.Fatalf("it does not stop\n%s", c.node.stderr.String())
	}
	c.client.CloseIdleConnections()
	c.serve(t, c.database)
	c.finish(t, stop)
}

// cutOff is a node, the network between it and its database, and what its callers know.
type cutOff struct {
	*crash

	database string // URL
	network  *cable
	secret   tandem.Secret
	node     *process
}

func newCutOff(t *testing.T) *cutOff {
	t.Helper()
	c := &cutOff{database: clusterDatabase(t), secret: tandem.NewSecret()}
	c.crash = newCrash(t, "http://"+crashAddress(t), c.secret)
	network, through := cabled(t, c.database)
	c.network = network
	c.serve(t, through)
	return c
}

// serve starts the node, or the next one at its address.
func (c *cutOff) serve(t *testing.T, database string) {
	t.Helper()
	c.node = start(t, []string{"TANDEM_SIGNING_SECRET=" + c.secret.Reveal()}, "serve",
		"--listen", strings.TrimPrefix(c.url, "http://"), "--db", database, "--drain-delay", "0s")
	c.node.awaitReady(t)
}

// work has callers ask for work, and returns when some of it is under way.
func (c *cutOff) work(t *testing.T) (stop func()) {
	t.Helper()
	stop = c.callers(t, 1)
	const enough = 10 // promised, to show anything
	if err := poll("work to be under way", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := len(c.promised); n < enough {
			return fmt.Errorf("%d were promised", n)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, c.node.stderr.String())
	}
	return stop
}

// finish ends the calls, and looks for what was promised and not kept.
func (c *cutOff) finish(t *testing.T, stop func()) {
	t.Helper()
	stop()
	c.drain(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.promised {
		if c.called[id] == 0 {
			t.Errorf("%s was promised, and nobody was called", id)
		}
	}
	for _, odd := range c.odd {
		t.Error(odd)
	}
}

// ask makes one call, with an order if the path takes one.
func (c *crash) ask(t *testing.T, path string) (status int, header http.Header, body string, took time.Duration) {
	t.Helper()
	asked := time.Now()
	var response *http.Response
	var err error
	switch path {
	case "/async", "/sync":
		order := `{"data":{"n":1},"task":"echo","callback_url":"` + c.callback + `"}`
		response, err = c.client.Post(c.url+path, "application/json", strings.NewReader(order))
	default:
		response, err = c.client.Get(c.url + path)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(text), time.Since(asked)
}
