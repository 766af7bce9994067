package load

import "time"

// SchemaVersion names the form of a [Report] in JSON; api/load-report.schema.json describes it. A breaking change gets
// a new number.
const SchemaVersion = "tandem.load/1"

// The phases of a run, in their order.
const (
	PhaseSync  = "sync"  // every request asks for the answer on the connection
	PhaseAsync = "async" // every request asks for a callback
	PhaseMixed = "mixed" // both, at the ratio of Settings.SyncRatio
)

// The values of Settings.Completion: how the generator sees the end of async work.
const (
	CompletionCallback = "callback" // by the callback
	CompletionPoll     = "poll"     // by GET /requests/{id}, because no callback can reach it
)

// The values of Callbacks.Breaker.
const (
	BreakerClosed   = "closed"    // callbacks are tried
	BreakerOpen     = "open"      // they are held back
	BreakerHalfOpen = "half-open" // one is tried
)

// Report is everything a run measured. Every field has its unit in its name; times of day are UTC. Missing measurements
// are absent rather than zero.
type Report struct {
	Schema         string            `json:"schema"`          // SchemaVersion
	Tool           string            `json:"tool"`            // "tandem 1.0.0"
	StartedAt      time.Time         `json:"started_at"`      // of the run, warm-up included
	WallSeconds    float64           `json:"wall_seconds"`    // of the run, warm-up and drains included
	Mode           string            `json:"mode"`            // balanced, demo or production
	Interrupted    bool              `json:"interrupted"`     // ended by a signal: an incomplete report
	Valid          bool              `json:"valid"`           // false: the generator was the bottleneck, or no figures
	InvalidReasons []string          `json:"invalid_reasons"` // why not, for people
	Warnings       []string          `json:"warnings"`        // for people
	Target         Target            `json:"target"`
	Settings       Settings          `json:"settings"`
	Phases         []Phase           `json:"phases"` // in the order of their runs
	Comparison     *Comparison       `json:"comparison,omitzero"`
	Insights       []Insight         `json:"insights"`
	Thresholds     []ThresholdResult `json:"thresholds"` // empty when interrupted: none is evaluated then
	Generator      Generator         `json:"generator"`
}

// Target is the service under load, by its own description.
type Target struct {
	URL           string  `json:"url"`                       // userinfo and query redacted
	Version       string  `json:"version"`                   // of GET /healthz
	Mode          string  `json:"mode,omitzero"`             // demo or production, by /stats
	MetricsRead   bool    `json:"metrics_read"`              // GET /metrics could be read
	ClockOffsetMS float64 `json:"clock_offset_milliseconds"` // its clock minus ours, to half a round trip
}

// Settings are the options of the run.
type Settings struct {
	Requests          int64   `json:"requests"`         // per phase; 0: as many as Duration holds
	DurationSeconds   float64 `json:"duration_seconds"` // per phase; 0: as long as Requests take
	Concurrency       int     `json:"concurrency"`      // callers of a closed loop; of an open one, most requests at once
	RatePerSecond     float64 `json:"rate_per_second"`  // open loop, at the end of a ramp; 0: closed loop
	RampFromPerSecond float64 `json:"ramp_from_per_second"`
	WarmupSeconds     float64 `json:"warmup_seconds"`
	SyncRatio         float64 `json:"sync_ratio"` // of the mixed phase, 0..1
	Task              string  `json:"task"`
	Complexity        int     `json:"complexity"`
	DataBytes         int     `json:"data_bytes"`
	TimeoutSeconds    float64 `json:"timeout_seconds"` // of one request
	DrainSeconds      float64 `json:"drain_seconds"`   // the longest wait for callbacks after the last request of a phase
	Seed              uint64  `json:"seed"`
	On429             string  `json:"on_429"`         // count or respect
	Completion        string  `json:"completion"`     // CompletionCallback or CompletionPoll
	CallbackURL       string  `json:"callback_url"`   // base; empty when polling
	Signed            bool    `json:"signed"`         // signatures were verified
	SinkFailRate      float64 `json:"sink_fail_rate"` // 0..1, of callbacks answered badly on purpose
	SinkDelaySeconds  float64 `json:"sink_delay_seconds"`
}

// Phase is one part of a run: the same work at the same concurrency, asked for in one way, or in both.
type Phase struct {
	Name        string  `json:"name"`
	Loop        string  `json:"loop"`         // closed or open
	SendSeconds float64 `json:"send_seconds"` // first planned send to the last answer
	// first planned send to the last result; to the end of the drain when results are missing
	WallSeconds float64    `json:"wall_seconds"`
	Sync        *Side      `json:"sync,omitzero"`
	Async       *Side      `json:"async,omitzero"`
	Callbacks   *Callbacks `json:"callbacks,omitzero"` // of Async
	Server      *ServerUse `json:"server,omitzero"`    // where /metrics could be read
	Lag         Latency    `json:"scheduling_lag"`     // open loop: planned to actual send; in response times
	// the generator's own part of Lag: a caller was free, and it was late all the same
	OwnLag Latency `json:"generator_lag"`
}

// Side is one way of asking within a phase.
type Side struct {
	// requests of the schedule up to an interruption; closed loop: the same as Sent
	Planned int64 `json:"planned"`
	// put on the wire; Sent + Retried = Accepted + Errors
	Sent int64 `json:"sent"`
	// refusals (429, 503) retried after their pause; each is in Errors too
	Retried  int64 `json:"retried"`
	Accepted int64 `json:"accepted"` // answered 200 (sync) or 202 (async)
	// results at the caller: the 200, or the first good callback with status completed
	Completed          int64   `json:"completed"`
	WorkFailed         int64   `json:"work_failed"`          // results with failed work
	AcceptedPerSecond  float64 `json:"accepted_per_second"`  // over Phase.SendSeconds
	CompletedPerSecond float64 `json:"completed_per_second"` // over Phase.WallSeconds
	SuccessRatePercent float64 `json:"success_rate_percent"` // Completed of Sent, 0..100
	// :: category (connect, timeout, http_429, http_4xx by code, http_5xx by code, bad_body) → requests
	Errors     map[string]int64 `json:"errors"`
	Response   Latency          `json:"response_time"`       // planned send to the whole answer (async: the 202)
	Service    Latency          `json:"service_time"`        // the same from the actual send
	EndToEnd   *Latency         `json:"end_to_end,omitzero"` // async: planned send to the callback read
	Processing *Latency         `json:"processing,omitzero"` // in the task, as the server says
	// async: work ended, by the server's clock corrected by its offset, to the callback read
	DeliveryLag       *Latency `json:"delivery_lag,omitzero"`
	SeriesStepSeconds int      `json:"series_step_seconds"` // of a step of Series; 1 up to an hour
	Series            []Step   `json:"series"`
}

// Latency is a distribution. HDR holds all of it, in microseconds, for merging the distributions of several runs;
// percentiles are never merged.
type Latency struct {
	Count  int64   `json:"count"`
	MinMS  float64 `json:"min_milliseconds"`
	MeanMS float64 `json:"mean_milliseconds"`
	P50MS  float64 `json:"p50_milliseconds"`
	P90MS  float64 `json:"p90_milliseconds"`
	P95MS  float64 `json:"p95_milliseconds"`
	P99MS  float64 `json:"p99_milliseconds"`
	P999MS float64 `json:"p999_milliseconds"`
	MaxMS  float64 `json:"max_milliseconds"`
	HDR    string  `json:"hdr_v2_base64"` // HdrHistogram V2, compressed, base64
}

// Step is a slice of a phase's time. Requests are in the step of their planned send, results and errors in the step of
// their arrival.
type Step struct {
	Second    int64   `json:"second"`               // since the phase began
	Sent      int64   `json:"sent"`                 //
	Accepted  int64   `json:"accepted"`             //
	Completed int64   `json:"completed"`            // sync results or callbacks
	Errors    int64   `json:"errors"`               //
	P50MS     float64 `json:"p50_milliseconds"`     // response time of the answers; 0 without any
	P99MS     float64 `json:"p99_milliseconds"`     //
	EndP50MS  float64 `json:"end_p50_milliseconds"` // async end-to-end time of the callbacks
	EndP99MS  float64 `json:"end_p99_milliseconds"` //
}

// Callbacks counts callbacks. Nothing here is inferred: a callback counts when it was received.
type Callbacks struct {
	Expected     int64 `json:"expected"`      // requests answered 202
	Delivered    int64 `json:"delivered"`     // of those, with a good callback before the drain ended
	Missing      int64 `json:"missing"`       // of those, without a callback or a polled result
	Duplicate    int64 `json:"duplicate"`     // good callbacks beyond the first
	BadSignature int64 `json:"bad_signature"` //
	Malformed    int64 `json:"malformed"`     //
	Unknown      int64 `json:"unknown"`       // for unknown keys
	BeforeAnswer int64 `json:"before_answer"` // arrived before the 202 was read
	Late         int64 `json:"late"`          // of the missing, came later, during another phase
	Unanswered   int64 `json:"unanswered"`    // for requests carried out without a 202
	Misbehaved   int64 `json:"misbehaved"`    // answered badly by us, on purpose
	Redelivered  int64 `json:"redelivered"`   // of the delivered, came at a second or later attempt
	Polled       int64 `json:"polled"`        // results seen by polling, never counted as delivered
	// :: status in /requests/{id} → missing ones, from a bounded sample; "unknown" where it could not be read
	MissingByStatus map[string]int64 `json:"missing_by_status"`
	MissingSampled  int64            `json:"missing_sampled"` // how many of the missing were looked up
	// the service's circuit breaker for our receiver when the drain ended; looked up when callbacks were missing or
	// answered badly on purpose
	Breaker string `json:"breaker,omitzero"`
}

// ServerUse is the server's use of resources in a phase, by its own /metrics.
type ServerUse struct {
	CPUSeconds     float64 `json:"cpu_seconds"`      // drain included
	CPUCores       float64 `json:"cpu_cores"`        // average over Phase.WallSeconds
	MaxMemoryBytes int64   `json:"max_memory_bytes"` // resident, the largest seen
}

// Comparison sets the async phase against the sync phase of the same run. A ratio above 1 means async is faster or does
// more; a missing one is absent.
type Comparison struct {
	ResponseP50Ratio   float64 `json:"response_p50_ratio,omitzero"`   // sync response p50 / async acceptance p50
	ResponseP99Ratio   float64 `json:"response_p99_ratio,omitzero"`   //
	AcceptedRatio      float64 `json:"accepted_ratio,omitzero"`       // async / sync, accepted per second
	CompletedRatio     float64 `json:"completed_ratio,omitzero"`      // async / sync, completed per second
	EndToEndP50Ratio   float64 `json:"end_to_end_p50_ratio,omitzero"` // sync response p50 / async end-to-end p50
	SameCompletion     bool    `json:"same_completion"`               // CompletedRatio is within 10 % of 1
	CPUPerRequestSync  float64 `json:"cpu_milliseconds_per_sync_request,omitzero"`
	CPUPerRequestAsync float64 `json:"cpu_milliseconds_per_async_request,omitzero"`
}

// Insight is a sentence for people, with its figures.
type Insight struct {
	Topic   string   `json:"topic"` // answer, throughput, result, callbacks, errors, cost or choice
	Text    string   `json:"text"`
	Figures []string `json:"figures"` // names of metrics (see Metrics), such as async.accept.p99
}

// ThresholdResult is a threshold after a run.
type ThresholdResult struct {
	Expression string  `json:"expression"` // as given, such as async.accept.p99<10ms
	Metric     string  `json:"metric"`     // async.accept.p99
	Measured   bool    `json:"measured"`   // false: there was nothing to measure; it fails then
	Value      float64 `json:"value"`      // in Unit
	Unit       string  `json:"unit"`       // of the metric: ms, per_second, percent, count, cores or mb
	Pass       bool    `json:"pass"`       // false when not measured
}

// Generator is the generator's own use of resources, and its punctuality.
type Generator struct {
	CPUSeconds     float64 `json:"cpu_seconds"`          // 0: unknown on this platform
	CPUShare       float64 `json:"cpu_share_of_machine"` // 0..1, of all cores, averaged over the phases
	MaxMemoryBytes int64   `json:"max_memory_bytes"`     // resident; 0: unknown on this platform
	Cores          int     `json:"cores"`                // GOMAXPROCS
	LagP99MS       float64 `json:"lag_p99_milliseconds"` // its own (Phase.OwnLag), in the worst phase
	SharesMachine  bool    `json:"shares_machine"`       // the target is on this machine: its CPU and ours compete
}
