package load

import (
	"encoding/json"
	"time"

	"tandem"
)

// Config says what a run does. [Config.Validate] tells contradictions apart from defaults.
type Config struct {
	URL    string   // base URL of the service: http or https, host, maybe a path
	Mode   string   // balanced, demo or production: goes into the report; what it means is decided by who fills the Config
	Phases []string // PhaseSync, PhaseAsync, PhaseMixed in the order to run; empty: all three

	Requests    int64         // per phase; 0: no bound but Duration
	Duration    time.Duration // per phase; 0: no bound but Requests
	Concurrency int           // callers of a closed loop, requests in flight at most of an open one; at least 1
	Rate        float64       // requests per second of an open loop; 0: closed loop
	RampFrom    float64       // with Rate: the rate at the start of the phase, growing evenly to Rate; 0: Rate throughout
	Warmup      time.Duration // of load before the phases, that no figure counts
	SyncRatio   float64       // of the mixed phase, 0..1

	Task       string          // "" leaves the choice to the service
	Complexity int             // 1..10
	Data       json.RawMessage // a JSON object; nil: {"number": n}, another in every request

	Callback CallbackConfig
	Drain    time.Duration // the longest wait for callbacks after the last request of a phase
	Timeout  time.Duration // of one request, answer included

	On429  string        // On429Count or On429Respect
	APIKey string        // sent as a bearer token; "" sends none
	Secret tandem.Secret // verifies callbacks; zero: they are not verified, and the report says so
	Seed   uint64        // of every random choice
	Tool   string        // name and version, for the report and the User-Agent

	Thresholds []Threshold    // evaluated when the run was not interrupted
	Progress   func(Progress) // told about ten times a second, from one goroutine; nil: nobody
}

// CallbackConfig says how results come back.
type CallbackConfig struct {
	Listen    string    // host:port of the receiver; port 0 takes a free one
	PublicURL string    // how the service reaches the receiver; "": http:// and the listening address
	Poll      bool      // no callback can reach us: poll GET /requests/{id}, and give the service a callback_url that Poll's own receiver does not need
	Behaviour Behaviour // of the receiver, to see retries and the breaker at work
}

// What to do when the service answers 429 or 503.
const (
	On429Count   = "count"   // count it and go on
	On429Respect = "respect" // count it, wait as Retry-After and RateLimit say, and try again
)

// Progress is where a run stands.
type Progress struct {
	Phase       string        // PhaseSync, PhaseAsync, PhaseMixed; "warm-up"
	Number      int           // of the phase, from 1
	Phases      int           // how many there are
	Elapsed     time.Duration // of the phase
	Planned     int64         // requests of the phase; 0: Duration decides
	Duration    time.Duration // of the phase; 0: Planned decides
	Sent        int64         //
	Accepted    int64         //
	Completed   int64         //
	Errors      int64         //
	Outstanding int64         // callbacks expected and not received
	PerSecond   float64       // answers in the last second
	P50MS       float64       // response time of the last second
	P99MS       float64       //
	Draining    bool          // everything is sent, callbacks are awaited
	Done        bool          // the phase is over: the last that is told of it, once per phase
}
