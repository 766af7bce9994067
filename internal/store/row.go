package store

import (
	"math"

	"tandem"
)

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

// attemptMicros is how long an attempt took, as stores keep it: 130.236 ms times 1000 is a little less than 130,236.
func attemptMicros(a *tandem.Attempt) int64 { return int64(math.Round(a.DurationMS * 1000)) }
