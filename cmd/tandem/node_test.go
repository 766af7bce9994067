//go:build unix

package main_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"tandem"
	"tandem/internal/tandemtest"
)

// TestNodeKilled runs two nodes on one PostgreSQL, asks both for work, and kills one of them
// again and again: what either has promised is kept by whoever is left.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	database := tandemtest.Postgres(t, tandemtest.Durable)
	secret := tandem.NewSecret()
	serve := func(address string) *process {
		p := start(t, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, "serve", "--listen", address, "--db", database,
			"--task-timeout", crashPatience.String())
		p.awaitReady(t)
		return p
	}
	stays, dies := crashAddress(t), crashAddress(t)
	last := serve(stays)
	ofLast, ofKilled := newCrash(t, "http://"+stays, secret), newCrash(t, "http://"+dies, secret)
	seed := rand.Uint64()
	stopLast, stopKilled := ofLast.callers(t, seed), ofKilled.callers(t, seed+1)
	for range rounds {
		p := serve(dies)
		select {
		case <-p.exited:
			t.Fatalf("a node ended by itself: %v\n%s", p.err, p.stderr.String())
		case <-time.After(time.Second):
			p.kill()
		}
	}
	killed := time.Now()
	stopKilled()
	stopLast()
	ofLast.drain(t)
	t.Logf("nothing was left to do %v after the last kill", time.Since(killed).Round(time.Millisecond))
	last.signal(t, terminate)
	if code := last.exitCode(t); code != 0 {
		t.Errorf("clean stop at the end: exit code %d\n%s", code, last.stderr.String())
	}
	for name, c := range map[string]*crash{"the node that stays": ofLast, "the node that dies": ofKilled} {
		c.mu.Lock()
		for id := range c.promised {
			if c.called[id] == 0 {
				t.Errorf("%s promised %s, and nobody was called", name, id)
			}
		}
		for _, odd := range c.odd {
			t.Errorf("%s: %s", name, odd)
		}
		if len(c.promised) < rounds {
			t.Errorf("%s promised %d: too few to show anything", name, len(c.promised))
		}
		t.Logf("%s: %d promised, %d called back", name, len(c.promised), len(c.called))
		c.mu.Unlock()
	}
}
