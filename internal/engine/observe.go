package engine

import (
	"time"

	"tandem"
	"tandem/internal/work"
)

// Step is a step in the life of a request. The life of one that nothing goes wrong with is Accepted (to Beside: Begun,
// Accepted), Started if nobody waits for it, Ran, Ended, and one Called for its callback.
type Step int

// The steps, and what an [Event] about them carries besides its Request.
const (
	Begun     Step = iota // work of Beside begins while its row is being committed: InFlight, Rows
	Accepted              // the row is committed: At is the arrival, Took the time since; InFlight, Rows
	Started               // a run begins in the background: Took is the time since the acceptance
	Ran                   // the task has returned, for whatever reason: At, Working
	Postponed             // the work will be run again: the fields of Run
	Ended                 // the work has ended, well or not: the fields of Run
	Called                // an attempt to deliver the callback was made: At, Attempt, Took since the acceptance
)

// Event says that a request has taken a step. Slices in it are shared: observers may keep but not change
// them.
type Event struct {
	Step Step
	Run  // Request is as its row is after the step

	At       time.Time      // by the clock of this machine
	InFlight int            // calls of Do, Submit and Beside under way, this one included
	Rows     int            // requests that were committed together by Beside; 0: it came by Do or Submit
	Attempt  tandem.Attempt // to deliver the callback
}

// Run is one run of work, or the finding that there is no use in another one.
type Run struct {
	Request tandem.Request // as its row is: completed; pending, when there will be another run; or failed
	Result  work.Result    // of a run that took place
	Waited  bool           // its caller waits
	Saving  time.Duration  // if its caller waits in Beside: until its row was committed
	Working time.Duration  // in the task; 0: it was not run
	// since its request was accepted, until what came of it was committed, waiting for a slot included
	Took    time.Duration
	EndedAt time.Time // by the clock of all nodes
}

// emit passes an event to the observers. It copies the event and allocates nothing.
func (e *Engine) emit(event Event) {
	for _, observe := range e.cfg.Observers {
		observe(event)
	}
}

// emitRun tells what came of a run.
func (e *Engine) emitRun(run *Run, rows int) {
	step := Ended
	if run.Request.Status == tandem.StatusPending {
		step = Postponed
	}
	e.emit(Event{Step: step, Run: *run, Rows: rows})
}

// emitAccepted tells that the row of a request which came alone has been committed.
func (e *Engine) emitAccepted(r *tandem.Request, arrived time.Time, inFlight int) {
	accepted := Run{Request: *r, Waited: r.Mode == tandem.ModeSync, Took: time.Since(arrived)}
	e.emit(Event{Step: Accepted, Run: accepted, At: arrived, InFlight: inFlight})
}
