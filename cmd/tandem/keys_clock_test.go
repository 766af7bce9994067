//go:build unix

package main_test

import (
	"net/http"
	"regexp"
	"testing"
	"time"

	"tandem/internal/tandemtest"
)

// TestKeysWithClockOff: an overlap and an expiry that `tandem keys` and the server agree on, though the clock of their
// machine is two hours off that of the database, in both directions.
func TestKeysWithClockOff(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			db := tandemtest.Postgres(t, tandemtest.Volatile)
			setClock(t, db, off)
			first, hints := tandemKeys(t, db, "create", "--name", "ci", "--scopes", "submit,read", "--expires", "1h")
			before := regexp.MustCompile(`whsec_\S+`).FindString(hints)
			second, _ := tandemKeys(t, db, "rotate", "ci", "--overlap", "1h")
			after, _ := tandemKeys(t, db, "rotate-signing", "ci", "--overlap", "1h")
			receiver := newCallbacks(t)
			p := startServe(t, "--mode", "production", "--db", db, "--drain-delay", "0s", "--allow-callback-cidr", "127.0.0.0/8", "--allow-callback-port", receiver.port)
			for name, token := range map[string]string{"replaced": first, "new": second} {
				if status, body := ask(t, http.MethodGet, p.url+"/requests", token, ""); status != http.StatusOK {
					t.Errorf("the %s token, within the overlap: %d %s", name, status, body)
				}
			}
			got := receiver.deliver(t, p, second)
			for name, secret := range map[string]string{"replaced": before, "new": after} {
				if !got.signedBy(t, secret) {
					t.Errorf("within the overlap the %s secret does not sign", name)
				}
			}
		})
	}
}
