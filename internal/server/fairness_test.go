package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/keys"
	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

// databases are where two keys share a service.
var databases = map[string]func(*testing.T) string{
	"sqlite": func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "tandem.db") },
	"postgres": func(t *testing.T) string {
		t.Helper()
		return tandemtest.Postgres(t, tandemtest.Volatile)
	},
}

// TestWorkOfOneKeyDelaysNoOther: however much one key has asked for, another one's request is among the next.
func TestWorkOfOneKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		for _, paths := range [][2]string{{"/async", "/async"}, {"/async", "/sync"}, {"/sync", "/sync"}} {
			t.Run(name+" "+paths[0]+" "+paths[1], func(t *testing.T) {
				t.Parallel()
				oneKeyDelaysNoOther(t, database(t), paths[0], paths[1])
			})
		}
	}
}

// oneKeyDelaysNoOther has one key ask for much, and another for little. Work of the first one ends only when the test
// allows it, so what counts is the order, not the time.
func oneKeyDelaysNoOther(t *testing.T, database, much, little string) {
	t.Helper()
	const slots, backlog, most = 2, 40, 8
	end := make(chan struct{})    // a value ends one piece of work of the first key
	served := make(chan struct{}) // closed when the second key's work runs
	var running atomic.Int64
	svc, k := withKeysIn(t, database, func(s *setup) {
		s.engine.Workers = slots
		s.engine.Tasks = []work.Task{{Name: "count", Class: work.CPU, Run: work.JSON(func(
			ctx context.Context, data json.RawMessage, _ int,
		) (json.RawMessage, error) {
			if string(data) == `{"much":false}` {
				close(served)
				return data, nil
			}
			running.Add(1)
			select {
			case <-end:
				return data, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		})}}
	})
	first, second := newKey(t, k, "first", "submit", "read"), newKey(t, k, "second", "submit", "read")
	var clients sync.WaitGroup
	defer clients.Wait()
	defer close(end)
	ask := func(path string, key keys.Made, more bool) {
		clients.Go(func() {
			body := fmt.Sprintf(`{"task":"count","data":{"much":%t}`, more)
			want := http.StatusOK
			if path == "/async" {
				body, want = body+`,"callback_url":"`+svc.URL+`/test-callback"`, http.StatusAccepted
			}
			if a := svc.do(http.MethodPost, path, body+"}", bearer(key)); a.status != want {
				t.Errorf("POST %s: %d %s", path, a.status, a.body)
			}
		})
	}
	known := func(key keys.Made) (n int) {
		var page []tandem.Request
		svc.do(http.MethodGet, "/requests?limit=100", "", bearer(key)).decode(t, &page)
		return len(page)
	}
	for range backlog {
		ask(much, first, true)
	}
	svc.until("the first key has every slot", func() bool { return running.Load() == slots && known(first) == backlog })
	ask(little, second, false)
	svc.until("the second key's request is there", func() bool { return known(second) == 1 })
	wait := 50 * time.Millisecond // it may be on its way to the slots
	for range most {
		end <- struct{}{}
		select {
		case <-served:
			return
		case <-time.After(wait):
			wait *= 2
		}
	}
	t.Errorf("%d of the first key's %d have ended, and the second key's request is not served", most, backlog)
}

// TestHangingReceiversOfOneKeyDelayNoOther: one key's callbacks hang wherever it may have some, and another one's is
// delivered meanwhile.
func TestHangingReceiversOfOneKeyDelayNoOther(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const deliveries, receivers, backlog = 32, 4, 40
			var urls []string
			for range receivers {
				urls = append(urls, tandemtest.Receive(t, receiver.Hang))
			}
			well := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			t.Cleanup(well.Close)
			svc, k := withKeysIn(t, database(t), func(s *setup) {
				s.deliveries = deliveries
				s.egress.Timeout = time.Hour // none ends by itself
			})
			hanging := func() (n int) {
				for _, d := range svc.engine.Destinations() {
					n += d.InFlight
				}
				return n
			}
			first, second := newKey(t, k, "first", "submit", "read"), newKey(t, k, "second", "submit", "read")
			ask := func(key keys.Made, url string) string {
				return requestID(t, svc.do(http.MethodPost, "/async",
					`{"task":"echo","data":{"a":1},"callback_url":"`+url+`"}`, bearer(key)))
			}
			for i := range backlog {
				ask(first, urls[i%receivers])
			}
			svc.until("the first key has as much as it may have", func() bool { return hanging() == deliveries/2 })
			id := ask(second, well.URL)
			svc.until("the second key's callback is delivered", func() bool {
				var r tandem.Request
				svc.do(http.MethodGet, "/requests/"+id, "", bearer(second)).decode(t, &r)
				return r.Status == tandem.StatusCallbackSent
			})
			if n := hanging(); n != deliveries/2 {
				t.Errorf("%d callbacks of the first key hang, want %d still", n, deliveries/2)
			}
		})
	}
}
