package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/load"
	"tandem/internal/term"
)

// Run puts the service under load and says what came of it. Whether the files of
// the report can be written is known before the first request is sent, and they are written before
// the table, whose reader may have gone.
func (c *loadCommand) Run(ctx context.Context, t *terminal) error {
	if more := c.beyond(); len(more) > 0 && !c.Yes {
		if err := confirm(t, "--production-mode: this is "+strings.Join(more, ", "),
			"--yes goes ahead without being asked"); err != nil {
			return err
		}
	}
	reports, err := openReports(c.Output, c.HTML)
	if err != nil {
		return err
	}
	if c.ownServer() {
		if c.config.Secret.IsZero() {
			c.config.Secret = tandem.NewSecret()
		}
		server, err := openStage(ctx, c.config.Secret)
		if err != nil {
			return err
		}
		defer server.close()
		c.config.URL = server.url
	}
	t.printf("%s", c.outline())
	report, err := measure(ctx, t, c.config, c.Plain)
	if err != nil {
		return c.explain(err)
	}
	if err := reports.write(report); err != nil {
		return err
	}
	if err := load.WriteText(t.out, report); err != nil {
		return err
	}
	reports.name(t)
	return validity(report, verdict(ctx, report))
}

// validity turns an INVALID run into exit code 3. Its error names a failed verdict first, then the reasons.
// An interruption or an error of the run itself stays as it is.
func validity(report *load.Report, verdict error) error {
	if report.Valid || verdict != nil && asFailure(verdict).code != exitCheckFailed {
		return verdict
	}
	reason := strings.Join(report.InvalidReasons, "; ")
	if verdict != nil {
		reason = verdict.Error() + "; " + reason
	}
	return &failure{code: exitCheckFailed, err: fmt.Errorf("INVALID run, do not rely on its figures: %s", reason)}
}

// outline says what is about to happen.
func (c *loadCommand) outline() string {
	var p term.Page
	p.Linef("tandem load, %s mode\n", c.mode())
	own := ""
	if c.ownServer() {
		own = ", started for this run, database in memory"
	}
	p.Factf("service", "%s%s", app.Redact(c.config.URL), own)
	amount := fmt.Sprintf("%d requests", c.config.Requests)
	if c.config.Duration > 0 {
		amount = c.config.Duration.Round(time.Millisecond).String()
		if c.config.Requests > 0 {
			amount += fmt.Sprintf(" or %d requests", c.config.Requests)
		}
	}
	pace := fmt.Sprintf("%d at a time (closed loop)", c.config.Concurrency)
	if c.config.Rate > 0 {
		pace = fmt.Sprintf("%v per second (open loop)", c.config.Rate)
		if c.config.RampFrom > 0 {
			pace = fmt.Sprintf("%v to %v per second (open loop)", c.config.RampFrom, c.config.Rate)
		}
	}
	p.Factf("load", "%s in each phase, %s", amount, pace)
	p.Factf("phases", "%s", strings.Join(c.config.Phases, ", "))
	async := func(phase string) bool { return phase != load.PhaseSync }
	if c.config.Callback.Poll && slices.ContainsFunc(c.config.Phases, async) {
		p.Factf("results", "polled from /requests/{id}: no callback can reach us")
	}
	p.Linef("")
	return p.String()
}

// explain adds what to do about a run that could not take place.
func (c *loadCommand) explain(err error) error {
	target, ok := errors.AsType[*load.StartError](err)
	switch {
	case !ok:
		return err
	case c.config.URL == loadURL && errors.Is(err, syscall.ECONNREFUSED):
		return &failure{code: exitCannotRun, err: err,
			hint: "tandem serve starts a service there; tandem load --demo-mode starts one for the run"}
	default:
		return &failure{code: exitCannotRun, err: err, hint: target.Hint}
	}
}

// measure runs a configuration with its progress in view.
func measure(ctx context.Context, t *terminal, config load.Config, plain bool) (*load.Report, error) {
	progress := term.NewProgress(t.out, plain)
	config.Progress = showLoad(progress)
	report, err := load.Run(ctx, config)
	progress.Wipe()
	if err != nil {
		return nil, err
	}
	t.printf("\n")
	return report, nil
}

// verdict is the exit code of a run that took place.
func verdict(ctx context.Context, report *load.Report) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var accepted, missing, forged int64
	for _, phase := range report.Phases {
		for _, side := range []*load.Side{phase.Sync, phase.Async} {
			if side != nil {
				accepted += side.Accepted
			}
		}
		if c := phase.Callbacks; c != nil {
			missing, forged = missing+c.Missing, forged+c.BadSignature
		}
	}
	var failed []string
	for _, threshold := range report.Thresholds {
		if !threshold.Pass {
			failed = append(failed, threshold.Expression)
		}
	}
	switch {
	case accepted == 0:
		return errors.New("no request was accepted: the errors above say why")
	case len(failed) > 0:
		return &failure{code: exitCheckFailed, err: fmt.Errorf("thresholds failed: %s", strings.Join(failed, ", "))}
	case forged > 0:
		return &failure{code: exitCheckFailed, err: fmt.Errorf("%d callbacks had a bad signature", forged),
			hint: "--signing-secret has to be the one of the service"}
	case missing > 0 && report.Settings.SinkFailRate == 0 && report.Settings.Completion == load.CompletionCallback:
		return &failure{code: exitCheckFailed, err: fmt.Errorf("%d callbacks are missing", missing),
			hint: "can the service reach " + report.Settings.CallbackURL +
				"? --callback-url names another address, --drain waits longer"}
	default:
		return nil
	}
}

// confirm asks a person, and refuses when there is none. Nothing runs yet, so while it
// waits Ctrl-C ends the process at once.
func confirm(t *terminal, what, otherwise string) error {
	refused := badArgument(otherwise, "%s", what)
	if !term.IsTerminal(t.in) {
		return refused
	}
	t.printf("%s.\nGo ahead? [y/N] ", what)
	var answer string
	t.unguarded(func() {
		answer, _ = bufio.NewReader(io.LimitReader(t.in, 100)).ReadString('\n')
	})
	if answer := strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return refused
	}
	return nil
}
