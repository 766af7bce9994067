package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestComputeProcess follows a compute process of the real binary: it comes from the program that runs, although
// an upgrade has replaced the file; signals for the server do not end it; the death of the server does.
func TestComputeProcess(t *testing.T) {
	t.Parallel()
	installed := filepath.Join(t.TempDir(), "tandem")
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(installed, program, 0o700); err != nil {
		t.Fatal(err)
	}
	p := startCommand(t, exec.Command(installed, "serve", "--listen", "127.0.0.1:0", "--workers", "1"), nil)
	p.awaitReady(t)
	if found := childProcesses(t, p.cmd.Process.Pid); len(found) > 0 {
		t.Errorf("processes %v before there was work for them", found)
	}
	next := filepath.Join(t.TempDir(), "tandem")
	if err := os.WriteFile(next, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, installed); err != nil {
		t.Fatal(err)
	}
	compute := func() {
		t.Helper()
		if status := <-post(p.url+"/sync", `{"task":"compute","data":{"n":1}}`); status != http.StatusOK {
			t.Errorf("status %d\n%s", status, p.stderr.String())
		}
	}
	compute()
	before := childProcesses(t, p.cmd.Process.Pid)
	if len(before) != 1 {
		t.Fatalf("processes %v, want one\n%s", before, p.stderr.String())
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := syscall.Kill(before[0], sig); err != nil {
			t.Fatal(err)
		}
	}
	compute()
	if after := childProcesses(t, p.cmd.Process.Pid); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("processes %v after signals, want %v\n%s", after, before, p.stderr.String())
	}
	p.kill()
	err = poll("the end of the compute process", func() error {
		if _, state, alive := processState(before[0]); alive && state != "Z" {
			return errors.New("it is in state " + state)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestComputeProcessesEndWithAStop: nothing is left behind by a server that was told to stop while it computes.
func TestComputeProcessesEndWithAStop(t *testing.T) {
	t.Parallel()
	p := startServe(t, "--workers", "2")
	working := post(p.url+"/sync", `{"task":"compute","data":{"n":1}}`)
	var children []int
	if err := poll("a compute process", func() error {
		if children = childProcesses(t, p.cmd.Process.Pid); len(children) == 0 {
			return errors.New("there is none")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
	<-working
	for _, pid := range children {
		if _, state, alive := processState(pid); alive {
			t.Errorf("process %d is left, in state %s", pid, state)
		}
	}
	if strings.Contains(p.stderr.String(), `"level":"ERROR"`) {
		t.Errorf("errors are logged:\n%s", p.stderr.String())
	}
}

// childProcesses are the children of a process.
func childProcesses(tb testing.TB, parent int) []int {
	tb.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		tb.Fatal(err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if of, _, alive := processState(pid); alive && of == parent {
			found = append(found, pid)
		}
	}
	return found
}

// statLine matches /proc/PID/stat: its name may hold anything.
var statLine = regexp.MustCompile(`(?s)^\d+ \(.*\) (\S) (\d+) `)

// processState is the parent of a process and its state as ps shows it.
func processState(pid int) (parent int, state string, alive bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	match := statLine.FindSubmatch(text)
	if err != nil || match == nil {
		return 0, "", false
	}
	parent, err = strconv.Atoi(string(match[2]))
	return parent, string(match[1]), err == nil
}
