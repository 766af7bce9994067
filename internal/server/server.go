// Package server is how work comes in: the HTTP API, its OpenAPI document and
// the pages that explain both.
//
// One table (routes.go) says what there is; the mux, the Allow header of a
// 405 and the document are made from it, so none of them can lie about
// another. A handler parses, makes one call and renders; whatever goes wrong is a
// *tandem.Error, and problem.go is the only place that knows its status.
//
// The package promises that bad input is never a 5xx, that no body is read
// beyond its limit, and that every answer a handler writes carries X-Process-Time,
// Server-Timing and X-Request-ID. app calls it.
package server

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"tandem/internal/engine"
	"tandem/internal/keys"
	"tandem/internal/limit"
	"tandem/internal/store"
	"tandem/internal/telemetry"
)

// Defaults and bounds of MaxData and MaxDepth.
const (
	DefaultData  = 10_240
	DefaultDepth = 10
	MostData     = 16 << 20
	MostDepth    = 1_000
)

// Config of the API. Zero fields take the defaults named.
type Config struct {
	Engine       *engine.Engine     // required
	Store        store.History      // required; the one that Engine uses
	Metrics      *telemetry.Metrics // required; of Engine
	Keys         *keys.Keys         // whose holders may call; nil: everybody may, and nobody is asked
	Nodes        *store.Nodes       // who shares the database of Store; nil: GET /nodes lists nobody
	Mode         string             // "demo" or "production", as /stats shows it
	TestCallback bool               // serve /test-callback (demo mode)
	MaxData      int64              // bytes of `data`; DefaultData; at most MostData
	MaxDepth     int                // levels of `data`; DefaultDepth; at most MostDepth
	TaskTimeout  time.Duration      // engine.DefaultTaskTimeout; bounds how long an answer may take
	CORSOrigins  []string           // such as https://app.example.com; none: no CORS headers
	RateLimit    limit.Quota        // of all POSTs together, per client; zero: no limit
	ReadLimit    limit.Quota        // of GETs that read data, per client; zero: no limit
	Debug        bool               // what debug_mode says
	Log          *slog.Logger       // slog.Default

	// Leaving is closed when the service is about to stop: from then on /readyz says 503 and every answer closes its
	// connection, so that callers go elsewhere while all else is still served. nil: that is not told in advance.
	Leaving <-chan struct{}

	// BaseURL is where callers reach the server. Its path goes before links unless a trusted proxy
	// names another. "": unknown, and no path.
	BaseURL string

	// AllowedHosts are names that Host may carry besides addresses, localhost and that of BaseURL.
	// Host is checked while Keys is nil.
	AllowedHosts []string

	// TrustedProxies are the peers whose X-Forwarded-For and X-Forwarded-Prefix are believed; none.
	TrustedProxies []netip.Prefix

	Application *Application // served as well; nil: there is none

	readerTimeout time.Duration // for each piece of an answer; only tests change it

	Connections     *Connections // bounds what is open; nil: nothing does
	Certificate     *Certificate // serve HTTPS and HTTP/2 with it; nil: plain HTTP
	SecurityContact string       // mailto: or https: address in /.well-known/security.txt; "": there is no such file
}

// Fault is a setting that cannot be used.
type Fault struct {
	Setting string // its name as a long flag, and its value where Err does not repeat it
	Err     error
	Hint    string // what to do about it; ""
}

// Error names the setting first.
func (f *Fault) Error() string { return f.Setting + " " + f.Err.Error() }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// Validate reports the first setting that cannot be used, as a *Fault.
func (cfg Config) Validate() error {
	cfg = cfg.withDefaults()
	for _, check := range []Fault{
		{"max-data", within(cfg.MaxData, 1, MostData), ""},
		{"max-depth", within(cfg.MaxDepth, 1, MostDepth), ""},
		{"task-timeout", within(cfg.TaskTimeout, 1, math.MaxInt64), ""},
		{"base-url " + cfg.BaseURL + ":", ValidBaseURL(cfg.BaseURL), ""},
		{"allowed-host", ValidHosts(cfg.AllowedHosts), ""},
		{"cors-origin:", ValidOrigins(cfg.CORSOrigins),
			"an origin is a scheme, a host and perhaps a port: https://app.example.com"},
		{"trusted-proxy", ValidProxies(cfg.TrustedProxies), "name the addresses of your proxies only"},
		{"rate-limit", cfg.RateLimit.Validate(), ""},
		{"read-limit", cfg.ReadLimit.Validate(), ""},
		{"security-contact " + cfg.SecurityContact + ":", ValidContact(cfg.SecurityContact), ""},
	} {
		if check.Err != nil {
			return &check
		}
	}
	return nil
}

// within reports a number or a time that is out of bounds.
func within[T int | int64 | time.Duration](value, lo, hi T) error {
	if value < lo || value > hi {
		return fmt.Errorf("%v: want %v to %v", value, lo, hi)
	}
	return nil
}

// withDefaults fills in zero fields.
func (cfg Config) withDefaults() Config {
	cfg.MaxData = cmp.Or(cfg.MaxData, DefaultData)
	cfg.MaxDepth = cmp.Or(cfg.MaxDepth, DefaultDepth)
	cfg.TaskTimeout = cmp.Or(cfg.TaskTimeout, engine.DefaultTaskTimeout)
	cfg.readerTimeout = cmp.Or(cfg.readerTimeout, readerTimeout)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	return cfg
}

// server holds what the handlers share. Nothing in it changes after New but
// the counters and the inbox, which look after themselves.
type server struct {
	cfg     Config
	log     *slog.Logger
	bodies  *reader
	inbox   *inbox // nil unless Config.TestCallback
	tally   tally
	posts   *allowance // nil: there is no limit
	gets    *allowance // the same
	answers *budget
	meters  *meters
	started time.Time
	waiting undelivered
	base    string            // the path of Config.BaseURL, without a slash at the end
	index   map[string]string // :: id of a route of the API → its path

	json, yaml func() ([]byte, error) // the OpenAPI document, rendered on the first request for it
}

// New makes the handler of the whole HTTP API. It starts nothing.
func New(cfg Config) (http.Handler, error) {
	if cfg.Engine == nil || cfg.Store == nil || cfg.Metrics == nil {
		return nil, errors.New("configure the HTTP API: an engine, its store and its metrics are required")
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the HTTP API: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &server{
		cfg: cfg, log: cfg.Log, started: time.Now(), tally: make(tally, len(kinds)),
		bodies:  newReader(cfg.MaxData, cfg.MaxDepth, cfg.Engine.TaskNames()),
		answers: newBudget(),
		posts:   newAllowance("post", cfg.RateLimit), gets: newAllowance("get", cfg.ReadLimit),
	}
	host, base, err := parseBaseURL(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("configure the HTTP API: %w", err)
	}
	s.base = base
	if cfg.TestCallback {
		s.inbox = newInbox()
	}
	s.meters = newMeters(s)
	routes := s.routes()
	s.index = indexOf(routes)
	s.json = sync.OnceValues(func() ([]byte, error) { return indented(s.document(routes)) })
	s.yaml = sync.OnceValues(func() ([]byte, error) { return s.document(routes).YAML() })
	handler, err := s.withCORS(s.mux(routes))
	if err != nil {
		return nil, err
	}
	if handler, err = s.sameOrigin(handler); err != nil {
		return nil, err
	}
	return s.instrument(s.ownHost(handler, host)), nil
}
