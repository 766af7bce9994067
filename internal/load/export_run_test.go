package load

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"tandem"
	"tandem/internal/receiver"
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
func WaitUntil(ctx context.Context, due time.Time) bool { return waitUntil(ctx, due, sleep) }

// Elsewhere returns a configuration for a place where time is not that of the machine.
func Elsewhere(c Config, dial func(context.Context, string, string) (net.Conn, error)) Config {
	c.dial, c.sleep = dial, func(d time.Duration) { <-time.After(d) }
	return c
}

// RetryAfter opens retryAfter.
var RetryAfter = retryAfter

// TooLate opens tooLate.
var TooLate = tooLate

// Inbox opens an inbox with one phase.
type Inbox struct {
	b *inbox
	p *running
}

// NewInbox makes an inbox whose phase has begun.
func NewInbox() *Inbox {
	b := newInbox(0, func(time.Time) time.Duration { return 0 })
	r := &run{cfg: Config{Concurrency: 1}}
	p := r.newRunning(PhaseAsync, 1, 1, 0)
	b.begin(p)
	return &Inbox{b, p}
}

// Expect registers a request.
func (i *Inbox) Expect() (uint64, error) { return i.b.expect(0) }

// Answered says that its 202 was read.
func (i *Inbox) Answered(number uint64, id string) { i.b.answered(number, id) }

// Refused says that it got none.
func (i *Inbox) Refused(number uint64) { i.b.refused(number) }

// Arrive is a good callback for a number.
func (i *Inbox) Arrive(number uint64) {
	a := receiver.Arrival{
		Key: string(i.b.appendKey(nil, number)), Callback: tandem.Callback{Type: tandem.EventCompleted},
	}
	i.b.count(&a)
}

// Polled is a result seen by polling.
func (i *Inbox) Polled(number uint64) { i.b.polled(number, landing{}) }

// Completed is how many results have been recorded.
func (i *Inbox) Completed() int64 {
	i.p.results.mu.Lock()
	defer i.p.results.mu.Unlock()
	return i.p.results.completed + i.p.results.workFailed
}

// Outstanding is how many are waited for; AllIn is closed when there are none.
func (i *Inbox) Outstanding() int64 { return i.b.outstanding() }

// AllIn opens allIn.
func (i *Inbox) AllIn() <-chan struct{} { return i.b.allIn() }

// ArriveAt is a good callback for a key.
func (i *Inbox) ArriveAt(key string) int {
	a := receiver.Arrival{Key: key, Status: http.StatusOK}
	i.b.count(&a)
	return a.Status
}

// Key is the key of a number.
func (i *Inbox) Key(number uint64) string { return string(i.b.appendKey(nil, number)) }

// End closes the phase.
func (i *Inbox) End() []string { return i.b.end() }

// Callbacks returns what was counted.
func (i *Inbox) Callbacks() Callbacks { return i.b.counters(i.p) }

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
