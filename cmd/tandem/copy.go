package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/load"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/term"
)

// copyCommand moves what is in a file to PostgreSQL.
type copyCommand struct {
	From  string `default:"file:tandem.db" placeholder:"URL" env:"TANDEM_COPY_FROM" help:"Database to copy, which nobody uses: a file, or file:PATH (default: ${default}). It stays as it is."`
	To    string `required:"" placeholder:"URL" env:"TANDEM_COPY_TO" help:"Empty database to copy to, postgres://… or @FILE."`
	Plain bool   `help:"Plain lines, even on a terminal."`

	givenTo string // To, before a file that it names was read
}

// Validate refuses what cannot be copied; kong calls it.
func (c *copyCommand) Validate() error {
	const hint = "tandem copy --from file:tandem.db --to postgres://USER@HOST/DATABASE"
	if err := app.ReadDatabase("from", &c.From); err != nil {
		return asFailure(err)
	}
	c.givenTo = c.To
	if err := app.ReadDatabase("to", &c.To); err != nil {
		return asFailure(err)
	}
	switch {
	case postgres.Names(c.From):
		return badArgument(
			hint,
			"--from %s: only a file can be copied; PostgreSQL has tools of its own (pg_dump)",
			app.Redact(c.From),
		)
	case sqlite.Memory(c.From):
		return badArgument(hint, "--from :memory: ends with its server; there is nothing to copy")
	case c.To == "": // kong says that it is missing
		return nil
	case !postgres.Names(c.To):
		return badArgument(
			hint,
			"--to %s: want a PostgreSQL database; a file is copied with cp while nobody uses it",
			app.Redact(c.To),
		)
	default:
		return nil
	}
}

// again is what to do about a copy that has ended early.
const again = "the same command empties the target and begins anew; until it has ended well no server starts on it"

// Run copies, compares, and says what is next.
func (c *copyCommand) Run(ctx context.Context, t *terminal) error {
	progress := term.NewProgress(t.err, c.Plain)
	report, err := app.Copy(ctx, app.CopyConfig{From: c.From, To: c.To, Progress: showCopy(progress)})
	progress.Wipe()
	if ctx.Err() != nil {
		return &failure{code: asFailure(context.Cause(ctx)).code, err: context.Cause(ctx), hint: again}
	}
	if report.Removed != "" {
		t.printf("an unfinished copy of %s was in the target, which was emptied\n", report.Removed)
	}
	if report.Source.Requests != nil {
		printCopied(t, &report)
	}
	switch {
	case errors.Is(err, app.ErrDiffers):
		return &failure{code: exitCheckFailed, err: err, hint: again}
	case err != nil && report.Begun:
		return &failure{code: exitCannotRun, err: err, hint: again}
	case err != nil:
		return err
	case !report.Over.IsZero():
		t.printf("this state of %s was copied to %s already, on %s\n", c.From, app.Redact(c.To), dateOf(report.Over, ""))
	default:
		t.printf("both sides are the same\n")
	}
	t.printf("next: tandem serve --db %s, with the other flags as before\n", app.Redact(c.givenTo))
	t.printf("do not serve %s any more: what is unfinished in it would be done twice\n", c.From)
	return nil
}

// printCopied shows what is on both sides.
func printCopied(t *terminal, report *app.CopyReport) {
	rows := [][]string{{"source", "target"}}
	line := func(name string, source, target int64) {
		rows = append(rows, []string{strconv.FormatInt(source, 10), strconv.FormatInt(target, 10), name})
	}
	for _, status := range tandem.Statuses {
		line(string(status), report.Source.Requests[status], report.Target.Requests[status])
	}
	line("attempts", report.Source.Attempts, report.Target.Attempts)
	line("API keys", report.Source.Keys, report.Target.Keys)
	t.table([]int{1, 1}, rows)
	t.printf("source sha256:%s\ntarget sha256:%s\n", report.Source.SHA256, report.Target.SHA256)
}

// showCopy is a store.CopyConfig.Progress, which shows a copy as the phases of a load.
func showCopy(progress *term.Progress) func(app.CopyProgress) {
	var phase app.CopyPhase
	var began time.Time // the phase
	show := showLoad(progress)
	return func(p app.CopyProgress) {
		if p.Phase != phase {
			phase, began = p.Phase, time.Now()
		}
		elapsed := time.Since(began)
		show(load.Progress{
			Phase: string(p.Phase), Elapsed: elapsed, Planned: max(p.Total, 1), Sent: p.Done, Done: p.Over,
			PerSecond: float64(p.Done) / max(elapsed.Seconds(), 0.001),
		})
	}
}
