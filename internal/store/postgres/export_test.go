package postgres

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
)

// FallSilent has a node give no sign of life, as if it were stopped, while it goes on with what it does.
func (s *Store) FallSilent(yes bool) { s.silent.Store(yes) }

// CountOwners reads what every owner has unfinished.
func (s *Store) CountOwners(ctx context.Context) error {
	_, err := s.used(ctx)
	return err
}

// ExpireParked looks for parked callbacks that are older than maxAge.
func (s *Store) ExpireParked(ctx context.Context, maxAge time.Duration) error {
	return s.expireParked(ctx, maxAge)
}

// Reclaim has a node dispatch again what it was handed without knowing.
func (s *Store) Reclaim(ctx context.Context) error { return s.reclaim(ctx) }

// EndStrays has a node end the requests that name it and that nobody there waits for.
func (s *Store) EndStrays(ctx context.Context) error { return s.endStrays(ctx) }

// Waiting is how many accepts wait in line for a writer.
func (s *Store) Waiting() int { return len(s.accepts.ops) }

// CallerLeaves has a node forget who asked for requests, as if Accept had returned ErrUnsure to their callers.
func (s *Store) CallerLeaves(ids ...string) { s.callers.leave(ids, true) }

// Sweep has a node take over from those that are dead.
func (s *Store) Sweep(ctx context.Context) error { return s.sweep(ctx, false) }

// Do runs a write among the others.
func (s *Store) Do(ctx context.Context, apply func(context.Context, pgx.Tx) error) error {
	return s.do(ctx, func(ctx context.Context, tx pgx.Tx, _ store.Deltas) error { return apply(ctx, tx) })
}

// NewRiverLog makes what River logs to.
func NewRiverLog(h slog.Handler, failing func() bool) slog.Handler { return riverLog{h, failing} }

// Parameters returns what sessions have for a parameter.
// :: what they are for → value
func (s *Store) Parameters(ctx context.Context, handle store.Handle, name string) map[string]string {
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

// MigrateLogged is Migrate with a log of its own.
func MigrateLogged(ctx context.Context, url string, log *slog.Logger) error {
	return migrate(ctx, url, log)
}

// TooOld refuses servers of old versions.
func TooOld(version int) error { return tooOld(version) }

// UndeliveredWithin is Undelivered with other limits.
func (s *Store) UndeliveredWithin(ctx context.Context, sites, counted int) (store.Undelivered, error) {
	limits := store.DefaultUndeliveredLimits
	limits.Sites, limits.Counted = sites, counted
	return s.undelivered(ctx, limits)
}
