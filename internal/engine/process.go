package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/work"
)

// maxErrorMessage bounds what a task's error adds to the history and to callbacks, in bytes.
const maxErrorMessage = 1000

// step does one job of the store and says what comes next. claiming ends when the
// drain begins: a job that has not started by then is released.
func (e *Engine) step(claiming context.Context, job store.Job) store.Next {
	if job.Lane == store.LaneDeliver {
		return e.deliver(claiming, job)
	}
	task, ok := e.tasks[job.Request.Task]
	if !ok {
		// Accepted by a configuration that still had the task.
		o := store.Outcome{ErrorCode: tandem.FailedTask, CompletedAt: e.now(),
			ErrorMessage: fmt.Sprintf("This server has no task %q any more.", job.Request.Task)}
		return e.ended(&Run{Request: job.Request}, e.worked(&job.Request, o))
	}
	slots := e.slots[job.Lane]
	if slots.acquire(claiming, tandem.ModeAsync, job.Request.Owner) != nil {
		return store.Release()
	}
	defer slots.release()
	job.Started()
	run := Run{Request: job.Request}
	e.emit(Event{Step: Started, Run: Run{Request: job.Request, Took: e.now().Sub(job.Request.CreatedAt)}})
	next := e.attempt(e.working, &task, &run)
	if next.Released() {
		return next
	}
	return e.ended(&run, next)
}

// ended tells what came of a run in the background, and passes on what comes next.
func (e *Engine) ended(run *Run, next store.Next) store.Next {
	note(&run.Request, next.Outcome())
	run.EndedAt = e.now()
	run.Took = run.EndedAt.Sub(run.Request.CreatedAt)
	e.emitRun(run, 0)
	return next
}

// attempt runs the work of run.Request once, in a slot that the caller holds, and says what comes next.
func (e *Engine) attempt(ctx context.Context, task *work.Task, run *Run) store.Next {
	r, begun := &run.Request, time.Now()
	accepted := e.localTime(r.CreatedAt)
	retries := task.Retry != work.Retry{}
	if retries && !begun.Before(accepted.Add(task.Retry.MaxAge)) {
		return e.givenUp(r, store.Outcome{ErrorCode: tandem.FailedTask, CompletedAt: e.now(),
			ErrorMessage: fmt.Sprintf("The work was not done within %s.", task.Retry.MaxAge)})
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.timeout(task), errTaskTimeout)
	defer cancel()
	outcome, result := e.process(ctx, task, r)
	ended := time.Now()
	run.Result, run.Working = result, ended.Sub(begun)
	switch outcome.ErrorCode {
	case "":
		return e.worked(r, outcome)
	case tandem.FailedInterrupted, tandem.FailedClientClosed:
		return store.Release()
	}
	at, runs, again := task.Retry.After(work.Ended{
		Result: result, Attempt: r.Runs + 1, Accepted: accepted, At: ended,
		Timeout: outcome.ErrorCode == tandem.FailedTimeout,
	}, rand.Float64())
	switch {
	case !again && retries:
		return e.givenUp(r, outcome)
	case !again:
		return e.worked(r, outcome)
	}
	if result.State() != work.StateHeld {
		e.log.Warn("work not done; it will be run again",
			"request_id", r.ID, "task", task.Name, "error", outcome.ErrorMessage, "at", at)
	}
	return store.RetryAt(at, runs)
}

// givenUp is worked for work that is not run again although its task has a retry policy.
func (e *Engine) givenUp(r *tandem.Request, o store.Outcome) store.Next {
	e.log.Warn("work marked as failed", "request_id", r.ID, "task", r.Task, "error", o.ErrorMessage)
	return e.worked(r, o)
}

// worked is what comes after work that ended, well or not: its callback, if somebody asked for one.
func (e *Engine) worked(r *tandem.Request, o store.Outcome) store.Next {
	destination := ""
	if r.CallbackStatus != "" {
		if to, err := e.cfg.Egress.Receiver(r.CallbackURL, r.Owner); err == nil { // a refused URL is nobody's by now
			destination = to.String()
		}
	}
	return store.Finished(o, destination)
}

// process runs the task of a request, in a slot that the caller holds, and says
// how it ended. Sync and async work both come through here. ctx carries why the work may be
// cut off: errTaskTimeout, errInterrupted, or anything else for a client that left. A
// task that returns a result although it was cut off has done its work: the result counts.
func (e *Engine) process(ctx context.Context, task *work.Task, r *tandem.Request) (store.Outcome, work.Result) {
	started := time.Now()
	deadline, _ := ctx.Deadline()
	result := work.Run(ctx, *task, work.Input{
		RequestID: r.ID, BatchID: r.BatchID, AcceptedAt: r.CreatedAt, Attempt: r.Runs + 1,
		Attempts: max(1, task.Retry.Attempts),
		Deadline: deadline, Data: r.Data, Complexity: r.Complexity,
	})
	ended, skew := time.Now(), e.cfg.Nodes.Skew()
	o := store.Outcome{
		StartedAt:   onRecord(started.Add(skew)),
		CompletedAt: onRecord(ended.Add(skew)),
		Processing:  ended.Sub(started).Truncate(time.Microsecond),
	}
	body, contentType := result.Body()
	switch state := result.State(); {
	case state == work.StateDone && contentType == "":
		o.Result = body
	case state == work.StateDone:
		o.ErrorCode, o.ErrorMessage = tandem.FailedTask, fmt.Sprintf("The task returned %.100s; only JSON is kept.",
			contentType)
	case state == work.StatePanicked:
		e.log.Error("task panicked", "request_id", r.ID, "task", task.Name, "error", result.Message())
		o.ErrorCode = tandem.FailedPanic
	case ctx.Err() != nil:
		o.ErrorCode = cutOff(context.Cause(ctx))
	default:
		o.ErrorCode, o.ErrorMessage = tandem.FailedTask, shorten(result.Message(), maxErrorMessage)
	}
	if o.ErrorCode != "" && o.ErrorMessage == "" {
		o.ErrorMessage = failureMessage(o.ErrorCode)
	}
	e.emit(Event{Step: Ran, Run: Run{Request: *r, Result: result, Working: o.Processing}, At: ended})
	return o, result
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

// localTime is a time on record by this machine's clock, with which it may be compared while the clock is set.
func (e *Engine) localTime(t time.Time) time.Time {
	now := time.Now()
	return now.Add(t.Sub(now.Add(e.cfg.Nodes.Skew())))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
