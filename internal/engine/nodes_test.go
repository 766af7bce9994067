package engine_test

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/engine"
	"tandem/internal/keys"
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
	rc := newReceiver(t, func(int, http.ResponseWriter, *http.Request) {
		if !well.Load() {
			panic(http.ErrAbortHandler) // no answer: what an answer opens is not shared
		}
	})
	destination := func(p *plant) engine.Destination {
		for _, d := range p.Destinations() {
			return d // there is one
		}
		return engine.Destination{}
	}

	first := join()
	for range 5 {
		if r := first.Settled(first.submit("echo", rc.URL).ID); r.CallbackStatus != tandem.CallbackFailed {
			t.Fatalf("a callback is %s", r.CallbackStatus)
		}
	}
	found := destination(first)
	if found.State != "open" {
		t.Fatalf("after five failures: %+v", found)
	}
	second := join()
	second.Await("the second node to hear of it", func() bool { return destination(second).State == "open" })
	told := destination(second)
	if d := told.RetryAt.Sub(found.RetryAt).Abs(); told.Host != found.Host || d > time.Second ||
		told.FailureCount != 5 || told.LastFailure.IsZero() {
		t.Errorf("the second node heard %+v, which is %v off %+v", told, d, found)
	}
	second.Await("the second node to show what the first has measured", func() bool {
		here, _ := first.Metrics.Recent()
		there, perSecond := second.Metrics.Recent()
		return there["processing"].Count == 5 && there["processing"] == here["processing"] &&
			there["async_acceptance"] == here["async_acceptance"] && perSecond > 0
	})

	calls := len(rc.deliveries())
	well.Store(true)
	var sent []tandem.Request
	for range 10 { // of which either node takes some
		sent = append(sent, second.submit("echo", rc.URL))
	}
	for _, r := range sent {
		if r = second.Settled(r.ID); r.CallbackStatus != tandem.CallbackSent || r.CallbackAttempts != 1 {
			t.Errorf("a callback is %s after %d attempts", r.CallbackStatus, r.CallbackAttempts)
		}
	}
	for _, d := range rc.deliveries()[calls:] {
		if early := found.RetryAt.Sub(d.at); early > 100*time.Millisecond {
			t.Errorf("a callback came %v before its breaker was to let a probe pass", early)
		}
	}
	second.Await("both to show what both have measured", func() bool {
		here, _ := first.Metrics.Recent()
		there, _ := second.Metrics.Recent()
		return here["accept_to_callback"].Count == 10 && here["accept_to_callback"] == there["accept_to_callback"] &&
			here["processing"].Count == 15 && here["processing"] == there["processing"]
	})
}

// A callback is signed with the secret of the key that asked, on nodes too that have not heard of that key yet. While
// keys cannot be read it waits, and is not signed with another secret.
func TestCallbackOfAKeyMadeElsewhere(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile)
	open := func() *keys.Keys {
		k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: url, Create: true, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		})
		return k
	}
	here, elsewhere := open(), open() // here they are not kept up to date: nobody runs them
	p := start(t, func(s *setup) { s.url, s.engine.Keys = url, here })
	rc := newReceiver(t, nil)
	ask := func(id string) tandem.Request {
		r, err := p.Submit(t.Context(),
			engine.Order{Task: "echo", Data: json.RawMessage(`{"a":1}`), Complexity: 1, CallbackURL: rc.URL, KeyID: id})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	made, err := elsewhere.Create(t.Context(), keys.NewKey{Name: "new", Scopes: []tandem.Scope{tandem.ScopeSubmit}})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{made.Key.ID, "key_nobody"} {
		if r := p.Settled(ask(id).ID); r.CallbackStatus != tandem.CallbackSent || r.CallbackAttempts != 1 {
			t.Errorf("%s: the callback is %s after %d attempts", id, r.CallbackStatus, r.CallbackAttempts)
		}
		want := []tandem.Secret{made.Secret, secretA}[i] // of nobody: the deployment's own
		d := rc.deliveries()[i]
		if err := want.Verify(d.header, d.raw, time.Now()); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	waits := ask("key_unread")
	p.Await("the end of the work", func() bool { return p.Request(waits.ID).Status == tandem.StatusCompleted })
	<-time.After(300 * time.Millisecond) // a callback would have come
	if r := p.Request(waits.ID); r.CallbackStatus != tandem.CallbackPending || len(rc.deliveries()) != 2 {
		t.Errorf("its callback is %s, and %d have come", r.CallbackStatus, len(rc.deliveries()))
	}
}
