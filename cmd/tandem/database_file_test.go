//go:build unix

package main_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDatabaseRemovedUnderServer: no 202 into a file that no start would find, and one line says what to do.
func TestDatabaseRemovedUnderServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	p := startServe(t, "--db", path)
	request := `{"task":"echo","data":{"n":1},"callback_url":"` + p.url + `/test-callback"}`
	if status := <-post(p.url+"/async", request); status != http.StatusAccepted {
		t.Fatalf("status %d, want 202\n%s", status, p.stderr.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if status := <-post(p.url+"/async", request); status != http.StatusServiceUnavailable {
		t.Errorf("status %d after the file was removed, want 503", status)
	}
	err := poll("503 from /readyz", func() error {
		response, err := http.Get(p.url + "/readyz")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusServiceUnavailable {
			return errors.New(response.Status)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	log := p.stderr.String()
	if strings.Count(log, `"level":"ERROR"`) != 1 ||
		!strings.Contains(log, path+": it was removed or renamed; put it back") {
		t.Errorf("want one ERROR line that names the file and says what to do:\n%s", log)
	}
}
