package store

import "time"

// Bounds that hold for both databases.
const (
	// MaxBatch is how many writes are in one transaction, and as many wait for the next.
	MaxBatch = 2048
	// SmallJob is how large a job may be, in bytes, to be read whole with others.
	SmallJob = 4 << 10
	// MaxParked is how many parked callbacks are read or moved at a time.
	MaxParked = 4096
	// MarkDelay is how long work has to run before its row says processing. Shorter work is spared the write.
	MarkDelay = 10 * time.Millisecond
	// LookInterval is how soon a job that could not be worked on is looked at again.
	LookInterval = time.Second
	// RetrySettle is the pause before a result that could not be committed is tried again.
	RetrySettle = time.Second
	// Pressing is how many callers wait to be accepted when jobs step back for them.
	Pressing = 8
	// JobBytes of data count as much as one more job when owners take turns.
	JobBytes = 64 << 10

	defaultBytes = 256 << 20
)

// Budget is Bytes or its default.
func (c *Capacity) Budget() int64 {
	if c.Bytes == 0 {
		return defaultBytes
	}
	return c.Bytes
}

// ExpireInterval is how often parked callbacks are looked through for those that are older than maxAge.
func ExpireInterval(maxAge time.Duration) time.Duration {
	return min(max(maxAge/100, LookInterval), 30*time.Second)
}

// Sooner returns the earlier of two times, of which the zero time means none.
func Sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Notify leaves a token in a channel of capacity one.
func Notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
