package work

import (
	"context"
	"encoding/json"
	"time"
)

// Builtin are the demo tasks, which every engine has.
func Builtin() []Task {
	return []Task{
		{Name: "compute", Class: CPU, Complexity: true, Run: JSON(runCompute), trusted: true},
		{Name: "sleep", Class: IO, Complexity: true, Run: JSON(runSleep), trusted: true},
		{Name: "echo", Class: IO, Complexity: true, Run: JSON(runEcho), trusted: true},
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
