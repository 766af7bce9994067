package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/work"
)

// Batch is some requests for one task that come together, or a single one.
type Batch struct {
	Task  string            // name of a task of the class IO
	ID    string            // "": a single one
	KeyID string            // the API key that asks; "": nobody was asked for one
	Owner string            // whose share of the capacity it takes (see tandem.Request)
	Data  []json.RawMessage // JSON objects, checked by the caller

	// SlotTimeout is how long each waits for a slot. One that gets none is left to the background. With it, a run
	// and a commit must end well within store.CallerLease.
	SlotTimeout time.Duration
}

// errNotSaved ends the work of requests that could not be saved.
var errNotSaved = errors.New("the request could not be saved")

// Beside saves requests, all of them or none, and does their work at the same time, side by side: it takes as long
// as the slowest run or the commit, whichever is longer. Callers that leave change nothing.
//
// Work that was not done is run again by the retry policy of its task, now in the background. The error says
// that nothing was saved: CodeDraining, CodeOverloaded, CodeQueueFull or CodeStoreUnavailable. Work may have been
// done all the same, for ids that nobody will hear of again.
func (e *Engine) Beside(batch Batch) ([]Run, error) {
	inFlight, ok := e.gate.enter()
	if !ok {
		return nil, drainingError("")
	}
	defer e.gate.leave()
	task, ok := e.tasks[batch.Task]
	if !ok || task.Class != work.IO {
		return nil, fmt.Errorf("no task %q that waits", batch.Task)
	}
	slots := e.slots[store.LaneIO]
	if !slots.join(batch.Owner) {
		return nil, overloadedError("", "Too many requests wait for a free slot; try again in a moment.")
	}
	defer slots.part(batch.Owner)
	const tries = 10
	for try := 1; ; try++ {
		all, err := e.besideOnce(&task, batch, inFlight)
		switch {
		case err == nil:
			return all, nil
		case !errors.Is(err, store.ErrExists) || try == tries:
			return nil, storeError("accept request", "", err)
		}
	}
}

// besideOnce does it with new ids; ErrExists says that one of them is taken.
func (e *Engine) besideOnce(task *work.Task, batch Batch, inFlight int) ([]Run, error) {
	arrived := time.Now()
	all := make([]Run, len(batch.Data))
	requests := make([]*tandem.Request, len(batch.Data))
	for i, one := range batch.Data {
		r, err := e.newRequest(tandem.ModeSync, Order{
			Task: task.Name, Data: one, Complexity: work.MinComplexity, KeyID: batch.KeyID, Owner: batch.Owner,
		})
		if err != nil {
			return nil, err
		}
		r.BatchID = batch.ID
		all[i] = Run{Request: r, Waited: true}
		requests[i] = &all[i].Request
		e.emit(Event{Step: Begun, Run: all[i], InFlight: inFlight, Rows: len(all)})
	}
	working, giveUp := context.WithCancelCause(e.working)
	defer giveUp(nil)
	var kept bool
	var saving time.Duration
	decided := make(chan struct{}) // closed when the two above may be read
	var runs sync.WaitGroup
	for i := range all {
		runs.Go(func() {
			run := &all[i]
			next := e.firstRun(working, task, batch.SlotTimeout, run)
			<-decided
			if kept {
				run.Saving = saving
				e.finishRun(run, next)
				run.Took, run.EndedAt = time.Since(arrived), e.now()
				e.emitRun(run, len(all))
			}
		})
	}
	err := e.acceptBatch(requests)
	if kept = err == nil; !kept {
		giveUp(errNotSaved)
	}
	saving = time.Since(arrived)
	for i := range all {
		if kept {
			accepted := Run{Request: all[i].Request, Waited: true, Took: saving}
			e.emit(Event{Step: Accepted, Run: accepted, At: arrived, InFlight: inFlight, Rows: len(all)})
		}
	}
	close(decided)
	runs.Wait()
	return all, err
}

// acceptBatch commits the rows. What may have been committed although nobody
// could wait for it is taken back: its caller is told that nothing was saved.
func (e *Engine) acceptBatch(requests []*tandem.Request) error {
	bounded := e.storing.context(time.Now())
	err := e.cfg.Store.Accept(bounded, store.LaneIO, requests...)
	if err != nil {
		e.takeBack(bounded, err, store.LaneIO, requests...)
	}
	return err
}

// firstRun makes the run that the caller waits for.
func (e *Engine) firstRun(ctx context.Context, task *work.Task, timeout time.Duration, run *Run) store.Next {
	slots := e.slots[store.LaneIO]
	if !slots.tryAcquire() {
		waiting, cancel := context.WithTimeout(ctx, timeout)
		err := slots.acquire(waiting, tandem.ModeSync, run.Request.Owner)
		cancel()
		if err != nil {
			return store.Release()
		}
	}
	defer slots.release()
	return e.attempt(ctx, task, run)
}

// finishRun commits what came of the first run and writes it into run. If that
// cannot be committed the row stays in its lane, and the work is run again when
// its lease is over: pending is what it is.
func (e *Engine) finishRun(run *Run, next store.Next) {
	r := &run.Request
	outcome := next.Outcome()
	err := e.cfg.Store.Finish(e.storing.context(time.Now()), store.Job{Lane: store.LaneIO, Request: *r}, next)
	if err != nil {
		e.log.Error("store what came of work; it will be run again", "request_id", r.ID, "task", r.Task, "error", err)
		outcome = nil
	}
	note(r, outcome)
}

// note writes into r how its work ended; nil: it will be run again.
func note(r *tandem.Request, o *store.Outcome) {
	if o == nil {
		r.Status = tandem.StatusPending
		return
	}
	r.Status = o.Status()
	r.Result, r.ErrorCode, r.ErrorMessage = o.Result, o.ErrorCode, o.ErrorMessage
	r.StartedAt, r.CompletedAt, r.ProcessingTimeMS = o.StartedAt, o.CompletedAt, milliseconds(o.Processing)
}
