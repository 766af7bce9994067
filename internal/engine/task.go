package engine

import (
	"context"
	"encoding/json"
	"time"

	"tandem/internal/store"
)

// Task is work that an order can name.
type Task struct {
	Name string     // lower case, unique
	Lane store.Lane // LaneCPU: it computes, in one of Workers slots; LaneIO: it waits, in one of IOWorkers

	// Run does the work. data is the caller's JSON object, not to be modified;
	// complexity is MinComplexity..MaxComplexity. The result must be JSON; nil becomes
	// null. The text of an error is shown to the caller. Run must return soon after ctx ends
	// (its slot is not free before that; compute at most a few milliseconds between looks at ctx),
	// must not keep data, and must not call runtime.Goexit. A panic fails the request.
	Run func(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error)

	trusted bool // a task of ours: its result is known to be JSON, and compute processes know it
}

// builtinTasks are the tasks that every engine has.
func builtinTasks() []Task {
	return []Task{
		{Name: "compute", Lane: store.LaneCPU, Run: runCompute, trusted: true},
		{Name: "sleep", Lane: store.LaneIO, Run: runSleep, trusted: true},
		{Name: "echo", Lane: store.LaneIO, Run: runEcho, trusted: true},
	}
}

// sleepPerComplexity is how long the task "sleep" waits for each complexity.
const sleepPerComplexity = 50 * time.Millisecond

// runSleep waits without using a core: work that is bound by something else.
func runSleep(ctx context.Context, _ json.RawMessage, complexity int) (json.RawMessage, error) {
	wait := time.Duration(complexity) * sleepPerComplexity
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return json.Marshal(struct {
			SleptMS int64 `json:"slept_ms"`
		}{wait.Milliseconds()})
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// runEcho returns data: what is left is the overhead of tandem itself.
func runEcho(_ context.Context, data json.RawMessage, _ int) (json.RawMessage, error) {
	return data, nil
}
