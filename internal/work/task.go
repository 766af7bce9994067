// Package work is what can be done: tasks, the kinds of them that are built in, and the policy by
// which work that was not done is run again.
//
// A task gets an [Input] and returns a [Result], which only constructors make: what came of a run is
// one of a few things, and each says whether the work may be run again. [Run] runs a task once and
// keeps its panics and broken results away from its caller; [Retry] computes when the next run is due.
// Slots, deadlines, history and callbacks belong to the engine, which calls this package.
//
// The package also hides the compute processes that keep the HTTP server responsive (see [Pool]).
package work

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
)

// The complexities that a demo task may be asked for.
const (
	MinComplexity = 1
	MaxComplexity = 10
)

// Class says what work needs while it runs, and so which slots it takes.
type Class string

// The classes.
const (
	CPU Class = "cpu" // it computes
	IO  Class = "io"  // it waits for something else
)

// Task is work that a request can name.
type Task struct {
	Name    string        // lower case, unique
	Class   Class         // required
	Timeout time.Duration // of one run; 0: the engine's
	Retry   Retry         // when work that was not done is run again; the zero value: never

	// Internal says that no order can name it: an application of ours makes its requests.
	Internal bool

	// Complexity says that a request chooses how much there is to do, MinComplexity..MaxComplexity: demo tasks.
	Complexity bool

	// Run does the work once. It must return soon after ctx ends (its slot is not free before that; compute at most
	// a few milliseconds between looks at ctx), must neither modify nor keep Input.Data except in its Result, and
	// must not call runtime.Goexit. A panic fails the request.
	Run func(ctx context.Context, in Input) Result

	// Poll asks for the result of work that a service has taken, at the Location of its answer, and Withdraw tells the
	// service that nobody waits for it any more; nil: no work of this task is ever taken. Neither does anything twice
	// that may not be done twice, so what Poll does not know is [Again].
	Poll, Withdraw func(ctx context.Context, in Input, location string) Result

	trusted bool // its result is known to be JSON
}

// Input is what a run is given.
type Input struct {
	RequestID   string    // the same on every run
	BatchID     string    // of requests that came together; "": it came alone
	AcceptedAt  time.Time // UTC
	Attempt     int       // number of this run, from 1; runs that used up no attempt are not counted
	Attempts    int       // how many there may be
	Deadline    time.Time // when ctx ends
	Data        []byte    // what the caller sent
	ContentType string    // of Data; "": JSON
	Complexity  int       // of a task that has one, MinComplexity..MaxComplexity

	// Of a request that has them; "": none.
	Traceparent, Tracestate string // W3C trace context
	CompleteURL             string // where a service may report the result of work that it has taken

	// Progress is told how far the work is: JSON of at most 64 KiB, which it must not keep. nil: nobody wants to know.
	Progress func(report []byte)
}

// Validate says what is wrong with a task.
func (t Task) Validate() error {
	switch {
	case t.Name == "" || t.Name != strings.ToLower(t.Name):
		return fmt.Errorf("task name %q: must be lower case and not empty", t.Name)
	case t.Class != CPU && t.Class != IO:
		return fmt.Errorf("task %q: class %q: must be %s or %s", t.Name, t.Class, CPU, IO)
	case t.Run == nil:
		return fmt.Errorf("task %q: Run is required", t.Name)
	case t.Timeout < 0:
		return fmt.Errorf("task %q: timeout %s: must not be negative", t.Name, t.Timeout)
	case t.Retry == Retry{}:
		return nil
	}
	if err := t.Retry.Validate(); err != nil {
		return fmt.Errorf("task %q: retry: %w", t.Name, err)
	}
	return nil
}

// Run runs a task once. A panic, and JSON that is not valid, become the result.
func Run(ctx context.Context, t Task, in Input) (result Result) {
	defer func() {
		if value := recover(); value != nil {
			result = panicked(fmt.Sprint(value), string(debug.Stack()))
		}
	}()
	result = t.Run(ctx, in)
	if result.state == StateDone && result.contentType == "" && !t.trusted && !json.Valid(result.body) {
		return Failed("the task returned something that is not JSON")
	}
	return result
}

// JSON makes a [Task.Run] of a function from JSON to JSON: nil becomes null, and an error, whose text is shown to the
// caller, is final.
func JSON(
	run func(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error),
) func(context.Context, Input) Result {
	return func(ctx context.Context, in Input) Result {
		body, err := run(ctx, in.Data, in.Complexity)
		if err != nil {
			return Failed(err.Error())
		}
		return Done(body, "")
	}
}
