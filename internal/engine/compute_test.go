package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"tandem"
	"tandem/internal/work"
)

// computeArgument makes TestMain a compute process.
const computeArgument = "compute-process"

// computeTasks are what the compute processes of these tests know.
func computeTasks() []work.Task {
	tasks := []work.Task{
		task("pid", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return json.RawMessage(strconv.Itoa(os.Getpid())), nil
		}),
		task("explode", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			panic("the calculator exploded")
		}),
		task("refuse", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return nil, errors.New("the calculator is on fire")
		}),
		task("hang", func(_ context.Context, data json.RawMessage, _ int) (json.RawMessage, error) {
			var file string
			// The file shows that it has begun.
			if err := errors.Join(json.Unmarshal(data, &file), os.WriteFile(file, nil, 0o600)); err != nil {
				return nil, err
			}
			select {} // whatever its context says
		}),
	}
	for i := range tasks {
		tasks[i].Class = work.CPU
	}
	return tasks
}

// inProcess makes these tasks run in a compute process of this test binary.
func inProcess(t testing.TB) []work.Task {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pool := work.NewPool([]string{own, computeArgument}, 1, quiet)
	t.Cleanup(pool.Close)
	tasks := computeTasks()
	for i := range tasks {
		tasks[i] = pool.Task(tasks[i])
	}
	return tasks
}

// A panic fails the request, as it does in the server, and not the process.
func TestComputeProcessWhoseTaskFails(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.engine.Tasks = inProcess(t) })
	working := func() string {
		r, err := p.Do(t.Context(), order("pid"))
		if err != nil {
			t.Fatal(err)
		}
		return string(r.Result)
	}
	before := working()
	for task, want := range map[string]string{"explode": tandem.FailedPanic, "refuse": tandem.FailedTask} {
		_, err := p.Do(t.Context(), order(task))
		if tandem.CodeOf(err) != tandem.CodeTaskFailed {
			t.Errorf("%s: %v, want %s", task, err, tandem.CodeTaskFailed)
		}
		failed, ok := errors.AsType[*tandem.Error](err)
		if !ok {
			continue
		}
		r, err := p.Store.Request(t.Context(), failed.RequestID)
		if err != nil || r.ErrorCode != want {
			t.Errorf("%s: %q is on record, %v; want %q", task, r.ErrorCode, err, want)
		}
	}
	if after := working(); after != before {
		t.Errorf("process %s works, and %s did before the tasks failed", after, before)
	}
}

// A caller who leaves frees the only slot at once, although its work never ends and ignores cancellation.
func TestCanceledComputeFreesItsSlot(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.engine.Tasks = inProcess(t) })
	for range 3 {
		file := filepath.Join(t.TempDir(), "begun")
		ctx, cancel := context.WithCancel(t.Context())
		hanging := order("hang")
		hanging.Data, _ = json.Marshal(file)
		left := make(chan error, 1)
		go func() { // ends with ctx
			_, err := p.Do(ctx, hanging)
			left <- err
		}()
		p.Await("the work has begun", func() bool {
			_, err := os.Stat(file)
			return err == nil
		})
		cancel()
		if err := <-left; tandem.CodeOf(err) != tandem.CodeClientClosed {
			t.Errorf("%v, want %s", err, tandem.CodeClientClosed)
		}
		if _, err := p.Do(t.Context(), order("pid")); err != nil {
			t.Fatalf("work after that of a client who left: %v", err)
		}
	}
}
