package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"tandem"
	"tandem/internal/store"
)

// maxErrorMessage bounds what a task's error adds to the history and to callbacks, in bytes.
const maxErrorMessage = 1000

// step does one job of the store and says what comes next. claiming ends when the
// drain begins: a job that has not started by then is handed back.
func (e *Engine) step(claiming context.Context, job store.Job) store.Next {
	if job.Lane == store.LaneDeliver {
		return e.deliver(claiming, &job.Request)
	}
	if job.Request.Task == tandem.TaskSubmission {
		return e.repeatCall(claiming, job)
	}
	task, ok := e.tasks[job.Request.Task]
	if !ok {
		// Accepted by a configuration that still had the task.
		e.vitals.end(Ending{tandem.ModeAsync, UnknownTask, tandem.FailedTask})
		return worked(store.Outcome{ErrorCode: tandem.FailedTask, CompletedAt: e.now(),
			ErrorMessage: fmt.Sprintf("This server has no task %q any more.", job.Request.Task)})
	}
	slots := e.slots[task.Lane]
	if slots.acquire(claiming, tandem.ModeAsync, job.Request.Owner) != nil {
		return handBack(job.Lane)
	}
	defer slots.release()
	job.Started()
	if e.telling() {
		e.tell("🚀 async: the work begins", &job.Request, "task", task.Name, "waited", time.Since(job.Request.CreatedAt))
	}
	ctx, cancel := context.WithTimeoutCause(e.working, e.cfg.TaskTimeout, errTaskTimeout)
	defer cancel()
	outcome := e.process(ctx, task, &job.Request)
	if outcome.ErrorCode == tandem.FailedInterrupted {
		return handBack(job.Lane)
	}
	e.vitals.end(Ending{tandem.ModeAsync, task.Name, outcome.ErrorCode})
	if e.telling() {
		e.tell(markOf(outcome.Status())+" async: "+string(outcome.Status()), &job.Request, "task", task.Name, "work", outcome.Processing)
	}
	return worked(outcome)
}

// worked is what comes after work that ended, well or not: its callback.
func worked(o store.Outcome) store.Next {
	return store.Next{Verdict: store.Again, Lane: store.LaneDeliver, Outcome: &o}
}

// handBack leaves a job for later, as if it had not been handed out.
func handBack(lane store.Lane) store.Next {
	return store.Next{Verdict: store.Again, Lane: lane}
}

// process runs the task of a request, in a slot that the caller holds, and says
// how it ended. Sync and async work both come through here. ctx carries why the work may be
// cut off: errTaskTimeout, errInterrupted, or anything else for a client that left. A
// task that returns a result although it was cut off has done its work: the result counts.
func (e *Engine) process(ctx context.Context, task Task, r *tandem.Request) store.Outcome {
	started := time.Now()
	result, err := runTask(ctx, task, r)
	ended, skew := time.Now(), e.cfg.Nodes.Skew()
	o := store.Outcome{
		StartedAt:   onRecord(started.Add(skew)),
		CompletedAt: onRecord(ended.Add(skew)),
		Processing:  ended.Sub(started).Truncate(time.Microsecond),
	}
	o.ErrorCode = failureCode(ctx, err)
	switch o.ErrorCode {
	case "":
		o.Result = result
	case tandem.FailedTask:
		o.ErrorMessage = shorten(err.Error(), maxErrorMessage)
	case tandem.FailedPanic:
		e.log.Error("task panicked", "request_id", r.ID, "task", task.Name, "error", err)
		o.ErrorMessage = failureMessage(o.ErrorCode)
	default:
		o.ErrorMessage = failureMessage(o.ErrorCode)
	}
	e.vitals.latency[latencyProcess].record(ended, o.Processing)
	return o
}

// runTask calls the task, turns a panic into an error, and checks the result.
func runTask(ctx context.Context, task Task, r *tandem.Request) (result json.RawMessage, err error) {
	defer func() {
		if value := recover(); value != nil {
			result, err = nil, &panicError{value: value, stack: debug.Stack()}
		}
	}()
	result, err = task.Run(ctx, r.Data, r.Complexity)
	switch {
	case err != nil:
		return nil, err
	case result == nil:
		return json.RawMessage("null"), nil
	case !task.trusted && !json.Valid(result):
		return nil, errors.New("the task returned something that is not JSON")
	}
	return result, nil
}

// panicError is a panic in a task. Its text is for the log only.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", p.value, p.stack) }

// failureCode says why a task that returned err failed; "" means it did not.
func failureCode(ctx context.Context, err error) string {
	_, panicked := errors.AsType[*panicError](err)
	switch {
	case err == nil:
		return ""
	case panicked:
		return tandem.FailedPanic
	case ctx.Err() != nil:
		return cutOff(context.Cause(ctx))
	default:
		return tandem.FailedTask
	}
}

// cutOff says what the end of a request's context means.
func cutOff(cause error) string {
	switch {
	case errors.Is(cause, errTaskTimeout):
		return tandem.FailedTimeout
	case errors.Is(cause, errInterrupted):
		return tandem.FailedInterrupted
	default:
		return tandem.FailedClientClosed
	}
}

// failureMessage is the text for people of a failure that has no words of its own.
func failureMessage(code string) string {
	switch code {
	case tandem.FailedPanic:
		return "The task panicked; the server's log has the details."
	case tandem.FailedTimeout:
		return "The task did not end before its deadline."
	case tandem.FailedNoSlot:
		return "No slot became free before the deadline; try again, or ask for it asynchronously."
	case tandem.FailedClientClosed:
		return "The client closed the connection before the work ended."
	case tandem.FailedInterrupted:
		return "The server shut down while the work was running."
	default:
		return "The task failed."
	}
}

// onRecord is t as a store keeps it, so that an answer and the history agree:
// UTC, whole microseconds.
func onRecord(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// now is the time that goes on record, by the clock of all nodes.
func (e *Engine) now() time.Time { return onRecord(time.Now().Add(e.cfg.Nodes.Skew())) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
