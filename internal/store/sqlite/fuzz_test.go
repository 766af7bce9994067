package sqlite_test

import (
	"context"
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

// FuzzCursor asks for pages with cursors of a stranger's making: an error that
// says so, or a page within its limit of what was made before.
func FuzzCursor(f *testing.F) {
	s := openMemory(f)
	var ids []string
	for range 5 {
		r := newAsync()
		accept(f, s, r, store.LaneNone)
		ids = append(ids, r.ID)
	}
	encode := base64.RawURLEncoding.EncodeToString
	for _, id := range append(ids, "", "req_", "req_ffffffffffff7fffffffffffffffffff", "req_00000000000070000000000000000000", "req_' OR 1=1 --", "\x00\xff") {
		f.Add(encode([]byte(id)), "", 3)
		f.Add(id, "echo", 1)
	}
	f.Fuzz(func(t *testing.T, cursor, task string, limit int) {
		limit = 1 + max(limit%1000, -(limit%1000))%1000
		page, err := s.Requests(context.Background(), store.Filter{Cursor: cursor, Task: task, Limit: limit})
		if err != nil {
			if tandem.CodeOf(err) != tandem.CodeInvalidCursor {
				t.Fatalf("cursor %q, task %q: %v", cursor, task, err)
			}
			return
		}
		if len(page.Requests) > limit {
			t.Fatalf("%d requests on a page of %d", len(page.Requests), limit)
		}
		last, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil {
			t.Fatalf("cursor %q passed: %v", cursor, err)
		}
		for _, r := range page.Requests {
			if cursor != "" && r.ID >= string(last) || task != "" && r.Task != task {
				t.Fatalf("cursor %q, task %q found %s of %s", last, task, r.ID, r.Task)
			}
		}
	})
}

// FuzzDatabasePath reads values of --db: what names a file names it absolutely,
// and nothing of it can be taken for a parameter of SQLite's.
func FuzzDatabasePath(f *testing.F) {
	for _, seed := range []string{
		"tandem.db", "file:tandem.db", "file:", "", "file:///tmp/x.db", "postgres://user:secret@host/db", "x?mode=memory", "file:x?vfs=memdb", "a%3fb", "a#b", "..", "/", "a\x00b", "file:file:x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		path, err := sqlite.DatabasePath(url)
		if err != nil {
			return
		}
		if !filepath.IsAbs(path) {
			t.Fatalf("%q is %q", url, path)
		}
		if name := strings.TrimPrefix(url, "file:"); name == "" || strings.Contains(name, "://") || strings.Contains(name, "?") {
			t.Fatalf("%q passed as %q", url, path)
		}
	})
}
