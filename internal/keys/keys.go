// Package keys looks after API keys: who may call, with which scopes, and what signs the callbacks of their requests.
//
// It hides the table, its statements and how several processes agree about it: it keeps all keys in memory, finds one
// by the hash of its token, and takes over within a second what another process has changed. It promises that a
// change is durable when its method returns, and that no database and no log of a server holds a token. The HTTP
// server asks it who calls, the engine what signs, and `tandem keys` changes keys beside a running server.
package keys

import (
	"context"
	"crypto/sha256"
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
	"tandem/internal/store"
)

const (
	// Max bounds the API keys of a database, revoked ones included.
	Max = 10_000
	// forgetRevoked is how long a revoked key is kept at least: callbacks of its requests,
	// which are never older than 365 days, are still signed with its secret. Then it goes when room is needed.
	forgetRevoked = 366 * 24 * time.Hour
	maxName       = 64 // characters
	idPrefix      = "key_"

	flushInterval = time.Minute      // how often last uses are written
	changeTimeout = 30 * time.Second // how long a change waits for other writers: a busy server commits back to back
	readTimeout   = 5 * time.Second  // for reading them, from a database that may be gone
	neverChanged  = "never"          // the mark of a database in which keys were never changed
)

// ErrNotFound says that there is no such key, or that it is revoked.
var ErrNotFound = errors.New("there is no such key, or it is revoked")

// ErrExists says that a name is taken.
var ErrExists = errors.New("there is a key of this name")

// Keys are the API keys of a database, with their signing secrets. Several processes may have
// them open, those that serve among them: a change is durable when its method returns, and
// known within a second wherever Run runs. Its methods may be called from any number of goroutines.
//
// Callers give times by the clock of their machine. When a key expires and when an overlap ends is
// decided by the clock of the database: several machines may disagree about the time.
type Keys struct {
	log   *slog.Logger
	clock func() time.Time // of this machine, without a monotonic reading
	known atomic.Pointer[snapshot]
	ahead atomic.Int64 // nanoseconds that the clock of the database is ahead of ours

	mu   sync.Mutex // guards the fields below: one call of the database at a time
	db   store.Handle
	mark string // of the change that known shows; "": look and read again
}

// Open opens the keys of a database.
func Open(ctx context.Context, cfg store.HandleConfig) (*Keys, error) {
	if store.Memory(cfg.URL) {
		return nil, errors.New("open API keys: the in-memory database of demo mode has none; name a file with --db")
	}
	db, err := store.OpenHandle(ctx, cfg)
	var k *Keys
	if err == nil {
		k, err = On(ctx, db, cfg.Log)
	}
	if err != nil {
		name := cfg.URL
		if store.IsPostgres(name) {
			name = store.WithoutPassword(name)
		}
		return nil, fmt.Errorf("open API keys of %s: %w", name, err)
	}
	return k, nil
}

// On returns the keys of a database that is open, which Close closes. It closes it as well if it returns an error. The
// default log is slog.Default.
func On(ctx context.Context, db store.Handle, log *slog.Logger) (*Keys, error) {
	if log == nil {
		log = slog.Default()
	}
	k := &Keys{log: log, db: db, clock: func() time.Time { return time.Now().Round(0) }}
	if err := k.Refresh(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return k, nil
}

// Close lets go of the database. Run must have returned.
func (k *Keys) Close() error { return k.db.Close() }

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
	case n.Name == "" || !utf8.ValidString(n.Name) || utf8.RuneCountInString(n.Name) > maxName ||
		strings.ContainsFunc(n.Name, odd) || strings.TrimSpace(n.Name) != n.Name:
		return fmt.Errorf("key name %.80q: want 1 to %d characters that can be seen", n.Name, maxName)
	case strings.HasPrefix(n.Name, idPrefix):
		return fmt.Errorf("key name %q: only ids begin with %s", n.Name, idPrefix)
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
// used. The error is a *tandem.Error, CodeUnauthenticated, with a text for the caller.
//
// The token is looked up by its hash, so how long it takes says nothing about how close a guess came.
func (k *Keys) Authenticate(token tandem.Token, now time.Time) (*tandem.Key, error) {
	now = k.shared(now)
	found := k.known.Load().byHash[token.Hash()]
	switch {
	case found.member == nil, !found.member.key.RevokedAt.IsZero(), !found.until.IsZero() && !now.Before(found.until):
		return nil, tandem.Errorf(tandem.CodeUnauthenticated,
			"This API key is not known here: it was revoked or replaced, or belongs elsewhere.")
	case !found.member.key.ExpiresAt.IsZero() && !now.Before(found.member.key.ExpiresAt):
		return nil, tandem.Errorf(tandem.CodeUnauthenticated,
			"This API key has expired, on %s.", found.member.key.ExpiresAt.Format(time.RFC3339))
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
	look, flush := time.NewTicker(k.db.PollInterval()), time.NewTicker(flushInterval)
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
	if errors.Is(err, store.ErrBusy) {
		return false
	}
	if err != nil && ctx.Err() == nil {
		k.log.Warn("keep when API keys were last used", "error", err)
	}
	return true
}

// Count is how many keys there are, revoked and expired ones included.
func (k *Keys) Count() int { return len(k.known.Load().byID) }
