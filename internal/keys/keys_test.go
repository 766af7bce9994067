package keys_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/keys"
	"tandem/internal/tandemtest"
)

func TestKeysCreate(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		expires := time.Now().Add(time.Hour)
		made, err := k.Create(t.Context(), keys.NewKey{Name: "reports", Scopes: []tandem.Scope{"submit", "read"},
			ExpiresAt: expires})
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Authenticate(made.Token, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&made.Key, got); diff != "" {
			t.Errorf("(-made +found):\n%s", diff)
		}
		list, err := k.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]tandem.Key{made.Key}, list); diff != "" {
			t.Errorf("(-made +listed):\n%s", diff)
		}
		if valid(t, k, tandem.NewToken(), time.Now()) {
			t.Error("a token that nobody made is taken")
		}
		for at, want := range map[time.Time]bool{made.Key.ExpiresAt.Add(-time.Microsecond): true, made.Key.ExpiresAt: false,
			made.Key.ExpiresAt.Add(time.Hour): false} {
			if got := valid(t, k, made.Token, at); got != want {
				t.Errorf("%v before its end: taken %v", made.Key.ExpiresAt.Sub(at), got)
			}
		}
	})
}

func TestKeysRefuse(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		makeKey(t, k, "taken", tandem.ScopeRead)
		read := []tandem.Scope{tandem.ScopeRead}
		for _, test := range []struct {
			name string
			key  keys.NewKey
			ok   bool
		}{
			{"64 characters", keys.NewKey{Name: strings.Repeat("ä", 64), Scopes: read}, true},
			{"65 characters", keys.NewKey{Name: strings.Repeat("ä", 65), Scopes: read}, false},
			{"no name", keys.NewKey{Scopes: read}, false},
			{"space around it", keys.NewKey{Name: " a", Scopes: read}, false},
			{"space in it", keys.NewKey{Name: "a b", Scopes: read}, true},
			{"an escape", keys.NewKey{Name: "a\x1b[31m", Scopes: read}, false},
			{"a line", keys.NewKey{Name: "a\nb", Scopes: read}, false},
			{"not UTF-8", keys.NewKey{Name: "a\xff", Scopes: read}, false},
			{"the form of an id", keys.NewKey{Name: "key_a", Scopes: read}, false},
			{"a name that is taken", keys.NewKey{Name: "taken", Scopes: read}, false},
			{"no scope", keys.NewKey{Name: "b"}, false},
			{"an unknown scope", keys.NewKey{Name: "b", Scopes: []tandem.Scope{"write"}}, false},
			{"a scope twice", keys.NewKey{Name: "b", Scopes: []tandem.Scope{"read", "read"}}, false},
			{"every scope", keys.NewKey{Name: "b", Scopes: tandem.Scopes}, true},
			{"expired", keys.NewKey{Name: "c", Scopes: read, ExpiresAt: time.Now()}, false},
			{"about to expire", keys.NewKey{Name: "c", Scopes: read, ExpiresAt: time.Now().Add(time.Minute)}, true},
		} {
			if _, err := k.Create(t.Context(), test.key); (err == nil) != test.ok {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		if _, err := k.Create(t.Context(), keys.NewKey{Name: "taken", Scopes: read}); !errors.Is(err, keys.ErrExists) {
			t.Errorf("a name that is taken: %v", err)
		}
	})
}

func TestKeysRevoke(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		made, other := makeKey(t, k, "a", tandem.ScopeSubmit), makeKey(t, k, "b", tandem.ScopeSubmit)
		if _, err := k.Revoke(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if valid(t, k, made.Token, now) || !valid(t, k, other.Token, now) {
			t.Error("the wrong key is revoked, or none")
		}
		if got := k.SigningSecrets(made.Key.ID, now); len(got) != 1 || got[0].Reveal() != made.Secret.Reveal() {
			t.Error("what a revoked key has asked for is not signed any more")
		}
		for _, which := range []string{"a", made.Key.ID, "nobody", ""} {
			if _, err := k.Revoke(t.Context(), which); !errors.Is(err, keys.ErrNotFound) {
				t.Errorf("revoke %q: %v", which, err)
			}
			if _, err := k.Rotate(t.Context(), which, tandem.NewToken(), 0); !errors.Is(err, keys.ErrNotFound) {
				t.Errorf("rotate %q: %v", which, err)
			}
			if _, err := k.RotateSigning(t.Context(), which, tandem.NewSecret(), 0); !errors.Is(err, keys.ErrNotFound) {
				t.Errorf("rotate the secret of %q: %v", which, err)
			}
		}
		again := makeKey(t, k, "a", tandem.ScopeRead) // its name is free
		if _, err := k.Revoke(t.Context(), again.Key.ID); err != nil {
			t.Errorf("revoke by id: %v", err)
		}
	})
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		made := makeKey(t, k, "a", tandem.ScopeSubmit)
		second, third, fourth := tandem.NewToken(), tandem.NewToken(), tandem.NewToken()
		key, err := k.Rotate(t.Context(), "a", second, time.Hour)
		if err != nil || key.ID != made.Key.ID {
			t.Fatalf("%v, %v", key, err)
		}
		now := time.Now()
		for at, old := range map[time.Time]bool{now: true, now.Add(59 * time.Minute): true,
			now.Add(61 * time.Minute): false} {
			if !valid(t, k, second, at) || valid(t, k, made.Token, at) != old {
				t.Errorf("after %v the new token is taken %v, the old one %v", at.Sub(now), valid(t, k, second, at),
					valid(t, k, made.Token, at))
			}
		}
		_, err = k.Rotate(t.Context(), "a", third, time.Hour) // the first goes, whatever it was promised
		if err != nil || valid(t, k, made.Token, now) || !valid(t, k, second, now) || !valid(t, k, third, now) {
			t.Errorf("after another rotation: %v", err)
		}
		_, err = k.Rotate(t.Context(), "a", fourth, 0)
		if err != nil || valid(t, k, third, now) || !valid(t, k, fourth, now) {
			t.Errorf("after a rotation without overlap: %v", err)
		}
	})
}

func TestKeysRotateSigning(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		made := makeKey(t, k, "a", tandem.ScopeSubmit)
		second, third := tandem.NewSecret(), tandem.NewSecret()
		if _, err := k.RotateSigning(t.Context(), "a", second, time.Hour); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		both, one := []string{second.Reveal(), made.Secret.Reveal()}, []string{second.Reveal()}
		for at, want := range map[time.Time][]string{now: both, now.Add(59 * time.Minute): both,
			now.Add(61 * time.Minute): one} {
			if diff := cmp.Diff(want, revealed(k.SigningSecrets(made.Key.ID, at))); diff != "" {
				t.Errorf("after %v (-want +got):\n%s", at.Sub(now), diff)
			}
		}
		if _, err := k.RotateSigning(t.Context(), "a", third, 0); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{third.Reveal()}, revealed(k.SigningSecrets(made.Key.ID, now))); diff != "" {
			t.Errorf("without overlap (-want +got):\n%s", diff)
		}
		var none *keys.Keys
		if k.SigningSecrets("key_nobody", now) != nil || k.SigningSecrets("", now) != nil ||
			none.SigningSecrets(made.Key.ID, now) != nil {
			t.Error("secrets of nobody")
		}
	})
}

// TestKeysOfTwoProcesses: what one changes the other knows after a look, while a server has
// the same file open and writes to it; a look finds nothing new where nothing has changed.
func TestKeysOfTwoProcesses(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		s := openStore(t, url) // holds the lock of a file
		here, there := tandemtest.OpenKeys(t, url), tandemtest.OpenKeys(t, url)
		made := makeKey(t, there, "a", tandem.ScopeSubmit)
		now := time.Now()
		if valid(t, here, made.Token, now) {
			t.Error("known before anybody looked: the test shows nothing")
		}
		look := func() {
			t.Helper()
			accept(t, s)
			if err := here.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		look()
		if !valid(t, here, made.Token, now) {
			t.Error("a new key is not known")
		}
		token := tandem.NewToken()
		if _, err := there.Rotate(t.Context(), "a", token, 0); err != nil {
			t.Fatal(err)
		}
		look()
		if valid(t, here, made.Token, now) || !valid(t, here, token, now) {
			t.Error("a rotation is not known")
		}
		if _, err := here.Revoke(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := there.Refresh(t.Context()); err != nil || valid(t, there, token, now) {
			t.Errorf("a revocation is not known: %v", err)
		}
	})
}

// TestKeysRun: Run looks by itself, within a second, and writes last uses when it ends.
func TestKeysRun(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		here, there := tandemtest.OpenKeys(t, url), tandemtest.OpenKeys(t, url)
		stop := runKeys(t, here)
		made := makeKey(t, there, "a", tandem.ScopeSubmit)
		unused := makeKey(t, there, "b", tandem.ScopeSubmit)
		tandemtest.WaitFor(t, "a new key", func() bool { return valid(t, here, made.Token, time.Now()) })
		at := time.Now().Add(time.Minute).UTC().Truncate(time.Microsecond)
		for range 3 {
			if !valid(t, here, made.Token, at) {
				t.Fatal("not taken")
			}
		}
		stop()
		list, err := there.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		made.Key.LastUsedAt = at
		if diff := cmp.Diff([]tandem.Key{made.Key, unused.Key}, list); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestKeysFlush: only uses since the last Flush are written, and a reload of all keys keeps those that are not.
func TestKeysFlush(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		made := makeKey(t, k, "a", tandem.ScopeSubmit)
		first := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		valid(t, k, made.Token, first)
		makeKey(t, k, "b", tandem.ScopeSubmit) // reads all keys again
		lastUsed := func() time.Time {
			t.Helper()
			if err := k.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := k.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return list[0].LastUsedAt
		}
		if got := lastUsed(); !got.Equal(first) {
			t.Errorf("used at %v, want %v", got, first)
		}
		valid(t, k, made.Token, first.Add(999*time.Millisecond)) // the same second, as it were
		if got := lastUsed(); !got.Equal(first) {
			t.Errorf("used at %v, want %v still", got, first)
		}
		valid(t, k, made.Token, first.Add(time.Second))
		if got := lastUsed(); !got.Equal(first.Add(time.Second)) {
			t.Errorf("used at %v, want a second later than %v", got, first)
		}
	})
}

// TestKeysLastUsedByTwo: of two processes that write when a key was last used, the later use stays.
func TestKeysLastUsedByTwo(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		here, there := tandemtest.OpenKeys(t, url), tandemtest.OpenKeys(t, url)
		made := makeKey(t, here, "a", tandem.ScopeSubmit)
		if err := there.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := time.Now().UTC().Truncate(time.Microsecond)
		later := first.Add(time.Minute)
		if !valid(t, here, made.Token, later) || !valid(t, there, made.Token, first) {
			t.Fatal("not taken")
		}
		if err := errors.Join(here.Flush(t.Context()), there.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		list, err := there.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := list[0].LastUsedAt; !got.Equal(later) {
			t.Errorf("used at %v, want %v", got, later)
		}
	})
}

// fillKeys is a statement that makes keys of nobody, which are copies of the one whose name is "second".
func fillKeys(from, to int) string {
	return fmt.Sprintf(`
		WITH RECURSIVE n (i) AS (SELECT %d UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO keys (id, name, scopes, token_hash, secret, created_at)
		SELECT 'key_' || i, 'n' || i, scopes, token_hash, secret, 1 FROM n, keys WHERE name = 'second'`, from, to)
}

// TestKeysCreatedAtOnce: of those who ask for one name, one gets it, and of those who ask for the last free place.
func TestKeysCreatedAtOnce(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		makeKey(t, k, "first", tandem.ScopeRead)
		makeKey(t, k, "second", tandem.ScopeRead)
		var processes []*keys.Keys
		for range 6 {
			processes = append(processes, tandemtest.OpenKeys(t, url))
		}
		race := func(what string, name func(i int) string, refused func(error) bool) {
			t.Helper()
			var group sync.WaitGroup
			var made atomic.Int64
			start := make(chan struct{})
			for i, process := range processes {
				group.Go(func() {
					<-start
					_, err := process.Create(context.Background(),
						keys.NewKey{Name: name(i), Scopes: []tandem.Scope{tandem.ScopeRead}})
					if err == nil {
						made.Add(1)
					} else if !refused(err) {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			close(start)
			group.Wait()
			if made.Load() != 1 {
				t.Errorf("%d got %s", made.Load(), what)
			}
		}
		race("the name", func(int) string { return "wanted" }, func(err error) bool { return errors.Is(err, keys.ErrExists) })
		if _, err := tandemtest.OpenDB(t, url).Exec(fillKeys(4, keys.Max-1)); err != nil {
			t.Fatal(err)
		}
		race("the last place", func(i int) string { return fmt.Sprint("last", i) },
			func(err error) bool { return strings.Contains(err.Error(), "the maximum") })
	})
}

// TestKeysAtTheBound: 10,000 keys and no more, but those revoked a year ago go first.
func TestKeysAtTheBound(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := tandemtest.OpenKeys(t, url)
		made := makeKey(t, k, "first", tandem.ScopeRead)
		makeKey(t, k, "second", tandem.ScopeRead)
		db := tandemtest.OpenDB(t, url)
		if _, err := db.Exec(fillKeys(3, keys.Max)); err != nil {
			t.Fatal(err)
		}
		one := keys.NewKey{Name: "one more", Scopes: []tandem.Scope{tandem.ScopeRead}}
		if _, err := k.Create(t.Context(), one); err == nil || !strings.Contains(err.Error(), "the maximum") {
			t.Errorf("key 10,001: %v", err)
		}
		for _, revoked := range []struct {
			ago  time.Duration
			room bool
		}{{365 * 24 * time.Hour, false}, {367 * 24 * time.Hour, true}} {
			if _, err := db.Exec(`UPDATE keys SET revoked_at = $1 WHERE id = 'key_3'`,
				time.Now().Add(-revoked.ago).UnixMicro()); err != nil {
				t.Fatal(err)
			}
			if _, err := k.Create(t.Context(), one); (err == nil) != revoked.room {
				t.Errorf("one revoked %v ago: %v", revoked.ago, err)
			}
		}
		// Where reading 10,000 takes too long, the next Refresh reads them.
		for tries := 0; k.Count() != keys.Max && tries < 60; tries++ {
			if err := k.Refresh(t.Context()); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if !valid(t, k, made.Token, time.Now()) || k.Count() != keys.Max {
			t.Errorf("%d keys", k.Count())
		}
	})
}
