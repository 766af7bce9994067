// Package sqlite keeps requests in a database file, or in memory, that one process owns.
//
// It hides the file and its locks, the writer that commits many writes together, and the queue that dispatches what is
// due. It promises what store.Store promises. app opens it.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/pressly/goose/v3"
	sqlite3 "modernc.org/sqlite/lib"

	"tandem"
	"tandem/internal/store"
)

//go:embed migrations
var migrations embed.FS

// connector opens a pool of connections.
type connector func(dsn string) (*sql.DB, error)

func connect(dsn string) (*sql.DB, error) { return sql.Open("sqlite", dsn) }

// Bounds of the in-memory database: finished rows beyond either are trimmed, oldest first.
const (
	memoryRows  = 100_000
	memoryBytes = 256 << 20
)

// Memory reports whether url names the in-memory database, which does not
// survive the process.
func Memory(url string) bool { return url == ":memory:" }

// Store is the embedded store. One process owns a database file at a time.
type Store struct {
	cfg     store.Config
	connect connector
	memory  bool
	file    *databaseFile // nil in memory

	readDB *sql.DB // read-only pool; in memory one connection

	// connMu guards conn: the writer holds it for a batch, in memory also every reader, because there a reader and a
	// writer exclude each other.
	connMu sync.Mutex
	conn   writerConn

	sendMu sync.RWMutex // held for reading to send on ops, for writing to close it
	closed bool         // guarded by sendMu
	ops    chan *op     // waiting writes; bounded

	stopped   chan struct{}         // closed when the writer has committed everything and stopped
	failing   chan struct{}         // one token while the last commit failed
	failure   atomic.Pointer[error] // the last commit failed with this; nil: it succeeded
	accepting atomic.Int64          // calls of Accept under way, for MaxQueue
	pressure  atomic.Int64          // requests accepted per commit, a moving average times pressureCommits
	trimming  chan struct{}         // one token: the in-memory database wants trimming

	clock    clock
	counters store.Counters
	quotas   *store.Quotas
	queue    queue
}

// Open opens or creates the database, brings its schema up to date and
// recovers what the last process left: an interrupted sync request becomes
// failed, an interrupted one that is in a lane pending again. Errors are for people.
func Open(ctx context.Context, cfg store.Config) (*Store, error) {
	return open(ctx, cfg, connect, nil)
}

// open tells seen, nil but in tests, what the writer asks of SQLite.
func open(ctx context.Context, cfg store.Config, connect connector, seen func(statement string)) (*Store, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg:      cfg,
		connect:  connect,
		memory:   Memory(cfg.URL),
		ops:      make(chan *op, store.MaxBatch),
		stopped:  make(chan struct{}),
		failing:  make(chan struct{}, 1),
		trimming: make(chan struct{}, 1),
	}
	s.clock.right()
	s.quotas = store.NewQuotas(cfg, s.counters.Unfinished, s.used)
	s.queue.init(s)
	if err := s.open(ctx, seen); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", cfg.URL, Explain(err)), s.release())
	}
	cfg.Nodes.SetList(store.ListAlone(uuid.NewString(), cfg.Nodes))
	go s.write() // ends when Close has closed ops; Close waits for stopped
	return s, nil
}

func (s *Store) open(ctx context.Context, seen func(statement string)) error {
	name := "file:/tandem-" + uuid.NewString() + "?vfs=memdb"
	if !s.memory {
		path, err := databasePath(s.cfg.URL)
		if err != nil {
			return err
		}
		if s.file, err = ownFile(path); err != nil {
			return err
		}
		name = fileName(path)
	}
	pragmas := []string{"cache_size(-8000)", "temp_store(memory)"}
	if !s.memory {
		pragmas = append(pragmas, durable()...)
	}
	var err error
	// The schema is made by a connection of its own, which in memory becomes the reader.
	if s.readDB, err = s.connect(dsn(name, append(pragmas, "busy_timeout(5000)")...)); err != nil {
		return err
	}
	s.readDB.SetMaxOpenConns(1)
	if err := migrate(ctx, s.readDB); err != nil {
		return err
	}
	conn, err := openDirect(name, seen, pragmas...)
	if err != nil {
		return err
	}
	s.conn = conn
	if !s.memory {
		reading, err := s.connect(dsn(name+"mode=ro", "busy_timeout(5000)", "cache_size(-4000)", "query_only(1)"))
		if err != nil {
			return err
		}
		reading.SetMaxOpenConns(max(4, runtime.NumCPU()))
		reading.SetMaxIdleConns(max(4, runtime.NumCPU()))
		migrated := s.readDB
		s.readDB = reading
		if err := migrated.Close(); err != nil {
			return err
		}
	}
	if err := s.recover(ctx); err != nil || s.memory {
		return err
	}
	makePrivate(s.file.path, s.cfg.Log)
	return s.file.remember()
}

// fileName is how SQLite is told of a file.
func fileName(path string) string {
	return "file:" + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(filepath.ToSlash(path)) + "?"
}

// durable are the pragmas of every connection that writes to a file.
func durable() []string {
	return []string{
		"journal_mode(WAL)", "synchronous(FULL)", "fullfsync(1)", "checkpoint_fullfsync(1)",
		// 16 MB between checkpoints instead of 4: a page that many rows change is written once for all of them.
		"wal_autocheckpoint(4000)", "journal_size_limit(67108864)",
	}
}

// dsn appends pragmas, which then hold for every connection of a pool.
func dsn(name string, pragmas ...string) string {
	for _, pragma := range pragmas {
		name += "&_pragma=" + url.QueryEscape(pragma)
	}
	return name
}

// databasePath reads a --db value that names a file.
func databasePath(url string) (string, error) {
	path := strings.TrimPrefix(url, "file:")
	switch {
	case path == "":
		return "", errors.New("no file named; give a path, :memory: or file:tandem.db")
	case strings.Contains(path, "://"):
		return "", errors.New("not a file; this version keeps its data in SQLite: give a path, :memory: or file:tandem.db")
	case strings.ContainsRune(path, '?'):
		return "", errors.New("parameters after ? are not supported; tandem sets its own")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the lock belongs beside the file itself, whatever link leads to it
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return "", errors.New("this is a folder; name a file in it")
	}
	return path, nil
}

// ours makes sure that a database is empty or a tandem's, and that its version can be
// read: goose takes a table that is damaged for one that is missing.
func ours(ctx context.Context, db *sql.DB) error {
	var versions, tables int
	err := db.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE name = 'goose_db_version'), count(*) FROM sqlite_schema`).Scan(&versions, &tables)
	switch {
	case err != nil:
		return err
	case versions > 0:
		return db.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version`).Scan(&versions)
	case tables > 0:
		return errors.New("it is a database of something else; name another file")
	default:
		return nil
	}
}

func migrate(ctx context.Context, db *sql.DB) error {
	if err := ours(ctx, db); err != nil {
		return fmt.Errorf("read its schema: %w", err)
	}
	provider, err := migrationsOf(db)
	if err != nil {
		return err
	}
	if _, _, err := store.Versions(ctx, provider); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}

func migrationsOf(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return store.Migrations(goose.DialectSQLite3, db, files)
}

// Explain turns SQLite's codes into what to do next.
func Explain(err error) error {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("the file is damaged or not a tandem database; restore it from a backup, or move it (with -wal and -shm) away to start anew: %w", err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("cannot write there; check that folder and file exist and belong to this user: %w", err)
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("no space left; make room and start again: %w", err)
	default:
		return err
	}
}

// recover repairs what the last process left, before anything is dispatched.
func (s *Store) recover(ctx context.Context) error {
	counts, err := readCounters(ctx, s.readDB)
	if err != nil {
		return err
	}
	s.counters.Set(counts)
	err = s.commit([]*op{{apply: func(tx *tx) error {
		interrupted, again, err := repair(tx, s.clock.now())
		if err == nil && interrupted+again > 0 {
			s.cfg.Log.Info("recovered after a crash", "interrupted", interrupted, "again", again)
		}
		return err
	}}})
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}

// readCounters reads the table of counters.
func readCounters(ctx context.Context, db store.Querier) (map[string]int64, error) {
	rows, err := db.QueryContext(ctx, `SELECT name, value FROM counters`)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	defer rows.Close()
	values := map[string]int64{}
	for rows.Next() {
		var name string
		var value int64
		if err := rows.Scan(&name, &value); err != nil {
			return nil, fmt.Errorf("read counters: %w", err)
		}
		values[name] = value
	}
	return values, rows.Err()
}

// repair changes the rows that were being worked on when the last process ended, as of now, and brings
// forward what waits if the clock was set back since.
func repair(tx *tx, now time.Time) (interrupted, again int64, err error) {
	interrupted, err = tx.exec(`
		UPDATE requests
		SET status = 'failed', error_code = ?, error_message = ?, completed_at = ?
		WHERE mode = 'sync' AND status = 'processing' AND lane IS NULL`,
		tandem.FailedInterrupted, "the server stopped while this request was running", micros(now))
	if err != nil {
		return 0, 0, err
	}
	tx.deltas.Interrupt(interrupted)
	again, err = tx.exec(`
		UPDATE requests
		SET status = 'pending'
		WHERE mode = 'async' AND status = 'processing'`)
	if err != nil {
		return 0, 0, err
	}
	resumed, err := tx.exec(`
		UPDATE requests
		SET status = 'pending', due_at = ?
		WHERE mode = 'sync' AND status = 'processing'`, micros(now))
	if err != nil {
		return 0, 0, err
	}
	again += resumed
	tx.deltas.Resume(again)
	back, err := behindHistory(tx, now)
	if err == nil && back >= minStep {
		err = bringForward(tx, back, now)
	}
	return interrupted, again, err
}

// Close commits what waits, refuses what comes later and lets go of the
// database. It may be called more than once.
func (s *Store) Close() error {
	s.sendMu.Lock()
	first := !s.closed
	if first {
		s.closed = true
		close(s.ops)
	}
	s.sendMu.Unlock()
	<-s.stopped
	if !first {
		return nil
	}
	return s.release()
}

// release closes what open opened, in the order that lets the last connection
// checkpoint the write-ahead log.
func (s *Store) release() error {
	s.connMu.Lock() // a reader of the in-memory database may still be on conn: closing it under a query panics
	defer s.connMu.Unlock()
	var errs []error
	var closers []io.Closer
	if s.readDB != nil {
		closers = append(closers, s.readDB)
	}
	if s.conn != nil {
		closers = append(closers, s.conn)
	}
	for _, closer := range closers {
		errs = append(errs, closer.Close())
	}
	if s.file != nil {
		errs = append(errs, s.file.close())
	}
	return errors.Join(errs...)
}

// SigningSecret returns the secret kept in the database.
func (s *Store) SigningSecret(ctx context.Context, fresh tandem.Secret) (tandem.Secret, bool, error) {
	var text string
	made := false
	err := s.do(ctx, func(tx *tx) error {
		n, err := tx.exec(`INSERT INTO settings (name, value) VALUES ('signing_secret', ?) ON CONFLICT DO NOTHING`, fresh.Reveal())
		if err != nil {
			return err
		}
		made = n == 1
		text, _, err = s.conn.text(`SELECT value FROM settings WHERE name = 'signing_secret'`)
		return err
	})
	if err != nil {
		return tandem.Secret{}, false, fmt.Errorf("keep the signing secret: %w", err)
	}
	secret, err := tandem.ParseSecret(text)
	return secret, made, err
}

// micros is how times are kept.
func micros(t time.Time) int64 { return t.UnixMicro() }

// nullMicros keeps the zero time as NULL.
func nullMicros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func fromMicros(us sql.NullInt64) time.Time {
	if !us.Valid {
		return time.Time{}
	}
	return time.UnixMicro(us.Int64).UTC()
}
