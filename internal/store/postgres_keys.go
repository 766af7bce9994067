package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// sharedKeysLook is how often a node looks for changes of keys: seldom enough for many nodes that are
// idle, and often enough to have a change in force within a second.
const sharedKeysLook = 750 * time.Millisecond

// postgresKeys are the keys that any number of nodes share, on a connection of
// their own: they are looked at even when every other is busy.
type postgresKeys struct{ db *sql.DB }

func openPostgresKeys(ctx context.Context, cfg KeysConfig) (*postgresKeys, error) {
	p := &postgresKeys{}
	return p, explainPostgres(p.open(ctx, cfg))
}

func (p *postgresKeys) open(ctx context.Context, cfg KeysConfig) error {
	parsed, err := parsePostgres(cfg.URL)
	if err != nil {
		return err
	}
	begin := sessionOf(parsed.ConnConfig).begin
	p.db = stdlib.OpenDB(*parsed.ConnConfig, stdlib.OptionAfterConnect(begin))
	p.db.SetMaxOpenConns(1)
	version, newest, err := p.versions(ctx)
	switch {
	case err != nil:
		return err
	case version == newest:
		return refuseUnfinished(p.db.QueryRowContext(ctx, selectMark, copyUnfinished))
	case version > 0:
		return fmt.Errorf("its schema is version %d, and this tandem needs %d; bring it up to date with `tandem migrate`", version, newest)
	case !cfg.Create:
		return errors.New("it has no tables of tandem's yet; `tandem keys create` makes them, and so do `tandem migrate` and `tandem serve`")
	}
	return migratePostgres(ctx, cfg.URL, cfg.Log)
}

// versions returns the version of the schema, 0 if there is none, and the newest one that this program knows. It
// changes nothing.
func (p *postgresKeys) versions(ctx context.Context) (version, newest int64, err error) {
	provider, err := postgresMigrations(p.db)
	if err != nil {
		return 0, 0, err
	}
	var missing bool
	if err := p.db.QueryRowContext(ctx, `SELECT to_regclass('goose_db_version') IS NULL`).Scan(&missing); err != nil {
		return 0, 0, err
	}
	if missing {
		return 0, 1, nil
	}
	return versions(ctx, provider)
}

func (p *postgresKeys) close() error {
	if p.db == nil {
		return nil
	}
	return p.db.Close()
}

// look asks for the time as well. That the answer took a while, half of it either way, is allowed for, and a second is
// drift: clocks that are that close are taken for equal.
func (p *postgresKeys) look(ctx context.Context, ours *clock, _ string) (mark string, ahead time.Duration, err error) {
	asked, began := ours.now(), time.Now()
	var there int64
	err = p.db.QueryRowContext(ctx, `
		SELECT coalesce((SELECT value FROM settings WHERE name = 'keys'), $1), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`, neverChanged).
		Scan(&mark, &there)
	if err != nil {
		return "", 0, explainPostgres(err)
	}
	half := time.Since(began) / 2
	ahead = time.UnixMicro(there).Sub(asked.Add(half))
	if ahead.Abs()-half < minSkew {
		ahead = 0
	}
	return mark, ahead, nil
}

func (p *postgresKeys) reader() querier { return p.db }

func (p *postgresKeys) every() time.Duration { return sharedKeysLook }

func (p *postgresKeys) nameTaken(err error) bool {
	cause, ok := errors.AsType[*pgconn.PgError](err)
	return ok && cause.ConstraintName == "keys_name"
}

// transact has writeTimeout for all of it: writers wait for single rows here, and never long.
func (p *postgresKeys) transact(ctx context.Context, _ time.Duration, f func(context.Context, keysTx) error) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return explainPostgres(err)
	}
	defer conn.Close() //nolint:errcheck // releases it to the pool
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return explainPostgres(err)
	}
	defer tx.Rollback() // after a commit there is nothing to roll back
	if err := f(ctx, postgresKeysTx{tx, conn}); err != nil {
		return explainPostgres(err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit, which may have happened all the same: %w", explainPostgres(err))
	}
	return nil
}

// postgresKeysTx is a transaction and the connection that it is on.
type postgresKeysTx struct {
	*sql.Tx

	conn *sql.Conn
}

// stash uses COPY, of which a server logs no data.
func (tx postgresKeysTx) stash(ctx context.Context, secret string) error {
	return tx.conn.Raw(func(driver any) error {
		_, err := driver.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{"settings"}, []string{"name", "value"},
			pgx.CopyFromRows([][]any{{"stashed", secret}}))
		return err
	})
}
