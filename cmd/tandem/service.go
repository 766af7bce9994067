package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
)

// lastWords is how long answers that are decided may take to reach their
// readers, once the engine has drained.
const lastWords = 2 * time.Second

// gcPercent lets garbage grow to four times what lives before it is collected: a
// tenth less CPU under load (docs/performance.md), for memory that is bounded by
// what lives, some tens of megabytes. GOGC in the environment overrides it.
const gcPercent = 400

// parts says what a service is made of. What one part needs of another
// (Store, Egress, Engine, Secrets) is filled in by openService.
type parts struct {
	store  store.Config
	egress egress.Config
	engine engine.Config
	server server.Config
	secret tandem.Secret // signs callbacks; zero: the one in the database, made if there is none
	log    *slog.Logger
	auth   bool          // ask callers for the API keys in the database
	linger time.Duration // how long the service goes on when it is to stop, so that balancers can turn away

	external      egress.Config              // of the client for engine.External, if that has a URL
	submissionLog engine.SubmissionLogConfig // no Path: none is kept
}

// service is one tandem, from the database to the listener.
type service struct {
	listener net.Listener
	store    store.Store
	keys     *store.Keys // nil: the database has none
	egress   *egress.Client
	external *egress.Client // nil: the external service is simulated
	engine   *engine.Engine
	lines    *engine.SubmissionLog // nil: none is kept
	http     *http.Server
	api      server.Config
	secret   tandem.Secret
	made     bool // secret is new: tell it to somebody
	linger   time.Duration
	log      *slog.Logger
}

// openService puts the parts together and takes over the listener, on which
// callers already queue. Nothing runs yet. After an error everything is closed.
func openService(ctx context.Context, p parts, listener net.Listener) (_ *service, err error) {
	s := &service{listener: listener, linger: p.linger, log: p.log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	p.store.Log, p.egress.Log, p.engine.Log, p.server.Log = p.log, p.log, p.log, p.log
	nodes := store.NewNodes(listener.Addr().String())
	p.store.Nodes, p.engine.Nodes, p.server.Nodes = nodes, nodes, nodes
	if s.store, err = store.Open(ctx, p.store); err != nil {
		return nil, err
	}
	if err := s.openKeys(ctx, &p); err != nil {
		return nil, err
	}
	if s.secret = p.secret; s.secret.IsZero() {
		if s.secret, s.made, err = s.store.SigningSecret(ctx, tandem.NewSecret()); err != nil {
			return nil, fmt.Errorf("read the signing secret: %w", err)
		}
	}
	if s.egress, err = egress.New(p.egress); err != nil {
		return nil, fmt.Errorf("set up callbacks: %w", err)
	}
	if p.engine.External.URL != "" {
		p.external.Log = p.log
		if s.external, err = egress.New(p.external); err != nil {
			return nil, fmt.Errorf("set up calls of the external service: %w", err)
		}
		p.engine.External.Client = s.external
	}
	if p.submissionLog.Path != "" {
		p.submissionLog.Log = p.log
		if s.lines, err = engine.OpenSubmissionLog(p.submissionLog); err != nil {
			return nil, err
		}
		p.engine.SubmissionLog = s.lines
	}
	p.engine.Store, p.engine.Egress, p.engine.Secrets = s.store, s.egress, []tandem.Secret{s.secret}
	p.engine.Compute = computeProcess()
	if s.engine, err = engine.New(p.engine); err != nil {
		return nil, fmt.Errorf("set up the engine: %w", err)
	}
	p.server.Engine, p.server.Store = s.engine, s.store
	handler, err := server.New(p.server)
	if err != nil {
		return nil, fmt.Errorf("set up the HTTP API: %w", err)
	}
	s.api, s.http = p.server, server.HTTPServer(handler, p.server)
	return s, nil
}

// errNoKeys says that nobody could use the service.
var errNoKeys = errors.New("there is no API key yet, and production mode asks for one: nobody could use this server")

// openKeys opens the API keys. Their secrets sign callbacks whether callers are asked for keys or not:
// the database may hold requests from when they were.
func (s *service) openKeys(ctx context.Context, p *parts) (err error) {
	if store.Memory(p.store.URL) {
		return nil
	}
	if s.keys, err = store.OpenKeys(ctx, store.KeysConfig{URL: p.store.URL, Log: p.log}); err != nil {
		return err
	}
	p.engine.Keys = s.keys
	if !p.auth {
		return nil
	}
	if s.keys.Count() == 0 {
		return errNoKeys
	}
	p.server.Keys = s.keys
	return nil
}

// run serves until ctx ends, lingers, then drains: the engine refuses new work first, so
// that /readyz says 503 on connections that are still open, then the listener
// closes while what runs may finish. When halt is closed, all of it ends at once.
// Everything is closed when run returns.
func (s *service) run(ctx context.Context, halt <-chan struct{}) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	g, running := errgroup.WithContext(serving)
	g.Go(func() error {
		s.stay(ctx, running, halt)
		stop(context.Cause(ctx))
		return nil
	})
	closing, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	g.Go(func() error {
		err := s.engine.Run(running)
		time.AfterFunc(lastWords, cut) // every answer is decided now
		if err != nil {
			return fmt.Errorf("run the engine: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		s.awaitEngine(running)
		if err := server.Serve(s.http, s.listener, s.api); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-running.Done()
		s.log.Info("stopping: no new work is taken, what runs may finish", "cause", context.Cause(running))
		s.engine.Drain()
		if s.http.Shutdown(closing) == nil {
			return nil
		}
		return s.http.Close() // a reader too slow to be waited for
	})
	var halting sync.WaitGroup
	ended := make(chan struct{})
	halting.Go(func() {
		select {
		case <-halt:
			s.engine.Halt()
		case <-ended:
		}
	})
	logging, flush := context.WithCancel(context.WithoutCancel(ctx))
	defer flush()
	var writing sync.WaitGroup
	writing.Go(func() { s.lines.Run(logging) })
	if s.keys != nil {
		writing.Go(func() { s.keys.Run(logging) })
	}
	err := g.Wait()
	flush() // nobody is left who appends
	writing.Wait()
	close(ended)
	halting.Wait()
	return errors.Join(err, s.close())
}

// stay returns when it is time to drain: some time after ctx has ended, during which only
// /readyz says that this server will be gone; or sooner, when halt is closed or a part has failed.
func (s *service) stay(ctx, running context.Context, halt <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-running.Done():
		return
	}
	if s.linger == 0 {
		return
	}
	s.log.Info("about to stop: /readyz says so, all else goes on", "for", s.linger, "cause", context.Cause(ctx))
	pause := time.NewTimer(s.linger)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-halt:
	case <-running.Done():
	}
}

// awaitEngine returns when the engine takes orders, a moment after its Run was
// called. Callers who come earlier wait in the listener's queue and are not refused.
func (s *service) awaitEngine(ctx context.Context) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.engine.Draining() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// close lets go of everything; parts that were never made are skipped.
func (s *service) close() error {
	s.listener.Close() // closed already, if it was served
	if s.egress != nil {
		s.egress.Close()
	}
	if s.external != nil {
		s.external.Close()
	}
	err := s.lines.Close()
	if s.keys != nil {
		if failed := s.keys.Close(); failed != nil {
			err = errors.Join(err, fmt.Errorf("close the API keys: %w", failed))
		}
	}
	if s.store == nil {
		return err
	}
	if failed := s.store.Close(); failed != nil {
		return errors.Join(err, fmt.Errorf("close the database: %w", failed))
	}
	return err
}
