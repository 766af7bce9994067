//go:build linux

package main_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/internal/tandemtest"
)

// runInto runs the binary with its standard output, or its standard error, in a file of the system, and returns the
// exit code and what was written to the other.
func runInto(t *testing.T, device string, number int, args ...string) (code int, text string) {
	t.Helper()
	file, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var other syncBuffer
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), file, &other
	if number == 2 {
		cmd.Stdout, cmd.Stderr = &other, file
	}
	_ = cmd.Run() // the exit code says it
	return cmd.ProcessState.ExitCode(), other.String()
}

func TestOutputThatCannotBeWrittenIsExit1(t *testing.T) {
	t.Parallel()
	p := startServe(t)
	dir := t.TempDir()
	db := filepath.Join(dir, "tandem.db")
	tandemKeys(t, db, "create", "--name", "a", "--scopes", "read")
	report := filepath.Join(dir, "report.json")
	loadOnce := []string{"load", "--url", p.url, "--phases", "sync", "--task", "echo", "-n", "4", "-c", "1"}
	if code, text := runInto(t, "/dev/null", 1, append(loadOnce, "--output", report)...); code != 0 {
		t.Fatalf("load: exit code %d\n%s", code, text)
	}
	for _, args := range [][]string{
		{"version"}, {"version", "--json"}, {"--help"}, {"serve", "--help"}, {"audit", "--list"},
		{"keys", "list", "--db", db}, {"health", "--url", p.url}, {"compare", report, report}, loadOnce,
	} {
		code, text := runInto(t, "/dev/full", 1, args...)
		if code != 1 || !strings.Contains(text, "write standard output: no space left on device\n") || strings.Contains(text, "hint:") {
			t.Errorf("%v > /dev/full: exit code %d, want 1, and why\n%s", args, code, text)
		}
	}
	for _, file := range []string{"--output", "--html"} {
		if code, text := runInto(t, "/dev/null", 1, append(loadOnce, file, "/dev/full")...); code != 1 || !strings.Contains(text, "/dev/full: no space left on device") {
			t.Errorf("load %s /dev/full: exit code %d\n%s", file, code, text)
		}
	}
	if code, text := runInto(t, "/dev/null", 1, "audit", "--url", p.url, "--only", "headers", "--json", "/dev/full"); code != 1 || !strings.Contains(text, "no space left") {
		t.Errorf("audit --json /dev/full: exit code %d\n%s", code, text)
	}
}

// TestReportOutlivesTheTable: what --output names is there, whatever becomes of standard output.
func TestReportOutlivesTheTable(t *testing.T) {
	t.Parallel()
	p := startServe(t)
	for name, shell := range map[string]string{
		"a full disk":          `"$0" "$@" >/dev/full`,
		"a reader that leaves": `"$0" "$@" | head -1 >/dev/null`,
	} {
		report := filepath.Join(t.TempDir(), "report.json")
		args := []string{"-c", shell, binary, "load", "--url", p.url, "--phases", "sync", "--task", "echo", "-n", "8", "-c", "1", "--output", report}
		_ = exec.Command("sh", args...).Run()
		if text, err := os.ReadFile(report); err != nil || !json.Valid(text) {
			t.Errorf("%s: no report: %v, %d bytes", name, err, len(text))
		}
	}
}

// TestTokenThatNobodySawIsNotTakenUp: a key whose token cannot be printed is not made, and one that is rotated keeps
// the token that its owner has.
func TestTokenThatNobodySawIsNotTakenUp(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "tandem.db")
	token, _ := tandemKeys(t, db, "create", "--plain", "--name", "first", "--scopes", "read")
	p := startServe(t, "--mode", "production", "--db", db, "--read-limit", "off")
	for _, stream := range []int{1, 2} {
		for _, args := range [][]string{
			{"create", "--name", "second", "--scopes", "read"}, {"rotate", "first"}, {"rotate-signing", "first", "--overlap", "0s"},
		} {
			if code, text := runInto(t, "/dev/full", stream, append([]string{"keys", "--db", db}, args...)...); code != 1 {
				t.Errorf("keys %v: exit code %d, want 1\n%s", args, code, text)
			}
		}
	}
	list, _ := tandemKeys(t, db, "list")
	for line := range strings.Lines(list) {
		if strings.Contains(line, "second") && !strings.Contains(line, "revoked") {
			t.Errorf("a key that nobody has is valid: %s", line)
		}
	}
	third, _ := tandemKeys(t, db, "create", "--plain", "--name", "third", "--scopes", "read")
	eventually(t, p, third, http.StatusOK) // so the server has seen all changes before it
	if status, body := ask(t, http.MethodGet, p.url+"/requests", token, ""); status != http.StatusOK {
		t.Errorf("the token before does not work any more: %d %s", status, body)
	}
}

// TestServerOutlivesTheReaderOfItsLog: the pipe of its log breaks, and SIGPIPE, which systemd ignores on behalf of its
// services, ends it in no case.
func TestServerOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	for name, trap := range map[string]string{"by default": "", "ignored": "trap '' PIPE; "} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fifo := filepath.Join(t.TempDir(), "log")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			p := startCommand(t, exec.Command("sh", "-c", trap+`exec "$0" serve --listen 127.0.0.1:0 --debug 2>"$1"`, binary, fifo), nil)
			reader, err := os.OpenFile(fifo, os.O_RDONLY, 0) // returns when the server has opened it
			if err != nil {
				t.Fatal(err)
			}
			p.awaitReady(t)
			if err := reader.Close(); err != nil {
				t.Fatal(err)
			}
			for range 3 { // each is told in the log
				if status := <-post(p.url+"/sync", `{"data":{"n":1},"task":"echo"}`); status != http.StatusOK {
					t.Errorf("answered %d", status)
				}
			}
			p.signal(t, syscall.SIGPIPE)
			if err := awaitOK(p.url + "/readyz"); err != nil {
				t.Error(err)
			}
			p.signal(t, terminate)
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

// TestSinkEndsWithItsReader: a sink that nobody reads is no use.
func TestSinkEndsWithItsReader(t *testing.T) {
	t.Parallel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "sink", "--listen", "127.0.0.1:0")
	cmd.Stdout = writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	line := make([]byte, 200)
	n, err := reader.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	address, _, _ := strings.Cut(strings.TrimPrefix(string(line[:n]), "receiving callbacks on "), ",")
	if response, err := http.Post(address, "application/json", strings.NewReader("{}")); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
}

// TestHangupReloadsAndEndsNothing: SIGHUP takes up a new certificate at once, and never ends the server.
func TestHangupReloadsAndEndsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := tandemtest.NewCertificate(t, 1, time.Now().Add(time.Hour)).Write(t, dir)
	p := start(t, nil, "serve", "--listen", "127.0.0.1:0", "--tls-cert", certFile, "--tls-key", keyFile, "--drain-delay", "1h")
	p.awaitOutput(t, secureListening)
	logged := func(text string) {
		t.Helper()
		if err := poll(text, func() error {
			if !strings.Contains(p.stderr.String(), text) {
				return io.EOF
			}
			return nil
		}); err != nil {
			t.Fatalf("%v\n%s", err, p.stderr.String())
		}
	}
	logged(`"msg":"serving"`)
	renewed := tandemtest.NewCertificate(t, 2, time.Now().Add(2*time.Hour))
	renewed.Write(t, dir)
	p.signal(t, syscall.SIGHUP) // nobody shakes hands
	logged(renewed.Leaf.NotAfter.UTC().Format("2006-01-02T15:04:05"))
	if err := os.WriteFile(certFile, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGHUP)
	logged("the old one still is")
	p.signal(t, terminate)
	logged("about to stop")
	p.signal(t, syscall.SIGHUP)
	<-time.After(2 * sameSignal) // a further SIGTERM within it is the same one
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 143 {
		t.Errorf("exit code %d, want 143\n%s", code, p.stderr.String())
	}

	p = startServe(t)
	p.signal(t, syscall.SIGHUP)
	if err := poll("a line about it", func() error {
		if !strings.Contains(p.stderr.String(), "nothing to reload") {
			return io.EOF
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d, want 0\n%s", code, p.stderr.String())
	}
}
