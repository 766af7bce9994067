package work

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	exitAgain    = 75               // EX_TEMPFAIL of sysexits.h
	termGrace    = 5 * time.Second  // from SIGTERM to SIGKILL
	pipeGrace    = time.Second      // for pipes that something outside of the process group keeps open
	startBackoff = 10 * time.Second // from a command that could not be started to the next attempt
)

// Command is work that a program of the operator does: the data is its standard input, and its standard output is the
// result. docs/decisions/0019-commands-as-work.md says what its end means. It runs as tandem's user, so it can read
// what tandem can read. No shell is involved.
type Command struct {
	Argv      []string // a program, looked for in PATH unless it has a slash, and its arguments
	Dir       string   // where it runs; "": where tandem does
	Env       []string // names of variables that it gets as tandem has them, beside the TANDEM_ ones
	Type      string   // content type of the result; "": JSON or text if it is that, else bytes
	MaxResult int64    // bytes; 0: DefaultMaxResult
	Memory    int64    // bytes, of all its processes together where cgroups are delegated, else of each; 0: no bound
	Processes int      // at a time; 0: no bound. Without cgroups it counts all of tandem's user, and root has none
}

// command is a Command whose program has been found.
type command struct {
	Command

	task, path string
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Task makes a task of a command. It returns an error when a field is wrong or the program is not there.
func (c Command) Task(name string) (Task, error) {
	c.MaxResult = cmp.Or(c.MaxResult, DefaultMaxResult)
	switch {
	case len(c.Argv) == 0 || c.Argv[0] == "":
		return Task{}, errors.New("argv: must name a program")
	case c.MaxResult < 0 || c.MaxResult > MaxMaxResult:
		return Task{}, fmt.Errorf("max_result %d: must be between 1 and %d bytes", c.MaxResult, MaxMaxResult)
	case c.Memory < 0 || c.Processes < 0:
		return Task{}, errors.New("memory and processes: must not be negative")
	}
	for _, name := range c.Env {
		if !variable.MatchString(name) || strings.HasPrefix(name, "TANDEM_") {
			return Task{}, fmt.Errorf("env %q: must be the name of a variable, and none that tandem sets", name)
		}
	}
	if info, err := os.Stat(cmp.Or(c.Dir, ".")); err != nil || !info.IsDir() {
		return Task{}, fmt.Errorf("dir %q: must be a directory that exists", c.Dir)
	}
	path := c.Argv[0]
	if strings.ContainsRune(path, filepath.Separator) && !filepath.IsAbs(path) {
		path = filepath.Join(c.Dir, path)
	}
	path, err := exec.LookPath(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Task{}, fmt.Errorf("argv: find the program: %w", err)
	}
	return Task{Name: name, Class: IO, Run: (&command{Command: c, task: name, path: path}).run}, nil
}

// environment is all that the program gets. No header ever becomes a variable.
func (c *command) environment(in Input) []string {
	env := []string{
		"TANDEM_REQUEST_ID=" + in.RequestID,
		"TANDEM_TASK=" + c.task,
		fmt.Sprintf("TANDEM_ATTEMPT=%d/%d", in.Attempt, in.Attempts),
	}
	if !in.Deadline.IsZero() {
		env = append(env, "TANDEM_DEADLINE="+in.Deadline.UTC().Format(time.RFC3339))
	}
	for _, name := range c.Env {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// run does the work once. When it returns nothing of the command is left: no process of its group, no descriptor.
func (c *command) run(ctx context.Context, in Input) Result {
	// On Linux the program is killed when the thread that has started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	stdout, stderr := &output{most: c.MaxResult, full: make(chan struct{})}, &tail{}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), c.path, c.Argv[1:]...) //nolint:gosec // the operator's program
	cmd.Args[0] = c.Argv[0]
	cmd.Dir, cmd.Env = c.Dir, c.environment(in)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in.Data), stdout, stderr
	cmd.WaitDelay = pipeGrace
	progress, err := openProgress(cmd)
	if err != nil {
		return notStarted(err)
	}
	processes := &group{command: c, request: in.RequestID}
	if err = processes.prepare(cmd); err == nil {
		err = cmd.Start()
	}
	progress.started()
	if err != nil {
		processes.close()
		progress.read(in) // nothing can come
		return notStarted(err)
	}
	processes.started(cmd)
	var watching, reading sync.WaitGroup
	ended, cut := make(chan struct{}), false
	watching.Go(func() { cut = watch(ctx, processes, stdout.full, ended) })
	reading.Go(func() { progress.read(in) })
	err = processes.wait(cmd, func() {
		close(ended)
		watching.Wait()
	})
	if progress.end(&reading) || errors.Is(err, exec.ErrWaitDelay) || cut {
		processes.sweep()
	}
	processes.close()
	return c.result(cmd, cut, stdout, stderr.String())
}

// watch ends the processes when ctx or the room for their output does. It reports whether that came first.
func watch(ctx context.Context, processes *group, full, ended <-chan struct{}) (cut bool) {
	select {
	case <-ended:
		return false
	case <-full:
	case <-ctx.Done():
		processes.terminate()
		grace := time.NewTimer(termGrace)
		defer grace.Stop()
		select {
		case <-ended:
			return true
		case <-grace.C:
		case <-full:
		}
	}
	processes.kill()
	return true
}

// notStarted is the result of a command that cannot be started: nothing was done, and others would not be either.
func notStarted(err error) Result {
	return Held("the command cannot be started: "+err.Error(), time.Now().Add(startBackoff))
}

// result says what the end of the program means. cut says that tandem has ended it.
func (c *command) result(cmd *exec.Cmd, cut bool, stdout *output, stderr string) Result {
	state := cmd.ProcessState
	if state == nil { // it could not be waited for
		return Unknown("it is not known how the command ended")
	}
	message := detail([]byte(stderr))
	if message == "" {
		message = "the command ended with " + state.String()
	}
	switch {
	case stdout.over:
		return Failed("the output of the command is larger than max_result, " + bytesText(c.MaxResult))
	case cut || !state.Exited():
		return Unknown(message)
	case state.Success():
		return c.done(stdout.body.Bytes())
	case state.ExitCode() == exitAgain:
		return Again(message, 0, true)
	default:
		return Failed(message)
	}
}

// done is the result of a program that has ended well.
func (c *command) done(body []byte) Result {
	switch {
	case c.Type != "":
		return Done(body, c.Type)
	case len(bytes.TrimSpace(body)) == 0:
		return Done(nil, "")
	}
	return Done(body, guessed(body))
}

// output is the standard output of a program, to its bound.
type output struct {
	most int64
	body bytes.Buffer
	over bool
	full chan struct{} // closed when there was more
}

func (o *output) Write(p []byte) (int, error) {
	if int64(o.body.Len()+len(p)) > o.most {
		o.over = true
		close(o.full)
		return 0, errTooLarge // and nothing calls Write again
	}
	return o.body.Write(p)
}

// pipe is descriptor 3 of a program, from which tandem reads how far the work is. A nil pipe is none.
type pipe struct{ ours, theirs *os.File }

// openProgress gives a command its descriptor 3, where the system can.
func openProgress(cmd *exec.Cmd) (*pipe, error) {
	if !hasProgress {
		return nil, nil //nolint:nilnil // a nil pipe is none
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{theirs}
	return &pipe{ours, theirs}, nil
}

// started closes the program's end here.
func (p *pipe) started() {
	if p != nil {
		_ = p.theirs.Close()
	}
}

// read reports each line until the pipe ends.
func (p *pipe) read(in Input) {
	if p == nil {
		return
	}
	defer p.ours.Close()                        //nolint:errcheck // it was only read
	_ = lines(p.ours, maxProgress, in.progress) // what follows a line that is too long is not progress
	_, _ = io.Copy(io.Discard, p.ours)
}

// end waits for read, which something outside of the process group may hold up. It reports whether it did.
func (p *pipe) end(reading *sync.WaitGroup) (held bool) {
	if p == nil {
		return false
	}
	timer := time.AfterFunc(pipeGrace, func() { _ = p.ours.SetReadDeadline(time.Unix(1, 0)) })
	reading.Wait()
	return !timer.Stop()
}
