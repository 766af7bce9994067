package engine_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// A destination that one node has found failing is left alone by the others as well, until the same moment; and
// what one has measured all of them show.
func TestNodesShareWhatTheyKnow(t *testing.T) {
	t.Parallel()
	const open = 8 * time.Second
	url := tandemtest.Postgres(t, tandemtest.Volatile)
	join := func() *plant {
		return start(t, func(s *setup) {
			s.url, s.engine.Nodes = url, store.NewNodes("")
			s.engine.Retry.Attempts = 1
			s.egress.BreakerOpen = open
		})
	}
	var well atomic.Bool
	rc := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	destination := func(p *plant) engine.Destination {
		for _, d := range p.Vitals().Destinations {
			return d // there is one
		}
		return engine.Destination{}
	}

	first := join()
	for range 5 {
		if r := first.settled(first.submit("echo", rc.URL).ID); r.CallbackStatus != tandem.CallbackFailed {
			t.Fatalf("a callback is %s", r.CallbackStatus)
		}
	}
	found := destination(first)
	if found.State != "open" {
		t.Fatalf("after five failures: %+v", found)
	}
	second := join()
	second.await("the second node to hear of it", func() bool { return destination(second).State == "open" })
	told := destination(second)
	if d := told.RetryAt.Sub(found.RetryAt).Abs(); told.Host != found.Host || d > time.Second || told.FailureCount != 5 || told.LastFailure.IsZero() {
		t.Errorf("the second node heard %+v, which is %v off %+v", told, d, found)
	}
	second.await("the second node to show what the first has measured", func() bool {
		here, there := first.Vitals(), second.Vitals()
		return there.Latency["processing"].Count == 5 && there.Latency["processing"] == here.Latency["processing"] &&
			there.Latency["async_acceptance"] == here.Latency["async_acceptance"] && there.RequestsPerSecond > 0
	})

	calls := len(rc.deliveries())
	well.Store(true)
	var sent []tandem.Request
	for range 10 { // of which either node takes some
		sent = append(sent, second.submit("echo", rc.URL))
	}
	for _, r := range sent {
		if r = second.settled(r.ID); r.CallbackStatus != tandem.CallbackSent || r.CallbackAttempts != 1 {
			t.Errorf("a callback is %s after %d attempts", r.CallbackStatus, r.CallbackAttempts)
		}
	}
	for _, d := range rc.deliveries()[calls:] {
		if early := found.RetryAt.Sub(d.at); early > 100*time.Millisecond {
			t.Errorf("a callback came %v before its breaker was to let a probe pass", early)
		}
	}
	second.await("both to show what both have measured", func() bool {
		here, there := first.Vitals(), second.Vitals()
		return here.Latency["accept_to_callback"].Count == 10 && here.Latency["accept_to_callback"] == there.Latency["accept_to_callback"] &&
			here.Latency["processing"].Count == 15 && here.Latency["processing"] == there.Latency["processing"]
	})
}
