package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/store"
)

const (
	submissionMaxAge     = 24 * time.Hour   // after this a submission that nobody confirmed has failed
	submissionBackoff    = time.Second      // before the second call, at the earliest
	submissionMaxBackoff = 15 * time.Minute // between two calls, jitter aside

	// MaxExternalTimeout bounds External.Timeout, so that whoever makes the first call has
	// ended well before the lease on its row does: a slot, the call and a commit.
	MaxExternalTimeout = 20 * time.Second
)

// External is the service that every submission is passed on to. The zero External
// is a simulator that confirms at once.
type External struct {
	// URL is posted to: {"submissionId", "timestamp", "submission"} with the id as
	// Idempotency-Key, at least once. A 2xx confirms; its body is not looked at. "": the simulator.
	URL string

	// Client calls URL and nothing else; required with it. Its policy is not that of
	// callbacks: the operator has chosen this address, no stranger has.
	Client *egress.Client

	MinDelay, MaxDelay time.Duration // how long the simulator takes, by chance
	Timeout            time.Duration // for a slot, and again for the simulator (Client has its own); 5 s, at most MaxExternalTimeout
}

// withDefaults fills in the zero fields, or says what is wrong.
func (x External) withDefaults() (External, error) {
	if x.Timeout == 0 {
		x.Timeout = 5 * time.Second
	}
	switch {
	case x.MinDelay < 0 || x.MaxDelay < x.MinDelay:
		return x, fmt.Errorf("external delay %s to %s: must not be negative, the shorter one first", x.MinDelay, x.MaxDelay)
	case x.Timeout < 0 || x.Timeout > MaxExternalTimeout:
		return x, fmt.Errorf("external timeout %s: must be more than 0 and at most %s", x.Timeout, MaxExternalTimeout)
	case x.URL != "" && x.Client == nil:
		return x, errors.New("an external URL needs a client to call it")
	case x.URL != "":
		if err := x.Client.Check(x.URL); err != nil {
			return x, fmt.Errorf("external URL: %w", err)
		}
	}
	return x, nil
}

// Submission is what has become of one submission by the time it is answered.
type Submission struct {
	// Request is as its row is: completed; pending, when the call will be repeated; or failed, when that would be no use.
	Request tandem.Request
	Saving  time.Duration // until its row was committed
	Calling time.Duration // in the external call; 0: none was made
	Took    time.Duration // from its arrival until both had ended and what came of it was committed, waiting for a slot included
}

// errNotSaved ends the calls of submissions that could not be saved.
var errNotSaved = errors.New("the submission could not be saved")

// Batch is some submissions that come together, or a single one.
type Batch struct {
	ID    string            // "": a single one
	KeyID string            // the API key that asks; "": nobody was asked for one
	Owner string            // whose share of the capacity it takes (see tandem.Request)
	Data  []json.RawMessage // JSON objects, checked by the caller
}

// SubmitAll saves submissions, all of them or none, and passes each on to the
// external service at the same time, side by side: it takes as long as the slowest call or
// the commit, whichever is longer. Callers that leave change nothing.
//
// A call that goes wrong is repeated for 24 hours, now by the store's jobs. The error says
// that nothing was saved: CodeDraining, CodeOverloaded, CodeQueueFull or
// CodeStoreUnavailable. Calls may have been made all the same, with ids that nobody will hear of again.
func (e *Engine) SubmitAll(batch Batch) ([]Submission, error) {
	if !e.gate.enter() {
		return nil, drainingError("")
	}
	defer e.gate.leave()
	slots := e.slots[store.LaneIO]
	if !slots.join(batch.Owner) {
		return nil, overloadedError("", "Too many requests wait for a free slot; try again in a moment.")
	}
	defer slots.part(batch.Owner)
	const tries = 10
	for try := 1; ; try++ {
		all, err := e.submitOnce(slots, batch)
		switch {
		case err == nil:
			return all, nil
		case !errors.Is(err, store.ErrExists) || try == tries:
			return nil, storeError("accept submission", "", err)
		}
	}
}

// submitOnce does it with new ids; ErrExists says that one of them is taken.
func (e *Engine) submitOnce(slots *slots, batch Batch) ([]Submission, error) {
	arrived := time.Now()
	all := make([]Submission, len(batch.Data))
	requests := make([]*tandem.Request, len(batch.Data))
	for i, one := range batch.Data {
		r, err := e.newRequest(tandem.ModeSync, Order{
			Task: tandem.TaskSubmission, Data: one, Complexity: MinComplexity, KeyID: batch.KeyID, Owner: batch.Owner,
		})
		if err != nil {
			return nil, err
		}
		r.BatchID = batch.ID
		all[i].Request, requests[i] = r, &all[i].Request
	}
	e.tellSubmissions(requests)
	calling, giveUp := context.WithCancelCause(e.working)
	defer giveUp(nil)
	var kept bool
	var saving time.Duration
	decided := make(chan struct{}) // closed when the two above may be read
	var calls sync.WaitGroup
	for i := range all {
		calls.Go(func() {
			s := &all[i]
			next := e.firstCall(calling, slots, s)
			<-decided
			if kept {
				s.Saving = saving
				e.finishSubmission(s, next)
				e.submissionDone(s, arrived)
			}
		})
	}
	err := e.acceptSubmissions(requests)
	if kept = err == nil; !kept {
		giveUp(errNotSaved)
	}
	saving = time.Since(arrived)
	if kept && e.telling() {
		e.tell("💾 submission: committed", requests[0], "rows", len(requests), "took", saving)
	}
	close(decided)
	calls.Wait()
	if err != nil {
		return nil, err
	}
	for range all {
		e.vitals.accepted(arrived)
	}
	return all, nil
}

// acceptSubmissions commits the rows. What may have been committed although nobody
// could wait for it is taken back: its caller is told that nothing was saved.
func (e *Engine) acceptSubmissions(requests []*tandem.Request) error {
	bounded := e.storing.wait(time.Now())
	err := e.cfg.Store.Accept(bounded, store.LaneIO, requests...)
	if err != nil {
		e.takeBack(bounded, err, store.LaneIO, requests...)
	}
	return err
}

// firstCall makes the call that the caller waits for.
func (e *Engine) firstCall(ctx context.Context, slots *slots, s *Submission) store.Next {
	if !slots.tryAcquire() {
		waiting, cancel := context.WithTimeout(ctx, e.cfg.External.Timeout)
		err := slots.acquire(waiting, tandem.ModeSync, s.Request.Owner)
		cancel()
		if err != nil {
			return handBack(store.LaneIO)
		}
	}
	defer slots.release()
	started := time.Now()
	next, called := e.callExternal(ctx, &s.Request)
	if called {
		s.Calling = time.Since(started)
	}
	return next
}

// finishSubmission commits what came of the first call and writes it into s. If that
// cannot be committed the row stays in its lane, and the call is made again when
// its lease is over: pending is what it is.
func (e *Engine) finishSubmission(s *Submission, next store.Next) {
	r := &s.Request
	err := e.cfg.Store.Finish(e.storing.wait(time.Now()), store.Job{Lane: store.LaneIO, Request: *r}, next)
	if err != nil {
		e.log.Error("store what came of a submission; its call will be repeated", "request_id", r.ID, "error", err)
	}
	if err != nil || next.Outcome == nil {
		r.Status = tandem.StatusPending
		return
	}
	o := next.Outcome
	r.Status = o.Status()
	r.Result, r.ErrorCode, r.ErrorMessage = o.Result, o.ErrorCode, o.ErrorMessage
	r.StartedAt, r.CompletedAt, r.ProcessingTimeMS = o.StartedAt, o.CompletedAt, milliseconds(o.Processing)
	e.vitals.end(Ending{tandem.ModeSync, tandem.TaskSubmission, o.ErrorCode})
}

// repeatCall is the job of a submission that was not confirmed yet.
func (e *Engine) repeatCall(claiming context.Context, job store.Job) store.Next {
	slots := e.slots[store.LaneIO]
	if slots.acquire(claiming, tandem.ModeAsync, job.Request.Owner) != nil {
		return handBack(store.LaneIO)
	}
	defer slots.release()
	job.Started()
	started := time.Now()
	next, called := e.callExternal(e.working, &job.Request)
	if next.Outcome != nil {
		e.vitals.end(Ending{tandem.ModeSync, tandem.TaskSubmission, next.Outcome.ErrorCode})
	}
	if called || next.Outcome != nil {
		e.repeatDone(&job.Request, next.Outcome, time.Since(started))
	}
	return next
}

// callExternal passes one submission on and says what comes next; called reports
// whether a call was made and counts. The caller holds a slot.
func (e *Engine) callExternal(ctx context.Context, r *tandem.Request) (next store.Next, called bool) {
	begun, skew := time.Now(), e.cfg.Nodes.Skew()
	deadline := begun.Add(r.CreatedAt.Add(submissionMaxAge).Sub(begun.Add(skew))) // by this machine's clock
	if !begun.Before(deadline) {
		return e.submissionFailed(r, store.Outcome{CompletedAt: e.now()},
			fmt.Sprintf("The external service has not confirmed it within %s.", submissionMaxAge)), false
	}
	again := Schedule{Backoff: submissionBackoff, MaxAge: submissionMaxAge}
	result, err := e.exchange(ctx, r)
	if putOff, ok := errors.AsType[*egress.PutOff](err); ok {
		at := again.next(time.Now(), putOff.Until, deadline)
		return store.Next{Verdict: store.Again, Lane: store.LaneIO, At: at}, false
	}
	if err != nil || result.Interrupted {
		return handBack(store.LaneIO), false
	}
	e.vitals.called(result.Outcome)
	if result.PutOff != nil {
		at := again.next(time.Now(), result.PutOff.Until, deadline)
		return store.Next{Verdict: store.Again, Lane: store.LaneIO, At: at}, true
	}
	if e.telling() {
		e.tell("🌐 external service: "+string(result.Outcome), r, "took", result.Duration, "status_code", result.StatusCode)
	}
	ended := result.StartedAt.Add(result.Duration)
	o := store.Outcome{
		StartedAt: onRecord(result.StartedAt.Add(skew)), CompletedAt: onRecord(ended.Add(skew)), Processing: result.Duration.Truncate(time.Microsecond),
	}
	switch {
	case result.Outcome == tandem.OutcomeDelivered:
		o.Result = json.RawMessage(`{"status_code":` + strconv.Itoa(result.StatusCode) + `,"simulated":` + strconv.FormatBool(e.cfg.External.URL == "") + `}`)
		e.vitals.latency[latencyProcess].record(ended, o.Processing)
		return store.Next{Outcome: &o}, true
	case result.Outcome == tandem.OutcomeGone:
		return e.submissionFailed(r, o, "The external service takes no more submissions (410)."), true
	case result.Outcome.Permanent():
		return e.submissionFailed(r, o, "The external service may not be called."), true
	}
	delay := submissionDelay(ended.Add(skew).Sub(r.CreatedAt), rand.Float64(), result.RetryAfter)
	at := again.next(ended, ended.Add(delay), deadline)
	e.log.Warn("external call not confirmed; it will be repeated", "request_id", r.ID, "outcome", result.Outcome,
		"status_code", result.StatusCode, "error", result.Message, "at", at)
	return store.Next{Verdict: store.Again, Lane: store.LaneIO, At: at}, true
}

// submissionFailed gives a submission up.
func (e *Engine) submissionFailed(r *tandem.Request, o store.Outcome, why string) store.Next {
	e.log.Warn("submission given up", "request_id", r.ID, "reason", why)
	o.ErrorCode, o.ErrorMessage = tandem.FailedTask, why
	return store.Next{Outcome: &o}
}

// submissionDelay is how long to wait for the next call of a submission of an age: as
// long again, so that the waits double without anything that counts them. jitter is in
// [0, 1). What a 429 or 503 asked for counts instead, within bounds.
func submissionDelay(age time.Duration, jitter float64, retryAfter time.Duration) time.Duration {
	delay := min(max(age, submissionBackoff), submissionMaxBackoff)
	if retryAfter > 0 {
		delay = min(max(retryAfter, submissionBackoff), maxRetryAfter)
	}
	return lengthen(delay, jitter)
}

// exchange calls the external service, or simulates it. The error is a
// *egress.PutOff, or says that ctx has ended: no call was made.
func (e *Engine) exchange(ctx context.Context, r *tandem.Request) (egress.Result, error) {
	x := &e.cfg.External
	if x.URL == "" {
		return x.simulate(ctx), nil
	}
	body, err := json.Marshal(struct {
		ID         string          `json:"submissionId"` //nolint:tagliatelle // the submissions API is camelCase
		BatchID    string          `json:"batch_id,omitempty"`
		Timestamp  time.Time       `json:"timestamp"`
		Submission json.RawMessage `json:"submission"`
	}{r.ID, r.BatchID, r.CreatedAt, r.Data})
	if err != nil {
		return egress.Result{}, fmt.Errorf("encode submission: %w", err)
	}
	place, err := x.Client.Reserve(ctx, x.URL, "")
	if err != nil {
		return egress.Result{}, err
	}
	header := make(http.Header, 3)
	header.Set("Content-Type", "application/json")
	header.Set("User-Agent", "tandem/"+tandem.Version)
	header.Set("Idempotency-Key", r.ID)
	return place.Post(ctx, header, body), nil
}

// simulate takes its time and confirms, unless that time is longer than a call may take.
func (x External) simulate(ctx context.Context) egress.Result {
	result := egress.Result{StartedAt: time.Now().UTC(), Outcome: tandem.OutcomeDelivered, StatusCode: http.StatusOK}
	delay := x.MinDelay + rand.N(x.MaxDelay-x.MinDelay+1)
	if delay > x.Timeout {
		delay, result.Outcome, result.StatusCode = x.Timeout, tandem.OutcomeTimeout, 0
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			result.Interrupted = true
		}
	}
	result.Duration = time.Since(result.StartedAt)
	return result
}
