package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"tandem/internal/store"
)

//go:embed migrations
var migrations embed.FS

// quietWait is how long a start waits for another that changes the schema before it says so.
const quietWait = time.Second

// Migrate brings a database up to date and does nothing else. It logs what it waits for.
func Migrate(ctx context.Context, url string) error {
	if err := migrate(ctx, url, slog.Default()); err != nil {
		return fmt.Errorf("migrate database %s: %w", WithoutPassword(url), Explain(err))
	}
	return nil
}

// migrate applies River's migrations and ours. One node does, the others wait for it, for as long
// as it takes: a large index may take long. It waits no longer than usual for the lock on a table, behind
// which all others would queue. When there is nothing to apply it waits for nobody.
func migrate(ctx context.Context, url string, log *slog.Logger) error {
	cfg, err := parseURL(url)
	if err != nil {
		return err
	}
	cfg.MaxConns = migrationConns
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = "0"
	pool, err := newPool(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	var version int
	var encoding string
	err = pool.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')`,
	).Scan(&version, &encoding)
	if err != nil {
		return err
	}
	if err := errors.Join(tooOld(version), unfit(encoding)); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool.Pool)
	defer db.Close() //nolint:errcheck // the pool stays open
	provider, err := migrationsOf(db)
	if err != nil {
		return err
	}
	discard := &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)}
	river, err := rivermigrate.New(riverpgxv5.New(pool.Pool), discard)
	if err != nil {
		return fmt.Errorf("read River's migrations: %w", err)
	}
	if done, err := upToDate(ctx, pool, provider, river); err != nil || done {
		return err
	}
	lock, err := lockSchema(ctx, pool, log)
	if err != nil {
		return fmt.Errorf("wait for another node that changes the schema: %w", err)
	}
	defer func() {
		lock.Conn().Close(context.WithoutCancel(ctx)) //nolint:errcheck // lets go of the lock
		lock.Rollback(context.WithoutCancel(ctx))     //nolint:errcheck // releases the connection
	}()
	if done, err := upToDate(ctx, pool, provider, river); err != nil || done { // by the one that was waited for
		return err
	}
	if _, err := riverUpToDate(ctx, pool, river); err != nil {
		return err
	}
	if _, err := river.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("bring River's schema up to date: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}

// unfit refuses databases that cannot keep every text. SQL_ASCII keeps any bytes.
func unfit(encoding string) error {
	if encoding != "UTF8" && encoding != "SQL_ASCII" {
		return fmt.Errorf("the encoding of the database is %s, which cannot keep every text; "+
			"make one with createdb --encoding UTF8 --template template0", encoding)
	}
	return nil
}

func migrationsOf(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return store.Migrations(goose.DialectPostgres, db, files)
}

// upToDate reports whether there is nothing to migrate, and refuses schemas that a newer tandem has made. Ours is
// the last to be changed: while another node is about it, River's is not looked at.
func upToDate(
	ctx context.Context, pool *pool, provider *goose.Provider, river *rivermigrate.Migrator[pgx.Tx],
) (bool, error) {
	var made bool
	err := pool.QueryRow(ctx, `SELECT to_regclass('goose_db_version') IS NOT NULL`).Scan(&made)
	if err != nil || !made {
		return false, err
	}
	version, newest, err := store.Versions(ctx, provider)
	if err != nil || version < newest {
		return false, err
	}
	return riverUpToDate(ctx, pool, river)
}

// riverUpToDate is upToDate for River's schema. River itself says of a newer schema only that it does not
// know a version of it.
func riverUpToDate(ctx context.Context, pool *pool, river *rivermigrate.Migrator[pgx.Tx]) (bool, error) {
	var made bool
	version := 0
	err := pool.QueryRow(ctx, `SELECT to_regclass('river_migration') IS NOT NULL`).Scan(&made)
	if err == nil && made {
		err = pool.QueryRow(ctx, `
			SELECT coalesce(max(version), 0)
			FROM river_migration AS m
			WHERE coalesce(to_jsonb(m) ->> 'line', 'main') = 'main'`).Scan(&version) // the first versions have no lines
	}
	if err != nil {
		return false, fmt.Errorf("read the version of River's schema: %w", err)
	}
	known := river.AllVersions()
	newest := known[len(known)-1].Version
	if version > newest {
		return false, fmt.Errorf("its schema of River is version %d, this tandem knows up to %d: "+
			"it was written by a newer tandem; start that one, or name another database", version, newest)
	}
	return version == newest, nil
}

// lockSchema returns an open transaction that keeps all others from changing the schema. What it
// locks is a table: an advisory lock could be held by every role that may connect.
func lockSchema(ctx context.Context, pool *pool, log *slog.Logger) (pgx.Tx, error) {
	if err := makeLock(ctx, pool); err != nil {
		return nil, err
	}
	for timeout := quietWait; ; timeout = 0 {
		lock, err := tryLock(ctx, pool, timeout)
		if cause, ok := errors.AsType[*pgconn.PgError](err); !ok || cause.Code != "55P03" {
			return lock, err
		}
		log.Warn("waiting for another node that changes the schema", "sessions", lockedBy(ctx, pool))
	}
}

// makeLock makes the table that is locked, if there is none.
func makeLock(ctx context.Context, pool *pool) error {
	var made bool
	err := pool.QueryRow(ctx, `SELECT to_regclass('schema_lock') IS NOT NULL`).Scan(&made)
	if err != nil || made {
		return err
	}
	_, err = pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS schema_lock ()`)
	madeByAnother := []string{"23505", "42P07", "42710"} // says the index, the table, or its type
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains(madeByAnother, cause.Code) {
		return nil // at the same moment
	}
	return err
}

// tryLock locks it in a mode that lets it be read, for backups. A timeout of 0 is none.
func tryLock(ctx context.Context, pool *pool, timeout time.Duration) (pgx.Tx, error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `
		SELECT set_config('lock_timeout', $1, true),
		       set_config('idle_in_transaction_session_timeout', '0', true)`, inMillis(timeout))
	if err == nil {
		_, err = tx.Exec(ctx, `LOCK TABLE schema_lock IN SHARE ROW EXCLUSIVE MODE`)
	}
	if err != nil {
		tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // the error before it says more
		return nil, err
	}
	return tx, nil
}

// lockedBy lists the sessions that hold the lock, for people.
func lockedBy(ctx context.Context, pool *pool) string {
	rows, err := pool.Query(ctx, `
		SELECT format('process %s: %s, user %s, from %s',
		              pid, application_name, usename, coalesce(host(client_addr), 'this machine'))
		FROM pg_locks
		JOIN pg_stat_activity USING (pid)
		WHERE relation = 'schema_lock'::regclass AND granted
		      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return err.Error()
	}
	sessions, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	return strings.Join(sessions, "; ")
}
