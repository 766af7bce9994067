//go:build linux

package main_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

// smallDisk mounts a disk of so many bytes, until the test ends.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("SKIPPED: no small disk can be mounted here (%v); run as root", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// TestFullDisk fills the disk under the real binary: what is accepted is kept,
// everything else is told to come back, and with room again all goes on by itself.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const size, room = 6 << 20, 3 << 20
	dir := smallDisk(t, size)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, room), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := tandem.NewSecret()
	database := filepath.Join(dir, "full.db")
	p := start(t, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, "serve", "--listen", "127.0.0.1:0", "--db", database)
	p.awaitReady(t)
	c := newCrash(t, p.url, secret)
	c.callback += "/full"

	var refused fullAnswers
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for refused.count() < 50 {
				refused.add(c.fill("/async", http.StatusAccepted))
			}
		})
	}
	callers.Wait()
	refused.check(t)
	if len(c.promised) == 0 {
		t.Fatal("nothing was accepted before the disk was full")
	}
	refused = fullAnswers{}
	refused.add(c.fill("/sync", http.StatusOK))
	refused.check(t)
	if response, err := http.Get(p.url + "/readyz"); err != nil || response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz on a full disk: %v, %v", response, err)
	} else {
		response.Body.Close()
	}
	for id := range c.promised { // no 202 without its row
		response, err := http.Get(p.url + "/requests/" + id)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s was accepted and is answered with %d", id, response.StatusCode)
		}
	}
	before := len(c.promised)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := poll("a 202 with room again", func() error {
		answer := c.fill("/async", http.StatusAccepted)
		if answer.status != http.StatusAccepted {
			return fmt.Errorf("answered %d", answer.status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := awaitOK(p.url + "/readyz"); err != nil {
		t.Error(err)
	}
	c.drain(t)
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
	c.audit(t, database)
	t.Logf("%d accepted until it was full, %d in all", before, len(c.promised))
}

// fullAnswer is how an order was answered.
type fullAnswer struct {
	status     int
	code       tandem.Code
	retryAfter string
	body       string
}

// fill sends an order with much data and notes its id if it is accepted.
func (c *crash) fill(path string, want int) fullAnswer {
	body := fmt.Sprintf(`{"data":{"x":%q},"task":"echo","callback_url":%q}`, strings.Repeat("x", 8000), c.callback)
	response, err := c.client.Post(c.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		return fullAnswer{body: err.Error()}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	var reply struct {
		RequestID string      `json:"request_id"`
		Code      tandem.Code `json:"code"`
	}
	if err != nil || json.Unmarshal(text, &reply) != nil {
		return fullAnswer{body: string(text)}
	}
	if response.StatusCode == want {
		c.mu.Lock()
		defer c.mu.Unlock()
		if want == http.StatusAccepted {
			c.promised[reply.RequestID] = true
		} else {
			c.answered[reply.RequestID] = true
		}
	}
	return fullAnswer{response.StatusCode, reply.Code, response.Header.Get("Retry-After"), string(text)}
}

// fullAnswers collects those that are no success.
type fullAnswers struct {
	mu  sync.Mutex
	all []fullAnswer
}

func (f *fullAnswers) add(a fullAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.status != http.StatusAccepted && a.status != http.StatusOK {
		f.all = append(f.all, a)
	}
}

func (f *fullAnswers) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all)
}

// check wants every one of them to be a 503 that says when to come back.
func (f *fullAnswers) check(t *testing.T) {
	t.Helper()
	for _, a := range f.all {
		seconds, err := strconv.Atoi(a.retryAfter)
		if a.status != http.StatusServiceUnavailable || a.code != tandem.CodeStoreUnavailable || err != nil || seconds < 1 {
			t.Errorf("on a full disk: %d %s, Retry-After %q; want 503 %s", a.status, a.body, a.retryAfter, tandem.CodeStoreUnavailable)
		}
	}
}

// TestDatabasesThatCannotBeUsed starts the real binary on each: one clear line,
// exit code 1, and the file is as it was.
func TestDatabasesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		nobody bool // without the rights of root
		spoil  func(t *testing.T, database string)
		want   string
	}{
		{"a folder that is read-only", true, func(t *testing.T, database string) {
			t.Helper()
			spoilt(t, os.Remove(database))
			spoilt(t, os.Chmod(filepath.Dir(database), 0o555))
		}, "permission denied"},
		{"a file that is read-only", true, func(t *testing.T, database string) {
			t.Helper()
			spoilt(t, os.Chmod(filepath.Dir(database), 0o777))
			spoilt(t, os.Chmod(database, 0o444))
		}, "permission denied"},
		{"a damaged header", false, func(t *testing.T, database string) {
			t.Helper()
			overwrite(t, database, 0, 100)
		}, "damaged or not a tandem database"},
		{"half a file", false, func(t *testing.T, database string) {
			t.Helper()
			info, err := os.Stat(database)
			spoilt(t, err)
			spoilt(t, os.Truncate(database, info.Size()/2))
		}, "damaged or not a tandem database"},
		{"damage all over", false, func(t *testing.T, database string) {
			t.Helper()
			info, err := os.Stat(database)
			spoilt(t, err)
			overwrite(t, database, 4096, info.Size()-4096)
		}, "damaged or not a tandem database"},
		{"a database of something else", false, func(t *testing.T, database string) {
			t.Helper()
			spoilt(t, os.Remove(database))
			change(t, database, `PRAGMA journal_mode = WAL; CREATE TABLE requests (id TEXT)`)
		}, "it is a database of something else; name another file"},
		{"a newer schema", false, func(t *testing.T, database string) {
			t.Helper()
			change(t, database, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		}, "it was written by a newer tandem; start that one, or name another database"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := openFolder(t)
			database := filepath.Join(root, "db", "tandem.db")
			makeDatabase(t, database)
			test.spoil(t, database)
			before, _ := os.ReadFile(database) // the file may be missing on purpose
			code, output := runToEnd(t, root, test.nobody, "serve", "--listen", "127.0.0.1:0", "--db", database)
			line := strings.TrimSuffix(output, "\n")
			if code != 1 || !strings.HasPrefix(line, "tandem: open database "+database+": ") || !strings.Contains(line, test.want) || strings.Contains(line, "\n") {
				t.Errorf("exit code %d, want 1 and one line that says %q:\n%s", code, test.want, output)
			}
			if after, _ := os.ReadFile(database); string(after) != string(before) {
				t.Error("the file has changed")
			}
		})
	}
}

func spoilt(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openFolder makes a folder that users without rights can reach, and puts the binary in it.
func openFolder(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "tandem-open-") //nolint:usetesting // a folder of t.TempDir is closed to others
	spoilt(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	spoilt(t, os.Chmod(root, 0o755))
	spoilt(t, os.Mkdir(filepath.Join(root, "db"), 0o755))
	spoilt(t, os.Link(binary, filepath.Join(root, "tandem")))
	return root
}

// makeDatabase writes a database of some hundred pages.
func makeDatabase(t *testing.T, path string) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), store.Config{URL: path, Log: slog.New(slog.DiscardHandler)})
	spoilt(t, err)
	for range 500 {
		spoilt(t, s.Accept(t.Context(), store.LaneIO, &tandem.Request{
			ID: tandem.ID(uuid.Must(uuid.NewV7())), Mode: tandem.ModeAsync, Task: "echo", Status: tandem.StatusPending, CallbackStatus: tandem.CallbackPending,
			CallbackURL: "http://127.0.0.1:9/", Data: json.RawMessage(`{"x":"` + strings.Repeat("x", 1000) + `"}`), Complexity: 1,
		}))
	}
	spoilt(t, s.Close())
	spoilt(t, os.Remove(path+".lock"))
}

// overwrite fills a part of a file with what is no database.
func overwrite(t *testing.T, path string, from, length int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	spoilt(t, err)
	_, err = file.WriteAt([]byte(strings.Repeat("\xa5", int(length))), from)
	spoilt(t, errors.Join(err, file.Close()))
}

// change runs a statement on a database file.
func change(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	spoilt(t, err)
	_, err = db.Exec(statement)
	spoilt(t, errors.Join(err, db.Close()))
}

// runToEnd runs the binary in root to its end, as nobody if asked to, and
// returns its exit code and what it said.
func runToEnd(t *testing.T, root string, nobody bool, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "tandem"), args...)
	cmd.Dir, cmd.Env = root, []string{}
	if nobody && os.Geteuid() == 0 {
		const id = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	}
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skipf("SKIPPED: the binary cannot be run as another user here: %v", err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}
