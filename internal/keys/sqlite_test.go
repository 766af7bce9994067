package keys_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/tandemtest"
)

// TestKeysWaitForOtherWriters: a change waits for other writers, however often it has to
// retry; writing last uses is postponed.
func TestKeysWaitForOtherWriters(t *testing.T) {
	t.Parallel()
	path := keysPath(t)
	here, there := tandemtest.OpenKeys(t, path), tandemtest.OpenKeys(t, path)
	made := makeKey(t, here, "a", tandem.ScopeRead)
	valid(t, here, made.Token, time.Now())
	db := tandemtest.OpenDB(t, path)
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() {
		_, err := there.Create(context.Background(), keys.NewKey{Name: "b", Scopes: []tandem.Scope{tandem.ScopeRead}})
		changed <- err
	}()
	for range 3 { // each takes as long as one try of the change
		if err := here.Flush(t.Context()); err == nil {
			t.Error("last uses were written while somebody else wrote")
		}
	}
	select {
	case err := <-changed:
		t.Errorf("a change did not wait: %v", err)
	default:
	}
	if _, err := db.Exec(`COMMIT`); err != nil {
		t.Fatal(err)
	}
	if err := <-changed; err != nil {
		t.Error(err)
	}
	if err := here.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKeysOpen: which files keys are opened in, and what is said of the others.
func TestKeysOpen(t *testing.T) {
	t.Parallel()
	open := func(url string, create bool) error {
		k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: url, Create: create, Log: quiet()})
		if err != nil {
			return err
		}
		return k.Close()
	}
	refused := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", what, err, want)
		}
	}
	refused("memory", open(":memory:", true), "demo mode has none")
	missing := keysPath(t)
	refused("a missing file", open(missing, false), "no such file")
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was made that nobody asked for")
	}
	if err := open(missing, true); err != nil {
		t.Errorf("a new file: %v", err)
	}
	if info, err := os.Stat(missing); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a new file: %v, %v", info.Mode(), err)
	}
	openStore(t, missing) // what was made is what a server opens

	foreign := keysPath(t)
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE t (x)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	refused("another's database", open(foreign, true), "something else")
}

// TestKeysOfAnOlderSchema: it is brought up to date, unless a process that knows no better has the file.
func TestKeysOfAnOlderSchema(t *testing.T) {
	t.Parallel()
	path := keysPath(t)
	s, err := sqlite.Open(t.Context(), store.Config{URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	db := tandemtest.OpenDB(t, path)
	for _, statement := range tandemtest.WithoutKeys {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	_, err = app.OpenKeys(t.Context(), store.HandleConfig{URL: path, Log: quiet()})
	if err == nil || !strings.Contains(err.Error(), "another tandem is using it") {
		t.Errorf("while a server has it: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	makeKey(t, tandemtest.OpenKeys(t, path), "a", tandem.ScopeRead)
}

// TestKeysKeepNoToken: the file has the hash of a token, and the token nowhere.
func TestKeysKeepNoToken(t *testing.T) {
	t.Parallel()
	path := keysPath(t)
	k := tandemtest.OpenKeys(t, path)
	made := makeKey(t, k, "a", tandem.ScopeRead)
	second := tandem.NewToken()
	if _, err := k.Rotate(t.Context(), "a", second, time.Hour); err != nil {
		t.Fatal(err)
	}
	hash := second.Hash()
	found := false
	for _, name := range []string{path, path + "-wal"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found = found || bytes.Contains(text, hash[:])
		for _, token := range []tandem.Token{made.Token, second} {
			if strings.Contains(string(text), token.Reveal()) || strings.Contains(string(text), token.Reveal()[4:47]) {
				t.Errorf("%s holds a token", filepath.Base(name))
			}
		}
	}
	if !found {
		t.Error("nor is the hash there: the test looks in the wrong place")
	}
}
