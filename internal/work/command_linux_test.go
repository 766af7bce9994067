package work_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/work"
)

// commandTask is a task of a command.
func commandTask(t *testing.T, c work.Command) work.Task {
	t.Helper()
	task, err := c.Task("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Validate(); err != nil {
		t.Fatal(err)
	}
	return task
}

// shell is a command that runs a script.
func shell(script string) work.Command {
	return work.Command{Argv: []string{"sh", "-c", script}, Env: []string{"PATH"}, MaxResult: 100_000}
}

// TestCommandEnds is what the end of a command means.
func TestCommandEnds(t *testing.T) {
	t.Parallel()
	typed := shell(`printf '{"a":'`)
	typed.Type = "application/json"
	long := strings.Repeat("x", 5000)
	for name, tt := range map[string]struct {
		command work.Command
		want    outcome
	}{
		"data in, result out": {work.Command{Argv: []string{"cat"}}, outcome{work.StateDone, `{"page":1}`, "", "", 0}},
		"nothing":             {shell(``), outcome{work.StateDone, "null", "", "", 0}},
		"text":                {shell(`echo it says so; echo 1 >&2`), outcome{work.StateDone, "it says so\n", "text/plain; charset=utf-8", "", 0}},
		"bytes":               {shell(`printf '\377'`), outcome{work.StateDone, "\xff", "application/octet-stream", "", 0}},
		"half a JSON":         {shell(`printf '{"a":'`), outcome{work.StateDone, `{"a":`, "text/plain; charset=utf-8", "", 0}},
		"half a JSON by its type": {typed, outcome{work.StateFailed, "", "",
			"the task returned something that is not JSON", 0}},
		"failed":      {shell(`echo 1; echo no paper >&2; exit 3`), outcome{work.StateFailed, "", "", "no paper", 0}},
		"in silence":  {shell(`exit 3`), outcome{work.StateFailed, "", "", "the command ended with exit status 3", 0}},
		"again":       {shell(`echo busy >&2; exit 75`), outcome{work.StateAgain, "", "", "busy", 0}},
		"killed":      {shell(`kill -9 $$`), outcome{work.StateUnknown, "", "", "the command ended with signal: killed", 0}},
		"not found":   {shell(`exec /nonexistent 2>&-`), outcome{work.StateFailed, "", "", "the command ended with exit status 127", 0}},
		"end of much": {shell(`echo ` + long + ` >&2; echo end >&2; exit 1`), outcome{work.StateFailed, "", "", long[:4091] + "\nend", 0}},
		"too much": {shell(`head -c 100001 /dev/zero; sleep 100`), outcome{work.StateFailed, "", "",
			"the output of the command is larger than max_result, 100000 bytes", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, outcomeOf(work.Run(t.Context(), commandTask(t, tt.command), order()))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestCommandEnvironment: a command gets what the contract says and nothing else.
func TestCommandEnvironment(t *testing.T) {
	t.Parallel()
	in := order()
	in.Deadline = time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "show"), []byte("#!/bin/sh\ntr '\\0' '\\n' </proc/self/environ; pwd"), 0o700); err != nil {
		t.Fatal(err)
	}
	task := commandTask(t, work.Command{Argv: []string{"./show"}, Dir: dir, Env: []string{"PATH", "NOT_SET_ANYWHERE"}})
	body, _ := work.Run(t.Context(), task, in).Body()
	got := slices.DeleteFunc(strings.Fields(string(body)), func(line string) bool { return strings.HasPrefix(line, "PWD=") })
	want := []string{
		"TANDEM_REQUEST_ID=req_1", "TANDEM_TASK=test", "TANDEM_ATTEMPT=2/4", "TANDEM_DEADLINE=2030-01-02T03:04:05Z",
		"PATH=" + os.Getenv("PATH"), dir,
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestCommandProgress: descriptor 3 takes JSON lines.
func TestCommandProgress(t *testing.T) {
	t.Parallel()
	var got []string
	in := order()
	in.Progress = func(report []byte) { got = append(got, string(report)) }
	task := commandTask(t, shell(`echo '{"p":1}' >&3; echo half >&3; head -c 70000 /dev/zero >&3; echo 4 >&3; cat`))
	if result := work.Run(t.Context(), task, in); result.State() != work.StateDone {
		t.Errorf("%+v", outcomeOf(result))
	}
	if want := []string{`{"p":1}`, `"half"`}; !slices.Equal(got, want) {
		t.Errorf("progress %q, want %q", got, want)
	}
}

// TestCommandNotStarted: a command that cannot be started uses up no attempt.
func TestCommandNotStarted(t *testing.T) {
	t.Parallel()
	c := shell("")
	c.Dir = filepath.Join(t.TempDir(), "jobs")
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	task := commandTask(t, c)
	if err := os.Remove(c.Dir); err != nil {
		t.Fatal(err)
	}
	result, now := work.Run(t.Context(), task, order()), time.Now()
	policy := work.Retry{Attempts: 1, Backoff: time.Second, MaxAge: time.Hour}
	at, runs, again := policy.After(work.Ended{Result: result, Attempt: 1, Accepted: now, At: now}, 0)
	if result.State() != work.StateHeld || !again || runs != 0 || at.Sub(now) < 5*time.Second {
		t.Errorf("%+v, again %v after %v, %d runs", outcomeOf(result), again, at.Sub(now), runs)
	}
}

// TestCommandBounds: a command gets the bounds that its task has.
func TestCommandBounds(t *testing.T) {
	t.Parallel()
	const bounded = `group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
until grep -q "Max processes *5000 " /proc/self/limits || grep -qsx 5000 "$group/pids.max"; do :; done
until grep -q "Max data size *104857600 " /proc/self/limits || grep -qsx 104857600 "$group/memory.max"; do :; done
`
	c := shell(bounded + "head -c 2147483648 /dev/zero | tail -n 1")
	c.Processes, c.Memory = 5000, 100<<20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result := work.Run(ctx, commandTask(t, c), order())
	if state := result.State(); ctx.Err() != nil || state != work.StateFailed && state != work.StateUnknown {
		t.Errorf("%+v, %v", outcomeOf(result), ctx.Err())
	}
}

// TestCommandHostile: whatever a command does, its slot is free soon, and no process or descriptor of it is left.
func TestCommandHostile(t *testing.T) { //nolint:paralleltest // it counts the descriptors of the process
	if dir := work.Delegated(); dir != "" {
		hostileCommands(t)
		left, err := filepath.Glob(filepath.Join(dir, "tandem-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %q, %v", left, err)
		}
	}
	work.WithoutCgroups(func() { hostileCommands(t) })
}

func hostileCommands(t *testing.T) {
	t.Helper()
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	first := commandTask(t, shell("")) // has the runtime open what it needs
	work.Run(t.Context(), first, order())
	before := descriptors()
	for _, tt := range []struct {
		name, script string
		data         int // bytes
		state        work.State
		within       time.Duration
	}{
		{"never reads", `echo 1`, 8 << 20, work.StateDone, 5 * time.Second},
		{"closes stdin", `exec <&-; echo 1`, 8 << 20, work.StateDone, 5 * time.Second},
		{"endless output", `yes`, 1, work.StateFailed, 5 * time.Second},
		{"endless errors", `yes >&2`, 1, work.StateUnknown, 5 * time.Second},
		{"endless progress", `yes >&3`, 1, work.StateUnknown, 5 * time.Second},
		{"a child in the background", `sleep 1000 & echo 1`, 1, work.StateDone, 5 * time.Second},
		{"double fork with inherited pipes", `setsid sh -c 'sleep 1000 & sleep 1001' & echo 1`, 1, work.StateDone, 15 * time.Second},
		{"double fork that keeps descriptor 3", `setsid sleep 1000 >&- 2>&- <&- & echo 1`, 1, work.StateDone, 15 * time.Second},
		{"many processes", `n=0; while [ $n -lt 200 ]; do sleep 1000 & n=$((n+1)); done; wait`, 1, work.StateUnknown, 15 * time.Second},
		{"many sessions", `while :; do setsid sleep 1000 & sleep .02; done`, 1, work.StateUnknown, 15 * time.Second},
		{"ends well when told to end", `trap 'exit 0' TERM; while :; do sleep .1; done`, 1, work.StateUnknown, 5 * time.Second},
		{"ignores SIGTERM", `trap '' TERM; while :; do sleep .1; done`, 1, work.StateUnknown, 15 * time.Second},
	} {
		id := fmt.Sprintf("req_%x", tt.name)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		begun := time.Now()
		result := work.Run(ctx, commandTask(t, shell(tt.script)),
			work.Input{RequestID: id, Attempt: 1, Attempts: 1, Data: make([]byte, tt.data)})
		took := time.Since(begun)
		cancel()
		if result.State() != tt.state || took > tt.within {
			t.Errorf("%s: %+v after %v", tt.name, outcomeOf(result), took)
		}
		if left := processesOf(t, id); len(left) != 0 {
			t.Errorf("%s: left %q", tt.name, left)
		}
		if now := descriptors(); now > before {
			t.Errorf("%s: %d descriptors, %d before", tt.name, now, before)
			before = now
		}
	}
}

// processesOf are the processes of a request that have not ended. Those that are being killed may take a moment.
func processesOf(t *testing.T, request string) (found []string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for ticker := time.NewTicker(10 * time.Millisecond); ; <-ticker.C {
		found = nil
		paths, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			environment, _ := os.ReadFile(path)
			if bytes.Contains(environment, []byte("TANDEM_REQUEST_ID="+request+"\x00")) {
				line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
				found = append(found, filepath.Base(filepath.Dir(path))+" "+string(line))
			}
		}
		if len(found) == 0 || time.Now().After(deadline) {
			ticker.Stop()
			return found
		}
	}
}

// TestCommandBadFields: what an operator may write wrong is refused before anything is run.
func TestCommandBadFields(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]work.Command{
		"argv: must name a program":            {},
		"argv: find the program":               {Argv: []string{"no-such-program"}},
		"argv: find the program: exec: \"/etc": {Argv: []string{"/etc/passwd"}},
		"dir \"/nonexistent\"":                 {Argv: []string{"cat"}, Dir: "/nonexistent"},
		"env \"A=b\"":                          {Argv: []string{"cat"}, Env: []string{"A=b"}},
		"env \"TANDEM_X\"":                     {Argv: []string{"cat"}, Env: []string{"TANDEM_X"}},
		"max_result":                           {Argv: []string{"cat"}, MaxResult: -1},
		"memory and processes":                 {Argv: []string{"cat"}, Processes: -1},
	} {
		if _, err := c.Task("test"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
