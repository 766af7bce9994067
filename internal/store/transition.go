package store

import (
	"fmt"
	"math"

	"tandem"
)

// apply returns the request as it is after a step, for any store: the one
// place where a verdict becomes a status. An error means that the step broke
// the rules of tandem.Status.CanBecome or of Next.
func (n *Next) apply(job *Job) (tandem.Request, error) {
	r := job.Request
	if n.Outcome != nil {
		calls := r.CallbackStatus != "" // then the callback comes next
		if job.Lane == LaneDeliver || calls && (n.Verdict != Again || n.Lane != LaneDeliver) || !calls && n.Verdict != Done {
			return r, fmt.Errorf("work of %s ended in lane %q with verdict %d for lane %q: want Again in %q, or Done without a callback", r.ID, job.Lane, n.Verdict, n.Lane, LaneDeliver)
		}
		if r.Status == tandem.StatusPending { // ended before anyone had noted that it began
			r.Status = tandem.StatusProcessing
		}
		o := n.Outcome
		r.Result, r.ErrorCode, r.ErrorMessage = o.Result, o.ErrorCode, o.ErrorMessage
		r.StartedAt, r.CompletedAt = o.StartedAt, o.CompletedAt
		r.ProcessingTimeMS = float64(o.Processing.Microseconds()) / 1000
		r.Runs = 0
		return move(r, o.Status())
	}
	if n.Attempt != nil && n.Attempt.Outcome != tandem.OutcomeExpired {
		r.CallbackAttempts = n.Attempt.Number
	}
	switch n.Verdict {
	case Again:
		if n.Runs > 0 && n.Lane != LaneDeliver {
			r.Runs = n.Runs
		}
		if n.Lane != job.Lane || n.Lane == LaneNone {
			return r, fmt.Errorf("%s put off from lane %q to lane %q without an outcome", r.ID, job.Lane, n.Lane)
		}
		if r.Status == tandem.StatusProcessing {
			return move(r, tandem.StatusPending)
		}
		return r, nil
	case Done, Dead:
		if job.Lane != LaneDeliver {
			return r, fmt.Errorf("%s ended in lane %q without an outcome", r.ID, job.Lane)
		}
		status := tandem.StatusCallbackSent
		r.CallbackStatus = tandem.CallbackSent
		if n.Verdict == Dead {
			status, r.CallbackStatus = tandem.StatusCallbackFailed, tandem.CallbackFailed
		}
		if r.Status == tandem.StatusFailed { // the fate of a callback that reports failed work is in CallbackStatus alone
			return r, nil
		}
		return move(r, status)
	default:
		return r, fmt.Errorf("%s: unknown verdict %d", r.ID, n.Verdict)
	}
}

// triesOf is what the column callback_attempts holds: until the work has ended its runs, and then the attempts of
// the callback. No row needs both, so runs need no column of their own.
func triesOf(r *tandem.Request) int {
	if isWork(r) {
		return r.Runs
	}
	return r.CallbackAttempts
}

// readTries takes what triesOf has written. The other fields of r have been read.
func readTries(r *tandem.Request, n int) {
	if isWork(r) {
		r.Runs = n
	} else {
		r.CallbackAttempts = n
	}
}

func isWork(r *tandem.Request) bool {
	return r.Status == tandem.StatusPending || r.Status == tandem.StatusProcessing
}

// parkedFor is the destination that a callback is parked for; "": it is not.
func (n *Next) parkedFor() string {
	if n.Verdict != Again || n.Lane != LaneDeliver || !n.Parked {
		return ""
	}
	return n.Destination
}

func move(r tandem.Request, to tandem.Status) (tandem.Request, error) {
	if !r.Status.CanBecome(to) {
		return r, fmt.Errorf("%s cannot become %s: it is %s", r.ID, to, r.Status)
	}
	r.Status = to
	return r, nil
}

// attemptMicros is how long an attempt took, as stores keep it: 130.236 ms times 1000 is a little less than 130,236.
func attemptMicros(a *tandem.Attempt) int64 { return int64(math.Round(a.DurationMS * 1000)) }
