package server

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tandem"
	"tandem/internal/store"
)

// scrapeTimeout bounds how long GET /metrics reads from the store, once the
// commit under way is over.
const scrapeTimeout = 2 * time.Second

// httpBuckets are upper bounds in seconds: a 202 is at the lower end, a sync answer anywhere.
var httpBuckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// meters are what GET /metrics shows. Answers are counted as they are given;
// everything else is read from those who know it when somebody asks. They have a registry of
// their own, so that two servers in one process do not meet.
type meters struct {
	registry *prometheus.Registry
	answers  *prometheus.HistogramVec
	inFlight atomic.Int64 // requests under way
}

func newMeters(s *server) *meters {
	m := &meters{
		registry: prometheus.NewRegistry(),
		answers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tandem_http_request_duration_seconds",
			Help:    "From the header of a request to the end of its answer, by route and class of status.",
			Buckets: httpBuckets,
		}, []string{"route", "status"}),
	}
	m.registry.MustRegister(
		s.cfg.Metrics,
		m.answers,
		newFigures(s),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// answered counts one answer. The labels are bounded: patterns come from the
// table of routes.
func (m *meters) answered(pattern string, status int, took time.Duration) {
	m.answers.WithLabelValues(routeOf(pattern), classOf(status)).Observe(took.Seconds())
}

// routeOf is the path of a pattern of the mux. Unknown paths, and preflights, which never
// reach the mux, are "other".
func routeOf(pattern string) string {
	if _, path, found := strings.Cut(pattern, " "); found {
		pattern = path
	}
	switch pattern {
	case "", "/":
		return "other"
	case "/{$}":
		return "/"
	default:
		return pattern
	}
}

// classOf is 2xx for 200 to 299, and so on.
func classOf(status int) string {
	classes := [...]string{"2xx", "3xx", "4xx", "5xx"}
	return classes[min(max(status/100, 2), 5)-2] // 0: the handler left it to net/http, which says 200
}

// handleMetrics answers in the format that the scraper asks for.
func (s *server) handleMetrics() Handler {
	const metricsMemory = 256 << 10 // bytes that all metrics take while they are written
	scrape := promhttp.HandlerFor(s.meters.registry, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelError),
		ErrorHandling: promhttp.ContinueOnError,
	})
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := hold(w, r, metricsMemory); err != nil {
			return err
		}
		w.Header()["Cache-Control"] = noStore
		scrape.ServeHTTP(w, r)
		return nil
	}
}

// figure is one metric that is read when somebody asks.
type figure struct {
	name, help string
	labels     []string
	read       func(now *reading, out put)
	desc       *prometheus.Desc // made from the others
}

// reading is what the parts say at one moment.
type reading struct {
	at       time.Time
	store    store.Stats
	rate     rateLimiting
	tally    tally
	flying   int64
	conns    connectionFigures
	nodes    int
	breakers map[string]int // :: state → destinations

	waiting      store.Undelivered
	waitingKnown bool // false: the store could not be read
}

// figures is the collector of all of them.
type figures struct {
	server *server
	always []figure
	stored []figure // left out while the store cannot be read
}

func newFigures(s *server) *figures {
	f := &figures{server: s, always: figuresOfProcess(), stored: figuresOfStore()}
	if s.cfg.Application != nil {
		for _, c := range s.cfg.Application.Counters {
			f.add(c)
		}
	}
	for _, list := range [][]figure{f.always, f.stored} {
		for i := range list {
			list[i].desc = prometheus.NewDesc(list[i].name, list[i].help, list[i].labels, nil)
		}
	}
	return f
}

// add adds a metric of an application.
func (f *figures) add(c Counter) {
	added := figure{name: c.Name, help: c.Help, read: func(now *reading, out put) { c.Read(&now.store, out.counter) }}
	if c.Label != "" {
		added.labels = []string{c.Label}
	}
	if c.Stored {
		f.stored = append(f.stored, added)
	} else {
		f.always = append(f.always, added)
	}
}

// Describe implements prometheus.Collector.
func (f *figures) Describe(descs chan<- *prometheus.Desc) {
	for _, list := range [][]figure{f.always, f.stored} {
		for _, figure := range list {
			descs <- figure.desc
		}
	}
}

// Collect implements prometheus.Collector. While the store cannot be read, what does
// not depend on it is shown all the same: that is when somebody looks.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	s := f.server
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	stats, err := s.cfg.Store.Stats(ctx)
	at := time.Now()
	now := &reading{
		at: at, store: stats, rate: s.rateLimiting(at), tally: s.tally,
		flying: s.meters.inFlight.Load(),
		conns:  s.cfg.Connections.figures(), nodes: s.cfg.Nodes.Count(), breakers: s.cfg.Engine.Breakers(),
	}
	lists := [][]figure{f.always, f.stored}
	if err != nil {
		s.log.Warn("read the store for /metrics", "error", err)
		now.store.Unavailable = err
		lists = lists[:1]
	} else if now.waiting, err = s.waiting.now(ctx, s.cfg.Store); err == nil {
		now.waitingKnown = true
	} else if now.store.Unavailable == nil {
		s.log.Warn("read undelivered callbacks for /metrics", "error", err)
	}
	for _, list := range lists {
		for _, figure := range list {
			figure.read(now, put{figure.desc, out})
		}
	}
}

// put sends samples of one metric. It panics when labels are missing, which the
// first scrape of any test shows.
type put struct {
	desc *prometheus.Desc
	out  chan<- prometheus.Metric
}

func (p put) gauge(value float64, labels ...string) {
	p.out <- prometheus.MustNewConstMetric(p.desc, prometheus.GaugeValue, value, labels...)
}

// age is how long ago something was; 0 if it never was.
func (p put) age(now, then time.Time) {
	if then.IsZero() {
		then = now
	}
	p.gauge(max(now.Sub(then).Seconds(), 0))
}

func (p put) counter(value int64, labels ...string) {
	p.out <- prometheus.MustNewConstMetric(p.desc, prometheus.CounterValue, float64(value), labels...)
}

// summary is a sum and how many it is made of; there are no quantiles.
func (p put) summary(count int64, sum float64) {
	p.out <- prometheus.MustNewConstSummary(p.desc, uint64(count), sum, nil)
}

// figuresOfProcess need nothing but this process.
func figuresOfProcess() []figure {
	return []figure{
		{name: "tandem_build_info", help: "Always 1; the labels say which tandem this is.",
			labels: []string{"version", "revision", "goversion"}, read: func(_ *reading, out put) {
				out.gauge(1, tandem.Version, revision(), runtime.Version())
			}},
		{name: "tandem_store_available", help: "1 while the database can be read and its last write succeeded, else 0.",
			read: func(now *reading, out put) {
				available := 0.0
				if now.store.Unavailable == nil {
					available = 1
				}
				out.gauge(available)
			}},
		{name: "tandem_nodes", help: "Nodes that share the database and were alive at the last heartbeat, this one " +
			"included.", read: func(now *reading, out put) {
			out.gauge(float64(now.nodes))
		}},
		{name: "tandem_callback_breakers", help: "Destinations remembered, by the state of their circuit breaker.",
			labels: []string{"state"}, read: func(now *reading, out put) {
				for state, count := range now.breakers {
					out.gauge(float64(count), state)
				}
			}},
		{name: "tandem_rate_limit_requests_total",
			help: "Calls that a rate limit (post, get) let through or answered with 429 since " +
				"the start.", labels: []string{"policy",
				"verdict"}, read: readRates(func(policy string, rate RateFigures, out put) {
				out.counter(rate.Allowed, policy, "allowed")
				out.counter(rate.Limited, policy, "limited")
			})},
		{name: "tandem_rate_limit_tracked_clients",
			help: "Addresses whose calls are remembered one by one; 0 while there is " +
				"no limit.", labels: []string{"policy"}, read: readRates(func(policy string, rate RateFigures, out put) {
				out.gauge(float64(rate.Tracked), policy)
			})},
		{name: "tandem_rate_limit_capacity_clients",
			help: "The most addresses remembered one by one; further ones share allowances. 0 while there is " +
				"no limit.", labels: []string{"policy"}, read: readRates(func(policy string, rate RateFigures, out put) {
				out.gauge(float64(rate.Capacity), policy)
			})},
		{name: "tandem_http_connections", help: "Connections that are open.", read: func(now *reading, out put) {
			out.gauge(float64(now.conns.Open))
		}},
		{name: "tandem_http_connections_cut_total",
			help: "Connections closed since the start to stay within --max-connections: waiting ones, to make room, and " +
				"new ones.", labels: []string{"which"}, read: func(now *reading, out put) {
				out.counter(now.conns.Closed, "waiting")
				out.counter(now.conns.Refused, "new")
			}},
		{name: "tandem_http_requests_in_flight", help: "Requests that are being answered, this one included.",
			read: func(now *reading, out put) {
				out.gauge(float64(now.flying))
			}},
		{name: "tandem_http_problems_total", help: "Errors answered since the start, by code.", labels: []string{"code"},
			read: func(now *reading, out put) {
				for i := range now.tally {
					out.counter(now.tally[i].Load(), string(kinds[i].Code))
				}
			}},
	}
}

// readRates shows one figure of both limits.
func readRates(show func(policy string, rate RateFigures, out put)) func(*reading, put) {
	return func(now *reading, out put) {
		show("post", now.rate.RateFigures, out)
		show("get", now.rate.Reads, out)
	}
}

// figuresOfStore are kept with the requests, and survive a restart, unless their
// help says otherwise.
func figuresOfStore() []figure {
	return []figure{
		{name: "tandem_requests_accepted_total", help: "Requests recorded since the database was made, by mode.",
			labels: []string{"mode"}, read: func(now *reading, out put) {
				for _, mode := range tandem.Modes {
					out.counter(now.store.Requests[mode], string(mode))
				}
			}},
		{name: "tandem_requests_active", help: "Requests whose work has not ended, by status.",
			labels: []string{"status"}, read: func(now *reading, out put) {
				for _, status := range []tandem.Status{tandem.StatusPending, tandem.StatusProcessing} {
					out.gauge(float64(now.store.Now[status]), string(status))
				}
			}},
		{name: "tandem_queue_jobs", help: "Jobs waiting or dispatched, by lane.", labels: []string{"lane"},
			read: func(now *reading, out put) {
				for _, lane := range store.Lanes {
					out.gauge(float64(now.store.Queue[lane]), string(lane))
				}
			}},
		{name: "tandem_queue_oldest_age_seconds",
			help: "How long the job that has waited longest has been due; 0 when none waits.", read: func(now *reading,
				out put) {
				out.age(now.at, now.store.OldestDue)
			}},
		{name: "tandem_queue_depth_requests", help: "Unfinished requests: what the capacity bounds.",
			read: func(now *reading, out put) {
				out.gauge(float64(now.store.Unfinished))
			}},
		{name: "tandem_queue_capacity_requests", help: "The most unfinished requests that are kept (--max-queue).",
			read: func(now *reading, out put) {
				out.gauge(float64(now.store.Capacity))
			}},
		{name: "tandem_callbacks_ended_total", help: "Callbacks delivered or given up since the database was made.",
			labels: []string{"outcome"}, read: func(now *reading, out put) {
				for _, status := range []tandem.CallbackStatus{tandem.CallbackSent, tandem.CallbackFailed} {
					out.counter(now.store.Callback[status], string(status))
				}
			}},
		{
			name: "tandem_callback_oldest_undelivered_seconds",
			help: "How long the undelivered callback that has waited longest has waited; 0 when none waits.",
			read: func(now *reading, out put) {
				if now.waitingKnown {
					out.age(now.at, now.waiting.Oldest)
				}
			},
		},
		{name: "tandem_callback_attempts_total",
			help: "Tries to deliver a callback since the database was made, " +
				"by outcome.", labels: []string{"outcome"}, read: func(now *reading, out put) {
				out.counter(now.store.Attempts[tandem.OutcomeDelivered], string(tandem.OutcomeDelivered))
				for outcome, count := range now.store.Attempts {
					if outcome != tandem.OutcomeDelivered {
						out.counter(count, string(outcome))
					}
				}
			}},
		{name: "tandem_store_commit_seconds", help: "Commits since the start and the time they took, the fsync included.",
			read: func(now *reading, out put) {
				out.summary(now.store.Commits.Count, now.store.Commits.Time.Seconds())
			}},
		{name: "tandem_store_commit_writes",
			help: "Commits since the start and the writes in them: accepted requests, results, attempts and " +
				"the like.", read: func(now *reading, out put) {
				out.summary(now.store.Commits.Count, float64(now.store.Commits.Writes))
			}},
		{name: "tandem_store_commits_failed_total",
			help: "Commits that failed since the start; nothing of them was kept.", read: func(now *reading, out put) {
				out.counter(now.store.Commits.Failed)
			}},
	}
}

// revision is the commit that the binary was built from, with "+" when there were
// changes beside it; "" when the tool chain does not say.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var commit, mark string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			commit = setting.Value
		case "vcs.modified":
			if setting.Value == "true" {
				mark = "+"
			}
		}
	}
	return commit + mark
}
