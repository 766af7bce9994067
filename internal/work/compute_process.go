package work

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// computeOrder is what the server writes to a compute process, one JSON text per line.
type computeOrder struct {
	Task       string          `json:"task"`
	Data       json.RawMessage `json:"data"`
	Complexity int             `json:"complexity"`
}

// computeAnswer is what a compute process writes: once that it is ready, and then one for each order.
type computeAnswer struct {
	Warning string          `json:"warning,omitempty"` // when it is ready: why its priority is not low
	Result  json.RawMessage `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"` // the task failed
	Panic   string          `json:"panic,omitempty"` // the task panicked, with
	Stack   string          `json:"stack,omitempty"`
}

// ServeCompute is a compute process: it runs the orders from in that name one of tasks, at low priority, until in ends.
// That also happens when the server dies, and cancels the running work.
// It lowers the priority of its thread for good, so the program must end when it returns.
func ServeCompute(in io.Reader, out io.Writer, tasks []Task) error {
	runtime.LockOSThread()
	var hello computeAnswer
	if err := lowerPriority(); err != nil {
		hello.Warning = err.Error()
	}
	answers := json.NewEncoder(out)
	if err := answers.Encode(hello); err != nil {
		return fmt.Errorf("write that this process is ready: %w", err)
	}
	byName := make(map[string]Task, len(tasks))
	for _, task := range tasks {
		byName[task.Name] = task
	}
	// While the work is done another goroutine reads on, and so notices the end of in at once.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	orders := make(chan computeOrder)
	go func() { // ends with in, at the latest with the process
		for decoder := json.NewDecoder(in); ; {
			var order computeOrder
			if err := decoder.Decode(&order); err != nil {
				cancel(err)
				return
			}
			select {
			case orders <- order:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case order := <-orders:
			if err := answers.Encode(order.run(ctx, byName[order.Task])); err != nil {
				return fmt.Errorf("write an answer: %w", err)
			}
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, io.EOF) {
				return fmt.Errorf("read an order: %w", cause)
			}
			return nil
		}
	}
}

// run does the work.
func (o computeOrder) run(ctx context.Context, task Task) computeAnswer {
	if task.Run == nil {
		return computeAnswer{Error: fmt.Sprintf("this program has no task %q", o.Task)}
	}
	result := Run(ctx, task, Input{Data: o.Data, Complexity: o.Complexity})
	switch result.state {
	case StateDone:
		return computeAnswer{Result: result.body}
	case StatePanicked:
		return computeAnswer{Panic: result.message, Stack: result.stack}
	default:
		return computeAnswer{Error: result.message}
	}
}
