package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
)

// copyPageRows bounds a page of a copy, as store.CopyPageBytes does. A page is one transaction; three are in memory.
const copyPageRows = 4096

// ErrDiffers says that what was copied is not what is in the source.
var ErrDiffers = errors.New("the target differs from the source")

// CopyConfig says what [Copy] copies, and where.
type CopyConfig struct {
	From string // a path, or "file:" and a path
	To   string // postgres://…

	// Progress is told of every page, on a goroutine of Copy; nil: nobody is.
	Progress func(CopyProgress)

	rows int              // of a page; 0: copyPageRows
	now  func() time.Time // time.Now but in tests
}

// CopyProgress says where a copy stands.
type CopyProgress struct {
	Phase       CopyPhase
	Done, Total int64 // requests
	Over        bool  // the phase is: the last that is told of it
}

// CopyPhase is a part of a copy.
type CopyPhase string

// The phases of a copy, in their order.
const (
	CopyRows   CopyPhase = "copy"
	CopyVerify CopyPhase = "verify"
)

// CopyReport says what came of a copy.
type CopyReport struct {
	Begun          bool             // the target has a part of the copy, which another call removes first, or all of it
	Source, Target store.CopyDigest // zero in a copy that was over before
	Removed        string           // the source of an unfinished copy that was in the target; "": it was empty
	Over           time.Time        // when this source had been copied before; zero: it had not, or not to the end
}

// Copy copies a database file into an empty PostgreSQL database: the history with its attempts, settings,
// API keys and counters. What is unfinished is as a start on the file would find it; the first node that serves
// the target goes on with it. Nobody serves either of them meanwhile.
//
// From its first transaction until both sides were compared and found the same, the target is marked as unfinished: no
// node starts on it and none of its jobs is dispatched. Copy empties a target with that mark and begins anew. The
// file stays as it is. Errors are for people.
func Copy(ctx context.Context, cfg CopyConfig) (_ CopyReport, err error) {
	if cfg.rows == 0 {
		cfg.rows = copyPageRows
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(CopyProgress) {}
	}
	source, err := sqlite.OpenCopySource(ctx, cfg.From)
	if err != nil {
		return CopyReport{}, fmt.Errorf("copy from %s: %w", cfg.From, sqlite.Explain(err))
	}
	defer func() {
		if closed := source.Close(); closed != nil {
			err = errors.Join(err, fmt.Errorf("copy from %s: %w", cfg.From, closed))
		}
	}()
	target, err := postgres.OpenCopyTarget(ctx, cfg.To)
	if err != nil {
		return CopyReport{}, fmt.Errorf("copy to %s: %w", postgres.WithoutPassword(cfg.To), postgres.Explain(err))
	}
	defer target.Close()
	c := &copying{cfg: cfg, source: source, target: target}
	report, err := c.run(ctx)
	if err != nil && ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	if err != nil {
		return report, fmt.Errorf("copy to %s: %w", postgres.WithoutPassword(cfg.To), postgres.Explain(sqlite.Explain(err)))
	}
	return report, nil
}

// copying is a copy under way.
type copying struct {
	cfg    CopyConfig
	source *sqlite.CopySource
	target *postgres.CopyTarget
}

func (c *copying) run(ctx context.Context) (report CopyReport, err error) {
	mark := postgres.CopyMark{From: c.cfg.From, Source: c.source.Fingerprint}
	before, err := c.target.Begin(ctx, mark)
	if err != nil {
		return report, err
	}
	report.Begun = true
	if before != nil && !before.Over.IsZero() {
		report.Over = before.Over
		return report, nil
	}
	if before != nil {
		report.Removed = before.From
	}
	ahead, err := c.target.Ahead(ctx, c.cfg.now)
	if err != nil {
		return report, err
	}
	if err := c.source.Recover(ctx, c.cfg.now(), ahead); err != nil {
		return report, fmt.Errorf("read the source: %w", err)
	}
	if err := c.copyRequests(ctx); err != nil {
		return report, fmt.Errorf("copy requests: %w", err)
	}
	if err := c.target.KeepRest(ctx, c.source.Rest); err != nil {
		return report, fmt.Errorf("copy settings, API keys and counters: %w", err)
	}
	if report.Source, report.Target, err = c.digests(ctx); err != nil {
		return report, fmt.Errorf("compare: %w", err)
	}
	if !report.Source.Same(&report.Target) {
		return report, ErrDiffers
	}
	mark.Over = c.cfg.now().UTC()
	return report, c.target.Finish(ctx, mark)
}

// copyRequests copies requests with their attempts and jobs. It reads a page while it writes the one before.
func (c *copying) copyRequests(ctx context.Context) error {
	progress := CopyProgress{Phase: CopyRows, Total: c.source.Total}
	c.cfg.Progress(progress)
	pages := make(chan store.CopyPage)
	sides, ctx := errgroup.WithContext(ctx)
	sides.Go(func() error {
		defer close(pages)
		return c.source.Pages(ctx, c.cfg.rows, func(page store.CopyPage) error {
			select {
			case pages <- page:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	sides.Go(func() error {
		for page := range pages {
			if err := c.target.Write(ctx, page); err != nil {
				return err
			}
			progress.Done += int64(len(page.Requests))
			c.cfg.Progress(progress)
		}
		return nil
	})
	err := sides.Wait()
	if err == nil {
		progress.Over = true
		c.cfg.Progress(progress)
	}
	return err
}

// digests reads all of both sides, at the same time.
func (c *copying) digests(ctx context.Context) (source, target store.CopyDigest, err error) {
	progress := CopyProgress{Phase: CopyVerify, Total: c.source.Total}
	c.cfg.Progress(progress)
	if err := c.target.Analyze(ctx); err != nil {
		return source, target, err
	}
	sides, ctx := errgroup.WithContext(ctx)
	sides.Go(func() error {
		d := store.NewDigester()
		err := c.source.Pages(ctx, c.cfg.rows, d.Page)
		source = d.End(&c.source.Rest)
		return err
	})
	sides.Go(func() error {
		d := store.NewDigester()
		err := c.target.Pages(ctx, c.cfg.rows, func(page store.CopyPage) error {
			progress.Done += int64(len(page.Requests))
			c.cfg.Progress(progress)
			return d.Page(page)
		})
		if err != nil {
			return err
		}
		rest, err := c.target.ReadRest(ctx, c.source.Rest.Settings)
		target = d.End(&rest)
		return err
	})
	if err := sides.Wait(); err != nil {
		return source, target, err
	}
	progress.Over = true
	c.cfg.Progress(progress)
	return source, target, nil
}
