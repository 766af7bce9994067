package work_test

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
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/internal/work"
)

// computeArgument makes TestMain a compute process.
const computeArgument = "compute-process"

func TestMain(m *testing.M) {
	if slices.Contains(os.Args, computeArgument) {
		if err := work.ServeCompute(os.Stdin, os.Stdout, computeTasks()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) //nolint:forbidigo // what main does
	}
	goleak.VerifyTestMain(m)
}

// computeProcess is the command line of a compute process of this test binary.
func computeProcess(t testing.TB) []string {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{own, computeArgument}
}

// computing is a task for compute processes.
func computing(
	name string, run func(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error),
) work.Task {
	return work.Task{Name: name, Class: work.CPU, Run: work.JSON(run)}
}

// computeTasks are what the compute processes of these tests know.
func computeTasks() []work.Task {
	return []work.Task{
		computing("compute", work.RunCompute),
		computing("pid", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return json.RawMessage(strconv.Itoa(os.Getpid())), nil
		}),
		computing("environment", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return json.Marshal(os.Getenv("TANDEM_SIGNING_SECRET") + os.Getenv("PATH"))
		}),
		computing("crash", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			os.Stderr.WriteString("out of luck\n")
			own, err := os.FindProcess(os.Getpid())
			if err != nil {
				return nil, err
			}
			return nil, errors.Join(own.Kill(), errors.New(<-make(chan string)))
		}),
		computing("explode", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			panic("the calculator exploded")
		}),
		computing("refuse", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return nil, errors.New("the calculator is on fire")
		}),
		computing("hang", func(_ context.Context, data json.RawMessage, _ int) (json.RawMessage, error) {
			var file string
			// The file shows that it has begun.
			if err := errors.Join(json.Unmarshal(data, &file), os.WriteFile(file, nil, 0o600)); err != nil {
				return nil, err
			}
			select {} // whatever its context says
		}),
		schedulingTask(),
	}
}

// computeTask is the side of the server of one of them.
func computeTask(name string) work.Task {
	return computing(name, func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
		return json.RawMessage(`"in the server"`), nil
	})
}

var quiet = slog.New(slog.DiscardHandler)

func newPool(t testing.TB, argv []string, count int) *work.Pool {
	t.Helper()
	pool := work.NewPoolIdle(argv, count, time.Hour, quiet)
	t.Cleanup(pool.Close)
	return pool
}

// pid is the process that does the next work.
func pid(t testing.TB, pool *work.Pool) int {
	t.Helper()
	result, err := do(t.Context(), pool.Task(computeTask("pid")), `{}`)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(result))
	if err != nil {
		t.Fatalf("%s: want the id of a process", result)
	}
	return n
}

func TestComputeProcessGivesTheSameResult(t *testing.T) {
	t.Parallel()
	pool := newPool(t, computeProcess(t), 1)
	for _, data := range []string{`{"a":1}`, "{\"b\":\"<&\u2028ä\\ud800\", \"a\": [1.0e2, null]}"} {
		want, err := work.RunCompute(t.Context(), json.RawMessage(data), 1)
		if err != nil {
			want = nil // half a surrogate pair has no canonical form, there as here
		}
		got, failed := do(t.Context(), pool.Task(computeTask("compute")), data)
		if string(got) != string(want) || (err == nil) != (failed == nil) {
			t.Errorf("%s: %s, %v; in this process %s, %v", data, got, failed, want, err)
		}
	}
	if got := pool.Processes(); got != 1 {
		t.Errorf("%d processes for work one after the other, want 1", got)
	}
}

func TestComputeProcessesRunSideBySide(t *testing.T) {
	t.Parallel()
	const count = 3
	pool := newPool(t, computeProcess(t), count)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			file, _ := json.Marshal(filepath.Join(dir, strconv.Itoa(i)))
			_, err := do(ctx, pool.Task(computeTask("hang")), string(file))
			if err == nil || err.Error() != context.Canceled.Error() {
				t.Errorf("canceled work returned %v", err)
			}
		})
	}
	eventually(t, "all of them work", func() bool {
		begun, err := os.ReadDir(dir)
		return err == nil && len(begun) == count
	})
	cancel()
	all.Wait()
}

func TestComputeProcessHasNoEnvironment(t *testing.T) {
	t.Setenv("TANDEM_SIGNING_SECRET", "whsec_hunter2")
	pool := newPool(t, computeProcess(t), 1)
	got, err := do(t.Context(), pool.Task(computeTask("environment")), `{}`)
	if err != nil || string(got) != `""` {
		t.Errorf("the environment of a compute process has %s, %v; want nothing", got, err)
	}
}

// A crash costs one request: the process is started again for the next one.
func TestComputeProcessThatCrashes(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	pool := work.NewPoolIdle(computeProcess(t), 1, time.Hour, slog.New(slog.NewTextHandler(&log, nil)))
	defer pool.Close()
	before := pid(t, pool)
	_, err := do(t.Context(), pool.Task(computeTask("crash")), `{}`)
	if err == nil || !strings.Contains(err.Error(), "ended unexpectedly") {
		t.Errorf("the work of a process that crashed ended with %v", err)
	}
	if after := pid(t, pool); after == before {
		t.Errorf("process %d works after its crash", after)
	}
	if !strings.Contains(log.String(), "out of luck") {
		t.Errorf("the log does not have what the process wrote last:\n%s", log.String())
	}
}

// Callers do not notice that an idle process has died.
func TestIdleComputeProcessThatWasKilled(t *testing.T) {
	t.Parallel()
	pool := newPool(t, computeProcess(t), 1)
	before := pid(t, pool)
	process, err := os.FindProcess(before)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has ended", func() bool { return pool.Processes() == 0 })
	if after := pid(t, pool); after == before {
		t.Errorf("process %d works after its end", after)
	}
}

// A panic fails the request, as it does in the server, and not the process.
func TestComputeProcessWhoseTaskFails(t *testing.T) {
	t.Parallel()
	pool := newPool(t, computeProcess(t), 1)
	before := pid(t, pool)
	for task, want := range map[string]work.State{"explode": work.StatePanicked, "refuse": work.StateFailed} {
		if got := run(t.Context(), pool.Task(computeTask(task)), `{}`); got.State() != want ||
			!strings.Contains(got.Message(), "the calculator") {
			t.Errorf("%s: state %d, %q; want state %d", task, got.State(), got.Message(), want)
		}
	}
	if after := pid(t, pool); after != before {
		t.Errorf("process %d works, and %d did before the tasks failed", after, before)
	}
}

func TestIdleComputeProcessEnds(t *testing.T) {
	t.Parallel()
	pool := work.NewPoolIdle(computeProcess(t), 2, time.Millisecond, quiet)
	defer pool.Close()
	before := pid(t, pool)
	eventually(t, "the idle process has ended", func() bool { return pool.Processes() == 0 })
	if after := pid(t, pool); after == before {
		t.Errorf("process %d works after its end", after)
	}
}

// The end of its input is the end of a compute process, whatever it does: the server has died.
func TestComputeProcessEndsWithItsInput(t *testing.T) {
	t.Parallel()
	for name, orders := range map[string]string{
		"idle": "", "computing": `{"task":"compute","data":{},"complexity":1000000}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			argv := computeProcess(t)
			cmd := exec.Command(argv[0], argv[1:]...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			hello := make([]byte, 3)
			if _, err := io.ReadFull(out, hello); err != nil || string(hello) != "{}\n" {
				t.Errorf("it began with %q, %v", hello, err)
			}
			if _, err := io.WriteString(in, orders); err != nil {
				t.Error(err)
			}
			in.Close()
			rest, err := io.ReadAll(out) // returns when it has ended
			if err != nil || strings.Contains(string(rest), "checksum") {
				t.Errorf("it went on to the result: %s, %v", rest, err)
			}
			cmd.Wait()
		})
	}
}

// Where processes cannot be started, the server computes by itself and logs that once.
func TestComputeWithoutProcesses(t *testing.T) {
	t.Parallel()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, argv := range map[string][]string{
		"none is asked for":      nil,
		"it cannot be started":   {filepath.Join(t.TempDir(), "missing")},
		"it ends before it runs": {own, "-test.run=^$"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log lockedBuffer
			pool := work.NewPoolIdle(argv, 2, time.Hour, slog.New(slog.NewTextHandler(&log, nil)))
			defer pool.Close()
			for range 3 {
				got, err := do(t.Context(), pool.Task(computeTask("pid")), `{}`)
				if err != nil || string(got) != `"in the server"` {
					t.Errorf("%s, %v; want the work to be done in the server", got, err)
				}
			}
			want := 1
			if argv == nil {
				want = 0
			}
			if got := strings.Count(log.String(), "cannot start a compute process"); got != want {
				t.Errorf("said %d times, want %d:\n%s", got, want, log.String())
			}
		})
	}
}

// run runs a task once, with complexity 1.
func run(ctx context.Context, task work.Task, data string) work.Result {
	return work.Run(ctx, task, work.Input{Data: []byte(data), Complexity: 1})
}

// do is run for a task whose result is JSON.
func do(ctx context.Context, task work.Task, data string) (json.RawMessage, error) {
	result := run(ctx, task, data)
	if result.State() != work.StateDone {
		return nil, errors.New(result.Message())
	}
	body, _ := result.Body()
	return body, nil
}

// eventually waits until what is true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick, timeout := time.NewTicker(time.Millisecond), time.NewTimer(20*time.Second)
	defer tick.Stop()
	defer timeout.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-timeout.C:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
