package sqlite_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/tandemtest"
)

// The file itself is locked: one server keeps another out although the lock beside it was removed, or is
// another one because the file was reached by another path. Keys and backups are not kept out.
func TestDatabaseFileWhoseLockWasRemoved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s, _ := openWithLog(t, path)
	possible(t, os.Remove(path+".lock"))
	second, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err == nil {
		second.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "another tandem is using it") {
		t.Errorf("a second server: %v, want it refused", err)
	}
	accept(t, s, newAsync(), store.LaneIO)
	k, err := app.OpenHandle(t.Context(), store.HandleConfig{URL: path, Log: quiet()})
	possible(t, err)
	possible(t, k.Close())
	backup := filepath.Join(t.TempDir(), "backup.db")
	if _, err := tandemtest.OpenDB(t, path).Exec(`VACUUM INTO ?`, backup); err != nil {
		t.Errorf("a backup beside the server: %v", err)
	}
	possible(t, s.Close())
	openWithLog(t, path) // the lock ends with its owner
}
