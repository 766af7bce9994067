package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"tandem/internal/store"
)

// OpenHandle opens a database that servers may be using, whose tables Create makes if there are none.
func OpenHandle(ctx context.Context, cfg store.HandleConfig) (store.Handle, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &handle{}
	if err := p.open(ctx, cfg); err != nil {
		return nil, errors.Join(Explain(err), p.Close())
	}
	return p, nil
}

// postgresHandle is a connection that no other part of a node uses: it gets answers even when all the others are busy.
type handle struct {
	*sql.DB // nil after an open that failed early
}

func (p *handle) open(ctx context.Context, cfg store.HandleConfig) error {
	parsed, err := parseURL(cfg.URL)
	if err != nil {
		return err
	}
	begin := sessionOf(parsed.ConnConfig).begin
	p.DB = stdlib.OpenDB(*parsed.ConnConfig, stdlib.OptionAfterConnect(begin))
	p.SetMaxOpenConns(1)
	version, newest, err := p.versions(ctx)
	switch {
	case err != nil:
		return err
	case version == newest:
		return refuseUnfinished(p.QueryRowContext(ctx, selectMark, copyUnfinished))
	case version > 0:
		return fmt.Errorf("its schema is version %d, and this tandem needs %d; bring it up to date with `tandem migrate`",
			version, newest)
	case !cfg.Create:
		return errors.New("it has no tables of tandem's yet; " +
			"`tandem keys create` makes them, and so do `tandem migrate` and `tandem serve`")
	}
	return migrate(ctx, cfg.URL, cfg.Log)
}

// versions returns the version of the schema, 0 if there is none, and the newest one that this program knows. It
// changes nothing.
func (p *handle) versions(ctx context.Context) (version, newest int64, err error) {
	provider, err := migrationsOf(p.DB)
	if err != nil {
		return 0, 0, err
	}
	var missing bool
	err = p.QueryRowContext(ctx, `SELECT to_regclass('goose_db_version') IS NULL`).Scan(&missing)
	if err != nil {
		return 0, 0, err
	}
	if missing {
		return 0, 1, nil
	}
	return store.Versions(ctx, provider)
}

// Close closes what was opened, after an open that failed as well.
func (p *handle) Close() error {
	if p.DB == nil {
		return nil
	}
	return p.DB.Close()
}

func (p *handle) Poll(ctx context.Context, setting, _ string) (value string, now time.Time, err error) {
	err = p.QueryRowContext(ctx, `
		SELECT coalesce((SELECT value FROM settings WHERE name = $1), ''), clock_timestamp()`, setting).
		Scan(&value, &now)
	return value, now, Explain(err)
}

func (p *handle) PollInterval() time.Duration { return 750 * time.Millisecond }

func (p *handle) Duplicate(err error) bool {
	cause, ok := errors.AsType[*pgconn.PgError](err)
	return ok && cause.Code == "23505"
}

// Transact has writeTimeout for all of it: writers wait for single rows here, and never long.
func (p *handle) Transact(ctx context.Context, _ time.Duration, f func(context.Context, store.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	conn, err := p.Conn(ctx)
	if err != nil {
		return Explain(err)
	}
	defer conn.Close() //nolint:errcheck // releases it to the pool
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return Explain(err)
	}
	defer tx.Rollback() // after a commit there is nothing to roll back
	if err := f(ctx, handleTx{tx, conn}); err != nil {
		return Explain(err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit, which may have happened all the same: %w", Explain(err))
	}
	return nil
}

// postgresTx is a transaction and the connection that it is on.
type handleTx struct {
	*sql.Tx

	conn *sql.Conn
}

// KeepSecret uses COPY: a server logs none of its data.
func (tx handleTx) KeepSecret(ctx context.Context, setting, secret string) error {
	return copyInto(ctx, tx.conn, "settings", []string{"name", "value"}, pgx.CopyFromRows([][]any{{setting, secret}}))
}

// copyInto adds rows by COPY, in the transaction of the connection if there is one.
func copyInto(ctx context.Context, conn *sql.Conn, table string, columns []string, rows pgx.CopyFromSource) error {
	return conn.Raw(func(driver any) error {
		_, err := driver.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, rows)
		return err
	})
}
