package load

import (
	"context"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Schedule opens the plan of an open loop.
type Schedule struct{ schedule }

// NewSchedule plans requests.
func NewSchedule(from, to float64, requests int64, length time.Duration) Schedule {
	return Schedule{newSchedule(from, to, requests, length)}
}

// At returns when request k is planned.
func (s Schedule) At(k int64) time.Duration { return s.at(k) }

// Count returns how many requests are planned.
func (s Schedule) Count() int64 { return s.count }

// Length returns how long the plan is.
func (s Schedule) Length() time.Duration { return s.length }

// WaitUntil opens waitUntil.
func WaitUntil(ctx context.Context, due time.Time) bool { return waitUntil(ctx, due) }

// RetryAfter opens retryAfter.
var RetryAfter = retryAfter

// Recorder opens a recorder.
type Recorder struct{ r *recorder }

// NewRecorder makes an empty one.
func NewRecorder() Recorder { return Recorder{newRecorder()} }

// Observe adds a response time.
func (r Recorder) Observe(d time.Duration) {
	r.r.mu.Lock()
	defer r.r.mu.Unlock()
	r.r.observeLocked(dialResponse, d)
}

// Merged returns the response times of several recorders together.
func Merged(recorders []Recorder) Latency {
	all := newRecorder()
	for _, r := range recorders {
		all.merge(r.r)
	}
	return latencyOf(all.dials[dialResponse])
}

// Histogram decodes the whole distribution.
func (l *Latency) Histogram() (*hdrhistogram.Histogram, error) { return l.histogram() }
