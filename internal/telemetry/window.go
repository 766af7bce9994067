package telemetry

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/prometheus/client_golang/prometheus"
)

// What is timed, as indexes of kinds.
const (
	syncResponse = iota
	asyncAcceptance
	processing
	acceptToCallback
	seriesCount
)

// kinds name each latency in /metrics, in /stats and between nodes.
var kinds = [seriesCount]struct{ name, help string }{
	{"sync_response", "From a sync order to its result."},
	{"async_acceptance", "From an async order to its commit."},
	{"processing", "Time in the task, sync and async."},
	{"accept_to_callback", "From the acceptance of an async request to its receiver's 2xx."},
}

const (
	windowLength = 30 * time.Second
	windowCount  = 10             // × windowLength: the last 5 minutes
	maxLatency   = 24 * time.Hour // longer ones count as this
	rateSeconds  = 60             // requests per second are an average over so many seconds
)

// Latencies are percentiles of the last 5 minutes, by the name of what was timed: sync_response, async_acceptance,
// processing, accept_to_callback.
type Latencies map[string]Percentiles

// Percentiles in milliseconds, to 1 %; all zero when nothing was measured.
type Percentiles struct {
	P50, P95, P99 float64
	Count         int64 // how many were measured
}

// Recent returns the latencies of the last 5 minutes, and the requests accepted per second over the last minute (or
// since the start, if that is less). Both are those of all nodes that share the database, the others' as of a few
// seconds ago. It costs a fraction of a millisecond.
func (m *Metrics) Recent() (latencies Latencies, perSecond float64) { return m.recent(time.Now()) }

func (m *Metrics) recent(now time.Time) (latencies Latencies, perSecond float64) {
	others, latencies := m.others.Load(), Latencies{}
	for i, s := range m.series {
		all := s.window(now)
		if elsewhere := others.latency[i]; elsewhere != nil {
			all.Merge(elsewhere)
		}
		latencies[kinds[i].name] = percentilesOf(all)
	}
	return latencies, m.rate.perSecond(now) + others.perSecond
}

func percentilesOf(all *hdrhistogram.Histogram) Percentiles {
	if all.TotalCount() == 0 {
		return Percentiles{}
	}
	milliseconds := func(percentile float64) float64 { return float64(all.ValueAtPercentile(percentile)) / 1000 }
	return Percentiles{P50: milliseconds(50), P95: milliseconds(95), P99: milliseconds(99), Count: all.TotalCount()}
}

// rate counts requests by the second. Its zero value is ready but for started.
type rate struct {
	started time.Time

	mu      sync.Mutex // guards seconds
	seconds [rateSeconds]struct{ unix, count int64 }
}

func (r *rate) add(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	second := &r.seconds[now.Unix()%rateSeconds]
	if second.unix != now.Unix() {
		second.unix, second.count = now.Unix(), 0
	}
	second.count++
}

func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var count int64
	for _, second := range r.seconds {
		if second.unix > now.Unix()-rateSeconds && second.unix <= now.Unix() {
			count += second.count
		}
	}
	return float64(count) / min(max(now.Sub(r.started).Seconds(), 1), rateSeconds)
}

// series is one kind of latency: since the start, and in a ring of windows that are merged when they are read, which
// keeps recording cheap. All windows together take at most 310 KB.
type series struct {
	total prometheus.Histogram

	mu      sync.Mutex // guards windows
	windows [windowCount]window
}

// window holds the times recorded in one windowLength.
type window struct {
	number int64                   // time divided by windowLength
	times  *hdrhistogram.Histogram // microseconds; nil until first used
}

func newSeries(opts prometheus.HistogramOpts) *series {
	return &series{total: prometheus.NewHistogram(opts)}
}

func (s *series) record(now time.Time, latency time.Duration) {
	latency = min(max(latency, 0), maxLatency)
	s.total.Observe(latency.Seconds())
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
	// It cannot fail: latency is within the bounds of the histogram.
	_ = w.times.RecordValue(latency.Microseconds())
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
