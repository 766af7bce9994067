package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"
)

// Querier is what *sql.DB, *sql.Conn and *sql.Tx have in common for reading.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Handle is one connection to a database, beside the servers that use it: for a package that keeps a table of its own
// there. What it commits is as durable as what a [Store] accepts. Callers take turns: one call at a time.
type Handle interface {
	Querier

	// Transact must commit all that f has written, or nothing. Where one writer at a time locks the database, it
	// waits about as long as timeout for the others and then returns ErrBusy.
	Transact(ctx context.Context, timeout time.Duration, f func(context.Context, Tx) error) error
	// Poll must return the value of a setting ("": there is none) and the time by the database's clock (zero: that is
	// the machine's own). It may return seen unread if nobody else has written since the last Poll.
	Poll(ctx context.Context, setting, seen string) (value string, now time.Time, err error)
	// PollInterval must be rare enough for many idle processes, and under a second.
	PollInterval() time.Duration
	// Duplicate must report whether a statement failed because a unique index has such a row already.
	Duplicate(err error) bool
	Close() error
}

// Tx is a transaction of a [Handle].
type Tx interface {
	Querier

	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	// KeepSecret must add a setting without making it a parameter of a statement: servers may log those.
	KeepSecret(ctx context.Context, setting, secret string) error
}

// ErrBusy says that others were writing for as long as we were ready to wait.
var ErrBusy = errors.New("others are writing to the database")

// HandleConfig says which handle to open.
type HandleConfig struct {
	URL    string       // a path, "file:" and a path, or postgres://…
	Create bool         // make the database if there is none; on PostgreSQL its tables
	Log    *slog.Logger // slog.Default
}
