package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// keysWait is how long one try to write waits for other writers.
const keysWait = 250 * time.Millisecond

// sqliteKeys are the keys in a file. Its clock is that of the machine.
type sqliteKeys struct {
	db      *sql.DB
	conn    *sql.Conn // the only one: data_version is about one connection
	version int64     // PRAGMA data_version when the mark was last read
}

func openSQLiteKeys(ctx context.Context, cfg KeysConfig) (*sqliteKeys, error) {
	s := &sqliteKeys{}
	path, err := databasePath(cfg.URL)
	if err == nil {
		err = s.open(ctx, path, cfg)
	}
	return s, explain(err)
}

func (s *sqliteKeys) open(ctx context.Context, path string, cfg KeysConfig) error {
	if cfg.connect == nil {
		cfg.connect = connect
	}
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && cfg.Create:
		if err := prepare(ctx, path, cfg); err != nil {
			return err
		}
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no such file; `tandem keys create` makes it, and so does `tandem serve`")
	case err != nil:
		return err
	default:
		if err := oneName(path); err != nil {
			return err
		}
	}
	name := dsn(fileName(path)+"mode=rw", append(durable(), "busy_timeout(5000)")...)
	if s.db, err = cfg.connect(name); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(2) // conn, and for a moment the one that reads the schema
	if upToDate, err := current(ctx, s.db); err != nil {
		return err
	} else if !upToDate {
		// It is closed before prepare opens and closes the file: see databaseFile.
		if err := errors.Join(s.db.Close(), prepare(ctx, path, cfg)); err != nil {
			return err
		}
		if s.db, err = cfg.connect(name); err != nil {
			return err
		}
		s.db.SetMaxOpenConns(2)
	}
	makePrivate(path, cfg.Log)
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	if _, err := s.conn.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, keysWait.Milliseconds())); err != nil {
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
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version'`).Scan(&tables); err != nil || tables == 0 {
		return false, err
	}
	provider, err := migrationsOf(db)
	if err != nil {
		return false, err
	}
	version, newest, err := versions(ctx, provider)
	return version == newest, err
}

// prepare makes the database, or brings its schema up to date, as its only process.
func prepare(ctx context.Context, path string, cfg KeysConfig) error {
	file, err := ownFile(path)
	if err != nil {
		return fmt.Errorf("bring its schema up to date: %w", err)
	}
	db, err := cfg.connect(dsn(fileName(path), append(durable(), "busy_timeout(5000)")...))
	if err == nil {
		db.SetMaxOpenConns(1)
		err = errors.Join(migrate(ctx, db), db.Close())
	}
	return errors.Join(err, file.close())
}

func (s *sqliteKeys) close() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// look costs a look at a number that SQLite has in memory, and a row more if anybody else has
// written to the file since.
func (s *sqliteKeys) look(ctx context.Context, _ *clock, seen string) (string, time.Duration, error) {
	var version int64
	if err := s.conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version); err != nil {
		return "", 0, explain(err)
	}
	if seen != "" && version == s.version {
		return seen, 0, nil
	}
	mark := neverChanged
	err := s.conn.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = 'keys'`).Scan(&mark)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", 0, explain(err)
	}
	s.version = version
	return mark, 0, nil
}

func (s *sqliteKeys) reader() querier { return s.conn }

func (s *sqliteKeys) every() time.Duration { return 250 * time.Millisecond }

func (s *sqliteKeys) nameTaken(err error) bool {
	var code *sqlite.Error
	return errors.As(err, &code) && code.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}

// errBusy says that others wrote all the time that we were ready to wait.
var errBusy = errors.New("others are writing to the database")

// sqliteKeysTx is the connection, in a transaction.
type sqliteKeysTx struct{ *sql.Conn }

func (tx sqliteKeysTx) stash(ctx context.Context, secret string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ('stashed', $1)`, secret)
	return err
}

// transact waits for keysWait if patience is shorter.
func (s *sqliteKeys) transact(ctx context.Context, patience time.Duration, f func(context.Context, keysTx) error) error {
	deadline := time.Now().Add(patience)
	_, err := s.conn.ExecContext(ctx, `BEGIN IMMEDIATE`)
	for isBusy(err) && time.Now().Before(deadline) { // each try waits for keysWait
		_, err = s.conn.ExecContext(ctx, `BEGIN IMMEDIATE`)
	}
	if isBusy(err) {
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if err != nil {
		return explain(err)
	}
	err = f(ctx, sqliteKeysTx{s.conn})
	if err == nil {
		_, err = s.conn.ExecContext(ctx, `COMMIT`)
	}
	if err != nil {
		// An error says that SQLite has rolled back by itself.
		_, _ = s.conn.ExecContext(ctx, `ROLLBACK`)
	}
	return explain(err)
}

// isBusy reports whether somebody else was writing.
func isBusy(err error) bool {
	var code *sqlite.Error
	return errors.As(err, &code) && code.Code()&0xff == sqlite3.SQLITE_BUSY
}
