package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	// copyRows and copyBytes bound a chunk of a copy, which is one transaction. Rows go through one by
	// one, so that no more than one of them is in memory.
	copyRows  = 8192
	copyBytes = 32 << 20
)

// ErrDiffers says that what was copied is not what is in the source.
var ErrDiffers = errors.New("the target differs from the source")

// CopyConfig says what [Copy] copies, and where.
type CopyConfig struct {
	From string // a path, or "file:" and a path
	To   string // postgres://…

	// Progress is told of every chunk, on a goroutine of Copy; nil: nobody is.
	Progress func(CopyProgress)

	chunk   int              // rows of a chunk; 0: copyRows
	now     func() time.Time // time.Now but in tests
	connect connector        // as in Config
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
	Begun          bool       // the target has a part of the copy, from which another call goes on, or all of it
	Source, Target CopyDigest // zero in a copy that was over before
	Resumed        int64      // requests that were in the target already, from a copy that was interrupted
	Over           time.Time  // when this source had been copied before; zero: it had not, or not to the end
}

// Copy copies a database file into an empty PostgreSQL database: the history with its attempts, settings,
// API keys and counters. What is unfinished is as a start on the file would find it; the first node that serves
// the target goes on with it. Nobody serves either of them meanwhile.
//
// Every chunk is a transaction that also says how far the copy is, so one that was interrupted, however it
// ended, goes on from there when Copy is called again. Until both sides were compared and found
// the same, no node starts on the target and none of its jobs is handed out. The file stays as it is. Errors are for people.
func Copy(ctx context.Context, cfg CopyConfig) (_ CopyReport, err error) {
	if cfg.chunk == 0 {
		cfg.chunk = copyRows
	}
	if cfg.connect == nil {
		cfg.connect = connect
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(CopyProgress) {}
	}
	source, err := openCopySource(ctx, cfg)
	if err != nil {
		return CopyReport{}, fmt.Errorf("copy from %s: %w", cfg.From, explain(err))
	}
	defer func() {
		if closed := source.close(); closed != nil {
			err = errors.Join(err, fmt.Errorf("copy from %s: %w", cfg.From, closed))
		}
	}()
	target, err := openCopyTarget(ctx, cfg.To)
	if err != nil {
		return CopyReport{}, fmt.Errorf("copy to %s: %w", withoutPassword(cfg.To), explainPostgres(err))
	}
	defer target.close()
	c := &copying{cfg: cfg, source: source, target: target}
	report, err := c.run(ctx)
	if err != nil && ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	if err != nil {
		return report, fmt.Errorf("copy to %s: %w", withoutPassword(cfg.To), explainPostgres(explain(err)))
	}
	return report, nil
}

// copying is a copy under way.
type copying struct {
	cfg    CopyConfig
	source *copySource
	target *copyTarget
	mark   copyMark
}

// copyMark is what the target knows of a copy: from its first transaction on in the setting copyUnfinished,
// and in copyFinished from its last one on.
type copyMark struct {
	From     string    `json:"from"`     // the file, as it was named
	Source   string    `json:"source"`   // fingerprint of what is in it
	Began    time.Time `json:"began"`    // what was being worked on is taken as of then
	AheadUS  int64     `json:"ahead_us"` // of the clock of the target, to that of the machine that copies
	Last     int64     `json:"last"`     // order of the last request that was copied; -1: none was
	Requests int64     `json:"requests"` // copied
	Over     time.Time `json:"over"`     // when the copy was; zero: it is not
}

// Settings that keep a copyMark.
const (
	copyUnfinished = "copy"
	copyFinished   = "copied"
)

func (c *copying) run(ctx context.Context) (report CopyReport, err error) {
	if err := c.begin(ctx); err != nil {
		return report, err
	}
	report.Begun = true
	if !c.mark.Over.IsZero() {
		report.Over = c.mark.Over
		return report, nil
	}
	report.Resumed = c.mark.Requests
	if err := c.source.mend(ctx, c.mark); err != nil {
		return report, fmt.Errorf("read the source: %w", err)
	}
	if err := c.copyRequests(ctx); err != nil {
		return report, err
	}
	if err := c.target.keepRest(ctx, c.source.rest); err != nil {
		return report, err
	}
	if report.Source, report.Target, err = c.digests(ctx); err != nil {
		return report, err
	}
	if !report.Source.same(&report.Target) {
		return report, ErrDiffers
	}
	c.mark.Over = c.cfg.now().UTC()
	return report, c.target.finish(ctx, c.mark)
}

// begin finds out whether the target is empty, or has a part of this copy or all of it.
func (c *copying) begin(ctx context.Context) error {
	fresh := copyMark{From: c.cfg.From, Source: c.source.fingerprint, Began: c.cfg.now().UTC().Truncate(time.Microsecond), Last: -1}
	ahead, err := c.target.ahead(ctx, c.cfg.now)
	if err != nil {
		return err
	}
	if ahead.Abs() >= minStep {
		fresh.AheadUS = ahead.Microseconds()
	}
	known, err := c.target.begin(ctx, fresh)
	if err != nil {
		return err
	}
	c.mark = known
	if c.mark.Source != c.source.fingerprint {
		return fmt.Errorf("an unfinished copy of %s is in it, which is another database or has been used since; "+
			"drop the target, create it anew and copy again", c.mark.From)
	}
	return nil
}

// copyRequests copies what is not in the target yet.
func (c *copying) copyRequests(ctx context.Context) error {
	progress := CopyProgress{Phase: CopyRows, Done: c.mark.Requests, Total: c.source.requests}
	c.cfg.Progress(progress)
	for {
		before := c.mark.Requests
		err := c.target.transact(ctx, func(tx pgx.Tx) error {
			next, err := c.copyChunk(ctx, tx)
			if err == nil {
				err = keepMark(ctx, tx, copyUnfinished, next)
			}
			if err == nil {
				c.mark = next
			}
			return err
		})
		progress.Done, progress.Over = c.mark.Requests, c.mark.Requests == before
		if err != nil {
			return fmt.Errorf("copy requests: %w", err)
		}
		c.cfg.Progress(progress)
		if progress.Over {
			return nil
		}
	}
}

// copyChunk copies some requests with their attempts and their jobs, and returns the mark after them.
func (c *copying) copyChunk(ctx context.Context, tx pgx.Tx) (copyMark, error) {
	next := c.mark
	first, err := reserveJobs(ctx, tx, c.cfg.chunk)
	if err != nil {
		return next, err
	}
	rows, err := c.source.after(ctx, c.mark.Last, c.cfg.chunk)
	if err != nil {
		return next, err
	}
	defer rows.Close()
	var jobs copiedJobs
	bytes := 0
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"requests"}, copiedColumns, pgx.CopyFromFunc(func() ([]any, error) {
		if bytes >= copyBytes {
			return nil, nil
		}
		r, err := rows.next()
		if r == nil || err != nil {
			return nil, err
		}
		bytes += len(r.data) + len(r.result)
		next.Last, next.Requests = r.order, next.Requests+1
		return r.values(jobs.add(r, first))
	}))
	if err != nil {
		return next, err
	}
	if err := rows.Close(); err != nil {
		return next, err
	}
	if err := jobs.insert(ctx, tx); err != nil {
		return next, err
	}
	return next, c.source.copyAttempts(ctx, tx, c.mark.Last, next.Last)
}

// digests reads all of both sides, at the same time.
func (c *copying) digests(ctx context.Context) (source, target CopyDigest, err error) {
	progress := CopyProgress{Phase: CopyVerify, Total: c.source.requests}
	c.cfg.Progress(progress)
	sides, ctx := errgroup.WithContext(ctx)
	sides.Go(func() (err error) {
		source, err = c.source.digest(ctx)
		return err
	})
	sides.Go(func() (err error) {
		target, err = c.target.digest(ctx, c.source.rest.settings, func(done int64) {
			progress.Done = done
			c.cfg.Progress(progress)
		})
		return err
	})
	if err := sides.Wait(); err != nil {
		return source, target, fmt.Errorf("compare: %w", err)
	}
	progress.Over = true
	c.cfg.Progress(progress)
	return source, target, nil
}
