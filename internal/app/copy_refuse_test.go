package app_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// smallFile makes a database file with a few requests and a key.
func smallFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		accept(t, s, newAsync(), store.LaneIO)
	}
	accept(t, s, newSync(), store.LaneNone)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	tandemtest.MakeKey(t, k, "admin", tandem.Scopes...)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCopyRefuses: each with a clear line, and then the target is as it was.
func TestCopyRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, from *string, to string)
		want    string
	}{
		"no file":  {func(_ *testing.T, from *string, _ string) { *from += ".missing" }, "there is no such file"},
		"a folder": {func(_ *testing.T, from *string, _ string) { *from = filepath.Dir(*from) }, "this is a folder"},
		"something else": {func(t *testing.T, from *string, _ string) {
			if err := os.WriteFile(*from, []byte(strings.Repeat("This is no database. ", 50)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged or not a tandem database"},
		"a newer file": {func(t *testing.T, from *string, _ string) {
			storetest.ChangeFile(t, *from, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
		}, "it was written by a newer tandem"},
		"a file in use": {func(t *testing.T, from *string, _ string) { openFile(t, *from) }, "another tandem is using it"},
		"requests there": {func(t *testing.T, _ *string, to string) {
			s := joinPostgres(t, to)
			accept(t, s, newAsync(), store.LaneIO)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}, "it holds requests already; a copy needs a database of its own"},
		"API keys there": {func(t *testing.T, _ *string, to string) {
			tandemtest.MakeKey(t, tandemtest.OpenKeys(t, to), "other",
				"read")
		}, "it holds API keys already"},
		"figures there": {func(t *testing.T, _ *string, to string) {
			storetest.ExecPostgres(t, to, `INSERT INTO counters (node, writer, counts) VALUES ('gone', 0, '{"accepted/sync":1}')`)
		}, "it was used already"},
		"a node serves it": {func(t *testing.T, _ *string, to string) { joinPostgres(t, to) }, "serves it, or did seconds ago; stop all that do"},
		"a newer target": {func(t *testing.T, _ *string, to string) {
			storetest.ExecPostgres(t, to, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, true)`)
		}, "start that one, or name another database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
			c.prepare(t, &from, to)
			const state = `SELECT concat((SELECT count(*) FROM requests), ' ', (SELECT count(*) FROM keys), ' ', (SELECT count(*) FROM counters), ' ',
				(SELECT string_agg(name || value, ',' ORDER BY name) FROM settings))`
			before := storetest.AskPostgres(t, to, state)
			_, err := app.Copy(t.Context(), app.CopyConfig{From: from, To: to})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if after := storetest.AskPostgres(t, to, state); after != before {
				t.Errorf("the target was %s\nand is now %s", before, after)
			}
		})
	}
}

// An unfinished copy is replaced, also by another file or by what became of the same file since.
func TestCopyReplaces(t *testing.T) {
	t.Parallel()
	first, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
	stopEarly(t, app.CopyConfig{From: first, To: to})
	second := smallFile(t)
	stopEarly(t, app.CopyConfig{From: second, To: to})
	s := openFile(t, second)
	accept(t, s, newAsync(), store.LaneIO)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	report := copyAll(t, app.CopyConfig{From: second, To: to})
	if report.Removed != second || report.Target.Requests[tandem.StatusPending] != 4 {
		t.Errorf("%+v", report)
	}
	const both = `SELECT concat((SELECT count(*) FROM requests), ' ', (SELECT count(*) FROM river_job))`
	if rows := storetest.AskPostgres(t, to, both); rows != "5 4" {
		t.Errorf("requests and jobs: %s, want 5 4", rows)
	}
}

// A node that starts at the moment when a copy begins is seen by the copy, or sees it.
func TestCopyAndNodeAtOnce(t *testing.T) {
	t.Parallel()
	from := smallFile(t)
	for range 4 {
		to := emptyPostgres(t, tandemtest.Volatile)
		var group sync.WaitGroup
		var copied, served error
		group.Go(func() { _, copied = app.Copy(t.Context(), app.CopyConfig{From: from, To: to}) })
		group.Go(func() {
			s, err := postgres.Open(t.Context(), store.Config{URL: to, Log: quiet()})
			if served = err; err == nil {
				s.Close()
			}
		})
		group.Wait()
		switch {
		case copied == nil && served == nil: // one after the other
			if storetest.AskPostgres(t, to, `SELECT count(*) FROM settings WHERE name = 'copied'`) != "1" {
				t.Error("the copy is not finished")
			}
		case copied != nil && !strings.Contains(copied.Error(), "serves it, or did seconds ago"):
			t.Errorf("copy: %v", copied)
		case served != nil && !strings.Contains(served.Error(), "is not finished"):
			t.Errorf("node: %v", served)
		}
	}
}

// stopEarly begins a copy, and interrupts it after one of its chunks.
func stopEarly(t testing.TB, cfg app.CopyConfig) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	errStopped := errors.New("stopped")
	cfg.Progress = func(p app.CopyProgress) {
		if p.Done > 0 {
			stop(errStopped)
		}
	}
	if _, err := app.Copy(ctx, cfg.InPages(1)); !errors.Is(err, errStopped) {
		t.Fatalf("interrupted: %v", err)
	}
}

// The file is locked while it is copied, changed by nobody, and afterwards as it was.
func TestCopyLeavesTheFile(t *testing.T) {
	t.Parallel()
	from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
	before, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", "file:"+filepath.ToSlash(from))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tried := false
	cfg := app.CopyConfig{From: from, To: to}
	cfg.Progress = func(app.CopyProgress) {
		if tried {
			return
		}
		tried = true
		if s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: from, Log: quiet()}); err == nil {
			t.Error("a server starts on a file that is being copied")
			s.Close()
		}
		if _, err := other.Exec(`UPDATE keys SET last_used_at = 1`); err == nil {
			t.Error("a key is written to a file that is being copied")
		}
		if s, err := postgres.Open(t.Context(), store.Config{Counted: counted, URL: to, Log: quiet()}); err == nil {
			t.Error("a node starts on a database that is being copied to")
			s.Close()
		}
	}
	copyAll(t, cfg)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the file has changed")
	}
	if _, err := os.Stat(from + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its write-ahead log: %v", err)
	}
	if !tried {
		t.Error("nobody was told of the progress")
	}
}

// Two processes do not copy into one database at a time.
func TestCopyAlone(t *testing.T) {
	t.Parallel()
	to := emptyPostgres(t, tandemtest.Volatile)
	cfg := app.CopyConfig{From: smallFile(t), To: to}
	tried := false
	cfg.Progress = func(app.CopyProgress) {
		if tried {
			return
		}
		tried = true
		_, err := app.Copy(t.Context(), app.CopyConfig{From: smallFile(t), To: to})
		if err == nil || !strings.Contains(err.Error(), "another process copies into it") {
			t.Errorf("a second copy: %v", err)
		}
	}
	copyAll(t, cfg)
}

// A file of an earlier version is brought up to date first.
func TestCopyOlderFile(t *testing.T) {
	t.Parallel()
	from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
	for _, statement := range tandemtest.WithoutKeys {
		storetest.ChangeFile(t, from, statement)
	}
	if report := copyAll(t, app.CopyConfig{From: from, To: to}); report.Target.Requests[tandem.StatusPending] != 3 || report.Target.Keys != 0 {
		t.Errorf("%+v", report.Target)
	}
}

// What is not the same on both sides is noticed, wherever it is, and the target is of no use.
func TestCopyDiffers(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"data":         `UPDATE requests SET data = 'x' WHERE id = (SELECT max(id::text)::uuid FROM requests)`,
		"a status":     `UPDATE requests SET status = 'callback_sent' WHERE id = (SELECT max(id::text)::uuid FROM requests)`,
		"a due time":   `UPDATE river_job SET scheduled_at = scheduled_at + interval '1 microsecond' WHERE id = (SELECT max(id) FROM river_job)`,
		"a lane":       `UPDATE river_job SET queue = 'cpu' WHERE id = (SELECT max(id) FROM river_job)`,
		"a job":        `DELETE FROM river_job WHERE id = (SELECT max(id) FROM river_job)`,
		"a row":        `DELETE FROM requests WHERE id = (SELECT max(id::text)::uuid FROM requests)`,
		"an attempt":   `INSERT INTO attempts (request, number, outcome, started_at, duration_us, status_code, error) SELECT id, 1, 'gone', now(), 1, 410, '' FROM requests LIMIT 1`,
		"an API key":   `UPDATE keys SET scopes = 'admin'`,
		"a counter":    `UPDATE counters SET counts = jsonb_set(counts::jsonb, '{accepted/sync}', '7')::text WHERE node = ''`,
		"the key mark": `UPDATE settings SET value = 'other' WHERE name = 'keys'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
			cfg := app.CopyConfig{From: from, To: to}
			cfg.Progress = func(p app.CopyProgress) {
				if p.Phase == app.CopyVerify && p.Done == 0 {
					storetest.ExecPostgres(t, to, damage)
				}
			}
			report, err := app.Copy(t.Context(), cfg)
			if !errors.Is(err, app.ErrDiffers) {
				t.Fatalf("%v: %+v", err, report)
			}
			refusedEverywhere(t, to, from)
		})
	}
}

// Due times are the target's: where its clock is behind, what waits is due as much earlier there.
func TestCopyWaitsAsLong(t *testing.T) {
	t.Parallel()
	from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
	storetest.ChangeFile(t, from, `UPDATE requests SET due_at = `+"1000000 * unixepoch('2030-01-01')"+` WHERE lane IS NOT NULL`)
	cfg := app.CopyConfig{From: from, To: to}.WithClock(func() time.Time { return time.Now().Add(time.Hour) })
	copyAll(t, cfg)
	const early = `SELECT count(*) FROM river_job WHERE scheduled_at BETWEEN '2029-12-31 22:59:59Z' AND '2029-12-31 23:00:01Z'`
	if n := storetest.AskPostgres(t, to, early); n != "3" {
		t.Errorf("%s of 3 are due an hour earlier", n)
	}
}

// A copy whose connection ends says that it has begun. One that was refused has not begun.
func TestCopyCutOff(t *testing.T) {
	t.Parallel()
	from, to := smallFile(t), emptyPostgres(t, tandemtest.Volatile)
	cfg := app.CopyConfig{From: from, To: to}.InPages(1)
	cut := cfg
	cut.Progress = func(p app.CopyProgress) {
		if p.Done == 1 {
			storetest.ExecPostgres(t, to, `
				SELECT pg_terminate_backend(pid)
				FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		}
	}
	if report, err := app.Copy(t.Context(), cut); err == nil || !report.Begun {
		t.Errorf("begun: %t, %v", report.Begun, err)
	}
	if report := copyAll(t, cfg); report.Removed != from {
		t.Errorf("the next one removed %q", report.Removed)
	}
	storetest.ExecPostgres(t, to, `DELETE FROM settings WHERE name = 'copied'`)
	if report, err := app.Copy(t.Context(), cfg); err == nil || report.Begun {
		t.Errorf("into a database in use: begun: %t, %v", report.Begun, err)
	}
}
