package postgres

import (
	"context"
	"log/slog"
)

// riverLog is what River logs to. How many jobs it did in each 5 s is for those who debug, and so are
// its errors while failing says that the database cannot be used, which the store has said once.
type riverLog struct {
	slog.Handler

	failing func() bool
}

// failing reports whether the database does not take writes, as far as is known.
func (s *Store) failing() bool { return s.away.Load() || s.failure.Load() != nil }

// Enabled reports whether a line is logged.
func (l riverLog) Enabled(ctx context.Context, level slog.Level) bool {
	if level < slog.LevelWarn || l.failing() {
		level = min(level, slog.LevelDebug)
	}
	return l.Handler.Enabled(ctx, level)
}

// WithAttrs returns a handler that adds attributes.
func (l riverLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return riverLog{l.Handler.WithAttrs(attrs), l.failing}
}

// WithGroup returns a handler that begins a group.
func (l riverLog) WithGroup(name string) slog.Handler {
	return riverLog{l.Handler.WithGroup(name), l.failing}
}
