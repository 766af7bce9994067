package store

import (
	"fmt"
	"time"

	"tandem"
)

// Next is what a [Step] returns: what comes of a job, and what is to be done next. Only the functions below make one.
// The store commits all of it in one transaction.
type Next struct {
	kind        kind
	at          time.Time
	runs        int
	outcome     *Outcome
	attempt     *tandem.Attempt
	destination string
	freed       [2]string
}

type kind int

const (
	released kind = iota
	finished
	retried
	delivered
	givenUp
	postponed
)

// Release leaves a job for later, as if it had not been dispatched.
func Release() Next { return Next{} }

// Finished ends work, well or not. The callback comes next if somebody is to be called; destination is where it goes,
// as Capacity.Room has it, or "" if that is not known.
func Finished(o Outcome, destination string) Next {
	return Next{kind: finished, outcome: &o, destination: destination}
}

// RetryAt has work run again, not before a time; the zero time means now. runs are those that have used up an attempt,
// this one included; 0: as many as before.
func RetryAt(at time.Time, runs int) Next { return Next{kind: retried, at: at, runs: runs} }

// Delivered ends a callback that its receiver has taken.
func Delivered(a tandem.Attempt) Next { return Next{kind: delivered, attempt: &a} }

// GiveUp ends a callback that cannot be delivered. Its last attempt may be one that has expired.
func GiveUp(last tandem.Attempt) Next { return Next{kind: givenUp, attempt: &last} }

// Redeliver has a callback tried again after an attempt that failed: not before a time, and not before there is room at
// its destination, if that is known (see Postpone).
func Redeliver(failed tandem.Attempt, at time.Time, destination string) Next {
	return Next{kind: postponed, attempt: &failed, at: at, destination: destination}
}

// Postpone has a callback tried later, without counting an attempt: not before a time (zero: now). With a destination
// it is parked: it stays where it is until Capacity.Room says that there is room for it.
func Postpone(at time.Time, destination string) Next {
	return Next{kind: postponed, at: at, destination: destination}
}

// Freeing adds the destinations that may have room now that the job has ended; "": none.
func (n Next) Freeing(destinations ...string) Next {
	copy(n.freed[:], destinations)
	return n
}

// Outcome is how the work ended; nil: it did not.
func (n Next) Outcome() *Outcome { return n.outcome }

// Released reports whether the job is left for later, as if it had not been dispatched.
func (n Next) Released() bool { return n.kind == released }

// Transition is what a [Next] does to a request. A database writes it in one commit.
type Transition struct {
	From    Lane           // of the job that has ended
	Request tandem.Request // afterwards
	Lane    Lane           // of the job that comes next; LaneNone: nothing is left to do
	At      time.Time      // that job is due then; the zero time means now
	Parked  string         // the destination that it waits for; "": none

	Outcome     *Outcome        // the work has ended; nil: it has not
	Attempt     *tandem.Attempt // to be logged; nil: none
	Destination string          // where the callback goes, as far as is known
	Freed       [2]string       // destinations that may have room now; "": none
}

// Apply is the one place where what comes of a job changes its request. It refuses what comes of work for a callback,
// of a callback for work, and to dispatch a request that is in no lane.
func (n Next) Apply(job *Job) (Transition, error) {
	t := Transition{
		From: job.Lane, Request: job.Request,
		Outcome: n.outcome, Attempt: n.attempt, Destination: n.destination, Freed: n.freed,
	}
	calls, inLane := job.Lane == LaneDeliver, job.Lane != LaneNone
	switch {
	case n.kind == finished && !calls:
		t.finish(n.outcome)
	case n.kind == retried && !calls && inLane, n.kind == postponed && calls, n.kind == released && inLane:
		t.again(&n, job)
	case (n.kind == delivered || n.kind == givenUp) && calls:
		t.endCallback(n.kind == delivered)
	default:
		return t, fmt.Errorf("%s: its job in lane %q cannot end this way", job.Request.ID, job.Lane)
	}
	return t, nil
}

func (t *Transition) finish(o *Outcome) {
	r := &t.Request
	r.Status, r.Result, r.ErrorCode, r.ErrorMessage = o.Status(), o.Result, o.ErrorCode, o.ErrorMessage
	r.StartedAt, r.CompletedAt = o.StartedAt, o.CompletedAt
	r.ProcessingTimeMS = float64(o.Processing.Microseconds()) / 1000
	r.Runs = 0
	if r.CallbackStatus != "" {
		t.Lane = LaneDeliver
	}
}

func (t *Transition) again(n *Next, job *Job) {
	t.Lane, t.At, t.Parked = job.Lane, n.at, n.destination
	if n.kind == released {
		t.Parked = job.Parked
	}
	if n.runs > 0 {
		t.Request.Runs = n.runs
	}
	if t.Request.Status == tandem.StatusProcessing {
		t.Request.Status = tandem.StatusPending
	}
	t.countAttempt()
}

func (t *Transition) endCallback(sent bool) {
	r, status := &t.Request, tandem.StatusCallbackFailed
	r.CallbackStatus = tandem.CallbackFailed
	if sent {
		status, r.CallbackStatus = tandem.StatusCallbackSent, tandem.CallbackSent
	}
	if r.Status != tandem.StatusFailed { // the fate of a callback that reports failed work is in CallbackStatus alone
		r.Status = status
	}
	t.countAttempt()
}

func (t *Transition) countAttempt() {
	if t.Attempt != nil && t.Attempt.Outcome != tandem.OutcomeExpired {
		t.Request.CallbackAttempts = t.Attempt.Number
	}
}
