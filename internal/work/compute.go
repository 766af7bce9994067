package work

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	computeIdle  = time.Minute // a compute process that has had no work for so long is ended
	computeRetry = time.Minute // from a compute process that could not be started to the next attempt
	stderrTail   = 4 << 10     // of what a compute process wrote before it crashed, in bytes
)

// errNoProcess says that work cannot be given to a child process here.
var errNoProcess = errors.New("no compute process")

// Pool runs the built-in CPU-bound tasks in child processes of low priority, at most one for
// each CPU slot. A low-priority thread of the server itself would not do: when the machine is busy
// it is not scheduled, and the Go runtime, which stops all threads of a process for a moment now and
// then, waits for it. A child process delays only itself, and a crash costs one request.
//
// The first computation starts the first process. A process is killed when its request is canceled or
// past its deadline, when it has been idle for a minute, and by Close; it ends by itself when its
// standard input does, because then the server has died. Where processes cannot be started (a
// sandbox, a limit), the work is done on goroutines of the server, which leave it one core.
type Pool struct {
	argv  []string // the command line of a compute process; empty: compute in this process
	count int      // how many run at a time; also the number of CPU slots
	idle  time.Duration
	log   *slog.Logger

	permits chan struct{} // holds one token per process, from its start until it has been reaped
	local   chan struct{} // holds one token per computation in this process
	reaping sync.WaitGroup

	mu         sync.Mutex        // guards the fields below
	free       []*computeProcess // without work; the one used last is at the end
	notBefore  time.Time         // the last start failed: no other one before this
	warnedNice bool
}

// NewPool plans count processes that have the command line argv and call [ServeCompute]; 0 means as many as suit the
// machine. It starts none. Without argv work is done in this process.
func NewPool(argv []string, count int, log *slog.Logger) *Pool {
	cores := runtime.GOMAXPROCS(0)
	spare := max(1, cores-1)
	if count == 0 {
		count = defaultCompute(cores, len(argv) > 0 && !hasCPUQuota())
	}
	if len(argv) == 0 {
		spare = count // what the operator asked for
	}
	return &Pool{
		argv: argv, count: count, idle: computeIdle, log: log,
		permits: make(chan struct{}, count),
		local:   make(chan struct{}, min(spare, count)),
	}
}

// defaultCompute is how many computations run at a time on a machine with so many cores. Where they
// do not give way to the server, they leave it a core.
func defaultCompute(cores int, givesWay bool) int {
	if givesWay {
		return cores
	}
	return max(1, cores-1)
}

// Count is how many computations run at a time, and so how many slots there should be for them.
func (p *Pool) Count() int { return p.count }

// Task has a task run in a compute process, which must know one of the same name. The caller of Run holds a CPU slot.
// Only what a built-in task looks at reaches the process: Data and Complexity.
func (p *Pool) Task(t Task) Task {
	local := t
	t.trusted = true // the process has looked at the result
	t.Run = func(ctx context.Context, in Input) Result {
		process, err := p.acquire(ctx)
		switch {
		case errors.Is(err, errNoProcess):
			return p.compute(ctx, local, in)
		case err != nil:
			return Failed(err.Error())
		}
		answer, healthy, err := process.ask(ctx, computeOrder{Task: t.Name, Data: in.Data, Complexity: in.Complexity})
		if healthy {
			p.release(process)
		} else {
			process.kill()
		}
		switch {
		case err != nil:
			return Failed(err.Error())
		case answer.Panic != "":
			return panicked(answer.Panic, answer.Stack)
		case answer.Error != "":
			return Failed(answer.Error)
		default:
			return Done(answer.Result, "")
		}
	}
	return t
}

// compute runs a task in this process, at normal priority.
func (p *Pool) compute(ctx context.Context, t Task, in Input) Result {
	select {
	case p.local <- struct{}{}:
		defer func() { <-p.local }()
		return Run(ctx, t, in)
	case <-ctx.Done():
		return Failed(context.Cause(ctx).Error())
	}
}

// acquire returns an idle process, for this caller alone. The error is
// errNoProcess, or the cause of ctx.
func (p *Pool) acquire(ctx context.Context) (*computeProcess, error) {
	process := p.take()
	if process == nil {
		if !p.mayStart() {
			return nil, errNoProcess
		}
		// All permits may be taken for a moment, by processes that were killed and have not ended yet.
		select {
		case p.permits <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		var err error
		if process, err = p.start(); err != nil {
			<-p.permits
			return nil, p.noProcess(err)
		}
	}
	if process.ready {
		return process, nil
	}
	select {
	case hello := <-process.answers:
		process.ready = true
		p.warnOfPriority(hello.Warning)
		return process, nil
	case <-process.exited:
		return nil, p.noProcess(process.err)
	case <-ctx.Done(): // it has no work yet, so the next caller may have it
		p.release(process)
		return nil, context.Cause(ctx)
	}
}

// take returns the process that was used last, so that those which are not needed become idle; nil: none.
func (p *Pool) take() *computeProcess {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) > 0 {
		last := len(p.free) - 1
		process := p.free[last]
		p.free = p.free[:last]
		process.expiry.Stop()
		select {
		case <-process.exited: // it was killed from outside
		default:
			return process
		}
	}
	return nil
}

// release makes a process available to the next caller.
func (p *Pool) release(process *computeProcess) {
	p.mu.Lock()
	defer p.mu.Unlock()
	process.expiry = time.AfterFunc(p.idle, func() { p.expire(process) })
	p.free = append(p.free, process)
}

// expire ends a process, unless it has been taken meanwhile.
func (p *Pool) expire(process *computeProcess) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.free, process); i >= 0 {
		p.free = slices.Delete(p.free, i, i+1)
		process.kill()
	}
}

// mayStart reports whether a start is worth trying.
func (p *Pool) mayStart() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.argv) > 0 && !time.Now().Before(p.notBefore)
}

// noProcess remembers and logs that a process could not be started.
func (p *Pool) noProcess(cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.After(p.notBefore) {
		p.notBefore = now.Add(computeRetry)
		p.log.Warn("cannot start a compute process: computing inside the server, on all cores but one",
			"error", cause, "next_try_in", computeRetry)
	}
	return errNoProcess
}

// warnOfPriority logs, once, that compute processes run at normal priority.
func (p *Pool) warnOfPriority(warning string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if warning != "" && !p.warnedNice {
		p.warnedNice = true
		p.log.Warn("compute processes run at normal priority", "error", warning)
	}
}

// Close ends all processes and waits for their end. No task may be running or follow.
func (p *Pool) Close() {
	p.mu.Lock()
	for _, process := range p.free {
		process.expiry.Stop()
		process.kill()
	}
	p.free = nil
	p.mu.Unlock()
	p.reaping.Wait()
}

// computeProcess is one child process. Only the caller that acquired it may use it.
type computeProcess struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers chan computeAnswer // what it writes: first that it is ready, then one answer for each order
	ready   bool               // its first answer has been read
	killed  atomic.Bool        // by us
	exited  chan struct{}      // closed when it has been reaped
	err     error              // how it ended; may be read once exited is closed
	expiry  *time.Timer        // ends it when it has been idle for too long
}

// start starts a process. The caller has put a token into permits, which is taken out when the process has ended.
func (p *Pool) start() (*computeProcess, error) {
	process := &computeProcess{answers: make(chan computeAnswer, 1), exited: make(chan struct{})}
	// Its life is not bound to the request that happens to start it.
	cmd := exec.CommandContext(context.Background(), p.argv[0], p.argv[1:]...) //nolint:gosec // ourselves
	cmd.Args[0] = filepath.Base(os.Args[0])                                    // for ps
	cmd.Env = []string{}                                                       // it needs none of our secrets
	stderr := &tail{}
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	process.cmd, process.stdin = cmd, stdin
	p.log.Debug("compute process started", "pid", cmd.Process.Pid)
	p.reaping.Go(func() {
		for decoder := json.NewDecoder(stdout); ; {
			var answer computeAnswer
			if decoder.Decode(&answer) != nil {
				break // the process has ended
			}
			process.answers <- answer // never waits: one order at a time, and each is answered once
		}
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		process.err = err
		if !process.killed.Load() {
			p.log.Error("a compute process ended on its own",
				"pid", cmd.Process.Pid, "error", err, "stderr", stderr.String())
		}
		close(process.exited)
		<-p.permits
	})
	return process, nil
}

// ask gives the process an order and waits for the answer, until ctx ends. A process that is not
// healthy afterwards must be killed: it has ended, or still works on an abandoned order.
func (c *computeProcess) ask(ctx context.Context, order computeOrder) (answer computeAnswer, healthy bool, err error) {
	line, err := json.Marshal(order)
	if err != nil {
		return answer, true, fmt.Errorf("read data: %w", err)
	}
	keep := context.AfterFunc(ctx, c.kill) // ends a write as well, to a process that does not read
	_, err = c.stdin.Write(append(line, '\n'))
	if err == nil {
		select {
		case answer = <-c.answers:
			return answer, keep(), nil
		case <-ctx.Done():
			return answer, false, context.Cause(ctx)
		case <-c.exited:
		}
	}
	keep()
	if ctx.Err() != nil {
		return answer, false, context.Cause(ctx)
	}
	c.kill() // a write failed: it is about to end
	<-c.exited
	return answer, false, fmt.Errorf("the process that did the work ended unexpectedly (%w); ask again", c.err)
}

// kill ends the process, whatever it does. It does not wait.
func (c *computeProcess) kill() {
	c.killed.Store(true)
	c.cmd.Process.Kill() //nolint:errcheck // an error means that it has ended already
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = bytes.Clone(t.text[max(0, len(t.text)-stderrTail):])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
