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
// Server-Timing and X-Request-ID. cmd/tandem calls it.
package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/jub0bs/cors"

	"tandem/internal/engine"
	"tandem/internal/limit"
	"tandem/internal/store"
)

const (
	defaultMaxData     = 10_240
	mostMaxData        = 16 << 20
	defaultMaxDepth    = 10
	mostMaxDepth       = 1_000
	defaultTaskTimeout = 30 * time.Second
)

// Config of the API. Zero fields take the defaults named.
type Config struct {
	Engine       *engine.Engine // required
	Store        store.Store    // required; the one that Engine uses
	Mode         string         // "demo" or "production", as /stats shows it
	TestCallback bool           // serve /test-callback (demo mode)
	MaxData      int64          // bytes of `data`; 10,240; at most 16 MiB
	MaxDepth     int            // levels of `data`; 10; at most 1,000
	TaskTimeout  time.Duration  // 30 s; bounds how long an answer may take
	CORSOrigins  []string       // such as https://app.example.com; none: no CORS headers
	RateLimit    limit.Quota    // of POST /sync, /async and submissions together, per client; zero: no limit
	Debug        bool           // what debug_mode says
	Log          *slog.Logger   // slog.Default

	// TrustedProxies are the peers whose X-Forwarded-For is believed; none.
	TrustedProxies []netip.Prefix
}

// Validate reports what contradicts itself or is out of range.
func (cfg Config) Validate() error {
	var errs []error
	if cfg.Engine == nil || cfg.Store == nil {
		errs = append(errs, errors.New("an engine and its store are required"))
	}
	if cfg.MaxData < 0 || cfg.MaxData > mostMaxData {
		errs = append(errs, fmt.Errorf("max data %d: want 1 to %d bytes", cfg.MaxData, mostMaxData))
	}
	if cfg.MaxDepth < 0 || cfg.MaxDepth > mostMaxDepth {
		errs = append(errs, fmt.Errorf("max depth %d: want 1 to %d levels", cfg.MaxDepth, mostMaxDepth))
	}
	if cfg.TaskTimeout < 0 {
		errs = append(errs, fmt.Errorf("task timeout %s: want a positive duration", cfg.TaskTimeout))
	}
	if err := cfg.RateLimit.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("rate limit: %w", err))
	}
	if err := ValidProxies(cfg.TrustedProxies); err != nil {
		errs = append(errs, fmt.Errorf("trusted proxies: %w", err))
	}
	return errors.Join(errs...)
}

// withDefaults fills in zero fields.
func (cfg Config) withDefaults() Config {
	if cfg.MaxData == 0 {
		cfg.MaxData = defaultMaxData
	}
	if cfg.MaxDepth == 0 {
		cfg.MaxDepth = defaultMaxDepth
	}
	if cfg.TaskTimeout == 0 {
		cfg.TaskTimeout = defaultTaskTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
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
	rate    *limit.Rate // nil: there is no limit
	policy  []string    // value of RateLimit-Policy
	meters  *meters
	started time.Time
	index   map[string]string // :: id of a route of the API → its path
	json    []byte            // the OpenAPI document
	yaml    []byte            // the same
}

// New makes the handler of the whole HTTP API. It starts nothing.
func New(cfg Config) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the HTTP API: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &server{
		cfg: cfg, log: cfg.Log, started: time.Now(), tally: make(tally, len(kinds)),
		bodies: newReader(cfg.MaxData, cfg.MaxDepth, cfg.Engine.TaskNames()), rate: newRate(cfg.RateLimit), policy: ratePolicy(cfg.RateLimit),
	}
	if cfg.TestCallback {
		s.inbox = newInbox()
	}
	s.meters = newMeters(s)
	routes := s.routes()
	s.index = indexOf(routes)
	var err error
	if s.json, s.yaml, err = s.document(routes); err != nil {
		return nil, fmt.Errorf("describe the HTTP API: %w", err)
	}
	handler, err := s.withCORS(s.mux(routes))
	if err != nil {
		return nil, err
	}
	return s.instrument(handler), nil
}

// withCORS answers preflights and marks answers for the configured origins. There
// are no credentials to share: the API knows no cookies.
func (s *server) withCORS(next http.Handler) (http.Handler, error) {
	if len(s.cfg.CORSOrigins) == 0 {
		return next, nil
	}
	middleware, err := cors.NewMiddleware(cors.Config{
		Origins:         s.cfg.CORSOrigins,
		Methods:         []string{http.MethodGet, http.MethodHead, http.MethodPost},
		RequestHeaders:  []string{"Content-Type", "If-None-Match", headerRequestID},
		ResponseHeaders: []string{"ETag", "Location", "Link", "RateLimit", "RateLimit-Policy", "Retry-After", headerRequestID, "X-Process-Time"},
	})
	if err != nil {
		return nil, fmt.Errorf("configure CORS: %w", err)
	}
	return middleware.Wrap(next), nil
}

// ValidOrigins says what is wrong with a list for [Config].CORSOrigins, before anything is started for it.
func ValidOrigins(origins []string) error {
	if len(origins) == 0 {
		return nil
	}
	_, err := cors.NewMiddleware(cors.Config{Origins: origins})
	return err
}

// Limits of a connection. A caller that is slower than this is cut off, with a
// 408 if it had at least sent its header.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second // header and body
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
	answerTime        = 15 * time.Second // to write what the task took TaskTimeout for
)

// HTTPServer makes the server that the API is meant to run in; the caller
// listens, serves and shuts down. Its write timeout leaves a sync request its
// TaskTimeout, which covers the wait for a slot as well, and a submission its wait and its call.
func HTTPServer(handler http.Handler, cfg Config) *http.Server {
	cfg = cfg.withDefaults()
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      readTimeout + max(cfg.TaskTimeout, 2*engine.MaxExternalTimeout) + answerTime,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
}
