package load

import (
	"maps"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms count microseconds up to an hour; longer ones count as an hour.
const (
	longestMicros  = int64(time.Hour / time.Microsecond)
	totalDigits    = 3  // significant digits of a whole phase's distribution: 0.1 %
	stepDigits     = 2  // of a step of the series: 1 %
	openSteps      = 4  // steps with an open distribution; later ones replace closed ones
	maxRecorders   = 16 // per side: with more callers, several share one
	maxSeriesSteps = 3600
)

// dial names a distribution.
type dial int

const (
	dialResponse   dial = iota // planned send to the whole answer
	dialService                // actual send to the whole answer
	dialEndToEnd               // planned send to the callback
	dialProcessing             // in the task
	dialDelivery               // end of the work to the callback
	dialLag                    // planned send to actual send
	dialOwnLag                 // the part of it with a free caller
	dials
)

// recorder holds the measurements of some workers on one side of a phase. The recorders of a side are merged: counts
// and histogram buckets add up.
type recorder struct {
	mu         sync.Mutex // guards all fields
	sent       int64
	retried    int64
	accepted   int64
	completed  int64
	workFailed int64
	errors     map[string]int64 // :: category → requests
	dials      [dials]*hdrhistogram.Histogram
	steps      []Step // counts only
	open       [openSteps]openStep
}

// openStep is the distribution of an unfinished step, at index number%openSteps.
type openStep struct {
	number   int
	response *hdrhistogram.Histogram // made with the first value
	endToEnd *hdrhistogram.Histogram
}

func newRecorder() *recorder { return &recorder{errors: make(map[string]int64)} }

// observeLocked adds a value to a distribution. Negative ones, of differing clocks, count as zero.
func (r *recorder) observeLocked(d dial, value time.Duration) {
	if r.dials[d] == nil {
		r.dials[d] = hdrhistogram.New(1, longestMicros, totalDigits)
	}
	recordMicros(r.dials[d], value)
}

func recordMicros(h *hdrhistogram.Histogram, value time.Duration) {
	_ = h.RecordValue(min(max(value.Microseconds(), 0), longestMicros)) // within the bounds, so it cannot fail
}

// stepLocked returns the counts of a step.
func (r *recorder) stepLocked(number int) *Step {
	for len(r.steps) <= number {
		r.steps = append(r.steps, Step{})
	}
	return &r.steps[number]
}

// openLocked returns the distributions of a step; nil: a later one has replaced it.
func (r *recorder) openLocked(number int) *openStep {
	open := &r.open[number%openSteps]
	switch {
	case open.number > number:
		return nil
	case open.number < number:
		open.reset()
		open.number = number
	}
	return open
}

func (o *openStep) reset() {
	for _, h := range []*hdrhistogram.Histogram{o.response, o.endToEnd} {
		if h != nil {
			h.Reset()
		}
	}
}

// addTo adds a value to a histogram, made on first use.
func addTo(h **hdrhistogram.Histogram, value time.Duration) {
	if *h == nil {
		*h = hdrhistogram.New(1, longestMicros, stepDigits)
	}
	recordMicros(*h, value)
}

// merge adds another recorder. It has no writer any more.
func (r *recorder) merge(from *recorder) {
	r.sent += from.sent
	r.retried += from.retried
	r.accepted += from.accepted
	r.completed += from.completed
	r.workFailed += from.workFailed
	for category, n := range from.errors {
		r.errors[category] += n
	}
	for d, h := range from.dials {
		r.dials[d] = mergeInto(r.dials[d], h)
	}
	for number, counts := range from.steps {
		step := r.stepLocked(number)
		step.Sent += counts.Sent
		step.Accepted += counts.Accepted
		step.Completed += counts.Completed
		step.Errors += counts.Errors
	}
}

// mergeInto adds the counts of one histogram to another of the same precision, made when it is nil.
func mergeInto(into, from *hdrhistogram.Histogram) *hdrhistogram.Histogram {
	if from == nil {
		return into
	}
	if into == nil {
		return from.Clone()
	}
	into.Merge(from)
	return into
}

// latencyOf describes a distribution; nil is an empty one.
func latencyOf(h *hdrhistogram.Histogram) Latency {
	if h == nil || h.TotalCount() == 0 {
		return Latency{}
	}
	quantile := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	encoded, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		encoded = nil // only an unknown version fails
	}
	return Latency{
		Count: h.TotalCount(),
		MinMS: float64(h.Min()) / 1000, MeanMS: h.Mean() / 1000,
		P50MS: quantile(50), P90MS: quantile(90), P95MS: quantile(95), P99MS: quantile(99), P999MS: quantile(99.9),
		MaxMS: float64(h.Max()) / 1000,
		HDR:   string(encoded),
	}
}

// latencyOrNil is latencyOf, but nil without values.
func latencyOrNil(h *hdrhistogram.Histogram) *Latency {
	if h == nil || h.TotalCount() == 0 {
		return nil
	}
	latency := latencyOf(h)
	return &latency
}

// series makes one line per step of the recorders of a side. The percentiles of a step are computed at its end from the
// histograms of all recorders. The histograms are then reused: memory does not grow with the requests.
type series struct {
	recorders []*recorder
	closed    []Step                  // percentiles only
	response  *hdrhistogram.Histogram // of the closing step
	endToEnd  *hdrhistogram.Histogram
}

func newSeries(recorders []*recorder) *series {
	return &series{
		recorders: recorders,
		response:  hdrhistogram.New(1, longestMicros, stepDigits),
		endToEnd:  hdrhistogram.New(1, longestMicros, stepDigits),
	}
}

// closeBefore ends all steps before a number.
func (s *series) closeBefore(number int) {
	for len(s.closed) < number {
		s.closed = append(s.closed, s.look(len(s.closed)))
	}
}

// look makes the percentiles of a step.
func (s *series) look(number int) Step {
	s.response.Reset()
	s.endToEnd.Reset()
	for _, r := range s.recorders {
		r.mu.Lock()
		if open := &r.open[number%openSteps]; open.number == number {
			mergeInto(s.response, open.response)
			mergeInto(s.endToEnd, open.endToEnd)
		}
		r.mu.Unlock()
	}
	ms := func(h *hdrhistogram.Histogram, q float64) float64 {
		if h.TotalCount() == 0 {
			return 0
		}
		return float64(h.ValueAtQuantile(q)) / 1000
	}
	return Step{
		P50MS: ms(s.response, 50), P99MS: ms(s.response, 99),
		EndP50MS: ms(s.endToEnd, 50), EndP99MS: ms(s.endToEnd, 99),
	}
}

// addTotals adds up the counters of the recorders while they are in use.
func (s *series) addTotals(to *Progress) {
	for _, r := range s.recorders {
		r.mu.Lock()
		to.Sent += r.sent
		to.Accepted += r.accepted
		to.Completed += r.completed + r.workFailed
		for _, n := range r.errors {
			to.Errors += n
		}
		r.mu.Unlock()
	}
}

// answersIn counts the answers in a step.
func (s *series) answersIn(number int) int64 {
	var sum int64
	for _, r := range s.recorders {
		r.mu.Lock()
		if number < len(r.steps) {
			sum += r.steps[number].Accepted + r.steps[number].Errors
		}
		r.mu.Unlock()
	}
	return sum
}

// side makes the report of the side at the end. Its rates are over the given times; service: service times were
// recorded apart from response times.
func (s *series) side(stepSeconds int, service bool, sending, wall time.Duration) (*Side, *recorder) {
	all := newRecorder()
	for _, r := range s.recorders {
		r.mu.Lock()
		all.merge(r)
		r.mu.Unlock()
	}
	s.closeBefore(len(all.steps))
	for number := range all.steps {
		percentiles := s.closed[number]
		step := &all.steps[number]
		step.Second = int64(number * stepSeconds)
		step.P50MS, step.P99MS = percentiles.P50MS, percentiles.P99MS
		step.EndP50MS, step.EndP99MS = percentiles.EndP50MS, percentiles.EndP99MS
	}
	side := &Side{
		Planned: all.sent, Sent: all.sent, Retried: all.retried,
		Accepted: all.accepted, Completed: all.completed, WorkFailed: all.workFailed,
		AcceptedPerSecond:  rateOver(all.accepted, sending),
		CompletedPerSecond: rateOver(all.completed, wall),
		Errors:             maps.Clone(all.errors),
		Response:           latencyOf(all.dials[dialResponse]),
		EndToEnd:           latencyOrNil(all.dials[dialEndToEnd]),
		Processing:         latencyOrNil(all.dials[dialProcessing]),
		DeliveryLag:        latencyOrNil(all.dials[dialDelivery]),
		SeriesStepSeconds:  stepSeconds,
		Series:             all.steps,
	}
	if side.Sent > 0 {
		side.SuccessRatePercent = 100 * float64(side.Completed) / float64(side.Sent)
	}
	if side.Service = side.Response; service {
		side.Service = latencyOf(all.dials[dialService])
	}
	return side, all
}

func rateOver(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}
