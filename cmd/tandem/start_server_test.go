//go:build unix

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStartServer clicks on start_server.sh: beside a binary, beside its source, and beside nothing.
func TestStartServer(t *testing.T) {
	t.Parallel()
	script, err := filepath.Abs("../../start_server.sh")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	alone := func(t *testing.T) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "start_server.sh")
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}

	for _, place := range []string{"tandem", "bin/tandem"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			path := alone(t)
			beside := filepath.Join(filepath.Dir(path), place)
			if err := os.MkdirAll(filepath.Dir(beside), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(binary, beside); err != nil {
				t.Fatal(err)
			}
			p := startCommand(t, exec.Command(path, "--listen", "127.0.0.1:0"), []string{"PATH=" + t.TempDir()})
			p.awaitReady(t)
			p.signal(t, terminate) // reaches the server itself: the script has become it
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, p.stderr.String())
			}
		})
	}

	t.Run("source", func(t *testing.T) {
		t.Parallel()
		out, err := exec.Command(script, "--help").Output()
		if err != nil || !strings.Contains(string(out), "Usage: tandem serve") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		p := startCommand(t, exec.Command(shell, alone(t)), []string{"PATH=" + t.TempDir()})
		if code := p.exitCode(t); code != 1 || !strings.Contains(p.stderr.String(), "Install Go 1.26 or later from https://go.dev/dl/") {
			t.Errorf("exit code %d\n%s", code, p.stderr.String())
		}
	})
}
