package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// FallSilent has a node give no sign of life, as if it were stopped, while it goes on with what it does.
func (s *Postgres) FallSilent(yes bool) { s.silent.Store(yes) }

// CountOwners reads what every owner has unfinished.
func (s *Postgres) CountOwners(ctx context.Context) error {
	_, err := s.used(ctx)
	return err
}

// ExpireParked looks for parked callbacks that are older than maxAge.
func (s *Postgres) ExpireParked(ctx context.Context, maxAge time.Duration) error {
	return s.expireParked(ctx, maxAge)
}

// Reclaim has a node dispatch again what it was handed without knowing.
func (s *Postgres) Reclaim(ctx context.Context) error { return s.reclaim(ctx) }

// EndStrays has a node end the requests that name it and that nobody there waits for.
func (s *Postgres) EndStrays(ctx context.Context) error { return s.endStrays(ctx) }

// Waiting is how many accepts wait in line for a writer.
func (s *Postgres) Waiting() int { return len(s.accepts.ops) }

// CallerLeaves has a node forget who asked for requests, as if Accept had returned ErrUnsure to their callers.
func (s *Postgres) CallerLeaves(ids ...string) { s.callers.leave(ids, true) }

// Sweep has a node take over from those that are dead.
func (s *Postgres) Sweep(ctx context.Context) error { return s.sweep(ctx, false) }

// Do runs a write among the others.
func (s *Postgres) Do(ctx context.Context, apply func(context.Context, pgx.Tx) error) error {
	return s.do(ctx, func(ctx context.Context, tx pgx.Tx, _ Deltas) error { return apply(ctx, tx) })
}

// NewRiverLog makes what River logs to.
func NewRiverLog(h slog.Handler, failing func() bool) slog.Handler { return riverLog{h, failing} }

// Parameters returns what sessions have for a parameter.
// :: what they are for → value
func (s *Postgres) Parameters(ctx context.Context, handle Handle, name string) map[string]string {
	values := map[string]string{}
	const current = `SELECT current_setting($1)`
	for session, row := range map[string]interface{ Scan(...any) error }{
		"writes": s.pool.QueryRow(ctx, current, name),
		"reads":  s.reads.QueryRow(ctx, current, name),
		"handle": handle.QueryRowContext(ctx, current, name),
	} {
		var value string
		if err := row.Scan(&value); err != nil {
			value = err.Error()
		}
		values[session] = value
	}
	return values
}

// MigrateLogged is MigratePostgres with a log of its own.
func MigrateLogged(ctx context.Context, url string, log *slog.Logger) error {
	return migratePostgres(ctx, url, log)
}
