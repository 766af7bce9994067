package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"tandem/internal/store"
)

// tryTimeout is how long one attempt to write waits for other writers.
const tryTimeout = 250 * time.Millisecond

// OpenHandle opens a file that a server may be using. If its schema is older, or Create is to make it, it is
// migrated under the lock of the one process that may do that.
func OpenHandle(ctx context.Context, cfg store.HandleConfig) (store.Handle, error) {
	return openHandle(ctx, cfg, connect)
}

func openHandle(ctx context.Context, cfg store.HandleConfig, connect connector) (store.Handle, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &handle{connect: connect}
	if err := s.open(ctx, cfg); err != nil {
		return nil, errors.Join(Explain(err), s.Close())
	}
	return s, nil
}

// sqliteHandle is a connection to a file. Its clock is the machine's.
type handle struct {
	connect connector
	db      *sql.DB
	conn    *sql.Conn // the only one: data_version is about one connection
	version int64     // PRAGMA data_version when a setting was last read
}

func (s *handle) open(ctx context.Context, cfg store.HandleConfig) error {
	path, err := databasePath(cfg.URL)
	if err != nil {
		return err
	}
	_, err = os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && cfg.Create:
		err = s.prepare(ctx, path)
	case errors.Is(err, os.ErrNotExist):
		err = errors.New("there is no such file; `tandem keys create` makes it, and so does `tandem serve`")
	case err == nil:
		err = oneName(path)
	}
	if err != nil {
		return err
	}
	name := dsn(fileName(path)+"mode=rw", append(durable(), "busy_timeout(5000)")...)
	if s.db, err = s.connect(name); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(2) // conn, and for a moment the one that reads the schema
	if upToDate, err := current(ctx, s.db); err != nil {
		return err
	} else if !upToDate {
		// It is closed before prepare opens and closes the file: see databaseFile.
		if err := errors.Join(s.db.Close(), s.prepare(ctx, path)); err != nil {
			return err
		}
		if s.db, err = s.connect(name); err != nil {
			return err
		}
		s.db.SetMaxOpenConns(2)
	}
	makePrivate(path, cfg.Log)
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	if _, err := s.conn.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, tryTimeout.Milliseconds())); err != nil {
		return fmt.Errorf("set how long to wait for other writers: %w", err)
	}
	return nil
}

// current reports whether a database has the schema of this version.
func current(ctx context.Context, db *sql.DB) (bool, error) {
	if err := ours(ctx, db); err != nil {
		return false, fmt.Errorf("read its schema: %w", err)
	}
	var tables int
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version'`).Scan(&tables)
	if err != nil || tables == 0 {
		return false, err
	}
	provider, err := migrationsOf(db)
	if err != nil {
		return false, err
	}
	version, newest, err := store.Versions(ctx, provider)
	return version == newest, err
}

// prepare makes the database, or brings its schema up to date, as its only process.
func (s *handle) prepare(ctx context.Context, path string) error {
	file, err := ownFile(path)
	if err != nil {
		return fmt.Errorf("bring its schema up to date: %w", err)
	}
	db, err := s.connect(dsn(fileName(path), append(durable(), "busy_timeout(5000)")...))
	if err == nil {
		db.SetMaxOpenConns(1)
		err = errors.Join(migrate(ctx, db), db.Close())
	}
	return errors.Join(err, file.close())
}

// Close closes what was opened, after an open that failed as well.
func (s *handle) Close() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

func (s *handle) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return s.conn.QueryContext(ctx, query, args...)
}

func (s *handle) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return s.conn.QueryRowContext(ctx, query, args...)
}

// Poll looks at a number that SQLite has in memory, and reads the setting if another connection has written to the
// file since.
func (s *handle) Poll(ctx context.Context, setting, seen string) (value string, now time.Time, err error) {
	var version int64
	if err := s.conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version); err != nil {
		return "", now, Explain(err)
	}
	if seen != "" && version == s.version {
		return seen, now, nil
	}
	err = s.conn.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = ?`, setting).Scan(&value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", now, Explain(err)
	}
	s.version = version
	return value, now, nil
}

func (s *handle) PollInterval() time.Duration { return 250 * time.Millisecond }

func (s *handle) Duplicate(err error) bool {
	return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}

// sqliteTx is the connection, in a transaction.
type handleTx struct{ *sql.Conn }

func (tx handleTx) KeepSecret(ctx context.Context, setting, secret string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES (?, ?)`, setting, secret)
	return err
}

// Transact waits for tryTimeout if timeout is shorter.
func (s *handle) Transact(
	ctx context.Context, timeout time.Duration, f func(context.Context, store.Tx) error,
) error {
	deadline := time.Now().Add(timeout)
	_, err := s.conn.ExecContext(ctx, `BEGIN IMMEDIATE`)
	for isBusy(err) && time.Now().Before(deadline) { // each attempt waits for tryTimeout
		_, err = s.conn.ExecContext(ctx, `BEGIN IMMEDIATE`)
	}
	if isBusy(err) {
		return fmt.Errorf("%w: %w", store.ErrBusy, err)
	}
	if err != nil {
		return Explain(err)
	}
	err = f(ctx, handleTx{s.conn})
	if err == nil {
		_, err = s.conn.ExecContext(ctx, `COMMIT`)
	}
	if err != nil {
		// An error says that SQLite has rolled back by itself.
		_, _ = s.conn.ExecContext(ctx, `ROLLBACK`)
	}
	return Explain(err)
}

// isBusy reports whether another connection was writing.
func isBusy(err error) bool {
	return sqliteCode(err)&0xff == sqlite3.SQLITE_BUSY
}
