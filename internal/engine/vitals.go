package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"tandem/internal/egress"
)

// What the engine times, as the keys of [Vitals.Latency].
const (
	latencySync    = "sync_response"      // arrival of a sync order to its answer
	latencyAccept  = "async_acceptance"   // arrival of an async order to its commit
	latencyProcess = "processing"         // in the task, both modes
	latencyDeliver = "accept_to_callback" // creation of an async request to its receiver's 2xx
)

const (
	windowLength = 30 * time.Second
	windowCount  = 10             // × windowLength: the last 5 minutes
	maxLatency   = 24 * time.Hour // longer ones count as this
	rateSeconds  = 60             // requests per second are an average over so many seconds
)

// Destination is what is known of one callback host.
type Destination = egress.Destination

// Vitals is what the engine has measured itself, in memory; latencies and requests per second are
// those of all nodes that share the database, the others' as of a few seconds ago.
type Vitals struct {
	Latency           map[string]Percentiles // :: sync_response, async_acceptance, processing, accept_to_callback → over the last 5 minutes
	RequestsPerSecond float64                // accepted, over the last minute (or since the start, if that is less)
	Destinations      []Destination          // at most 1,000
}

// Percentiles in milliseconds, to 1 %; all zero when nothing was measured.
type Percentiles struct {
	P50, P95, P99 float64
	Count         int64 // how many were measured
}

// Vitals returns the current figures. It costs a fraction of a millisecond.
func (e *Engine) Vitals() Vitals {
	v := e.vitals.read(time.Now())
	v.Destinations = e.cfg.Egress.Destinations(maxDestinations)
	return v
}

// vitals collects. Its memory is bounded: about 1.4 MB when every window of every
// series is in use.
type vitals struct {
	latency map[string]*series // :: kind → its times; the map itself is never changed
	started time.Time
	others  atomic.Pointer[heard] // what other nodes have measured; never nil

	mu      sync.Mutex // guards the fields below
	seconds [rateSeconds]struct{ unix, count int64 }
	ended   map[Ending]int64
}

func newVitals(now time.Time) *vitals {
	v := &vitals{latency: make(map[string]*series), started: now, ended: make(map[Ending]int64)}
	v.others.Store(&heard{})
	for _, kind := range []string{latencySync, latencyAccept, latencyProcess, latencyDeliver} {
		v.latency[kind] = &series{}
	}
	return v
}

// accepted counts one order, sync or async.
func (v *vitals) accepted(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	second := &v.seconds[now.Unix()%rateSeconds]
	if second.unix != now.Unix() {
		second.unix, second.count = now.Unix(), 0
	}
	second.count++
}

// read returns the figures of all nodes that share the database.
func (v *vitals) read(now time.Time) Vitals {
	others := v.others.Load()
	out := Vitals{Latency: make(map[string]Percentiles, len(v.latency))}
	for kind, series := range v.latency {
		out.Latency[kind] = series.read(now, others.latency[kind])
	}
	out.RequestsPerSecond = v.perSecond(now) + others.perSecond
	return out
}

// perSecond is how many requests this node has accepted per second, over the last minute.
func (v *vitals) perSecond(now time.Time) float64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	var count int64
	for _, second := range v.seconds {
		if second.unix > now.Unix()-rateSeconds && second.unix <= now.Unix() {
			count += second.count
		}
	}
	return float64(count) / min(max(now.Sub(v.started).Seconds(), 1), rateSeconds)
}

// series is one kind of latency in a ring of windows, which are merged when they
// are read: recording stays cheap.
type series struct {
	mu      sync.Mutex // guards the fields below
	windows [windowCount]window
	buckets [len(bounds) + 1]uint64 // since the start, each without those before it; the last is above every bound
	sum     time.Duration           // since the start
}

// window holds the times recorded in one windowLength.
type window struct {
	number int64                   // time divided by windowLength
	times  *hdrhistogram.Histogram // microseconds; nil until first used
}

func (s *series) record(now time.Time, latency time.Duration) {
	number := now.UnixNano() / int64(windowLength)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.windows[number%windowCount]
	if w.times == nil {
		w.times = newHistogram()
	} else if w.number != number {
		w.times.Reset()
	}
	w.number = number
	latency = min(max(latency, 0), maxLatency)
	// It cannot fail: latency is within the bounds of the histogram.
	_ = w.times.RecordValue(latency.Microseconds())
	i := 0
	for i < len(bounds) && latency > bounds[i] {
		i++
	}
	s.buckets[i]++
	s.sum += latency
}

// read returns the percentiles of what was recorded in the last minutes, here and, unless that is nil, elsewhere.
func (s *series) read(now time.Time, elsewhere *hdrhistogram.Histogram) Percentiles {
	all := s.window(now)
	if elsewhere != nil {
		all.Merge(elsewhere)
	}
	if all.TotalCount() == 0 {
		return Percentiles{}
	}
	const perMillisecond = 1000
	return Percentiles{
		P50:   float64(all.ValueAtPercentile(50)) / perMillisecond,
		P95:   float64(all.ValueAtPercentile(95)) / perMillisecond,
		P99:   float64(all.ValueAtPercentile(99)) / perMillisecond,
		Count: all.TotalCount(),
	}
}

// window is what was recorded in the last minutes.
func (s *series) window(now time.Time) *hdrhistogram.Histogram {
	number := now.UnixNano() / int64(windowLength)
	all := newHistogram()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.windows {
		if w.times != nil && w.number > number-windowCount && w.number <= number {
			all.Merge(w.times)
		}
	}
	return all
}

// newHistogram takes about 31 KB: microseconds up to maxLatency, to 1 %.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, maxLatency.Microseconds(), 2)
}
