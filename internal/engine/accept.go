package engine

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/work"
)

// Order is what a caller asks for.
type Order struct {
	Task        string          // name of a task
	Data        json.RawMessage // a JSON object, checked by the caller of the engine; not modified
	Complexity  int             // work.MinComplexity..MaxComplexity, of a task that has one
	CallbackURL string          // Submit only
	KeyID       string          // the API key that asks; "": nobody was asked for one
	Owner       string          // whose share of the capacity it takes (see tandem.Request)
}

// Do does the work of an order while the caller waits, at most the task's timeout from
// now, the wait for a slot included. It returns the request with its result once that
// is on disk. Otherwise the error is a *tandem.Error: CodeValidation, CodeDraining
// or CodeOverloaded without a RequestID when nothing was begun, and with a
// RequestID, whose row then tells the same story: CodeTaskFailed, CodeTaskTimeout,
// CodeOverloaded (no slot in time), CodeClientClosed (ctx ended), CodeDraining
// (cut off by a shutdown) and CodeStoreUnavailable (how the work ended goes into its
// row as soon as the database takes it).
func (e *Engine) Do(ctx context.Context, order Order) (tandem.Request, error) {
	arrived := time.Now()
	inFlight, ok := e.gate.enter()
	if !ok {
		return tandem.Request{}, drainingError("")
	}
	defer e.gate.leave()
	task, err := e.check(order)
	if err != nil {
		return tandem.Request{}, err
	}
	slots := e.slots[laneOf(task.Class)]
	if !slots.join(order.Owner) {
		return tandem.Request{}, overloadedError("", "Too many requests wait for a free slot; try again in a moment.")
	}
	defer slots.part(order.Owner)
	r, err := e.newRequest(tandem.ModeSync, order)
	if err != nil {
		return tandem.Request{}, err
	}

	// One context ends with the client, at the deadline, or when we shut down for good.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.working, func() { cancel(errInterrupted) })()
	ctx, release := context.WithDeadlineCause(ctx, arrived.Add(e.timeout(&task)), errTaskTimeout)
	defer release()

	if err := e.accept(&r); err != nil {
		return tandem.Request{}, err
	}
	e.emitAccepted(&r, arrived, inFlight)
	outcome := e.doWork(ctx, slots, &task, &r)
	if err := e.finish(&r, outcome); err != nil {
		return tandem.Request{}, err
	}
	run := Run{Request: r, Waited: true, Working: outcome.Processing, Took: time.Since(arrived), EndedAt: e.now()}
	e.emit(Event{Step: Ended, Run: run})
	return r, outcomeError(r.ID, outcome)
}

// doWork does the work of a waiting caller, again by the retry policy of its task. Between two runs it holds no slot.
func (e *Engine) doWork(ctx context.Context, slots *slots, task *work.Task, r *tandem.Request) store.Outcome {
	accepted := e.localTime(r.CreatedAt)
	for {
		outcome, result := e.runOnce(ctx, slots, task, r)
		at, runs, again := task.Retry.After(work.Ended{
			Result: result, Attempt: r.Runs + 1, Accepted: accepted, At: time.Now(),
		}, rand.Float64())
		if outcome.ErrorCode != tandem.FailedTask || !again {
			return outcome
		}
		r.Runs = runs
		timer := time.NewTimer(time.Until(at))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if outcome.ErrorCode = cutOff(context.Cause(ctx)); outcome.ErrorCode == tandem.FailedTimeout {
				outcome.ErrorMessage = "The work was not done before the deadline: " + outcome.ErrorMessage
			} else {
				outcome.ErrorMessage = failureMessage(outcome.ErrorCode)
			}
			return outcome
		}
	}
}

// runOnce waits for a slot and processes the request of a waiting caller.
func (e *Engine) runOnce(
	ctx context.Context, slots *slots, task *work.Task, r *tandem.Request,
) (store.Outcome, work.Result) {
	if err := slots.acquire(ctx, tandem.ModeSync, r.Owner); err != nil {
		code := cutOff(err)
		if code == tandem.FailedTimeout {
			code = tandem.FailedNoSlot
		}
		return store.Outcome{ErrorCode: code, ErrorMessage: failureMessage(code), CompletedAt: e.now()}, work.Result{}
	}
	defer slots.release()
	return e.process(ctx, task, r)
}

// accept commits a sync request before its work. The client's leaving does not cut
// it short: a commit cut short may or may not have happened.
func (e *Engine) accept(r *tandem.Request) error {
	bounded := e.accepting.context(time.Now())
	err := e.commit(bounded, r, store.LaneNone)
	if err == nil {
		return nil
	}
	e.takeBack(bounded, err, store.LaneNone, r)
	return storeError("accept request", "", err)
}

// takeBack ends requests whose acceptance failed but may have been committed all the same, so that
// none seems to be processing although its caller was refused. It does not wait.
func (e *Engine) takeBack(accepting context.Context, err error, lane store.Lane, requests ...*tandem.Request) {
	if accepting.Err() == nil && !errors.Is(err, store.ErrUnsure) {
		return
	}
	const code = tandem.FailedInterrupted
	for _, r := range requests {
		interrupted := store.Outcome{ErrorCode: code, ErrorMessage: failureMessage(code), CompletedAt: e.now()}
		e.finishLater(store.Job{Lane: lane, Request: *r}, store.Finished(interrupted, ""))
	}
}

// finish commits how the work of a sync request ended and writes it into r. It
// does not depend on the client still being there.
func (e *Engine) finish(r *tandem.Request, o store.Outcome) error {
	job, next := store.Job{Request: *r}, store.Finished(o, "")
	if err := e.cfg.Store.Finish(e.storing.context(time.Now()), job, next); err != nil {
		e.log.Error("store the result of a sync request", "request_id", r.ID, "error", err)
		if tandem.CodeOf(err) == tandem.CodeNotFound { // it was accepted: other nodes declared this one dead
			err = tandem.Errorf(tandem.CodeStoreUnavailable,
				"The server was cut off from its database for so long that the request has been ended as interrupted; try again.")
		} else {
			e.finishLater(job, next)
		}
		return storeError("finish request", r.ID, err)
	}
	note(r, &o)
	return nil
}

// finishLater goes on trying to commit how a request ended, after its caller got an
// error from the database: its row would seem to be processing until
// the next start. Run waits for it as for a Do, and what is not kept when the grace
// period is over the next start finds interrupted. CodeNotFound ends it: an earlier attempt
// succeeded after all, or the request was never accepted for certain, and then the store ends
// a row that is still to come.
func (e *Engine) finishLater(job store.Job, next store.Next) {
	e.gate.stay()
	go func() {
		defer e.gate.leave()
		pause := time.NewTicker(finishPause)
		defer pause.Stop()
		for {
			select {
			case <-e.working.Done():
				return
			case <-pause.C:
			}
			ctx, cancel := context.WithTimeout(e.working, storeTimeout)
			err := e.cfg.Store.Finish(ctx, job, next)
			cancel()
			if err == nil || tandem.CodeOf(err) == tandem.CodeNotFound {
				return
			}
		}
	}()
}

// Submit accepts an order; when it returns nil the order is on disk and will be
// worked on, now or after a restart. The errors are *tandem.Error: CodeValidation,
// CodeInvalidCallbackURL, CodeCallbackBlocked, CodeDraining, CodeQueueFull,
// CodeStoreUnavailable, and CodeClientClosed when ctx has ended already. A client that leaves
// later changes nothing.
func (e *Engine) Submit(ctx context.Context, order Order) (tandem.Request, error) {
	arrived := time.Now()
	inFlight, ok := e.gate.enter()
	if !ok {
		return tandem.Request{}, drainingError("")
	}
	defer e.gate.leave()
	task, err := e.check(order)
	if err != nil {
		return tandem.Request{}, err
	}
	if err := e.cfg.Egress.Check(order.CallbackURL); err != nil {
		return tandem.Request{}, err
	}
	r, err := e.newRequest(tandem.ModeAsync, order)
	if err != nil {
		return tandem.Request{}, err
	}
	if err := ctx.Err(); err != nil {
		return tandem.Request{}, &tandem.Error{Code: tandem.CodeClientClosed, Message: "The client has gone.", Err: err}
	}
	if err := e.commit(e.storing.context(arrived), &r, laneOf(task.Class)); err != nil {
		return tandem.Request{}, storeError("accept request", "", err)
	}
	e.emitAccepted(&r, arrived, inFlight)
	return r, nil
}

// check finds the task of an order and checks what every task relies on.
func (e *Engine) check(order Order) (work.Task, error) {
	var fields []tandem.FieldError
	task, ok := e.tasks[order.Task]
	if !ok || task.Internal {
		fields = append(fields, tandem.FieldError{
			Location: "body.task",
			Message:  "must be one of " + strings.Join(e.TaskNames(), ", "),
			Value:    shorten(order.Task, 60),
		})
	}
	if (!ok || task.Complexity) && (order.Complexity < work.MinComplexity || order.Complexity > work.MaxComplexity) {
		fields = append(fields, tandem.FieldError{
			Location: "body.complexity",
			Message:  fmt.Sprintf("must be between %d and %d", work.MinComplexity, work.MaxComplexity),
			Value:    order.Complexity,
		})
	}
	if len(order.Data) == 0 {
		fields = append(fields, tandem.FieldError{Location: "body.data", Message: "is required"})
	}
	if len(fields) > 0 {
		return work.Task{}, &tandem.Error{Code: tandem.CodeValidation, Message: "The request is not valid.", Fields: fields}
	}
	return task, nil
}

// commit stores a new request. An id that is taken, which takes a clock that was
// set back between two processes, is replaced by a new one.
func (e *Engine) commit(ctx context.Context, r *tandem.Request, lane store.Lane) error {
	const tries = 10
	for try := 1; ; try++ {
		err := e.cfg.Store.Accept(ctx, lane, r)
		if !errors.Is(err, store.ErrExists) || try == tries {
			return err
		}
		if err := identify(r, e.cfg.Nodes.Skew()); err != nil {
			return err
		}
	}
}

// newRequest makes the row of an order as it is before its work.
func (e *Engine) newRequest(mode tandem.Mode, order Order) (tandem.Request, error) {
	r := tandem.Request{
		Mode: mode, Task: order.Task, Status: tandem.StatusProcessing,
		Data: order.Data, Complexity: order.Complexity, KeyID: order.KeyID, Owner: order.Owner,
	}
	if mode == tandem.ModeAsync {
		r.Status, r.CallbackStatus, r.CallbackURL = tandem.StatusPending, tandem.CallbackPending, order.CallbackURL
	}
	return r, identify(&r, e.cfg.Nodes.Skew())
}

// identify gives a request a new id, and the time inside it, by a clock that is off by skew from this machine's.
func identify(r *tandem.Request, skew time.Duration) error {
	raw, err := uuid.NewV7()
	if err == nil {
		if skew != 0 {
			head := binary.BigEndian.Uint64(raw[:8]) // milliseconds in the first 48 bits
			binary.BigEndian.PutUint64(raw[:8], head+uint64(skew.Milliseconds())<<16)
		}
		r.ID = tandem.ID(raw)
		r.CreatedAt = time.Unix(raw.Time().UnixTime()).UTC() // what tandem.IDTime reads in it
	}
	if err != nil {
		return &tandem.Error{Code: tandem.CodeInternal, Message: "No request id could be made.", Err: err}
	}
	return nil
}

// outcomeError is what the caller of Do is told about work that failed; nil if it did not.
func outcomeError(id string, o store.Outcome) error {
	switch o.ErrorCode {
	case "":
		return nil
	case tandem.FailedTimeout:
		return &tandem.Error{Code: tandem.CodeTaskTimeout, Message: o.ErrorMessage, RequestID: id}
	case tandem.FailedNoSlot:
		return overloadedError(id, o.ErrorMessage)
	case tandem.FailedClientClosed:
		return &tandem.Error{Code: tandem.CodeClientClosed, Message: o.ErrorMessage, RequestID: id}
	case tandem.FailedInterrupted:
		return drainingError(id)
	default:
		return &tandem.Error{Code: tandem.CodeTaskFailed, Message: o.ErrorMessage, RequestID: id}
	}
}

func drainingError(id string) error {
	return &tandem.Error{
		Code:       tandem.CodeDraining,
		Message:    "The server is starting or shutting down and takes no new work; try again in a moment.",
		RequestID:  id,
		RetryAfter: retryAfter,
	}
}

func overloadedError(id, message string) error {
	return &tandem.Error{Code: tandem.CodeOverloaded, Message: message, RequestID: id, RetryAfter: time.Second}
}

// storeError makes an error of the store fit for a caller. Those that the store
// has already put into words keep them.
func storeError(doing, id string, err error) error {
	told := tandem.Error{Code: tandem.CodeStoreUnavailable,
		Message: "The database does not take writes now; try again in a moment."}
	if known, ok := errors.AsType[*tandem.Error](err); ok {
		told = *known
	} else {
		told.Err = fmt.Errorf("%s: %w", doing, err)
	}
	told.RequestID = id
	if told.RetryAfter == 0 && (told.Code == tandem.CodeStoreUnavailable || told.Code == tandem.CodeQueueFull) {
		told.RetryAfter = retryAfter
	}
	return &told
}

// shorten cuts text for a message, at a character's edge.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
