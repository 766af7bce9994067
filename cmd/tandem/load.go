package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/load"
	"tandem/internal/receiver"
)

// The modes of a load run, besides app.Demo and app.Production.
const modeBalanced = "balanced"

const (
	loadURL       = "http://127.0.0.1:8000"
	maxDataFile   = 16 << 20
	maxLoadCount  = 1_000_000_000
	openLoopBound = 512 // requests in flight at most when --rate sets the pace and nothing else is said
)

// What production mode does without being asked again: no more than a live system
// would not notice, and no more in a minute than its rate limit lets one client do.
const (
	safeRequests    = 50
	safeConcurrency = 5
)

// loadCommand is the command line of load. What is zero here and not in its
// help depends on the mode.
type loadCommand struct {
	URL            string `name:"url" placeholder:"URL" env:"TANDEM_LOAD_URL" help:"The service (default: http://127.0.0.1:8000; with --demo-mode: a server of its own)."`
	DemoMode       bool   `help:"Much at once, and work that waits. Without --url a server is started."`
	ProductionMode bool   `help:"Safe on a live system: at most 50 requests in all, 5 at a time; waits when refused; asks before anything beyond."`
	Yes            bool   `help:"With --production-mode: do not ask."`

	Requests    int64         `short:"n" placeholder:"N" help:"Requests in all, shared evenly by the phases (balanced: 500, demo: 6000, with --duration as many as it holds; production: 50)."`
	Duration    time.Duration `help:"Time to send in all, shared evenly by the phases."`
	Concurrency int           `short:"c" placeholder:"N" help:"Callers, each of which sends its next request when the last is answered (balanced: 20, demo: 64, production: 5). With --rate: requests in flight at most (512; production: 5)."`
	Rate        float64       `placeholder:"PER-SECOND" help:"Send by a schedule, whatever the answers do (open loop)."`
	Ramp        string        `placeholder:"A:B" help:"As --rate, growing evenly from A to B per second in each phase."`
	Phases      []string      `enum:"sync,async,mixed" placeholder:"PHASE" help:"Which of sync,async,mixed to run (default: all three)."`
	SyncRatio   float64       `default:"0.5" placeholder:"0..1" help:"Share of sync requests in the mixed phase (default: ${default})."`
	Warmup      time.Duration `help:"Load before the phases that no figure counts."`
	Drain       time.Duration `default:"30s" help:"Longest wait for callbacks after the last request of a phase."`
	Timeout     time.Duration `default:"60s" help:"Longest wait for one answer."`

	Task       string `placeholder:"NAME" help:"The work (demo: sleep; else the service's default)."`
	Complexity int    `default:"1" placeholder:"1..10" help:"How much work (default: ${default})."`
	Data       string `placeholder:"FILE" help:"A JSON object to send as data (default: a number, another in every request)."`
	Seed       uint32 `placeholder:"N" help:"Of every random choice (default: another in every run; the report names it)."`

	APIKey string `name:"api-key" placeholder:"KEY|@FILE" env:"TANDEM_API_KEY" help:"Sent as a bearer token."`
	On429  string `name:"on-429" placeholder:"count|respect" enum:"count,respect," default:"" help:"What a 429 or 503 does: it is counted, or also waited for as Retry-After says (production)."`

	CallbackPort  uint16        `placeholder:"PORT" help:"Port of the receiver of the callbacks (default: any free one)."`
	CallbackURL   string        `name:"callback-url" placeholder:"URL" help:"How the service reaches the receiver, when that is behind a proxy."`
	SigningSecret string        `placeholder:"whsec_…|@FILE" env:"TANDEM_SIGNING_SECRET" help:"Verifies callbacks. Without it they are counted unverified, and the report says so."`
	SinkFailRate  float64       `placeholder:"0..1" help:"Answer this share of the callbacks 500, to see them tried again."`
	SinkDelay     time.Duration `help:"Wait before each answer to a callback."`

	Output    string   `placeholder:"FILE" help:"Write the report as JSON, for tandem compare."`
	HTML      string   `name:"html" placeholder:"FILE" help:"Write the report as one page with charts."`
	Threshold []string `sep:"none" placeholder:"EXPR" help:"Exit 3 unless it holds: 'async.accept.p99<10ms'. May be repeated."`
	Plain     bool     `help:"Plain lines, even on a terminal."`

	config load.Config // all of this, read; a server of our own comes later
}

// mode is the mode's name.
func (c *loadCommand) mode() string {
	switch {
	case c.DemoMode:
		return app.Demo
	case c.ProductionMode:
		return app.Production
	default:
		return modeBalanced
	}
}

// ownServer reports whether the run needs a server started.
func (c *loadCommand) ownServer() bool { return c.DemoMode && c.URL == "" }

// Validate fills in what depends on the mode and refuses what cannot work;
// kong calls it.
func (c *loadCommand) Validate() error {
	if err := c.validBounds(); err != nil {
		return err
	}
	if err := c.validCombination(); err != nil {
		return err
	}
	c.fillIn()
	if c.Requests > 0 && c.Requests < int64(len(c.Phases)) {
		return badArgument("--phases async runs one of them",
			"--requests %d: want at least one for each of the %d phases", c.Requests, len(c.Phases))
	}
	var err error
	if c.config, err = c.read(); err != nil {
		return err
	}
	if err := c.config.Validate(); err != nil {
		return badArgument("", "%w", err)
	}
	return nil
}

// validBounds checks each value by itself.
func (c *loadCommand) validBounds() error {
	if c.URL != "" {
		if err := validServiceURL(c.URL); err != nil {
			return badArgument("", "--url %s: %w", app.Redact(c.URL), err)
		}
	}
	for _, number := range []struct {
		flag          string
		value, lo, hi float64
	}{
		{"requests", float64(c.Requests), 0, maxLoadCount},
		{"concurrency", float64(c.Concurrency), 0, 10_000},
		{"rate", c.Rate, 0, 1_000_000},
		{"sync-ratio", c.SyncRatio, 0, 1},
		{"complexity", float64(c.Complexity), 1, 10},
		{"sink-fail-rate", c.SinkFailRate, 0, 1},
	} {
		if !(number.value >= number.lo && number.value <= number.hi) { // NaN is neither
			return badArgument("", "--%s %v: want %.0f to %.0f", number.flag, number.value, number.lo, number.hi)
		}
	}
	for _, bound := range []struct {
		flag          string
		value, lo, hi time.Duration
	}{
		{"duration", c.Duration, 0, 7 * day},
		{"warmup", c.Warmup, 0, time.Hour},
		{"drain", c.Drain, 0, day},
		{"timeout", c.Timeout, time.Millisecond, time.Hour},
		{"sink-delay", c.SinkDelay, 0, time.Hour},
	} {
		if bound.value < bound.lo || bound.value > bound.hi {
			return badArgument("", "--%s %v: want %v to %v", bound.flag, bound.value, bound.lo, bound.hi)
		}
	}
	return nil
}

// validCombination refuses flags that contradict each other.
func (c *loadCommand) validCombination() error {
	receives := c.CallbackPort != 0 || c.SinkFailRate != 0 || c.SinkDelay != 0
	switch {
	case c.DemoMode && c.ProductionMode:
		return badArgument("", "--demo-mode and --production-mode contradict each other")
	case c.ProductionMode && c.URL == "":
		return badArgument("--url names the live system", "--production-mode: which one?")
	case c.Yes && !c.ProductionMode:
		return badArgument("only production mode asks", "--yes: nothing is asked without --production-mode")
	case c.Ramp != "" && c.Rate != 0:
		return badArgument("--ramp 10:500 ends at 500 per second", "--ramp and --rate contradict each other")
	case c.ProductionMode && c.CallbackURL == "" && receives:
		return badArgument("--callback-url names an address at which the service reaches the receiver",
			"--callback-port and --sink-…: production mode has no receiver without --callback-url, it polls")
	case c.CallbackURL != "" && c.ownServer():
		return badArgument("", "--callback-url is for a service elsewhere: name it with --url")
	case c.Output != "" && c.Output == c.HTML:
		return badArgument("", "--output and --html name the same file")
	case c.CallbackURL == "":
		return nil
	}
	if err := validServiceURL(c.CallbackURL); err != nil {
		return badArgument("", "--callback-url %s: %w", app.Redact(c.CallbackURL), err)
	}
	if c.CallbackPort == 0 {
		return badArgument("--callback-port is where the proxy passes callbacks on to",
			"--callback-url needs --callback-port")
	}
	return nil
}

// fillIn gives what was not said the value of the mode.
func (c *loadCommand) fillIn() {
	if len(c.Phases) == 0 {
		c.Phases = []string{load.PhaseSync, load.PhaseAsync, load.PhaseMixed}
	}
	defaults := map[string]struct {
		requests    int64
		concurrency int
		task        string
		on429       string
	}{
		modeBalanced:   {500, 20, "", load.On429Count},
		app.Demo:       {6000, 64, "sleep", load.On429Count},
		app.Production: {safeRequests, safeConcurrency, "", load.On429Respect},
	}[c.mode()]
	if c.Requests == 0 && (c.Duration == 0 || c.ProductionMode) {
		c.Requests = defaults.requests
	}
	if c.Concurrency == 0 {
		c.Concurrency = defaults.concurrency
		if (c.Rate > 0 || c.Ramp != "") && !c.ProductionMode {
			c.Concurrency = openLoopBound
		}
	}
	if c.Task == "" {
		c.Task = defaults.task
	}
	if c.On429 == "" {
		c.On429 = defaults.on429
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint32()
	}
}

// read makes the configuration of the run, with what stands in files.
func (c *loadCommand) read() (load.Config, error) {
	phases := int64(len(c.Phases))
	config := load.Config{
		URL: cmp.Or(c.URL, loadURL), Mode: c.mode(), Phases: c.Phases,
		Requests: c.Requests / phases, Duration: c.Duration / time.Duration(phases),
		Concurrency: c.Concurrency, Rate: c.Rate, Warmup: c.Warmup, SyncRatio: c.SyncRatio,
		Task: c.Task, Complexity: c.Complexity, Drain: c.Drain, Timeout: c.Timeout,
		On429: c.On429, Seed: uint64(c.Seed), Tool: "tandem " + tandem.Version,
		Callback: load.CallbackConfig{
			PublicURL: c.CallbackURL,
			Poll:      c.ProductionMode && c.CallbackURL == "",
			Behaviour: receiver.Behaviour{FailRate: c.SinkFailRate, Delay: c.SinkDelay},
		},
	}
	if !config.Callback.Poll {
		config.Callback.Listen = ":" + strconv.Itoa(int(c.CallbackPort))
	}
	var err error
	if config.Secret, err = app.ReadSecret(c.SigningSecret); err != nil {
		return config, badArgument("", "--signing-secret: %w", err)
	}
	if config.APIKey, err = readKey(c.APIKey); err != nil {
		return config, badArgument("", "--api-key: %w", err)
	}
	if config.Data, err = readData(c.Data); err != nil {
		return config, badArgument("data is a JSON object with at least one member", "--data: %w", err)
	}
	if config.RampFrom, config.Rate, err = readRamp(c.Ramp, c.Rate); err != nil {
		return config, badArgument("", "--ramp %s: %w", c.Ramp, err)
	}
	for _, text := range c.Threshold {
		threshold, err := load.ParseThreshold(text)
		if err != nil {
			return config, badArgument("", "--%w", err) // which begins with "threshold"
		}
		config.Thresholds = append(config.Thresholds, threshold)
	}
	return config, nil
}

// beyond lists what goes further than production mode does without being asked.
func (c *loadCommand) beyond() []string {
	if !c.ProductionMode {
		return nil
	}
	var more []string
	if c.Requests > safeRequests {
		more = append(more, fmt.Sprintf("%d requests instead of at most %d", c.Requests, safeRequests))
	}
	if c.Warmup > 0 {
		more = append(more, fmt.Sprintf("%v of warm-up", c.Warmup))
	}
	if c.Concurrency > safeConcurrency {
		more = append(more, fmt.Sprintf("%d requests at a time instead of %d", c.Concurrency, safeConcurrency))
	}
	if c.On429 == load.On429Count {
		more = append(more, "not waiting when the service refuses")
	}
	if c.SinkFailRate > 0 {
		more = append(more, "callbacks refused on purpose, which its circuit breaker will notice")
	}
	return more
}

// validServiceURL checks a base URL without looking a name up.
func validServiceURL(text string) error {
	address, err := url.Parse(text)
	if err != nil || address.Hostname() == "" || !slices.Contains([]string{"http", "https"}, address.Scheme) {
		return fmt.Errorf("want http://HOST:PORT or https://HOST")
	}
	if address.RawQuery != "" || address.Fragment != "" {
		return fmt.Errorf("want no query and no fragment")
	}
	return nil
}

// readKey reads an API key, or @ and the name of a file that holds it.
func readKey(text string) (string, error) {
	name, ok := strings.CutPrefix(text, "@")
	if !ok {
		return text, nil
	}
	content, err := os.ReadFile(name)
	return strings.TrimSpace(string(content)), err
}

// readData reads a file of --data.
func readData(name string) (json.RawMessage, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	content, err := io.ReadAll(io.LimitReader(file, maxDataFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var object map[string]any
	switch err := json.Unmarshal(content, &object); {
	case len(content) > maxDataFile:
		return nil, fmt.Errorf("%s: longer than %d bytes", name, maxDataFile)
	case errors.As(err, new(*json.UnmarshalTypeError)):
		return nil, fmt.Errorf("%s: not an object", name)
	case err != nil:
		return nil, fmt.Errorf("%s: not JSON: %w", name, err)
	case len(object) == 0:
		return nil, fmt.Errorf("%s: the object is empty", name)
	}
	return content, nil
}

// readRamp reads A:B; without it the rate is what --rate says throughout.
func readRamp(text string, rate float64) (from, to float64, err error) {
	if text == "" {
		return 0, rate, nil
	}
	first, last, ok := strings.Cut(text, ":")
	from, errFrom := parseNumber(first)
	to, errTo := parseNumber(last)
	if !ok || errFrom != nil || errTo != nil || !(from > 0 && from <= 1_000_000 && to > 0 && to <= 1_000_000) {
		return 0, 0, fmt.Errorf("want two rates per second, such as 10:500")
	}
	return from, to, nil
}
