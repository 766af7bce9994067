package load

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"time"

	"tandem"
	"tandem/internal/receiver"
)

// Bounds of a [Config]: a larger run would not fit into memory or a working day.
const (
	maxConcurrency = 10_000
	maxRequests    = 100_000_000
	maxDuration    = 24 * time.Hour
	maxRate        = 1_000_000
	maxData        = 16 << 20
	maxComplexity  = 10
	defaultTimeout = time.Minute
)

// Config describes a run. [Config.Validate] fills in defaults and refuses contradictions.
type Config struct {
	URL    string   // base URL of the service: http or https, host, maybe a path
	Mode   string   // balanced, demo or production; for the report only
	Phases []string // PhaseSync, PhaseAsync, PhaseMixed in the order to run; empty: all three

	Requests    int64         // per phase; 0: no bound but Duration
	Duration    time.Duration // per phase; 0: no bound but Requests
	Concurrency int           // callers of a closed loop, requests in flight at most of an open one; at least 1
	Rate        float64       // requests per second of an open loop; 0: closed loop
	RampFrom    float64       // with Rate: the rate at the start of the phase, growing evenly to Rate; 0: Rate throughout
	Warmup      time.Duration // of load before the phases, not counted
	SyncRatio   float64       // of the mixed phase, 0..1

	Task       string          // "" leaves the choice to the service
	Complexity int             // 1..10; 0: 1
	Data       json.RawMessage // a JSON object; nil: {"number": n}, another in every request

	Callback CallbackConfig
	Drain    time.Duration // the longest wait for callbacks after the last request of a phase; 0: none
	Timeout  time.Duration // of one request, answer included; 0: a minute

	On429  string        // On429Count or On429Respect; "": count
	APIKey string        // sent as a bearer token; "" sends none
	Secret tandem.Secret // verifies callbacks; zero: they are not verified, and the report says so
	Seed   uint64        // of every random choice
	Tool   string        // name and version, for the report and the User-Agent; "": this one's

	Thresholds []Threshold    // evaluated when the run was not interrupted
	Progress   func(Progress) // called about ten times a second, from one goroutine; nil: nobody

	dial  func(ctx context.Context, network, address string) (net.Conn, error) // nil: the network
	sleep func(time.Duration)                                                  // nil: sleep
}

// CallbackConfig says how results come back.
type CallbackConfig struct {
	Listen    string             // host:port; without host: where the service reaches it; port 0: any; "": both
	PublicURL string             // how the service reaches the receiver; "": http:// and the listening address
	Poll      bool               // no callback can reach us: poll GET /requests/{id} and give an unreachable callback_url
	Behaviour receiver.Behaviour // of the receiver, to see retries and the breaker at work
}

// Validate fills in defaults and returns an error when the configuration
// contradicts itself or asks for more than a run can do.
func (c *Config) Validate() error {
	c.fill()
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return fmt.Errorf("url: %w", errors.Unwrap(err)) // without the URL: it may hold a password
	case !isBase(u):
		return errors.New("url: want http or https, a host and maybe a path, such as http://127.0.0.1:8000")
	case u.User != nil:
		return errors.New("url: a name or password in it is not sent; give an API key instead")
	}
	for i, phase := range c.Phases {
		if phase != PhaseSync && phase != PhaseAsync && phase != PhaseMixed {
			return fmt.Errorf("phase %.40q: want %s, %s or %s", phase, PhaseSync, PhaseAsync, PhaseMixed)
		}
		if slices.Contains(c.Phases[:i], phase) {
			return fmt.Errorf("phase %s: given twice", phase)
		}
	}
	for _, bound := range []struct {
		name        string
		value       float64
		least, most float64
	}{
		{"requests", float64(c.Requests), 0, maxRequests},
		{"concurrency", float64(c.Concurrency), 1, maxConcurrency},
		{"rate", c.Rate, 0, maxRate},
		{"start of the ramp", c.RampFrom, 0, maxRate},
		{"sync ratio", c.SyncRatio, 0, 1},
		{"complexity", float64(c.Complexity), 1, maxComplexity},
		{"duration in seconds", c.Duration.Seconds(), 0, maxDuration.Seconds()},
		{"warm-up in seconds", c.Warmup.Seconds(), 0, maxDuration.Seconds()},
		{"drain in seconds", c.Drain.Seconds(), 0, maxDuration.Seconds()},
		{"timeout in seconds", c.Timeout.Seconds(), 0.001, maxDuration.Seconds()},
	} {
		if math.IsNaN(bound.value) || bound.value < bound.least || bound.value > bound.most {
			return fmt.Errorf("%s %v: want %v to %.0f", bound.name, bound.value, bound.least, bound.most)
		}
	}
	for _, threshold := range c.Thresholds {
		if err := threshold.Check(c.Phases); err != nil {
			return err
		}
	}
	return errors.Join(c.validateLoop(), c.validateData(), c.Callback.validate())
}

// isBase reports whether a URL can be the base of others: http or https, a host, maybe a path.
func isBase(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.RawQuery == "" && u.Fragment == ""
}

// fill replaces zero values by their defaults.
func (c *Config) fill() {
	if len(c.Phases) == 0 {
		c.Phases = []string{PhaseSync, PhaseAsync, PhaseMixed}
	}
	if c.Complexity == 0 {
		c.Complexity = 1
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.sleep == nil {
		c.sleep = sleep
	}
	if c.On429 == "" {
		c.On429 = On429Count
	}
	if c.Tool == "" {
		c.Tool = "tandem " + tandem.Version
	}
}

func (c *Config) validateLoop() error {
	switch {
	case c.Requests == 0 && c.Duration == 0:
		return errors.New("neither a number of requests nor a duration: the run would not end")
	case c.RampFrom > 0 && c.Rate == 0:
		return errors.New("a ramp needs a rate at its end")
	case c.Rate > 0 && c.Duration > 0 &&
		newSchedule(cmp.Or(c.RampFrom, c.Rate), c.Rate, c.Requests, c.Duration).count == 0:
		return fmt.Errorf("a rate of %v per second sends nothing in %v", c.Rate, c.Duration)
	case c.On429 != On429Count && c.On429 != On429Respect:
		return fmt.Errorf("on 429 %.40q: want %s or %s", c.On429, On429Count, On429Respect)
	}
	return nil
}

func (c *Config) validateData() error {
	if c.Data == nil {
		return nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(c.Data, &object); err != nil {
		return errors.New("data: not a JSON object")
	}
	if len(object) == 0 {
		return errors.New("data: an object with at least one member is needed")
	}
	if len(c.Data) > maxData {
		return fmt.Errorf("data: %d bytes, want at most %d", len(c.Data), maxData)
	}
	return nil
}

func (c *CallbackConfig) validate() error {
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			return fmt.Errorf("address of the receiver: %w", err)
		}
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || !isBase(u) {
			return errors.New("callback url: want http or https, a host and maybe a path")
		}
		c.PublicURL = u.String() // escaped; needs no escapes in JSON
	}
	if c.Poll && (c.Listen != "" || c.PublicURL != "" || c.Behaviour != receiver.Behaviour{}) {
		return errors.New("callbacks are polled for: an address or a behaviour of the receiver has no meaning then")
	}
	if err := c.Behaviour.Validate(); err != nil {
		return fmt.Errorf("receiver: %w", err)
	}
	return nil
}

// The reactions to 429 or 503.
const (
	On429Count   = "count"   // count it and go on
	On429Respect = "respect" // count it, wait as Retry-After and RateLimit say, and try again
)

// Progress is the state of a run.
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
	Done        bool          // the phase is over: its last call
}
