//go:build unix

package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"tandem/internal/load"
)

// readLoadReport decodes a report that a process has written.
func readLoadReport(t *testing.T, p *process, name string) *load.Report {
	t.Helper()
	file, err := os.Open(filepath.Join(p.cmd.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	report, err := load.DecodeReport(file)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestLoadInterrupted stops a run in its first phase: what was measured is printed and
// written, no threshold is evaluated, and the exit code tells the signal.
func TestLoadInterrupted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		sig  syscall.Signal
		want int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}} {
		t.Run(test.sig.String(), func(t *testing.T) {
			t.Parallel()
			server := startServe(t)
			p := start(t, nil, "load", "--url", server.url, "--duration", "10m", "-c", "2", "--task", "sleep",
				"--output", "report.json", "--html", "report.html", "--threshold", "sync.response.p50<1us")
			// Two callers who have asked for a fourth request have read two answers.
			if err := poll("the fourth request", func() error {
				if total := readStats(t, server.url).Requests.Total; total < 4 {
					return fmt.Errorf("%d requests", total)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			p.signal(t, test.sig)
			if got := p.exitCode(t); got != test.want {
				t.Errorf("exit code %d, want %d\n%s", got, test.want, p.stderr.String())
			}
			if got, want := p.stderr.String(), "tandem: stopped by signal: "+test.sig.String()+"\n"; got != want {
				t.Errorf("on standard error: %q, want %q", got, want)
			}
			report := readLoadReport(t, p, "report.json")
			if !report.Interrupted || len(report.Thresholds) != 0 || len(report.Phases) != 1 {
				t.Errorf("interrupted %v, thresholds %v, %d phases; want true, none, 1", report.Interrupted, report.Thresholds, len(report.Phases))
			}
			if len(report.Phases) > 0 && report.Phases[0].Sync.Completed == 0 {
				t.Error("nothing is left of what was measured")
			}
			if !strings.Contains(strings.ToLower(p.stdout.String()), "interrupted") {
				t.Errorf("the table does not say that it is a part\n%s", p.stdout.String())
			}
			if _, err := os.Stat(filepath.Join(p.cmd.Dir, "report.html")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGuideLines runs the lines of the guide and of the README that put a service under load, where
// there is none: whoever pastes them has no bad arguments.
func TestGuideLines(t *testing.T) {
	t.Parallel()
	nobody := strings.NewReplacer("http://127.0.0.1:8000", "http://127.0.0.1:1", "https://tandem.example.com", "http://127.0.0.1:1", "go run ./cmd/tandem", "tandem")
	lines := 0
	for _, name := range []string{"README.md", "docs/LOAD_TESTING_GUIDE.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			if !regexp.MustCompile(`tandem (load|compare)`).MatchString(block[1]) {
				continue
			}
			cmd := exec.Command("sh", "-c", `tandem() { case $1 in load|compare) "$BINARY" "$@" >output 2>&1; echo "$? $*: $(tail -n 3 output)";; esac; }
`+nobody.Replace(block[1]))
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "BINARY="+binary, "URL=http://127.0.0.1:1", "OLD=http://127.0.0.1:1", "NEW=http://127.0.0.1:1")
			if err := os.WriteFile(filepath.Join(cmd.Dir, "key.txt"), []byte("sesame"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, block[1])
			}
			for _, line := range regexp.MustCompile(`(?m)^(\d+) (?:load|compare) .*$`).FindAllStringSubmatch(string(out), -1) {
				lines++
				if line[1] != "1" {
					t.Errorf("%s: exit code %s, want 1, because nobody is there:\n%s", name, line[1], out)
				}
			}
		}
	}
	if lines < 15 { // a loop of five times two among them
		t.Errorf("%d lines were run: the documents are not read as they should be", lines)
	}
}

// TestLoadLeavesNoServer: the server of --demo-mode ends with whoever started it, even
// when that is killed and can end nothing any more.
func TestLoadLeavesNoServer(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "load", "--demo-mode", "--duration", "10m")
	url := p.awaitOutput(t, regexp.MustCompile(`service +(http://\S+),`))[1]
	if err := awaitOK(url + "/readyz"); err != nil {
		t.Fatal(err)
	}
	p.kill()
	if err := poll("the end of the server", func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			conn.Close()
			return errors.New("it still listens")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestInvalidRunIsExit3: an INVALID run fails a script, and the last line says why.
func TestInvalidRunIsExit3(t *testing.T) {
	t.Parallel()
	p := startServe(t)
	// One caller at a time sends two of these a second, not fifty.
	run := start(t, nil, "load", "--url", p.url, "--phases", "sync", "--task", "sleep", "--complexity", "10",
		"--rate", "50", "--duration", "1s", "-c", "1", "--timeout", "1s", "--threshold", "sync.response.p50<1us")
	if code := run.exitCode(t); code != 3 {
		t.Errorf("exit code %d, want 3\n%s", code, run.stdout.String())
	}
	lines := strings.Split(strings.TrimSpace(run.stderr.String()), "\n")
	const begin = "tandem: INVALID run, do not rely on its figures: thresholds failed: "
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, begin) || !strings.Contains(last, "never sent") {
		t.Errorf("the last line: %s", last)
	}
}
