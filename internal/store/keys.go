package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"tandem"
)

const (
	// MaxKeys bounds the API keys of a database, revoked ones included.
	MaxKeys = 10_000
	// forgetRevoked is how long a revoked key is kept at least: callbacks of its requests,
	// which are never older than 365 days, are still signed with its secret. Then it goes when room is needed.
	forgetRevoked = 366 * 24 * time.Hour
	maxKeyName    = 64 // characters
	keyPrefix     = "key_"

	keysFlush    = time.Minute      // how often last uses are written
	keysPatience = 30 * time.Second // how long a change waits for other writers: a busy server commits back to back
	keysReadTime = 5 * time.Second  // for reading them, from a database that may be gone
	neverChanged = "never"          // the mark of a database in which keys were never changed
)

// ErrNoKey says that there is no such key, or that it is revoked.
var ErrNoKey = errors.New("there is no such key, or it is revoked")

// ErrKeyExists says that a name is taken.
var ErrKeyExists = errors.New("there is a key of this name")

// KeysConfig of [OpenKeys].
type KeysConfig struct {
	URL    string       // a path, "file:" and a path, or postgres://…
	Create bool         // make the database if there is none; on PostgreSQL its tables
	Log    *slog.Logger // slog.Default

	connect connector // as in Config
}

// Keys are the API keys of a database, with their signing secrets. Several processes may have
// them open, those that serve among them: a change is durable when its method returns, and
// known within a second wherever Run runs. Its methods may be called from any number of goroutines.
//
// Callers give times by the clock of their machine. When a key expires and when an overlap ends is
// decided by the clock of the database: several machines may disagree about the time.
type Keys struct {
	log   *slog.Logger
	clock clock // of this machine
	known atomic.Pointer[snapshot]
	ahead atomic.Int64 // nanoseconds that the clock of the database is ahead of ours

	mu   sync.Mutex // guards the fields below: one call of the database at a time
	db   keysDatabase
	mark string // of the change that known shows; "": look and read again
}

// keysDatabase is what differs between the databases that keys are kept in. The
// statements are the same for all, and so are the columns.
type keysDatabase interface {
	// look returns the mark of the last change to keys, by which it is told from all others, and how far the
	// clock of the database is ahead of ours. It may return seen, a mark, if nothing was written since the last look.
	look(ctx context.Context, ours *clock, seen string) (mark string, ahead time.Duration, err error)
	// transact runs f in a transaction that writes, for which it waits for other writers: about as long as patience.
	transact(ctx context.Context, patience time.Duration, f func(context.Context, keysTx) error) error
	// reader is for reading apart from a transaction.
	reader() querier
	// every is how often to look.
	every() time.Duration
	// nameTaken reports whether a statement failed because there is a key of a name.
	nameTaken(err error) bool
	// close lets go of the database, as far as it was opened.
	close() error
}

// keysTx is a transaction.
type keysTx interface {
	querier
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	// stash puts a secret into the row of settings that stashed reads. The secret does not become a
	// parameter of a statement, because a server may log those. The caller deletes the row in the same
	// transaction.
	stash(ctx context.Context, secret string) error
}

// stashed is the secret that was stashed, in a statement of the same transaction.
const stashed = `(SELECT value FROM settings WHERE name = 'stashed')`

// OpenKeys opens the keys of a database. A file whose schema is not that of this version, or that with
// Create is to be made, is changed under the lock of the one process that may do that.
func OpenKeys(ctx context.Context, cfg KeysConfig) (_ *Keys, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if Memory(cfg.URL) {
		return nil, errors.New("open API keys: the in-memory database of demo mode has none; name a file with --db")
	}
	k := &Keys{log: cfg.Log}
	name := cfg.URL
	if IsPostgres(cfg.URL) {
		name = withoutPassword(cfg.URL)
		k.db, err = openPostgresKeys(ctx, cfg)
	} else {
		k.db, err = openSQLiteKeys(ctx, cfg)
	}
	if err == nil {
		err = k.Refresh(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open API keys of %s: %w", name, err), k.db.close())
	}
	return k, nil
}

// Close lets go of the database. Run must have returned.
func (k *Keys) Close() error { return k.db.close() }

// shared is a time of our clock by that of the database.
func (k *Keys) shared(at time.Time) time.Time { return at.Add(time.Duration(k.ahead.Load())) }

// NewKey is what a key is made from.
type NewKey struct {
	Name      string
	Scopes    []tandem.Scope
	ExpiresAt time.Time // zero: never
}

// Validate says what is wrong with it.
func (n NewKey) Validate(now time.Time) error {
	seen := map[tandem.Scope]bool{}
	for _, scope := range n.Scopes {
		known := false
		for _, s := range tandem.Scopes {
			known = known || s == scope
		}
		switch {
		case !known:
			return fmt.Errorf("scope %q: want some of submit, read, admin", scope)
		case seen[scope]:
			return fmt.Errorf("scope %q: given twice", scope)
		}
		seen[scope] = true
	}
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case len(n.Scopes) == 0:
		return errors.New("a key needs at least one scope: submit, read or admin")
	case n.Name == "" || !utf8.ValidString(n.Name) || utf8.RuneCountInString(n.Name) > maxKeyName ||
		strings.ContainsFunc(n.Name, odd) || strings.TrimSpace(n.Name) != n.Name:
		return fmt.Errorf("key name %.80q: want 1 to %d characters that can be seen", n.Name, maxKeyName)
	case strings.HasPrefix(n.Name, keyPrefix):
		return fmt.Errorf("key name %q: only ids begin with %s", n.Name, keyPrefix)
	case !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now):
		return errors.New("a key that has expired already is no use")
	}
	return nil
}

// Made is a key that was just made, with what is shown once.
type Made struct {
	Key    tandem.Key
	Token  tandem.Token
	Secret tandem.Secret // signs the callbacks of its requests
}

// Authenticate finds the key of a token, as it was at most a second ago, and notes that it was
// used. The error is a *tandem.Error, CodeUnauthenticated, with a text for whoever holds the token.
//
// The token is looked up by its hash, so how long it takes says nothing about how close a guess came.
func (k *Keys) Authenticate(token tandem.Token, now time.Time) (*tandem.Key, error) {
	now = k.shared(now)
	found := k.known.Load().byHash[token.Hash()]
	switch {
	case found.member == nil, !found.member.key.RevokedAt.IsZero(), !found.until.IsZero() && !now.Before(found.until):
		return nil, tandem.Errorf(tandem.CodeUnauthenticated, "This API key is not known here: it was revoked or replaced, or belongs elsewhere.")
	case !found.member.key.ExpiresAt.IsZero() && !now.Before(found.member.key.ExpiresAt):
		return nil, tandem.Errorf(tandem.CodeUnauthenticated, "This API key has expired, on %s.", found.member.key.ExpiresAt.Format(time.RFC3339))
	}
	found.member.used.note(now)
	return &found.member.key, nil
}

// LookUp reads the keys anew if one is not known here: another machine may have taken a request of a key that was
// made a moment ago. That there is none is no error.
func (k *Keys) LookUp(ctx context.Context, id string) error {
	if k == nil || id == "" || k.known.Load().byID[id] != nil {
		return nil
	}
	return k.Refresh(ctx)
}

// SigningSecrets returns what signs the callbacks of a key's requests, newest first, be it revoked
// or expired; nil if no such key is known (see LookUp). The slice is shared and must not be changed.
func (k *Keys) SigningSecrets(id string, now time.Time) []tandem.Secret {
	if k == nil || id == "" {
		return nil
	}
	m := k.known.Load().byID[id]
	switch {
	case m == nil:
		return nil
	case len(m.secrets) > 1 && !k.shared(now).Before(m.oldSecretUntil):
		return m.secrets[:1]
	default:
		return m.secrets
	}
}

// snapshot is all that is known of keys, as of one moment. It is never changed.
type snapshot struct {
	byHash map[[sha256.Size]byte]credential // :: hash of a token → whose it is
	byID   map[string]*member               // :: id → key
}

// credential is what one token stands for.
type credential struct {
	member *member
	until  time.Time // of a token that was replaced: not valid from then on; zero: it was not
}

// member is one key in a snapshot.
type member struct {
	key            tandem.Key      // LastUsedAt as of the snapshot
	secrets        []tandem.Secret // the second, if there is one, until oldSecretUntil
	oldSecretUntil time.Time
	used           *use // goes from snapshot to snapshot
}

// use is when a key was last used: noted from any goroutine, written by flush.
type use struct {
	last    atomic.Int64 // microseconds since 1970; 0: not since the start
	written atomic.Int64 // what is on disk of it
}

// note stores at most once a second, so that the cores do not fight over a busy key.
func (u *use) note(now time.Time) {
	if at := now.UnixMicro(); at-u.last.Load() >= int64(time.Second/time.Microsecond) {
		u.last.Store(at)
	}
}

// Run keeps the keys as they are in the database, and last uses as they are here, until ctx
// ends. What cannot be read or written is logged and tried again.
func (k *Keys) Run(ctx context.Context) {
	look, flush := time.NewTicker(k.db.every()), time.NewTicker(keysFlush)
	defer look.Stop()
	defer flush.Stop()
	failed, due := false, false // due: last uses are to be written
	for {
		select {
		case <-ctx.Done():
			k.tryFlush(context.WithoutCancel(ctx))
			return
		case <-flush.C:
			due = true
			continue
		case <-look.C:
		}
		err := k.Refresh(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			k.log.Error("read API keys; until this is mended, changes to them take no effect", "error", err)
		} else if err == nil && failed {
			k.log.Info("API keys can be read again")
		}
		failed = err != nil
		if due && !failed {
			due = !k.tryFlush(ctx)
		}
	}
}

// tryFlush is Flush, and reports whether there is no use in trying again soon.
func (k *Keys) tryFlush(ctx context.Context) bool {
	err := k.Flush(ctx)
	if errors.Is(err, errBusy) {
		return false
	}
	if err != nil && ctx.Err() == nil {
		k.log.Warn("keep when API keys were last used", "error", err)
	}
	return true
}

// Count is how many keys there are, revoked and expired ones included.
func (k *Keys) Count() int { return len(k.known.Load().byID) }
