package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// keysDatabases are those that keys are kept in, each with what makes an empty one.
func keysDatabases() map[string]func(t testing.TB) string {
	return map[string]func(t testing.TB) string{
		"file":     keysPath,
		"postgres": func(t testing.TB) string { return emptyPostgres(t, tandemtest.Volatile) },
	}
}

// onEveryDatabase runs a check with an empty database of each kind.
func onEveryDatabase(t *testing.T, check func(t *testing.T, url string)) {
	t.Helper()
	for kind, empty := range keysDatabases() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			check(t, empty(t))
		})
	}
}

// openDB opens a database of either kind for statements of the test's own, which are the same for both.
func openDB(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver := "sqlite"
	if store.IsPostgres(url) {
		driver = "pgx"
	}
	db, err := sql.Open(driver, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// openStore opens a database as a server does.
func openStore(t testing.TB, url string) store.Store {
	t.Helper()
	if store.IsPostgres(url) {
		return joinPostgres(t, url)
	}
	return openFile(t, url)
}

func openKeys(t testing.TB, url string) *store.Keys {
	t.Helper()
	k, err := store.OpenKeys(context.Background(), store.KeysConfig{URL: url, Create: true, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("close keys: %v", err)
		}
	})
	return k
}

// runKeys keeps keys as they are in the database until the test ends or the returned function is called.
func runKeys(t testing.TB, k *store.Keys) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func keysPath(t testing.TB) string { return filepath.Join(t.TempDir(), "tandem.db") }

func makeKey(t testing.TB, k *store.Keys, name string, scopes ...tandem.Scope) store.Made {
	t.Helper()
	made, err := k.Create(t.Context(), store.NewKey{Name: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// valid reports whether a token is taken, and fails the test for any error but a refusal.
func valid(t testing.TB, k *store.Keys, token tandem.Token, now time.Time) bool {
	t.Helper()
	_, err := k.Authenticate(token, now)
	if err != nil && tandem.CodeOf(err) != tandem.CodeUnauthenticated {
		t.Fatal(err)
	}
	return err == nil
}

func TestKeysCreate(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := openKeys(t, url)
		expires := time.Now().Add(time.Hour)
		made, err := k.Create(t.Context(), store.NewKey{Name: "reports", Scopes: []tandem.Scope{"submit", "read"}, ExpiresAt: expires})
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
		for at, want := range map[time.Time]bool{made.Key.ExpiresAt.Add(-time.Microsecond): true, made.Key.ExpiresAt: false, made.Key.ExpiresAt.Add(time.Hour): false} {
			if got := valid(t, k, made.Token, at); got != want {
				t.Errorf("%v before its end: taken %v", made.Key.ExpiresAt.Sub(at), got)
			}
		}
	})
}

func TestKeysRefuse(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := openKeys(t, url)
		makeKey(t, k, "taken", tandem.ScopeRead)
		read := []tandem.Scope{tandem.ScopeRead}
		for _, test := range []struct {
			name string
			key  store.NewKey
			ok   bool
		}{
			{"64 characters", store.NewKey{Name: strings.Repeat("ä", 64), Scopes: read}, true},
			{"65 characters", store.NewKey{Name: strings.Repeat("ä", 65), Scopes: read}, false},
			{"no name", store.NewKey{Scopes: read}, false},
			{"space around it", store.NewKey{Name: " a", Scopes: read}, false},
			{"space in it", store.NewKey{Name: "a b", Scopes: read}, true},
			{"an escape", store.NewKey{Name: "a\x1b[31m", Scopes: read}, false},
			{"a line", store.NewKey{Name: "a\nb", Scopes: read}, false},
			{"not UTF-8", store.NewKey{Name: "a\xff", Scopes: read}, false},
			{"the form of an id", store.NewKey{Name: "key_a", Scopes: read}, false},
			{"a name that is taken", store.NewKey{Name: "taken", Scopes: read}, false},
			{"no scope", store.NewKey{Name: "b"}, false},
			{"an unknown scope", store.NewKey{Name: "b", Scopes: []tandem.Scope{"write"}}, false},
			{"a scope twice", store.NewKey{Name: "b", Scopes: []tandem.Scope{"read", "read"}}, false},
			{"every scope", store.NewKey{Name: "b", Scopes: tandem.Scopes}, true},
			{"expired", store.NewKey{Name: "c", Scopes: read, ExpiresAt: time.Now()}, false},
			{"about to expire", store.NewKey{Name: "c", Scopes: read, ExpiresAt: time.Now().Add(time.Minute)}, true},
		} {
			if _, err := k.Create(t.Context(), test.key); (err == nil) != test.ok {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		if _, err := k.Create(t.Context(), store.NewKey{Name: "taken", Scopes: read}); !errors.Is(err, store.ErrKeyExists) {
			t.Errorf("a name that is taken: %v", err)
		}
	})
}

func TestKeysRevoke(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := openKeys(t, url)
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
			if _, err := k.Revoke(t.Context(), which); !errors.Is(err, store.ErrNoKey) {
				t.Errorf("revoke %q: %v", which, err)
			}
			if _, err := k.Rotate(t.Context(), which, tandem.NewToken(), 0); !errors.Is(err, store.ErrNoKey) {
				t.Errorf("rotate %q: %v", which, err)
			}
			if _, err := k.RotateSigning(t.Context(), which, tandem.NewSecret(), 0); !errors.Is(err, store.ErrNoKey) {
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
		k := openKeys(t, url)
		made := makeKey(t, k, "a", tandem.ScopeSubmit)
		second, third, fourth := tandem.NewToken(), tandem.NewToken(), tandem.NewToken()
		key, err := k.Rotate(t.Context(), "a", second, time.Hour)
		if err != nil || key.ID != made.Key.ID {
			t.Fatalf("%v, %v", key, err)
		}
		now := time.Now()
		for at, old := range map[time.Time]bool{now: true, now.Add(59 * time.Minute): true, now.Add(61 * time.Minute): false} {
			if !valid(t, k, second, at) || valid(t, k, made.Token, at) != old {
				t.Errorf("after %v the new token is taken %v, the old one %v", at.Sub(now), valid(t, k, second, at), valid(t, k, made.Token, at))
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
		k := openKeys(t, url)
		made := makeKey(t, k, "a", tandem.ScopeSubmit)
		second, third := tandem.NewSecret(), tandem.NewSecret()
		if _, err := k.RotateSigning(t.Context(), "a", second, time.Hour); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		both, one := []string{second.Reveal(), made.Secret.Reveal()}, []string{second.Reveal()}
		for at, want := range map[time.Time][]string{now: both, now.Add(59 * time.Minute): both, now.Add(61 * time.Minute): one} {
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
		var none *store.Keys
		if k.SigningSecrets("key_nobody", now) != nil || k.SigningSecrets("", now) != nil || none.SigningSecrets(made.Key.ID, now) != nil {
			t.Error("secrets of nobody")
		}
	})
}

func revealed(secrets []tandem.Secret) (texts []string) {
	for _, s := range secrets {
		texts = append(texts, s.Reveal())
	}
	return texts
}

// TestKeysOfTwoProcesses: what one changes the other knows after a look, while a server has
// the same file open and writes to it; a look finds nothing new where nothing has changed.
func TestKeysOfTwoProcesses(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		s := openStore(t, url) // holds the lock of a file
		here, there := openKeys(t, url), openKeys(t, url)
		made := makeKey(t, there, "a", tandem.ScopeSubmit)
		now := time.Now()
		if valid(t, here, made.Token, now) {
			t.Error("known before anybody looked: the test shows nothing")
		}
		look := func() {
			t.Helper()
			accept(t, s, newSync(), store.LaneNone)
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
		here, there := openKeys(t, url), openKeys(t, url)
		stop := runKeys(t, here)
		made := makeKey(t, there, "a", tandem.ScopeSubmit)
		unused := makeKey(t, there, "b", tandem.ScopeSubmit)
		waitFor(t, "a new key", func() bool { return valid(t, here, made.Token, time.Now()) })
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
		k := openKeys(t, url)
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
		here, there := openKeys(t, url), openKeys(t, url)
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
		k := openKeys(t, url)
		makeKey(t, k, "first", tandem.ScopeRead)
		makeKey(t, k, "second", tandem.ScopeRead)
		var processes []*store.Keys
		for range 6 {
			processes = append(processes, openKeys(t, url))
		}
		race := func(what string, name func(i int) string, refused func(error) bool) {
			t.Helper()
			var group sync.WaitGroup
			var made atomic.Int64
			start := make(chan struct{})
			for i, process := range processes {
				group.Go(func() {
					<-start
					_, err := process.Create(context.Background(), store.NewKey{Name: name(i), Scopes: []tandem.Scope{tandem.ScopeRead}})
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
		race("the name", func(int) string { return "wanted" }, func(err error) bool { return errors.Is(err, store.ErrKeyExists) })
		if _, err := openDB(t, url).Exec(fillKeys(4, store.MaxKeys-1)); err != nil {
			t.Fatal(err)
		}
		race("the last place", func(i int) string { return fmt.Sprint("last", i) }, func(err error) bool { return strings.Contains(err.Error(), "which is the most") })
	})
}

// TestKeysAtTheBound: 10,000 keys and no more, but those revoked a year ago go first.
func TestKeysAtTheBound(t *testing.T) {
	t.Parallel()
	onEveryDatabase(t, func(t *testing.T, url string) {
		k := openKeys(t, url)
		made := makeKey(t, k, "first", tandem.ScopeRead)
		makeKey(t, k, "second", tandem.ScopeRead)
		db := openDB(t, url)
		if _, err := db.Exec(fillKeys(3, store.MaxKeys)); err != nil {
			t.Fatal(err)
		}
		one := store.NewKey{Name: "one more", Scopes: []tandem.Scope{tandem.ScopeRead}}
		if _, err := k.Create(t.Context(), one); err == nil || !strings.Contains(err.Error(), "which is the most") {
			t.Errorf("key 10,001: %v", err)
		}
		for _, revoked := range []struct {
			ago  time.Duration
			room bool
		}{{365 * 24 * time.Hour, false}, {367 * 24 * time.Hour, true}} {
			if _, err := db.Exec(`UPDATE keys SET revoked_at = $1 WHERE id = 'key_3'`, time.Now().Add(-revoked.ago).UnixMicro()); err != nil {
				t.Fatal(err)
			}
			if _, err := k.Create(t.Context(), one); (err == nil) != revoked.room {
				t.Errorf("one revoked %v ago: %v", revoked.ago, err)
			}
		}
		// Where reading 10,000 takes too long, the next Refresh reads them.
		for tries := 0; k.Count() != store.MaxKeys && tries < 60; tries++ {
			if err := k.Refresh(t.Context()); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if !valid(t, k, made.Token, time.Now()) || k.Count() != store.MaxKeys {
			t.Errorf("%d keys", k.Count())
		}
	})
}

// TestKeysOwnRequests: lists of a key hold its requests only, whatever else is asked for.
func TestKeysOwnRequests(t *testing.T) {
	t.Parallel()
	for kind, s := range map[string]store.Store{"file": openFile(t, keysPath(t)), "memory": openMemory(t), "postgres": openPostgres(t)} {
		want := map[string][]string{}
		for _, key := range []string{"key_a", "key_b", ""} {
			for _, r := range []*tandem.Request{newSync(), newAsync(), newSubmission("batch_" + key), newSubmission("")} {
				r.KeyID = key
				lane := store.LaneIO
				if r.Mode == tandem.ModeSync && r.Task != tandem.TaskSubmission {
					lane = store.LaneNone
				}
				accept(t, s, r, lane)
				want[key] = append([]string{r.ID}, want[key]...)
			}
		}
		ids := func(filter store.Filter) (found []string, submissions int64) {
			t.Helper()
			filter.Limit = 100
			page, err := s.Requests(t.Context(), filter)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page.Requests {
				found = append(found, r.ID)
			}
			return found, page.Submissions
		}
		for _, key := range []string{"key_a", "key_b"} {
			all, _ := ids(store.Filter{Key: key})
			syncs, _ := ids(store.Filter{Key: key, Mode: tandem.ModeAsync})
			batch, _ := ids(store.Filter{Key: key, Batch: "batch_" + key})
			submissions, total := ids(store.Filter{Key: key, Task: tandem.TaskSubmission})
			got := [][]string{all, syncs, batch, submissions}
			own := want[key]
			if diff := cmp.Diff([][]string{own, {own[2]}, {own[1]}, {own[0], own[1]}}, got); diff != "" {
				t.Errorf("%s: of %s (-want +got):\n%s", kind, key, diff)
			}
			if total != 2 {
				t.Errorf("%s: %s has %d submissions, want 2", kind, key, total)
			}
		}
		foreign, _ := ids(store.Filter{Key: "key_a", Batch: "batch_key_b"})
		unknown, none := ids(store.Filter{Key: "key_c", Task: tandem.TaskSubmission})
		if len(foreign)+len(unknown) > 0 || none != 0 {
			t.Errorf("%s: another's batch %v, of nobody %v, %d", kind, foreign, unknown, none)
		}
		if everybody, total := ids(store.Filter{Task: tandem.TaskSubmission}); len(everybody) != 6 || total != 6 {
			t.Errorf("%s: %d submissions, counted %d, want 6", kind, len(everybody), total)
		}
		if got := mustRequest(t, s, want["key_a"][0]); got.KeyID != "key_a" {
			t.Errorf("%s: a request of key_a says %q", kind, got.KeyID)
		}
	}
}
