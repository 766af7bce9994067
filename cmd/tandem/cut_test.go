//go:build unix

package main_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/tandemtest"
)

// TestNodeCutOff stalls, and then cuts, the network between a node and its database: the node says so, answers
// 503 within a bounded time, and goes on by itself. Told to stop meanwhile it does, and what it had promised is done by the next one.
func TestNodeCutOff(t *testing.T) {
	t.Parallel()
	database, err := url.Parse(tandemtest.Postgres(t, tandemtest.Durable))
	if err != nil {
		t.Fatal(err)
	}
	cable := newCable(t, filepath.Join(database.Query().Get("host"), ".s.PGSQL.5432"))
	through := "postgres://postgres@" + cable.address + database.Path + "?sslmode=disable"
	secret := tandem.NewSecret()
	address := crashAddress(t)
	serve := func(database string) *process {
		p := start(t, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, "serve", "--listen", address, "--db", database, "--drain-delay", "0s")
		p.awaitReady(t)
		return p
	}
	node := serve(through)
	c := newCrash(t, "http://"+address, secret)

	for name, state := range map[string]wear{"stalled": stalled, "refused": refused} {
		cable.set(state)
		cut := time.Now()
		for status := http.StatusOK; status == http.StatusOK; {
			status, _, _, _ = c.ask(t, "/readyz")
		}
		t.Logf("%s: not ready after %v", name, time.Since(cut).Round(time.Millisecond))
		if took := time.Since(cut); took > 8*time.Second {
			t.Errorf("%s: /readyz noticed after %v", name, took)
		}
		status, header, body, took := c.ask(t, "/async")
		t.Logf("%s: the first POST is answered %d after %v", name, status, took.Round(time.Millisecond))
		if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" ||
			!strings.Contains(body, string(tandem.CodeStoreUnavailable)) || took > 15*time.Second {
			t.Errorf("%s: the first POST is answered %d after %v, Retry-After %q: %s", name, status, took, header.Get("Retry-After"), body)
		}
		for _, probe := range []struct {
			path string
			want int
		}{{"/readyz", 503}, {"/async", 503}, {"/sync", 503}, {"/requests", 503}, {"/stats", 200}, {"/livez", 200}, {"/healthz", 200}} {
			status, _, body, took := c.ask(t, probe.path)
			if status != probe.want || took > 3*time.Second {
				t.Errorf("%s: %s is answered %d after %v, want %d at once: %s", name, probe.path, status, took, probe.want, body)
			}
		}
		cable.set(whole)
		t.Logf("%s for %v", name, time.Since(cut).Round(time.Millisecond))
		mended := time.Now()
		if err := awaitOK(node.url + "/readyz"); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, node.stderr.String())
		}
		t.Logf("%s: ready %v after it was mended", name, time.Since(mended).Round(time.Millisecond))
	}

	stop := c.callers(t, 1)
	const enough = 10 // promised, to show anything
	if err := poll("work to be under way", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := len(c.promised); n < enough {
			return fmt.Errorf("%d were promised", n)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, node.stderr.String())
	}
	cable.set(stalled)
	<-time.After(time.Second) // and what comes of it waits
	node.signal(t, terminate)
	told := time.Now()
	select {
	case <-node.exited:
		t.Logf("stopped %v after it was told to, exit code %d", time.Since(told).Round(time.Millisecond), node.exitCode(t))
	case <-time.After(time.Minute):
		t.Fatalf("it does not stop\n%s", node.stderr.String())
	}
	stop()
	c.client.CloseIdleConnections()
	serve(database.String())
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
