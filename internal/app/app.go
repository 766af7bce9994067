// Package app puts a service together, from the database to the listener, and runs it. It promises that
// serve, demo and the tests open the same service, that [Open] leaves nothing behind after an error, and that
// [Service.Run] returns when all that it started has stopped. cmd/tandem turns flags into a [Config]; nobody else
// wires parts.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/keys"
	"tandem/internal/server"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/submissions"
	"tandem/internal/telemetry"
	"tandem/internal/work"
)

// flushTimeout is how long answers that are decided may take to reach their
// readers, once the engine has drained.
const flushTimeout = 2 * time.Second

// gcPercent lets garbage grow to four times what lives before it is collected: a
// tenth less CPU under load (docs/performance.md), for memory that is bounded by
// what lives, some tens of megabytes. GOGC in the environment overrides it.
const gcPercent = 400

// Service is one tandem, from the database to the listener.
type Service struct {
	Addr      net.Addr
	URL       string        // how a program on this machine reaches it, without a slash at the end
	Secret    tandem.Secret // signs callbacks
	NewSecret bool          // Secret was made now: show it to somebody
	Store     store.Store
	Keys      *keys.Keys // nil: the database has none

	cfg         Config
	log         *slog.Logger
	listener    net.Listener
	certificate *server.Certificate // nil: plain HTTP
	metrics     *telemetry.Metrics
	engine      *engine.Engine
	lines       *submissions.Log // nil: none is kept
	submissions *submissions.App
	http        *http.Server
	api         server.Config
	leaving     chan struct{}  // closed when the service is about to stop
	parts       []func() error // close what was opened, in that order
}

// Open checks cfg, listens, and opens the database. Nothing runs yet, and callers queue in the listener. Errors
// that cfg caused are *Error or ErrNoKeys; after an error everything is closed.
func Open(ctx context.Context, cfg Config) (_ *Service, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, log: cmp.Or(cfg.Log, slog.Default()), leaving: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	scheme := "http"
	if cfg.TLSCert != "" {
		scheme = "https"
		s.certificate, err = server.LoadCertificate(cfg.TLSCert, cfg.TLSKey, s.log)
		if err != nil {
			return nil, invalid(true, "", "--tls-cert, --tls-key: %w", err)
		}
	}
	// Listening comes before the database: a port in use is known before a database is touched, and
	// callers queue in the listener while a large one is being recovered.
	if s.listener, err = Listen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	s.parts = append(s.parts, func() error {
		s.listener.Close() // an error says that it was served, and is closed already
		return nil
	})
	s.Addr = s.listener.Addr()
	s.URL = scheme + "://" + LocalHost(s.Addr)
	nodes := store.NewNodes(s.Addr.String())
	s.Store, err = OpenStore(ctx, store.Config{
		URL: cfg.DB, MaxQueue: cfg.MaxQueue, MaxPerOwner: cmp.Or(cfg.MaxQueuePerKey, max(cfg.MaxQueue/4, 1)),
		MaxBytesPerOwner: cfg.MaxBytesPerKey, Counted: submissions.Task, Nodes: nodes, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	s.parts = append(s.parts, s.Store.Close)
	if err := s.openKeys(ctx); err != nil {
		return nil, err
	}
	if s.Secret = cfg.SigningSecret; s.Secret.IsZero() {
		if s.Secret, s.NewSecret, err = s.Store.SigningSecret(ctx, tandem.NewSecret()); err != nil {
			return nil, fmt.Errorf("read the signing secret: %w", err)
		}
	}
	if err := s.openSubmissions(); err != nil {
		return nil, err
	}
	if err := s.openEngine(nodes); err != nil {
		return nil, err
	}
	if err := s.openServer(nodes); err != nil {
		return nil, err
	}
	return s, nil
}

// ErrNoKeys says that nobody could use the service.
var ErrNoKeys = errors.New("there is no API key yet, and production mode asks for one: nobody could use this server")

// openKeys opens the API keys. Their secrets sign callbacks whether callers are asked for keys or not:
// the database may hold requests from when they were.
func (s *Service) openKeys(ctx context.Context) (err error) {
	if sqlite.Memory(s.cfg.keysDB()) {
		return nil
	}
	if s.Keys, err = OpenKeys(ctx, store.HandleConfig{URL: s.cfg.keysDB(), Log: s.log}); err != nil {
		return err
	}
	s.parts = append(s.parts, s.Keys.Close)
	if s.cfg.AsksForKeys() && s.Keys.Count() == 0 {
		return ErrNoKeys
	}
	return nil
}

// openSubmissions makes the sample application, and what it calls the external service with.
func (s *Service) openSubmissions() (err error) {
	cfg := s.cfg
	external := submissions.External{
		URL: cfg.ExternalURL, MinDelay: cfg.ExternalDelay[0], MaxDelay: cfg.ExternalDelay[1], Timeout: cfg.ExternalTimeout,
	}
	if cfg.ExternalURL != "" {
		if external.Client, err = s.client("calls of the external service", cfg.externalCalls()); err != nil {
			return err
		}
	}
	if cfg.SubmissionLog != "" {
		if s.lines, err = submissions.OpenLog(submissions.LogConfig{
			Path: cfg.SubmissionLog, Names: cfg.Debug, Log: s.log,
		}); err != nil {
			return err
		}
		s.parts = append(s.parts, s.lines.Close)
	}
	s.submissions, err = submissions.New(submissions.Config{External: external, Lines: s.lines, Log: s.log})
	return err
}

// openEngine makes the engine, and what it calls others with.
func (s *Service) openEngine(nodes *store.Nodes) (err error) {
	cfg := s.cfg
	own, _ := netip.ParseAddrPort(s.Addr.String())
	callbacks, err := s.client("callbacks", egress.Config{
		Policy: cfg.policy(own), Timeout: cfg.CallbackTimeout, HostConcurrency: cfg.CallbackHostConcurrency,
		BreakerFailures: cfg.BreakerFailures,
	})
	if err != nil {
		return err
	}
	tasks := []work.Task{s.submissions.Task()}
	s.metrics = telemetry.New(telemetry.Config{Tasks: tasks, Log: s.log})
	if s.engine, err = engine.New(engine.Config{
		Store: s.Store, Egress: callbacks, Secrets: []tandem.Secret{s.Secret}, Keys: s.Keys, Nodes: nodes,
		Workers: cfg.Workers, IOWorkers: cfg.IOWorkers, TaskTimeout: cfg.TaskTimeout, Retention: cfg.Retention,
		Retry: work.Retry{Attempts: cfg.CallbackAttempts, Backoff: cfg.CallbackBackoff, MaxAge: cfg.CallbackMaxAge},
		Tasks: tasks, Compute: cfg.Compute, Log: s.log,
		Observers: []func(engine.Event){s.metrics.Observe, s.submissions.Observe},
		Publish:   s.metrics.Publish, Receive: s.metrics.Receive,
	}); err != nil {
		return fmt.Errorf("set up the engine: %w", err)
	}
	return nil
}

// client makes a client that is closed with the service.
func (s *Service) client(of string, cfg egress.Config) (*egress.Client, error) {
	cfg.Log = s.log
	client, err := egress.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", of, err)
	}
	s.parts = append(s.parts, func() error {
		client.Close()
		return nil
	})
	return client, nil
}

// openServer makes the HTTP API.
func (s *Service) openServer(nodes *store.Nodes) error {
	s.api = s.cfg.api()
	s.api.Engine, s.api.Store, s.api.Metrics, s.api.Nodes = s.engine, s.Store, s.metrics, nodes
	s.api.BaseURL, s.api.Leaving, s.api.Log = cmp.Or(s.api.BaseURL, s.URL), s.leaving, s.log
	s.api.Certificate, s.api.Application = s.certificate, s.submissions.API()
	s.api.Connections = server.NewConnections(s.cfg.MaxConnections, s.cfg.TrustedProxy)
	if s.cfg.AsksForKeys() {
		s.api.Keys = s.Keys
	}
	handler, err := server.New(s.api)
	if err != nil {
		return fmt.Errorf("set up the HTTP API: %w", err)
	}
	s.http = server.HTTPServer(handler, s.api)
	return nil
}

// api is what the HTTP API takes from the configuration.
func (cfg Config) api() server.Config {
	return server.Config{
		Mode: cfg.Mode, TestCallback: cfg.TestCallback, Debug: cfg.Debug,
		MaxData: cfg.MaxData, MaxDepth: cfg.MaxDepth, TaskTimeout: cfg.TaskTimeout,
		BaseURL: cfg.BaseURL, AllowedHosts: cfg.ownNames(), CORSOrigins: cfg.CORSOrigin, TrustedProxies: cfg.TrustedProxy,
		RateLimit: cfg.RateLimit, ReadLimit: cfg.ReadLimit, SecurityContact: cfg.SecurityContact,
	}
}

// policy says where callbacks may go. own is where we listen: a callback to ourselves would let a stranger
// reach this API from within.
func (cfg Config) policy(own netip.AddrPort) egress.Policy {
	p := egress.Policy{
		AllowPrivate: cfg.AllowPrivate, AnyPort: cfg.AllowPrivate,
		Ports: cfg.AllowCallbackPort, CIDRs: cfg.AllowCallbackCIDR, Hosts: cfg.AllowCallbackHost,
	}
	if own.IsValid() {
		p.Own = []netip.AddrPort{own}
	}
	return p
}

// externalCalls says how the external service is called. Its address comes from the
// operator, so it may be private and have any port; metadata services stay refused. It has
// a breaker, and as many calls at once as there are slots for them.
func (cfg Config) externalCalls() egress.Config {
	return egress.Config{
		Policy:  egress.Policy{AllowPrivate: true, AnyPort: true},
		Timeout: cfg.ExternalTimeout, ConnectTimeout: min(cfg.ExternalTimeout, 3*time.Second), HostConcurrency: cfg.IOWorkers,
	}
}

// ownNames are the names by which the server may be called, that of BaseURL aside.
func (cfg Config) ownNames() []string {
	names := cfg.AllowedHost
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && server.ValidHosts([]string{host}) == nil {
		names = append(slices.Clip(names), host)
	}
	return names
}

// Listen opens a TCP address. Its error is an *Error.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		if refused, ok := errors.AsType[*net.OpError](err); ok {
			err = refused.Err // the rest repeats the address
		}
		return nil, &Error{
			Err:  fmt.Errorf("listen on %s: %w", address, err),
			Hint: "--listen names another address; port 0 takes any free port",
		}
	}
	return listener, nil
}

// LocalHost is the HOST:PORT by which a program on this machine reaches the address: a name for the
// unspecified one, brackets around IPv6.
func LocalHost(address net.Addr) string {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return address.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// Ready is closed when the service takes requests, a moment after Run was called.
func (s *Service) Ready() <-chan struct{} { return s.engine.Ready() }

// Run serves until ctx ends, waits out the drain delay, then drains: the engine refuses new work first, so
// that /readyz says 503 on connections that are still open, then the listener
// closes while what runs may finish. When halt is closed, all of it ends at once.
// Everything is closed when Run returns. It is called once.
func (s *Service) Run(ctx context.Context, halt <-chan struct{}) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	closing, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	g, running := errgroup.WithContext(serving)
	g.Go(func() error {
		s.delayDrain(ctx, running, halt)
		stop(context.Cause(ctx))
		return nil
	})
	g.Go(func() error {
		err := s.engine.Run(running)
		time.AfterFunc(flushTimeout, cut) // every answer is decided now
		if err != nil {
			return fmt.Errorf("run the engine: %w", err)
		}
		return nil
	})
	g.Go(func() error { return s.serve(running) })
	g.Go(func() error {
		<-running.Done()
		s.log.Info("stopping: no new work is taken, what runs may finish", "cause", context.Cause(running))
		s.engine.Drain()
		if s.http.Shutdown(closing) == nil {
			return nil
		}
		return s.http.Close() // a reader too slow to be waited for
	})
	wait := s.runBeside(context.WithoutCancel(ctx), halt)
	err := g.Wait()
	wait()
	return errors.Join(err, s.close())
}

// runBeside starts what goes on until the engine and its callers have ended. The function that it returns
// ends all of that and waits for it.
func (s *Service) runBeside(ctx context.Context, halt <-chan struct{}) (wait func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { s.lines.Run(ctx) }) // flushes its lines at the end: nobody is left who appends
	running.Go(func() { s.reload(ctx) })
	if s.Keys != nil {
		running.Go(func() { s.Keys.Run(ctx) })
	}
	running.Go(func() {
		select {
		case <-halt:
			s.engine.Halt()
		case <-ctx.Done():
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// serve answers callers once the engine takes requests: those who come earlier wait in the listener's queue
// and are not refused.
func (s *Service) serve(ctx context.Context) error {
	select {
	case <-s.engine.Ready():
	case <-ctx.Done():
		return nil
	}
	if err := server.Serve(s.http, s.listener, s.api); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// delayDrain returns when it is time to drain: some time after ctx has ended, during which only
// /readyz says that this server will be gone; or sooner, when halt is closed or a part has failed.
func (s *Service) delayDrain(ctx, running context.Context, halt <-chan struct{}) {
	select {
	case <-ctx.Done():
		close(s.leaving)
	case <-halt:
		return
	case <-running.Done():
		return
	}
	delay := s.cfg.drainDelay()
	if delay == 0 {
		return
	}
	s.log.Info("about to stop: /readyz says so, all else goes on", "for", delay, "cause", context.Cause(ctx))
	pause := time.NewTimer(delay)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-halt:
	case <-running.Done():
	}
}

// reload reads the certificate again whenever that is asked for.
func (s *Service) reload(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Reload:
			if s.certificate == nil {
				s.log.Info("SIGHUP: there is nothing to reload without --tls-cert")
				continue
			}
			s.certificate.Reload()
		}
	}
}

// close lets go of everything, the last part first.
func (s *Service) close() error {
	var errs []error
	for _, part := range slices.Backward(s.parts) {
		if err := part(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
