//go:build linux

package main_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// The system calls that matter, as strace writes them. One that another thread
// interrupts is written in two lines; the first shows the arguments of a write, the second
// that a sync has ended.
var (
	tracedRequest = regexp.MustCompile(`read\(\d+<[^>]*>, "POST /async|<\.\.\. read resumed>"POST /async`)
	tracedSync    = regexp.MustCompile(`(fsync|fdatasync)(\(\d+<[^>]*fsync\.db(-wal)?>| resumed>)\)? += 0`)
	traced202     = regexp.MustCompile(`(write|sendto)\(\d+<[^>]*>, "HTTP/1\.1 202`)
)

// TestFsyncBeforeEachLone202 watches the system calls of the real binary: between
// reading each lone POST /async and writing its 202 there is an fsync of the
// database. (Killing the process, as TestCrash does, cannot show that: the page cache survives it.)
func TestFsyncBeforeEachLone202(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED: strace is not installed, and nothing else shows an fsync")
	}
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	cmd := exec.Command(strace, "-f", "-y", "-s", "32", "-e", "trace=read,write,sendto,fsync,fdatasync", "-o", trace,
		binary, "serve", "--listen", "127.0.0.1:0", "--db", filepath.Join(dir, "fsync.db"), "--io-workers", "1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := startCommand(t, cmd, nil)
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // before p.kill: strace and its child
	p.awaitReady(t)

	// The only slot sleeps, so that nothing but the requests themselves is written.
	const requests = 20
	body := `{"data":{"n":1},"task":"sleep","complexity":10,"callback_url":"http://127.0.0.1:9/never"}`
	for range requests {
		response, err := http.Post(p.url+"/async", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusAccepted {
			t.Fatalf("POST /async answered %s", response.Status)
		}
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	syncs, err := syncsBefore202(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(syncs) != requests {
		t.Fatalf("found %d of %d requests in the trace", len(syncs), requests)
	}
	for i, n := range syncs {
		if n == 0 {
			t.Errorf("request %d: its 202 was written without an fsync after it was read", i+1)
		}
	}
	t.Logf("fsyncs between request and 202: %v", syncs)
}

// syncsBefore202 counts, per request, the syncs that ended between reading it
// and writing its 202.
func syncsBefore202(trace string) ([]int, error) {
	var syncs []int
	reading := false
	for line := range strings.Lines(trace) {
		switch {
		case tracedRequest.MatchString(line):
			if reading {
				return nil, fmt.Errorf("two requests at once: %s", line)
			}
			reading = true
			syncs = append(syncs, 0)
		case reading && tracedSync.MatchString(line):
			syncs[len(syncs)-1]++
		case traced202.MatchString(line):
			if !reading {
				return nil, fmt.Errorf("a 202 without a request: %s", line)
			}
			reading = false
		}
	}
	return syncs, nil
}
