package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"tandem"
)

// Keys are the API keys of a database, with their signing secrets. Several processes may have
// them open, the one that serves among them: a change is durable when its method returns, and
// known within a second wherever Run runs. Its methods may be called from any number of goroutines.
type Keys struct {
	log   *slog.Logger
	db    *sql.DB
	known atomic.Pointer[snapshot]

	mu      sync.Mutex // guards conn, its transaction, and the field below
	conn    *sql.Conn  // the only one: data_version is about one connection
	version int64      // PRAGMA data_version when known was last compared with the database
}

// OpenKeys opens the keys of a database file. If its schema is not that of this version, or with
// Create there is no file, it takes the lock of the one process that may change that.
func OpenKeys(ctx context.Context, cfg KeysConfig) (*Keys, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.connect == nil {
		cfg.connect = connect
	}
	if Memory(cfg.URL) {
		return nil, errors.New("open API keys: the in-memory database of demo mode has none; name a file with --db")
	}
	path, err := databasePath(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("open API keys of %s: %w", cfg.URL, err)
	}
	k := &Keys{log: cfg.Log}
	if err := k.open(ctx, path, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("open API keys of %s: %w", cfg.URL, explain(err)), k.Close())
	}
	return k, nil
}

func (k *Keys) open(ctx context.Context, path string, cfg KeysConfig) error {
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
	}
	if k.db, err = cfg.connect(dsn(fileName(path)+"mode=rw", append(durable(), "busy_timeout(5000)")...)); err != nil {
		return err
	}
	k.db.SetMaxOpenConns(2) // conn, and for a moment the one that reads the schema
	if upToDate, err := current(ctx, k.db); err != nil {
		return err
	} else if !upToDate {
		if err := prepare(ctx, path, cfg); err != nil {
			return err
		}
	}
	if k.conn, err = k.db.Conn(ctx); err != nil {
		return err
	}
	if _, err := k.conn.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, keysWait.Milliseconds())); err != nil {
		return fmt.Errorf("set how long to wait for other writers: %w", err)
	}
	return k.Refresh(ctx)
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
	lock, err := lockBeside(path)
	if err != nil {
		return fmt.Errorf("bring its schema up to date: %w", err)
	}
	db, err := cfg.connect(dsn(fileName(path), append(durable(), "busy_timeout(5000)")...))
	if err == nil {
		db.SetMaxOpenConns(1)
		err = errors.Join(migrate(ctx, db), db.Close())
	}
	return errors.Join(err, lock.Close())
}

// Close lets go of the database. Run must have returned.
func (k *Keys) Close() error {
	var errs []error
	if k.conn != nil {
		errs = append(errs, k.conn.Close())
	}
	if k.db != nil {
		errs = append(errs, k.db.Close())
	}
	return errors.Join(errs...)
}

// Refresh takes over what other processes have changed. While nobody writes to the database it costs
// one look at a number that SQLite has in memory, and while nobody changes keys one row more.
func (k *Keys) Refresh(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var version int64
	if err := k.conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version); err != nil {
		return fmt.Errorf("look for changes: %w", err)
	}
	known := k.known.Load()
	if known != nil && version == k.version {
		return nil
	}
	var mark string
	err := k.conn.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = 'keys'`).Scan(&mark)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for changes: %w", err)
	}
	if known == nil || mark != known.mark {
		if err := k.loadLocked(ctx, mark); err != nil {
			return err
		}
	}
	k.version = version
	return nil
}

// loadLocked reads all keys. mark was read before them: if they change in between, the next
// Refresh reads them again.
func (k *Keys) loadLocked(ctx context.Context, mark string) error {
	rows, err := k.conn.QueryContext(ctx, `
		SELECT id, name, scopes, token_hash, old_token_hash, old_token_until, secret, old_secret, old_secret_until,
		       created_at, expires_at, revoked_at, last_used_at
		FROM keys`)
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	defer rows.Close()
	before, next := k.known.Load(), &snapshot{mark: mark, byHash: map[[32]byte]credential{}, byID: map[string]*member{}}
	for rows.Next() {
		m, token, oldToken, oldUntil, err := scanKey(rows)
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		m.used = &use{}
		if before != nil && before.byID[m.key.ID] != nil {
			m.used = before.byID[m.key.ID].used
		}
		next.byID[m.key.ID] = m
		next.byHash[[32]byte(token)] = credential{member: m}
		if oldToken != nil {
			next.byHash[[32]byte(oldToken)] = credential{m, oldUntil}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	k.known.Store(next)
	return nil
}

func scanKey(row interface{ Scan(...any) error }) (m *member, token, oldToken []byte, oldUntil time.Time, err error) {
	m = &member{}
	var scopes, secret string
	var created int64
	var oldSecret sql.NullString
	var tokenUntil, secretUntil, expires, revoked, used sql.NullInt64
	err = row.Scan(&m.key.ID, &m.key.Name, &scopes, &token, &oldToken, &tokenUntil, &secret, &oldSecret, &secretUntil,
		&created, &expires, &revoked, &used)
	if err != nil {
		return nil, nil, nil, time.Time{}, err
	}
	if len(token) != 32 || oldToken != nil && len(oldToken) != 32 {
		return nil, nil, nil, time.Time{}, fmt.Errorf("%s: its hash is damaged", m.key.ID)
	}
	for scope := range strings.FieldsSeq(scopes) {
		m.key.Scopes = append(m.key.Scopes, tandem.Scope(scope))
	}
	m.key.CreatedAt, m.key.ExpiresAt = time.UnixMicro(created).UTC(), fromMicros(expires)
	m.key.RevokedAt, m.key.LastUsedAt, m.oldSecretUntil = fromMicros(revoked), fromMicros(used), fromMicros(secretUntil)
	for _, text := range []string{secret, oldSecret.String} {
		if text == "" {
			continue
		}
		parsed, err := tandem.ParseSecret(text)
		if err != nil {
			return nil, nil, nil, time.Time{}, fmt.Errorf("%s: %w", m.key.ID, err)
		}
		m.secrets = append(m.secrets, parsed)
	}
	return m, token, oldToken, fromMicros(tokenUntil), nil
}

// List returns every key, revoked ones included, oldest first.
func (k *Keys) List(ctx context.Context) ([]tandem.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.loadLocked(ctx, ""); err != nil { // "": the next Refresh compares anew
		return nil, err
	}
	known := k.known.Load()
	list := make([]tandem.Key, 0, len(known.byID))
	for _, m := range known.byID {
		list = append(list, m.key)
	}
	slices.SortFunc(list, func(a, b tandem.Key) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// Create makes a key.
func (k *Keys) Create(ctx context.Context, n NewKey) (Made, error) {
	now := time.Now()
	if err := n.Validate(now); err != nil {
		return Made{}, err
	}
	made := Made{
		Key: tandem.Key{
			ID: keyPrefix + strings.ToLower(rand.Text()[:12]), Name: n.Name, Scopes: slices.Clone(n.Scopes),
			CreatedAt: now.UTC().Truncate(time.Microsecond), ExpiresAt: n.ExpiresAt.UTC().Truncate(time.Microsecond),
		},
		Token: tandem.NewToken(), Secret: tandem.NewSecret(),
	}
	scopes := make([]string, len(n.Scopes))
	for i, scope := range n.Scopes {
		scopes[i] = string(scope)
	}
	hash := made.Token.Hash()
	err := k.change(ctx, func(exec execer) error {
		if err := k.makeRoom(ctx, exec, now); err != nil {
			return err
		}
		_, err := exec(`
			INSERT INTO keys (id, name, scopes, token_hash, secret, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?, ?)`,
			made.Key.ID, n.Name, strings.Join(scopes, " "), hash[:], made.Secret.Reveal(), micros(made.Key.CreatedAt), nullMicros(made.Key.ExpiresAt))
		var code *sqlite.Error
		if errors.As(err, &code) && code.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
			return ErrKeyExists
		}
		return err
	})
	if err != nil {
		return Made{}, fmt.Errorf("create key %q: %w", n.Name, err)
	}
	return made, nil
}

// makeRoom refuses a key beyond MaxKeys; at that bound keys that were revoked long ago go.
func (k *Keys) makeRoom(ctx context.Context, exec execer, now time.Time) error {
	var n int
	if err := k.conn.QueryRowContext(ctx, `SELECT count(*) FROM keys`).Scan(&n); err != nil || n < MaxKeys {
		return err
	}
	gone, err := forget(exec, now)
	if err == nil && gone == 0 {
		err = fmt.Errorf("there are %d already, which is the most; a revoked one counts until %d days are over", MaxKeys, forgetRevoked/(24*time.Hour))
	}
	return err
}

// forget deletes keys that were revoked long ago.
func forget(exec execer, now time.Time) (int64, error) {
	return exec(`DELETE FROM keys WHERE revoked_at < ?`, micros(now.Add(-forgetRevoked)))
}

// Revoke makes a key, named by its id or name, invalid for good. Work that it has asked for goes
// on, and the callbacks of that are signed as before.
func (k *Keys) Revoke(ctx context.Context, which string) (tandem.Key, error) {
	key, err := k.update(ctx, which, func(exec execer, key *tandem.Key) error {
		_, err := exec(`UPDATE keys SET revoked_at = ? WHERE id = ?`, micros(time.Now()), key.ID)
		return err
	})
	if err != nil {
		return key, fmt.Errorf("revoke key %q: %w", which, err)
	}
	return key, nil
}

// Rotate gives a key a new token. The one before stays valid for the overlap; one before that
// does not.
func (k *Keys) Rotate(ctx context.Context, which string, overlap time.Duration) (tandem.Key, tandem.Token, error) {
	token, now := tandem.NewToken(), time.Now()
	hash := token.Hash()
	key, err := k.update(ctx, which, func(exec execer, key *tandem.Key) error {
		if !key.ExpiresAt.IsZero() && !now.Before(key.ExpiresAt) {
			return errors.New("it has expired, and a new token would have as well; create another key")
		}
		if overlap <= 0 {
			_, err := exec(`UPDATE keys SET token_hash = ?, old_token_hash = NULL, old_token_until = NULL WHERE id = ?`, hash[:], key.ID)
			return err
		}
		_, err := exec(`UPDATE keys SET old_token_hash = token_hash, old_token_until = ?, token_hash = ? WHERE id = ?`, micros(now.Add(overlap)), hash[:], key.ID)
		return err
	})
	if err != nil {
		return key, tandem.Token{}, fmt.Errorf("rotate key %q: %w", which, err)
	}
	return key, token, nil
}

// RotateSigning gives a key a new signing secret. During the overlap callbacks carry two
// signatures: the new secret's, and that of the one before.
func (k *Keys) RotateSigning(ctx context.Context, which string, overlap time.Duration) (tandem.Key, tandem.Secret, error) {
	secret := tandem.NewSecret()
	key, err := k.update(ctx, which, func(exec execer, key *tandem.Key) error {
		if overlap <= 0 {
			_, err := exec(`UPDATE keys SET secret = ?, old_secret = NULL, old_secret_until = NULL WHERE id = ?`, secret.Reveal(), key.ID)
			return err
		}
		_, err := exec(`UPDATE keys SET old_secret = secret, old_secret_until = ?, secret = ? WHERE id = ?`, micros(time.Now().Add(overlap)), secret.Reveal(), key.ID)
		return err
	})
	if err != nil {
		return key, tandem.Secret{}, fmt.Errorf("rotate the signing secret of key %q: %w", which, err)
	}
	return key, secret, nil
}

// update changes one key that is not revoked.
func (k *Keys) update(ctx context.Context, which string, f func(execer, *tandem.Key) error) (tandem.Key, error) {
	var key tandem.Key
	err := k.change(ctx, func(exec execer) error {
		var expires sql.NullInt64
		err := k.conn.QueryRowContext(ctx, `SELECT id, name, expires_at FROM keys WHERE (id = ? OR name = ?) AND revoked_at IS NULL`, which, which).
			Scan(&key.ID, &key.Name, &expires)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNoKey
		}
		if err != nil {
			return err
		}
		key.ExpiresAt = fromMicros(expires)
		return f(exec, &key)
	})
	return key, err
}

// execer runs a statement in a transaction and returns how many rows it changed.
type execer func(text string, args ...any) (int64, error)

// change runs f in a transaction that says that keys have changed, and takes the change over
// here as well. Nothing cuts it short once it has begun: it waits at most keysPatience.
func (k *Keys) change(ctx context.Context, f func(execer) error) error {
	ctx = context.WithoutCancel(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	mark := rand.Text()
	err := k.transact(ctx, keysPatience, func(exec execer) error {
		if err := f(exec); err != nil {
			return err
		}
		_, err := exec(`
			INSERT INTO settings (name, value) VALUES ('keys', ?)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, mark)
		return err
	})
	if err != nil {
		return err
	}
	return k.loadLocked(ctx, mark)
}

// errBusy says that others wrote all the time that we were ready to wait.
var errBusy = errors.New("others are writing to the database")

// transact runs f in a transaction that writes, for which it waits at most patience, or keysWait
// if that is longer. The caller holds mu.
func (k *Keys) transact(ctx context.Context, patience time.Duration, f func(execer) error) error {
	exec := func(text string, args ...any) (int64, error) {
		result, err := k.conn.ExecContext(ctx, text, args...)
		if err != nil {
			return 0, err
		}
		return result.RowsAffected()
	}
	deadline := time.Now().Add(patience)
	_, err := exec(`BEGIN IMMEDIATE`)
	for isBusy(err) && time.Now().Before(deadline) { // each try waits for keysWait
		_, err = exec(`BEGIN IMMEDIATE`)
	}
	if isBusy(err) {
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if err != nil {
		return explain(err)
	}
	err = f(exec)
	if err == nil {
		_, err = exec(`COMMIT`)
	}
	if err != nil {
		if _, rollback := exec(`ROLLBACK`); rollback != nil {
			k.log.Debug("roll back", "error", rollback) // SQLite has rolled back by itself
		}
	}
	return explain(err)
}

// isBusy reports whether somebody else was writing.
func isBusy(err error) bool {
	var code *sqlite.Error
	return errors.As(err, &code) && code.Code()&0xff == sqlite3.SQLITE_BUSY
}

// flushChunk is how many last uses are written at a time: other writers wait for each chunk.
const flushChunk = 500

// Flush writes when keys were last used, of those that were used since the last Flush. While others
// write it gives up soon, because Refresh waits for it.
func (k *Keys) Flush(ctx context.Context) error {
	used := make([]*member, 0)
	for _, m := range k.known.Load().byID {
		if m.used.last.Load() != m.used.written.Load() {
			used = append(used, m)
		}
	}
	for chunk := range slices.Chunk(used, flushChunk) {
		if err := k.flush(ctx, chunk); err != nil {
			return fmt.Errorf("write last uses: %w", err)
		}
	}
	return nil
}

func (k *Keys) flush(ctx context.Context, chunk []*member) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	written := make([]int64, len(chunk))
	err := k.transact(context.WithoutCancel(ctx), 0, func(exec execer) error {
		for i, m := range chunk {
			written[i] = m.used.last.Load()
			if _, err := exec(`UPDATE keys SET last_used_at = ? WHERE id = ?`, written[i], m.key.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, m := range chunk {
		m.used.written.Store(written[i])
	}
	return nil
}
