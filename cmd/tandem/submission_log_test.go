//go:build linux

package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tandem"
)

// submissionLines reads a submission log.
func submissionLines(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, one)
	}
	return lines
}

// TestNamesOnlyInDebugMode submits in every way there is, good and bad, and looks for the names in all that the server
// writes beside its database.
func TestNamesOnlyInDebugMode(t *testing.T) {
	t.Parallel()
	for _, debug := range []bool{false, true} {
		t.Run(fmt.Sprint("debug ", debug), func(t *testing.T) {
			t.Parallel()
			log := filepath.Join(t.TempDir(), "submissions.log")
			var environment []string
			if debug {
				environment = []string{"DEBUG=true"}
			}
			// Nobody listens on port 1: the calls fail and are repeated.
			p := start(t, environment, "serve", "--listen", "127.0.0.1:0", "--submission-log", log, "--external-url", "http://127.0.0.1:1/")
			p.awaitReady(t)
			for _, request := range []struct {
				path, body string
				want       int
			}{
				{"/api/submit", `{"firstName":"Zebulon","lastName":"Quirke"}`, http.StatusOK},
				{"/api/submit/batch", `{"submissions":[{"firstName":"Zebulon","lastName":"Quirke"},{"firstName":"Quirke","lastName":"Zebulon"}]}`, http.StatusOK},
				{"/api/submit", `{"firstName":"Zebulon","lastName":""}`, http.StatusUnprocessableEntity},
				{"/api/submit", `{"firstName":"Zebulon","lastName":`, http.StatusBadRequest},
				{"/api/submit/batch", `{"submissions":[{"firstName":"Zebulon","lastName":7}]}`, http.StatusUnprocessableEntity},
			} {
				if code := <-post(p.url+request.path, request.body); code != request.want {
					t.Errorf("POST %s %s: %d, want %d", request.path, request.body, code, request.want)
				}
			}
			if _, err := http.Get(p.url + "/api/submissions?name=Zebulon"); err != nil {
				t.Error(err)
			}
			p.signal(t, terminate)
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			lines := submissionLines(t, log)
			if len(lines) < 3 { // and one more for each call that was repeated in time
				t.Errorf("%d lines after the end, want 3", len(lines))
			}
			written, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"submission log": string(written), "log": p.stderr.String()} {
				if named := strings.Contains(text, "Zebulon") || strings.Contains(text, "Quirke"); named != debug {
					t.Errorf("names in the %s: %v\n%s", name, named, text)
				}
			}
			for line := range strings.Lines(p.stderr.String()) {
				if json.Valid([]byte(line)) == debug {
					t.Errorf("debug %v: %s", debug, line)
				}
			}
			for _, mark := range []string{"🚀", "💾", "🌐", "⏳", "📝"} {
				if strings.Contains(p.stderr.String(), mark) != debug {
					t.Errorf("debug %v, %s in the log:\n%s", debug, mark, p.stderr.String())
				}
			}
		})
	}
}

// TestSubmissionLogGone takes the directory of the log away while the server runs: every
// submission is answered as before, what is not written is counted and warned about, and the log goes on
// when the directory is back.
func TestSubmissionLogGone(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(folder, "submissions.log")
	p := startServe(t, "--submission-log", log, "--external-delay", "0s")
	submit := func() {
		t.Helper()
		if code := <-post(p.url+"/api/submit", `{"firstName":"Ada","lastName":"Lovelace"}`); code != http.StatusOK {
			t.Errorf("POST /api/submit: %d", code)
		}
	}
	counted := func(written, dropped int) {
		t.Helper()
		err := poll("the counters", func() error {
			var stats struct {
				Log struct {
					Written int `json:"lines_written"`
					Dropped int `json:"lines_dropped"`
				} `json:"submission_log"`
			}
			if err := fetch(p.url+"/api/stats", &stats); err != nil {
				return err
			}
			if stats.Log.Written != written || stats.Log.Dropped != dropped {
				return fmt.Errorf("%+v", stats)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	submit()
	counted(1, 0)
	if err := os.Rename(folder, folder+"-away"); err != nil {
		t.Fatal(err)
	}
	submit()
	submit()
	counted(1, 2)
	warned := regexp.MustCompile(`"msg":"submission log: lines were dropped","lines":[12],"path":"[^"]+","error":"open [^"]+: no such file or directory"`)
	if err := poll("a warning", func() error {
		if !warned.MatchString(p.stderr.String()) {
			return errors.New(p.stderr.String())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := os.Rename(folder+"-away", folder); err != nil {
		t.Fatal(err)
	}
	submit()
	counted(2, 2)
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
	lines := submissionLines(t, log)
	if len(lines) != 2 || lines[1]["status"] != string(tandem.StatusCompleted) {
		t.Errorf("lines %v", lines)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
}

// TestSubmissionLogThatCannotBe: one line and exit code 1, before anything is served.
func TestSubmissionLogThatCannotBe(t *testing.T) {
	t.Parallel()
	root := openFolder(t)
	for name, test := range map[string]struct{ path, want string }{
		"directory that is not ours": {filepath.Join(root, "db", "submissions.log"), "create files in " + filepath.Join(root, "db") + ": permission denied"},
		"no directory":               {filepath.Join(root, "none", "submissions.log"), "create files in " + filepath.Join(root, "none") + ": no such file or directory"},
		"no file":                    {"/dev/full", "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, output := runToEnd(t, root, true, "serve", "--listen", "127.0.0.1:0", "--submission-log", test.path)
			line := strings.TrimSuffix(output, "\n")
			if code != 1 || !strings.HasPrefix(line, "tandem: open submission log: ") || !strings.Contains(line, test.want) || strings.Contains(line, "\n") {
				t.Errorf("exit code %d, want 1 and one line that says %q:\n%s", code, test.want, output)
			}
		})
	}
}

// TestSubmissionLogIsFlushed: what was answered before the end is in the file after it.
func TestSubmissionLogIsFlushed(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "submissions.log")
	p := startServe(t, "--submission-log", log, "--external-delay", "0s")
	const n = 300
	body := `{"submissions":[` + strings.TrimSuffix(strings.Repeat(`{"firstName":"Ada","lastName":"Lovelace"},`, 10), ",") + `]}`
	for range n / 10 {
		if code := <-post(p.url+"/api/submit/batch", body); code != http.StatusOK {
			t.Fatalf("POST /api/submit/batch: %d", code)
		}
	}
	p.signal(t, terminate) // at once: most lines were appended a moment ago
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
	batches := map[any]int{}
	for _, line := range submissionLines(t, log) {
		batches[line["batch_id"]]++
		if line["save_ms"].(float64) <= 0 || line["total_ms"].(float64) < line["save_ms"].(float64) {
			t.Errorf("%v", line)
		}
	}
	if len(batches) != n/10 {
		t.Errorf("%d batches, want %d", len(batches), n/10)
	}
	for batch, lines := range batches {
		if lines != 10 {
			t.Errorf("%v has %d lines", batch, lines)
		}
	}
}
