package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"tandem/internal/app"
	"tandem/internal/store/sqlite"
)

// Run serves until a signal comes. A clean drain is exit code 0, which is what
// service managers expect of a service they stop; a drain cut short by a second signal is not.
func (c *serveCommand) Run(ctx context.Context, t *terminal) error {
	log := newLogger(t.err.Raw(), c.Debug)
	hangups := make(chan os.Signal, 1) // from here on SIGHUP ends nothing
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	cfg := c.config
	cfg.Compute, cfg.Reload, cfg.Log = computeProcess(), hangups, log
	service, err := app.Open(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, app.ErrNoKeys) {
			return &failure{code: exitCannotRun, err: err, hint: c.firstKey(t.program)}
		}
		return err
	}
	t.printf("%s", c.banner(service, t.program))
	c.warnOfDescriptors(log)
	if err := t.out.Err(); err != nil {
		log.Warn(unseenBanner(service, c.DB), "error", err)
	}
	log.Info("serving", "address", service.Addr.String(), "mode", c.Mode)
	if err := service.Run(ctx, t.halt); err != nil {
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

// unseenBanner is the log line for a banner that could not be printed.
func unseenBanner(s *app.Service, db string) string {
	if s.NewSecret && !sqlite.Memory(db) {
		return "the banner could not be printed, and with it the signing secret that was made now and is shown once: " +
			"set TANDEM_SIGNING_SECRET to one of your own"
	}
	return "the banner could not be printed"
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
