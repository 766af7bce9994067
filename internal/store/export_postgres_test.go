package store

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5"
)

// FallSilent has a node give no sign of life, as if it were stopped, while it goes on with what it does.
func (s *Postgres) FallSilent(yes bool) { s.silent.Store(yes) }

// Reclaim has a node hand out again what it was handed without knowing.
func (s *Postgres) Reclaim(ctx context.Context) error { return s.reclaim(ctx) }

// Sweep has a node take over from those that are dead.
func (s *Postgres) Sweep(ctx context.Context) error { return s.sweep(ctx, false) }

// Do runs a write among the others.
func (s *Postgres) Do(ctx context.Context, apply func(context.Context, pgx.Tx) error) error {
	return s.do(ctx, func(ctx context.Context, tx pgx.Tx, _ map[string]int64) error { return apply(ctx, tx) })
}

// NewRiverLog makes what River logs to.
func NewRiverLog(h slog.Handler, failing func() bool) slog.Handler { return riverLog{h, failing} }
