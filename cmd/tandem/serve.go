package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
)

// Run serves until a signal comes. A clean drain is exit code 0, which is what
// service managers expect of a service they stop; a drain cut short by a second signal is not.
func (c *serveCommand) Run(ctx context.Context, t *terminal) error {
	log := newLogger(t.err.Raw(), c.Debug)
	hangups := make(chan os.Signal, 1) // from here on SIGHUP ends nothing
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	var certificate *server.Certificate
	if c.TLSCert != "" {
		var err error
		if certificate, err = server.LoadCertificate(c.TLSCert, c.TLSKey, log); err != nil {
			return badArgument("", "--tls-cert, --tls-key: %w", err)
		}
	}
	// Listening comes before the database: a port in use is known before a database is touched, and
	// callers queue in the listener while a large one is being recovered.
	listener, err := listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	address := listener.Addr()
	parts := c.parts(address, log)
	parts.server.Certificate = certificate
	parts.server.Leaving = ctx.Done()
	tandem, err := openService(ctx, parts, listener)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errNoKeys) {
			return &failure{code: exitCannotRun, err: errNoKeys, hint: c.firstKey(t.program)}
		}
		return err
	}
	t.printf("%s", c.banner(address, tandem, t.program))
	c.warnOfDescriptors(log)
	if err := t.out.Err(); err != nil {
		log.Warn(unseenBanner(tandem, c.DB), "error", err)
	}
	reloading, stopReloading := context.WithCancel(context.WithoutCancel(ctx))
	var reloader sync.WaitGroup
	reloader.Go(func() { reloadOn(reloading, hangups, certificate, log) })
	defer reloader.Wait()
	defer stopReloading()
	log.Info("serving", "address", address.String(), "mode", c.Mode)
	err = tandem.run(ctx, t.halt)
	if err != nil {
		return err
	}
	select {
	case <-t.halt:
		return context.Cause(ctx)
	default:
		log.Info("stopped")
		return nil
	}
}

// ownNames are the names by which the server may be called, that of --base-url aside.
func (c *serveCommand) ownNames() []string {
	names := c.AllowedHost
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && server.ValidHosts([]string{host}) == nil {
		names = append(names, host)
	}
	return names
}

// unseenBanner is the log line for a banner that could not be printed.
func unseenBanner(s *service, db string) string {
	if s.made && !store.Memory(db) {
		return "the banner could not be printed, and with it the signing secret that was made now and is shown once: " +
			"set TANDEM_SIGNING_SECRET to one of your own"
	}
	return "the banner could not be printed"
}

// reloadOn reloads the certificate, which may be nil, on each SIGHUP until ctx ends.
func reloadOn(ctx context.Context, hangups <-chan os.Signal, certificate *server.Certificate, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			if certificate == nil {
				log.Info("SIGHUP: there is nothing to reload without --tls-cert")
				continue
			}
			certificate.Reload()
		}
	}
}

// otherDescriptors are what the database, callbacks and logs may need beside the connections of callers.
const otherDescriptors = 1000

// warnOfDescriptors warns when connections may use up all file descriptors: then callbacks and the
// database have none.
func (c *serveCommand) warnOfDescriptors(log *slog.Logger) {
	most, known := maxDescriptors()
	if need := uint64(c.MaxConnections) + otherDescriptors; known && most < need {
		log.Warn("the limit of open files is below --max-connections and what callbacks and the database need: "+
			"raise it (ulimit -n, LimitNOFILE in systemd) or lower --max-connections",
			"limit", most, "max_connections", c.MaxConnections, "needed", need)
	}
}

// parts turns flags into the configuration of every part.
func (c *serveCommand) parts(address net.Addr, log *slog.Logger) parts {
	demo := c.Mode == modeDemo
	policy := c.policy()
	// A callback to ourselves would let a stranger reach this API from within.
	if own, err := netip.ParseAddrPort(address.String()); err == nil && !demo {
		policy.Own = []netip.AddrPort{own}
	}
	return parts{
		store: store.Config{
			URL: c.DB, MaxQueue: c.MaxQueue,
			MaxPerOwner: cmp.Or(c.PerKey, max(c.MaxQueue/4, 1)), MaxBytesPerOwner: c.BytesPerKey,
		},
		egress: egress.Config{Policy: policy, Timeout: c.CallbackTimeout, HostConcurrency: c.CallbackHostConcurrency},
		engine: engine.Config{
			Workers:     c.Workers,
			IOWorkers:   c.IOWorkers,
			TaskTimeout: c.TaskTimeout,
			Retention:   c.Retention,
			Retry:       c.schedule(),
			External:    c.external(),
		},
		server: server.Config{
			Mode:         c.Mode,
			TestCallback: demo,
			MaxData:      c.MaxData,
			MaxDepth:     c.MaxDepth,
			TaskTimeout:  c.TaskTimeout,
			BaseURL:      cmp.Or(c.BaseURL, c.ownURL(address)),
			AllowedHosts: c.ownNames(),
			CORSOrigins:  c.CORSOrigin,
			RateLimit:    c.quota,
			ReadLimit:    c.reads,
			Debug:        c.Debug,

			TrustedProxies:  c.TrustedProxy,
			Connections:     server.NewConnections(c.MaxConnections, c.TrustedProxy),
			SecurityContact: c.SecurityContact,
		},
		secret: c.secret,
		log:    log,
		auth:   c.asksForKeys(),
		linger: *c.DrainDelay,

		external:      c.externalCalls(),
		submissionLog: engine.SubmissionLogConfig{Path: c.SubmissionLog, Names: c.Debug},
	}
}
