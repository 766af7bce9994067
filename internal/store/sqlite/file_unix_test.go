//go:build unix

package sqlite_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// openWithLog opens a database file and returns its log as well.
func openWithLog(t *testing.T, path string) (*sqlite.Store, *tandemtest.Log) {
	t.Helper()
	log := &tandemtest.Log{}
	s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path,
		Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, log
}

// Nothing is promised once a file of the database has lost its name: no start would find it.
func TestDatabaseFileThatMoves(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(t *testing.T, path string){
		"removed":           func(t *testing.T, path string) { t.Helper(); possible(t, os.Remove(path)) },
		"its log removed":   func(t *testing.T, path string) { t.Helper(); possible(t, os.Remove(path+"-wal")) },
		"its index removed": func(t *testing.T, path string) { t.Helper(); possible(t, os.Remove(path+"-shm")) },
		"renamed":           func(t *testing.T, path string) { t.Helper(); possible(t, os.Rename(path, path+".old")) },
		"its folder renamed": func(t *testing.T, path string) {
			t.Helper()
			possible(t, os.Rename(filepath.Dir(path), filepath.Dir(path)+".old"))
		},
		"replaced by a backup": replace,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "data", "tandem.db")
			possible(t, os.Mkdir(filepath.Dir(path), 0o700))
			s, log := openWithLog(t, path)
			accept(t, s, newAsync(), store.LaneIO)
			move(t, path)
			for range 2 { // the commit that finds out, and those after it
				err := s.Accept(t.Context(), store.LaneIO, newAsync())
				if tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
					t.Errorf("a request was accepted: %v, want %s", err, tandem.CodeStoreUnavailable)
				}
			}
			if _, err := s.Retain(t.Context(), time.Now()); !errors.Is(err, store.ErrMoved) {
				t.Errorf("retention: %v, want %v, which its caller need not log", err, store.ErrMoved)
			}
			if got := log.Count("level=ERROR"); got != 1 || !strings.Contains(log.String(), path) {
				t.Errorf("%d lines of level ERROR, want one that names %s:\n%s", got, path, log)
			}
		})
	}
}

// replace renames another file to the name of a database, as a restore does.
func replace(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	possible(t, err)
	possible(t, os.WriteFile(path+".new", content, 0o600))
	possible(t, os.Rename(path+".new", path))
}

// An idle server finds out by itself, and goes on when the file is back.
func TestDatabaseFileThatComesBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s, _ := openWithLog(t, path)
	accept(t, s, newAsync(), store.LaneIO)
	well := func() bool {
		stats, err := s.Stats(t.Context())
		return err == nil && stats.Unavailable == nil
	}
	possible(t, os.Rename(path, path+".old"))
	tandemtest.WaitFor(t, "the loss is noticed", func() bool { return !well() })
	possible(t, os.Rename(path+".old", path))
	tandemtest.WaitFor(t, "the return is noticed", well)
	accept(t, s, newAsync(), store.LaneIO)
}

// A database file with two names is refused by a server and by keys, whichever name is given.
func TestDatabaseFileWithTwoNames(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s, _ := openWithLog(t, path)
	possible(t, s.Close())
	other := filepath.Join(t.TempDir(), "other.db")
	if err := os.Link(path, other); err != nil {
		t.Skipf("SKIPPED: no hard links here: %v", err)
	}
	for _, name := range []string{path, other} {
		opened, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: name, Log: quiet()})
		if err == nil {
			opened.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "2 names (hard links)") {
			t.Errorf("a server: %v, want it refused", err)
		}
		k, err := app.OpenHandle(t.Context(), store.HandleConfig{URL: name, Log: quiet()})
		if err == nil {
			k.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "2 names (hard links)") {
			t.Errorf("keys: %v, want it refused", err)
		}
	}
	possible(t, os.Remove(other))
	openWithLog(t, path)
}

// What a copy with the usual umask leaves, anybody may read: it is closed, and the log says so.
func TestDatabaseFilesBecomePrivate(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T, path string, log *slog.Logger){
		"server": func(t *testing.T, path string, log *slog.Logger) {
			t.Helper()
			s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path, Log: log})
			possible(t, err)
			accept(t, s, newAsync(), store.LaneIO)
			t.Cleanup(func() { s.Close() })
		},
		"keys": func(t *testing.T, path string, log *slog.Logger) {
			t.Helper()
			k, err := app.OpenHandle(t.Context(), store.HandleConfig{URL: path, Log: log})
			possible(t, err)
			t.Cleanup(func() { k.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			made := filepath.Join(t.TempDir(), "tandem.db")
			s, _ := openWithLog(t, made)
			accept(t, s, newAsync(), store.LaneIO)
			copied := storetest.Crash(t, made)
			for _, suffix := range []string{"", "-wal"} {
				possible(t, os.Chmod(copied+suffix, 0o644))
			}
			possible(t, os.Chmod(filepath.Dir(copied), 0o777))
			log := &tandemtest.Log{}
			open(t, copied, slog.New(slog.NewTextHandler(log, nil)))
			files, err := filepath.Glob(copied + "*")
			possible(t, err)
			for _, file := range files {
				if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: mode %v, %v; want 600", file, info.Mode().Perm(), err)
				}
			}
			if got := log.Count("its files have mode 600 now"); got != 1 {
				t.Errorf("said %d times, want once:\n%s", got, log)
			}
			if log.Count("other users can replace the database") != 1 {
				t.Errorf("nothing is said of the folder:\n%s", log)
			}
		})
	}
}

// possible ends the test when setting it up does not work.
func possible(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
