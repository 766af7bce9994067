package load

import (
	"context"
	"math"
	"time"
)

// schedule is the plan of an open loop: the time of each request is arithmetic, so no late answer and no slow generator
// can shift it.
//
// The rate grows (or falls) evenly from one value to another over length; the k-th request is planned for the moment
// when the area under the rate reaches k.
type schedule struct {
	from   float64       // requests per second at the start
	slope  float64       // change of the rate, per second and second; 0: constant
	count  int64         // how many requests there are
	length time.Duration // every request is planned before this
}

// newSchedule plans requests at a rate growing evenly from one value to another. Requests or length may be zero: the
// other one decides the end.
func newSchedule(from, to float64, requests int64, length time.Duration) schedule {
	mean := (from + to) / 2
	seconds := length.Seconds()
	if length == 0 {
		seconds = float64(requests) / mean
		length = time.Duration(seconds * float64(time.Second))
	}
	// A request is planned before the end when less than the whole area lies before
	// it. Rounding must not add one to 100 s at 0.1/s.
	count := int64(math.Ceil(mean*seconds - 1e-6))
	if requests > 0 {
		count = min(count, requests)
	}
	return schedule{from: from, slope: (to - from) / seconds, count: count, length: length}
}

// at returns when request k (from 0) is planned, since the start.
func (s schedule) at(k int64) time.Duration {
	// The root of from·t + slope·t²/2 = k, in a stable form for a small or zero slope.
	root := math.Sqrt(max(0, s.from*s.from+2*s.slope*float64(k)))
	return time.Duration(2 * float64(k) / (s.from + root) * float64(time.Second))
}

// Timers of the Go runtime are up to a millisecond late on an idle machine, so the last part of a wait is left to
// sleep, exact to about 0.1 ms.
const (
	sleepBelow = 2 * time.Millisecond
	timerLate  = 1500 * time.Microsecond
)

// waitUntil returns when it is due, or early and false when ctx ends before.
func waitUntil(ctx context.Context, due time.Time, sleep func(time.Duration)) bool {
	for {
		left := time.Until(due)
		switch {
		case ctx.Err() != nil:
			return false
		case left <= 0:
			return true
		case left < sleepBelow:
			sleep(left)
		case !pause(ctx, left-timerLate):
			return false
		}
	}
}

// pause waits for d; it is false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
