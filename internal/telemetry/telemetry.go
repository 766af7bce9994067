// Package telemetry shows what a node does: it observes the engine and makes metrics, latencies of the last minutes and
// the debug log of its events.
//
// It hides Prometheus instruments, windows of time and what nodes tell each other of their measurements. It promises
// bounded memory, labels that callers cannot add to, and that an event costs no allocation while the debug log is off.
// app connects it to the engine; the server shows what it has measured.
package telemetry

import (
	"cmp"
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/work"
)

// Config of [Metrics].
type Config struct {
	Tasks []work.Task  // of the engine, beside the built-in ones
	Log   *slog.Logger // gets the steps of requests at level Debug; slog.Default
}

// unknownTask labels every task that the configuration no longer has.
const unknownTask = "unknown"

// Metrics of one process, as a prometheus.Collector. Its methods may be called from any number of goroutines.
type Metrics struct {
	log    *slog.Logger
	tasks  map[string]bool
	ended  *prometheus.CounterVec
	series [seriesCount]*series
	rate   rate
	others atomic.Pointer[measured] // by the other nodes; never nil
}

// buckets are fine where a commit and an immediate callback are, coarse where retries are. In seconds.
var buckets = []float64{
	0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600,
}

// New makes metrics; [Metrics.Observe] is for engine.Config.Observers.
func New(cfg Config) *Metrics { return newMetrics(cfg, time.Now()) }

func newMetrics(cfg Config, now time.Time) *Metrics {
	m := &Metrics{
		log: cmp.Or(cfg.Log, slog.Default()), tasks: map[string]bool{}, rate: rate{started: now},
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tandem_requests_ended_total",
			Help: "Requests whose work ended since the start, by mode, task and outcome.",
		}, []string{"mode", "task", "outcome"}),
	}
	m.others.Store(&measured{})
	for i, kind := range kinds {
		m.series[i] = newSeries(prometheus.HistogramOpts{
			Name: "tandem_" + kind.name + "_seconds", Help: kind.help, Buckets: buckets,
		})
	}
	// A rate needs a sample from before the first request: what is sure to happen is shown as 0.
	for _, task := range append(work.Builtin(), cfg.Tasks...) {
		m.tasks[task.Name] = true
		m.ended.WithLabelValues(string(tandem.ModeSync), task.Name, string(tandem.StatusCompleted))
		if !task.Internal {
			m.ended.WithLabelValues(string(tandem.ModeAsync), task.Name, string(tandem.StatusCompleted))
		}
	}
	return m
}

// Observe counts, times and logs one step of a request.
func (m *Metrics) Observe(event engine.Event) {
	r := &event.Request
	switch event.Step {
	case engine.Accepted:
		m.rate.add(event.At)
		if r.Mode == tandem.ModeAsync {
			m.series[asyncAcceptance].record(event.At.Add(event.Took), event.Took)
		}
	case engine.Ran:
		if state := event.Result.State(); state != work.StateHeld && state != work.StateAgain {
			m.series[processing].record(event.At, event.Working)
		}
	case engine.Ended:
		task := r.Task
		if !m.tasks[task] {
			task = unknownTask
		}
		m.ended.WithLabelValues(string(r.Mode), task, cmp.Or(r.ErrorCode, string(tandem.StatusCompleted))).Inc()
		if event.Waited && event.Rows == 0 {
			m.series[syncResponse].record(time.Now(), event.Took)
		}
	case engine.Called:
		if event.Attempt.Outcome == tandem.OutcomeDelivered {
			m.series[acceptToCallback].record(event.At, event.Took)
		}
	case engine.Begun, engine.Started, engine.Postponed: // logged only
	}
	if m.log.Enabled(context.Background(), slog.LevelDebug) {
		m.logStep(&event)
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	m.ended.Describe(descs)
	for _, s := range m.series {
		s.total.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.ended.Collect(out)
	for _, s := range m.series {
		s.total.Collect(out)
	}
}
