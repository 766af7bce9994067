package keys_test

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// TestKeysOfASharedClock: when a key expires and an overlap ends is the same on every machine, though
// the clock of one is an hour ahead and that of another an hour behind.
func TestKeysOfASharedClock(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t)
	machines := map[time.Duration]*keys.Keys{}
	look := func() {
		t.Helper()
		for _, k := range machines {
			if err := k.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, off := range []time.Duration{0, time.Hour, -time.Hour} {
		machines[off] = tandemtest.OpenKeys(t, url)
		machines[off].ShiftClock(off)
	}
	look()
	for off, k := range machines {
		now := time.Now().Add(off) // by its own clock
		name := fmt.Sprint("of ", off)
		made, err := k.Create(t.Context(), keys.NewKey{Name: name, Scopes: []tandem.Scope{tandem.ScopeRead},
			ExpiresAt: now.Add(30 * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(made.Key.CreatedAt).Abs(); age > time.Minute {
			t.Errorf("made by a clock off by %v, %v from now", off, age)
		}
		second := tandem.NewToken()
		if _, err := k.Rotate(t.Context(), name, second, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := k.RotateSigning(t.Context(), name, tandem.NewSecret(), 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		look()
		for theirs, other := range machines {
			for after, want := range map[time.Duration]struct {
				first, second bool
				secrets       int
			}{
				0: {true, true, 2}, 9 * time.Minute: {true, true, 2}, 11 * time.Minute: {false, true, 1},
				29 * time.Minute: {false, true, 1}, 31 * time.Minute: {false, false, 1},
			} {
				at := time.Now().Add(theirs + after)
				first, second := valid(t, other, made.Token, at), valid(t, other, second, at)
				if first != want.first || second != want.second {
					t.Errorf("made by a clock off by %v, asked by one off by %v after %v: taken %v and %v, want %v and %v", off,
						theirs, after, first, second, want.first, want.second)
				}
				if got := len(other.SigningSecrets(made.Key.ID, at)); got != want.secrets {
					t.Errorf("made by a clock off by %v, asked by one off by %v after %v: %d secrets, want %d", off, theirs, after,
						got, want.secrets)
				}
			}
		}
	}
}

// TestKeysWithoutTheirDatabase: while it cannot be reached known keys are valid, which is said once; when it
// can be reached again, changes are taken over.
func TestKeysWithoutTheirDatabase(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t)
	there := tandemtest.OpenKeys(t, url)
	made := makeKey(t, there, "a", tandem.ScopeSubmit)
	var log tandemtest.Log
	here, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: url, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := here.Close(); err != nil {
			t.Error(err)
		}
	})
	runKeys(t, here)
	database := regexp.MustCompile(`test_\w+`).FindString(url)
	neighbour := tandemtest.OpenDB(t, strings.Replace(url, database, "postgres", 1))
	ask := func(statement string) {
		t.Helper()
		if _, err := neighbour.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	ask(`ALTER DATABASE ` + database + ` ALLOW_CONNECTIONS false`)
	ask(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '` + database + `'`)
	tandemtest.WaitFor(t, "a line about it", func() bool { return log.Count("changes to keys have no effect") == 1 })
	for range 2 { // further looks
		if err := here.Refresh(t.Context()); err == nil {
			t.Fatal("the database can be reached: the test shows nothing")
		}
		<-time.After(time.Second) // more than PollInterval
	}
	if !valid(t, here, made.Token, time.Now()) {
		t.Error("a known key is not valid any more")
	}
	if n := log.Count("level="); n != 1 {
		t.Errorf("%d lines were logged, want 1:\n%s", n, log.String())
	}
	ask(`ALTER DATABASE ` + database + ` ALLOW_CONNECTIONS true`)
	if _, err := there.Revoke(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	tandemtest.WaitFor(t, "the revocation", func() bool { return !valid(t, here, made.Token, time.Now()) })
	tandemtest.WaitFor(t, "a line about that", func() bool { return log.Count("can be read again") == 1 })
}

// TestKeysOpenPostgres: which databases keys are opened in, and what is said of the others. None is changed but by
// Create.
func TestKeysOpenPostgres(t *testing.T) {
	t.Parallel()
	open := func(url string, create bool) error {
		k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: url, Create: create, Log: quiet()})
		if err != nil {
			return err
		}
		return k.Close()
	}
	empty := tandemtest.Postgres(t, tandemtest.Volatile)
	older, newer := emptyPostgres(t), emptyPostgres(t)
	for url, change := range map[string]string{
		older: `DELETE FROM goose_db_version WHERE version_id > 1`,
		newer: `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`,
	} {
		if _, err := tandemtest.OpenDB(t, url).Exec(change); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, url string
		create    bool
		want      string
	}{
		{"no tables", empty, false, "no tables of tandem's yet"},
		{"older", older, true, "bring it up to date with `tandem migrate`"},
		{"newer", newer, true, "written by a newer tandem"},
		{"nobody listens", "postgres://me:hunter2@127.0.0.1:1/db", true,
			"open API keys of postgres://me:xxxxx@127.0.0.1:1/db: no connection"},
	} {
		err := open(test.url, test.create)
		if text := fmt.Sprint(err); !strings.Contains(text, test.want) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.want)
		}
	}
	var tables int
	const count = `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`
	if err := tandemtest.OpenDB(t, empty).QueryRow(count).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables were made that nobody asked for, %v", tables, err)
	}
	if err := open(empty, true); err != nil {
		t.Errorf("an empty database: %v", err)
	}
	makeKey(t, tandemtest.OpenKeys(t, empty), "a", tandem.ScopeRead)
	openStore(t, empty) // what was made is what a server opens
}

// TestKeysKeepNoTokenInPostgres: the table has the hash of a token, and the token nowhere.
func TestKeysKeepNoTokenInPostgres(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t)
	k := tandemtest.OpenKeys(t, url)
	made := makeKey(t, k, "a", tandem.ScopeRead)
	second := tandem.NewToken()
	if _, err := k.Rotate(t.Context(), "a", second, time.Hour); err != nil {
		t.Fatal(err)
	}
	var row string
	if err := tandemtest.OpenDB(t, url).QueryRow(`SELECT keys::text FROM keys`).Scan(&row); err != nil {
		t.Fatal(err)
	}
	hash := second.Hash()
	if !strings.Contains(row, hex.EncodeToString(hash[:])) {
		t.Error("the hash is not there: the test looks in the wrong place")
	}
	for _, token := range []tandem.Token{made.Token, second} {
		for _, form := range []string{token.Reveal()[4:47], hex.EncodeToString([]byte(token.Reveal()[4:47]))} {
			if strings.Contains(row, form) {
				t.Error("the table holds a token")
			}
		}
	}
}
