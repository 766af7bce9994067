package egress_test

import (
	"context"
	"testing"
	"testing/synctest"
)

// The calls of a key that has many waiting at a destination, all that may wait there, do not keep another key waiting.
func TestKeysTakeTurnsAtADestination(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.HostConcurrency, cfg.MaxWaiting = 1, 12
		client := newClient(t, cfg)
		permit := reserve(t, client, someURL)
		w := &waiters{client: client}
		for _, name := range []string{"a1", "a2", "a3", "a4"} {
			w.startFor(t.Context(), "a", name, someURL)
		}
		if n := client.Room("http://a.example:80", "a"); n != 0 {
			t.Errorf("the key that has as many waiting as may has room for %d more", n)
		}
		if n := client.Room("http://a.example:80", "b"); n == 0 {
			t.Error("the other key has no room")
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.startFor(ctx, "b", "b1", someURL)
		w.startFor(t.Context(), "c", "c1", someURL)
		cancel() // takes out nobody else
		for _, name := range []string{"a1", "c1", "a2", "a3", "a4"} {
			w.got()
			permit.Release()
			w.got()
			if permit = w.permit(name); permit == nil {
				t.Fatalf("%s is not the next; served %s", name, w.got())
			}
		}
		permit.Release()
		if got, want := w.got(), "[b1 a1 c1 a2 a3 a4]"; got != want {
			t.Errorf("served %s, want %s", got, want)
		}
	})
}
