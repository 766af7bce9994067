package store

import (
	"math"
	"strings"

	"tandem"
)

// TriesOf is what the column callback_attempts holds: until the work has ended its runs, and then the attempts of
// the callback. No row needs both, so runs need no column of their own.
func TriesOf(r *tandem.Request) int {
	if isWork(r) {
		return r.Runs
	}
	return r.CallbackAttempts
}

// ReadTries takes what TriesOf has written. The other fields of r have been read.
func ReadTries(r *tandem.Request, n int) {
	if isWork(r) {
		r.Runs = n
	} else {
		r.CallbackAttempts = n
	}
}

func isWork(r *tandem.Request) bool {
	return r.Status == tandem.StatusPending || r.Status == tandem.StatusProcessing
}

// AttemptMicros is how long an attempt took, as stores keep it: 130.236 ms times 1000 is a little less than 130,236.
func AttemptMicros(a *tandem.Attempt) int64 { return int64(math.Round(a.DurationMS * 1000)) }

// Plain is a text as PostgreSQL can keep it: valid UTF-8 without NUL.
func Plain(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
