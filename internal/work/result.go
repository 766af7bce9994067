package work

import (
	"mime"
	"time"
)

// State is what a run came to.
type State int

// The states. Where ctx ended before a run was done, its cause says why, whatever its state.
const (
	StateFailed   State = iota // for good
	StateDone                  // there is a result
	StateAgain                 // it was not done, and may be run again
	StateHeld                  // it was not begun, because what it needs is not there before a known time
	StateUnknown               // it may have been done
	StatePanicked              // for good
	StateTaken                 // a service has taken it and will do it after its answer
)

// Result is what came of one run. Its zero value is a failure without a message.
type Result struct {
	state       State
	body        []byte
	contentType string
	message     string
	stack       string
	retryAfter  time.Duration
	counted     bool
	until       time.Time
	location    string
	statusCode  int
}

// Done is the result of work that was done. contentType "" stands for JSON, of which nil is null.
func Done(body []byte, contentType string) Result {
	if media, _, err := mime.ParseMediaType(contentType); err == nil && media == "application/json" {
		contentType = ""
	}
	if body == nil && contentType == "" {
		body = []byte("null")
	}
	return Result{state: StateDone, body: body, contentType: contentType}
}

// Failed is work that will not be done. The message is shown to the caller.
func Failed(message string) Result { return Result{state: StateFailed, message: message} }

// Again is work that was not done and may be run again, after retryAfter if that is not 0. counted says
// whether this run has used up an attempt. The message is shown to the caller if there is no next run.
func Again(message string, retryAfter time.Duration, counted bool) Result {
	return Result{state: StateAgain, message: message, retryAfter: retryAfter, counted: counted}
}

// Held is work that was not begun, because what it needs is not there before the given time: a circuit breaker
// is open. It uses up no attempt.
func Held(message string, until time.Time) Result {
	return Result{state: StateHeld, message: message, until: until}
}

// Unknown is work of which nobody knows whether it was done: the connection broke, the process was killed. It is run
// again only if Retry.Unknown allows it.
func Unknown(message string) Result {
	return Result{state: StateUnknown, message: message, counted: true}
}

// Taken is work that a service will go on with and whose result comes later. location is where to ask for it, after
// retryAfter if that is not 0; "": the service has named no such place.
func Taken(location string, retryAfter time.Duration) Result {
	return Result{state: StateTaken, location: location, retryAfter: retryAfter}
}

// panicked is a run that ended in a panic. Its message and stack are for the log.
func panicked(value, stack string) Result {
	return Result{state: StatePanicked, message: value, stack: stack}
}

// State is what the run came to.
func (r Result) State() State { return r.state }

// Body is the result of work that was done, and its content type, "" for JSON.
func (r Result) Body() (body []byte, contentType string) { return r.body, r.contentType }

// Taken is where to ask for the result of work that a service has taken, and after how long; see [Taken].
func (r Result) Taken() (location string, retryAfter time.Duration) { return r.location, r.retryAfter }

// StatusCode is what a service answered; 0: there was no answer, or no service.
func (r Result) StatusCode() int { return r.statusCode }

// Message is for people. That of a panic is for the log only, and has the stack.
func (r Result) Message() string {
	if r.state == StatePanicked {
		return "panic: " + r.message + "\n" + r.stack
	}
	return r.message
}
