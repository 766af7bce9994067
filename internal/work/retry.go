package work

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of a policy.
const (
	MaxBackoff    = 24 * time.Hour   // between two attempts
	maxRetryAfter = time.Hour        // what the other side may ask for
	MaxAttempts   = 1000             // attempts in all
	maxLastLead   = 10 * time.Second // from the last attempt to the deadline
)

// Retry says when an attempt that came to nothing is followed by another one: after Backoff, twice that, four times
// that, and so on, each up to half as long again at random, so that what failed together does not come
// back together. It is arithmetic only; the engine keeps the counts and the times.
type Retry struct {
	Attempts int           // in all, 1..1000; those that are not counted come on top
	Backoff  time.Duration // before the second attempt, doubled for each further one
	Max      time.Duration // between two attempts, jitter aside; 0: 24 h, which is the most
	MaxAge   time.Duration // no attempt is made later than this
	Unknown  bool          // also run work again of which nobody knows whether it was done
}

// Validate says what is wrong with a policy, whose zero value has to be looked at before.
func (r Retry) Validate() error {
	switch {
	case r.Attempts < 1 || r.Attempts > MaxAttempts:
		return fmt.Errorf("attempts %d: must be between 1 and %d", r.Attempts, MaxAttempts)
	case r.Backoff <= 0 || r.Backoff > MaxBackoff:
		return fmt.Errorf("backoff %s: must be more than 0 and at most %s", r.Backoff, MaxBackoff)
	case r.Max != 0 && (r.Max < r.Backoff || r.Max > MaxBackoff):
		return fmt.Errorf("longest wait %s: must be between the backoff and %s", r.Max, MaxBackoff)
	case r.MaxAge <= 0:
		return errors.New("maximum age: must be more than 0")
	}
	return nil
}

// Delay is how long to wait after the attempt with this number (1, 2, …) has failed. It is never less
// than Backoff and never more than 24 hours. jitter is in [0, 1). A receiver's retryAfter, if it is
// not 0, replaces the doubling; it is clamped to between Backoff and one hour. Jitter makes both
// longer by up to a half: a receiver may send many callers the same Retry-After.
func (r Retry) Delay(attempt int, jitter float64, retryAfter time.Duration) time.Duration {
	delay := r.Backoff
	if retryAfter > 0 {
		delay = max(min(retryAfter, maxRetryAfter), r.Backoff)
	} else {
		for i := 1; i < attempt && delay < r.longest(); i++ {
			delay *= 2 // delay is less than 24 h here: no overflow
		}
		delay = min(delay, r.longest())
	}
	return min(lengthen(delay, jitter), MaxBackoff)
}

// DelayByAge is Delay for attempts that are not counted: it waits as long again as they have gone on for, so that
// the waits double without anything that counts them.
func (r Retry) DelayByAge(age time.Duration, jitter float64, retryAfter time.Duration) time.Duration {
	if retryAfter > 0 {
		return r.Delay(1, jitter, retryAfter)
	}
	return min(lengthen(min(max(age, r.Backoff), r.longest()), jitter), MaxBackoff)
}

func (r Retry) longest() time.Duration {
	if r.Max == 0 {
		return MaxBackoff
	}
	return r.Max
}

// lengthen makes a delay longer by up to a half. jitter is in [0, 1).
func lengthen(delay time.Duration, jitter float64) time.Duration {
	return delay + time.Duration(jitter*float64(delay)/2)
}

// Within is when to try again what should be tried at the given time and no later than deadline, after which
// it fails. What would come too late gets a last attempt shortly before the deadline instead, unless
// that is less than Backoff from now.
func (r Retry) Within(now, at, deadline time.Time) time.Time {
	if at.Before(deadline) {
		return at
	}
	if last := deadline.Add(-min(maxLastLead, r.MaxAge/10)); !last.Before(now.Add(r.Backoff)) {
		return last
	}
	return deadline
}

// Ended is a run that is over, for [Retry.After].
type Ended struct {
	Result   Result
	Attempt  int       // number of the run, as in Input
	Accepted time.Time // when its request was accepted
	At       time.Time // when the run ended
	Timeout  bool      // it ended because its time was over: nobody knows whether it was done
}

// After says when work is run again after a run, and how many runs have used up an attempt by then; again is false:
// never. jitter is in [0, 1). All times are by one clock.
func (r Retry) After(run Ended, jitter float64) (at time.Time, runs int, again bool) {
	if r == (Retry{}) {
		return at, 0, false
	}
	result := run.Result
	if run.Timeout {
		result = Unknown("")
	}
	switch result.state {
	case StateHeld:
		at = result.until
	case StateAgain, StateUnknown:
		if result.state == StateUnknown && !r.Unknown || result.counted && run.Attempt >= r.Attempts {
			return at, 0, false
		}
		delay := r.DelayByAge(run.At.Sub(run.Accepted), jitter, result.retryAfter)
		if result.counted {
			delay = r.Delay(run.Attempt, jitter, result.retryAfter)
			runs = run.Attempt
		}
		at = run.At.Add(delay)
	default:
		return at, 0, false
	}
	return r.Within(run.At, at, run.Accepted.Add(r.MaxAge)), max(runs, run.Attempt-1), true
}
