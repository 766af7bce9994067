package server

import (
	"maps"
	"net/http"
	"runtime/metrics"
	"slices"
	"strings"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/telemetry"
)

// statistics is the answer of GET /stats, the same from every node but for what says otherwise. Totals count since the
// database was made, unless a field says otherwise.
type statistics struct {
	Requests     requestStatistics `json:"request_statistics"`
	Latency      latencies         `json:"latency" doc:"Over the last 5 minutes, of all nodes; what others measured is a few seconds old"`
	Callbacks    callbackService   `json:"callback_service"`
	RateLimiting rateLimiting      `json:"rate_limiting" doc:"Whether a caller is slowed down by this node"`
	Errors       map[string]int64  `json:"errors" doc:"Category → count. Lower case: requests that failed, by error_code. Upper case: errors that this node has answered since its start, by code"`
	Queue        queueStatistics   `json:"queue"`
	System       systemStatistics  `json:"system" doc:"The process that answers"`
}

// requestStatistics are about requests and their work. callback_sent and
// callback_failed are statuses here; callbackService counts callbacks.
type requestStatistics struct {
	Total             int64   `json:"total_requests" minimum:"0" doc:"Accepted"`
	Sync              int64   `json:"sync_requests" minimum:"0"`
	Async             int64   `json:"async_requests" minimum:"0"`
	Completed         int64   `json:"completed_requests" minimum:"0" doc:"Whose work finished well, whatever their callback did"`
	Failed            int64   `json:"failed_requests" minimum:"0" doc:"Whose work failed"`
	Pending           int64   `json:"pending_requests" minimum:"0" doc:"Now"`
	Processing        int64   `json:"processing_requests" minimum:"0" doc:"Now"`
	CallbackSent      int64   `json:"callback_sent" minimum:"0" doc:"Completed requests whose callback was delivered"`
	CallbackFailed    int64   `json:"callback_failed" minimum:"0" doc:"Completed requests whose callback was given up"`
	SyncAverageMS     float64 `json:"sync_avg_processing_time_ms" minimum:"0" doc:"Time in the task; 0 while nothing has ended"`
	AsyncAverageMS    float64 `json:"async_avg_processing_time_ms" minimum:"0" doc:"Time in the task; 0 while nothing has ended"`
	SuccessRate       float64 `json:"success_rate" minimum:"0" maximum:"100" doc:"Percent of the work that ended that ended well; 100 while none has ended"`
	RequestsPerSecond float64 `json:"requests_per_second" minimum:"0" doc:"Accepted, over the last minute"`
}

// latencies are the engines' own measurements, in memory: what a node has measured goes with its process.
type latencies struct {
	SyncResponse     percentiles `json:"sync_response" doc:"From the order to its result"`
	AsyncAcceptance  percentiles `json:"async_acceptance" doc:"From the order to its commit"`
	Processing       percentiles `json:"processing" doc:"Time in the task"`
	AcceptToCallback percentiles `json:"accept_to_callback" doc:"From the commit to the receiver's 2xx"`
}

// percentiles of one duration.
type percentiles struct {
	P50   float64 `json:"p50" minimum:"0" doc:"Milliseconds; 0 when nothing was measured"`
	P95   float64 `json:"p95" minimum:"0"`
	P99   float64 `json:"p99" minimum:"0"`
	Count int64   `json:"count" minimum:"0" doc:"How many were measured"`
}

// callbackService is about callbacks, whatever their request's work did.
type callbackService struct {
	Domains      map[string]domain        `json:"domains"`
	Global       globalCallbacks          `json:"global_stats"`
	DeliveryRate float64                  `json:"delivery_rate" minimum:"0" maximum:"100" doc:"Percent of callbacks that ended that were delivered; 100 while none has ended"`
	Attempts     map[tandem.Outcome]int64 `json:"attempts" doc:"Outcome → attempts"`
}

// domain is one destination and the state of its circuit breakers.
type domain struct {
	Host            string     `json:"host" doc:"Its name or address, without the port"`
	Scheme          string     `json:"scheme" enum:"http,https"`
	State           string     `json:"state" enum:"closed,half-open,open"`
	FailureCount    int        `json:"failure_count" minimum:"0" doc:"In a row"`
	LastFailureTime *time.Time `json:"last_failure_time" doc:"null: none is remembered"`
	RetryAt         *time.Time `json:"retry_at" doc:"When an open breaker lets a probe pass; null unless open"`
	InFlight        int        `json:"in_flight" minimum:"0" doc:"Exchanges of this node now"`
	Waiting         int        `json:"waiting" minimum:"0" doc:"Calls of this node that wait for a place"`

	Undelivered int64      `json:"undelivered" minimum:"0"`
	More        bool       `json:"undelivered_more"`
	Oldest      *time.Time `json:"oldest_undelivered_at"`
}

// globalCallbacks sums up; the destinations are those listed, not all there ever were.
type globalCallbacks struct {
	Sent         int64 `json:"sent" minimum:"0" doc:"Delivered, those that report failed work included"`
	Failed       int64 `json:"failed" minimum:"0" doc:"Given up"`
	Destinations int   `json:"destinations" minimum:"0" doc:"Listed in domains"`
	OpenBreakers int   `json:"open_breakers" minimum:"0" doc:"Of those listed"`
	InFlight     int   `json:"in_flight" minimum:"0" doc:"Exchanges of this node now"`
}

// queueStatistics are gauges: what is still to be done.
type queueStatistics struct {
	Depth     int64                `json:"depth" minimum:"0" doc:"Unfinished requests; what capacity bounds"`
	OldestAge float64              `json:"oldest_age_seconds" minimum:"0" doc:"How long the job that has waited longest has been due; 0: none waits"`
	Capacity  int64                `json:"capacity" minimum:"0" doc:"--max-queue"`
	Lanes     map[store.Lane]int64 `json:"lanes" doc:"Jobs waiting or dispatched, by kind of slot"`
}

// systemStatistics are about this process alone.
type systemStatistics struct {
	UptimeSeconds float64   `json:"uptime_seconds" minimum:"0" doc:"Since the process started"`
	Timestamp     time.Time `json:"timestamp" doc:"Now, UTC"`
	Version       string    `json:"version" doc:"Of tandem"`
	Mode          string    `json:"mode" doc:"demo or production" example:"demo"`
	Memory        memory    `json:"memory"`
	Goroutines    uint64    `json:"goroutines" minimum:"1" doc:"Of the process"`

	Connections connectionFigures `json:"connections"`
}

// memory in bytes, as runtime/metrics counts it.
type memory struct {
	HeapBytes  uint64 `json:"heap_bytes" doc:"Live objects and those not yet swept"`
	TotalBytes uint64 `json:"total_bytes" doc:"All memory that the Go runtime holds"`
}

// handleStats gathers the figures. It costs the same however long the history is.
func (s *server) handleStats(r *http.Request) (statistics, error) {
	counted, err := s.cfg.Store.Stats(r.Context())
	if err != nil {
		return statistics{}, err
	}
	waiting, err := s.waiting.now(r.Context(), s.cfg.Store)
	if err != nil && counted.Unavailable == nil {
		return statistics{}, err
	}
	now := time.Now()
	recent, perSecond := s.cfg.Metrics.Recent()
	return statistics{
		Requests:     requestFigures(&counted, perSecond),
		Latency:      latencyFigures(recent),
		Callbacks:    callbackFigures(&counted, s.cfg.Engine.Destinations(), waiting.Sites),
		RateLimiting: s.rateLimiting(now),
		Errors:       s.errorFigures(counted.Failures),
		Queue:        queueFigures(&counted, now),
		System:       s.systemFigures(now),
	}, nil
}

func requestFigures(c *store.Stats, perSecond float64) requestStatistics {
	completed, failed := c.Ended[tandem.StatusCompleted], c.Ended[tandem.StatusFailed]
	return requestStatistics{
		Total:             c.Requests[tandem.ModeSync] + c.Requests[tandem.ModeAsync],
		Sync:              c.Requests[tandem.ModeSync],
		Async:             c.Requests[tandem.ModeAsync],
		Completed:         completed,
		Failed:            failed,
		Pending:           c.Now[tandem.StatusPending],
		Processing:        c.Now[tandem.StatusProcessing],
		CallbackSent:      c.Ended[tandem.StatusCallbackSent],
		CallbackFailed:    c.Ended[tandem.StatusCallbackFailed],
		SyncAverageMS:     average(c.Work[tandem.ModeSync]),
		AsyncAverageMS:    average(c.Work[tandem.ModeAsync]),
		SuccessRate:       percent(completed, failed),
		RequestsPerSecond: perSecond,
	}
}

// average is in milliseconds.
func average(w store.WorkTime) float64 {
	if w.Count == 0 {
		return 0
	}
	return float64(w.Total) / float64(w.Count) / float64(time.Millisecond)
}

// percent is the share of good ones. Nothing ended badly while nothing ended.
func percent(good, bad int64) float64 {
	if good+bad == 0 {
		return 100
	}
	return 100 * float64(good) / float64(good+bad)
}

func latencyFigures(measured telemetry.Latencies) latencies {
	of := func(name string) percentiles {
		p := measured[name]
		return percentiles{p.P50, p.P95, p.P99, p.Count}
	}
	return latencies{of("sync_response"), of("async_acceptance"), of("processing"), of("accept_to_callback")}
}

func callbackFigures(c *store.Stats, known []engine.Destination, waiting []store.UndeliveredSite) callbackService {
	sent, failed := c.Callback[tandem.CallbackSent], c.Callback[tandem.CallbackFailed]
	destinations, parked := merged(known, waiting)
	figures := callbackService{
		Domains:      make(map[string]domain, len(destinations)),
		Global:       globalCallbacks{Sent: sent, Failed: failed, Destinations: len(destinations)},
		DeliveryRate: percent(sent, failed),
		Attempts:     c.Attempts,
	}
	if figures.Attempts == nil {
		figures.Attempts = map[tandem.Outcome]int64{}
	}
	for _, d := range destinations {
		name := d.Host
		if _, taken := figures.Domains[name]; taken {
			name = d.Scheme + "://" + d.Host
		}
		wait := parked[d.Scheme+"://"+d.Host]
		figures.Domains[name] = domain{
			hostName(d.Host), d.Scheme, d.State, d.FailureCount, orNull(d.LastFailure), orNull(d.RetryAt),
			d.InFlight, d.Waiting, wait.Count, wait.More, orNull(wait.Oldest),
		}
		figures.Global.InFlight += d.InFlight
		if d.State == "open" {
			figures.Global.OpenBreakers++
		}
	}
	return figures
}

// merged adds the sites that callbacks wait for to the destinations that this node knows. It also returns what waits
// for each, by site.
func merged(
	known []engine.Destination, waiting []store.UndeliveredSite,
) ([]engine.Destination, map[string]store.UndeliveredSite) {
	parked := make(map[string]store.UndeliveredSite, len(waiting))
	seen := make(map[string]bool, len(known))
	for _, d := range known {
		seen[d.Scheme+"://"+d.Host] = true
	}
	all := slices.Clone(known)
	for _, site := range waiting {
		parked[site.Site] = site
		if scheme, host, ok := strings.Cut(site.Site, "://"); ok && !seen[site.Site] {
			d := engine.Destination{State: "closed"}
			d.Scheme, d.Host = scheme, host
			all = append(all, d)
		}
	}
	return all, parked
}

// orNull keeps "never" apart from the year 1.
func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// errorFigures puts both kinds of error side by side: work that failed, and
// requests that were answered with a problem.
func (s *server) errorFigures(failures map[string]int64) map[string]int64 {
	figures := make(map[string]int64, len(failures))
	maps.Copy(figures, failures)
	for i := range s.tally {
		if n := s.tally[i].Load(); n > 0 {
			figures[string(kinds[i].Code)] = n
		}
	}
	return figures
}

func queueFigures(c *store.Stats, now time.Time) queueStatistics {
	figures := queueStatistics{Depth: c.Unfinished, Capacity: c.Capacity,
		Lanes: make(map[store.Lane]int64, len(store.Lanes))}
	for _, lane := range store.Lanes {
		figures.Lanes[lane] = c.Queue[lane]
	}
	if !c.OldestDue.IsZero() {
		figures.OldestAge = seconds(max(now.Sub(c.OldestDue), 0))
	}
	return figures
}

// systemFigures reads the runtime's own metrics, which does not stop the world.
func (s *server) systemFigures(now time.Time) systemStatistics {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/sched/goroutines:goroutines"},
	}
	metrics.Read(samples)
	return systemStatistics{
		UptimeSeconds: seconds(now.Sub(s.started)), Timestamp: now.UTC().Truncate(time.Millisecond),
		Version: tandem.Version, Mode: s.cfg.Mode,
		Memory: memory{HeapBytes: samples[0].Value.Uint64(),
			TotalBytes: samples[1].Value.Uint64() - samples[2].Value.Uint64()},
		Goroutines: samples[3].Value.Uint64(), Connections: s.cfg.Connections.figures(),
	}
}
