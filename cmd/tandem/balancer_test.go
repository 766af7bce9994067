//go:build unix

package main_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// balancer is a round robin over those members of a cluster whose /readyz says 200. It asks five times a
// second, tries nothing twice, and keeps its connections.
type balancer struct {
	url     string
	targets []*target
	next    atomic.Int64
}

// target is a node as the balancer sees it.
type target struct {
	url    *url.URL
	ready  atomic.Bool
	served atomic.Int64
}

func newBalancer(t *testing.T, c *cluster) *balancer {
	t.Helper()
	b := &balancer{}
	for _, m := range c.members {
		b.targets = append(b.targets, &target{url: &url.URL{Scheme: "http", Host: m.address}})
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	server := httptest.NewServer(&httputil.ReverseProxy{Rewrite: b.rewrite, Transport: transport, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)})
	ctx, cancel := context.WithCancel(context.Background())
	var checking sync.WaitGroup
	checking.Go(func() { b.check(ctx, transport) })
	t.Cleanup(func() {
		cancel()
		checking.Wait()
		server.Close()
		transport.CloseIdleConnections()
	})
	b.url = server.URL
	return b
}

// rewrite sends a call to the next node that is ready; if none is, to one that is not.
func (b *balancer) rewrite(r *httputil.ProxyRequest) {
	first := int(b.next.Add(1))
	chosen := b.targets[first%len(b.targets)]
	for i := range b.targets {
		if at := b.targets[(first+i)%len(b.targets)]; at.ready.Load() {
			chosen = at
			break
		}
	}
	chosen.served.Add(1)
	r.SetURL(chosen.url)
}

func (b *balancer) check(ctx context.Context, transport http.RoundTripper) {
	client := &http.Client{Transport: transport, Timeout: time.Second}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, at := range b.targets {
			response, err := client.Get(at.url.String() + "/readyz")
			if err == nil {
				response.Body.Close()
			}
			at.ready.Store(err == nil && response.StatusCode == http.StatusOK)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// awaitReady waits until so many nodes are ready.
func (b *balancer) awaitReady(t *testing.T, want int) {
	t.Helper()
	if err := poll("the balancer to find all nodes ready", func() error {
		ready := 0
		for _, at := range b.targets {
			if at.ready.Load() {
				ready++
			}
		}
		if ready < want {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// served counts the calls of each node.
func (b *balancer) served() []int64 {
	counts := make([]int64, len(b.targets))
	for i, at := range b.targets {
		counts[i] = at.served.Load()
	}
	return counts
}
