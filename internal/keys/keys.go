// Package keys manages API keys: callers, their scopes, and the signing secrets of their callbacks.
//
// It hides the table, its statements and how several processes agree about it: it keeps all keys in memory, finds one
// by the hash of its token, and takes over the changes of other processes within a second. It promises that a change is
// durable when its method returns, and that no database and no log of a server holds a token. The HTTP server
// authenticates callers with it, the engine signs with it, and `tandem keys` changes keys beside a running server.
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
	// forgetRevoked is the least time to keep a revoked key: it still signs the callbacks of its requests, for 365 days at
	// most. Then the key goes when room is needed.
	forgetRevoked = 366 * 24 * time.Hour
	maxName       = 64 // characters
	idPrefix      = "key_"

	flushInterval = time.Minute      // how often last uses are written
	changeTimeout = 30 * time.Second // for other writers: a busy server commits back to back
	readTimeout   = 5 * time.Second  // for reading keys
	neverChanged  = "never"          // the mark of a database without a change of keys
)

// ErrNotFound means an unknown or revoked key.
var ErrNotFound = errors.New("there is no such key, or it is revoked")

// ErrExists means a name in use.
var ErrExists = errors.New("there is a key of this name")

// Keys are the API keys of a database, with their signing secrets. Several processes may have them open: a change is
// durable when its method returns, and known within a second to every process in Run. Its methods may be called from
// any number of goroutines.
//
// Callers give times by the clock of their machine. Expiry and the end of an overlap follow the clock of the database,
// because machines may disagree about the time.
type Keys struct {
	log   *slog.Logger
	clock func() time.Time // of this machine, without a monotonic reading
	known atomic.Pointer[snapshot]
	ahead atomic.Int64 // nanoseconds; the clock of the database minus ours

	mu   sync.Mutex // guards the fields below: one call of the database at a time
	db   store.Handle
	mark string // of the change that known shows; "": look and read again
}

// On returns the keys of an open database. It takes the database over: Close closes it, and so does an error of On. The
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

// Close closes the database. Run must have returned.
func (k *Keys) Close() error { return k.db.Close() }

// shared converts a time of our clock to the clock of the database.
func (k *Keys) shared(at time.Time) time.Time { return at.Add(time.Duration(k.ahead.Load())) }

// NewKey describes a key to create.
type NewKey struct {
	Name      string
	Scopes    []tandem.Scope
	ExpiresAt time.Time // zero: never
}

// Validate reports an invalid name, scope or expiry.
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
		return errors.New("expiry is in the past")
	}
	return nil
}

// Made is a new key, with its token and secret to show once.
type Made struct {
	Key    tandem.Key
	Token  tandem.Token
	Secret tandem.Secret // signs the callbacks of its requests
}

// Authenticate finds the key of a token, as it was at most a second ago, and notes that it was
// used. The error is a *tandem.Error, CodeUnauthenticated, with a text for the caller.
//
// The token is looked up by its hash, so the duration reveals nothing about a guess.
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

// LookUp reads the keys anew if one is not known here: another machine may have accepted a request of a brand-new key.
// A missing key is no error.
func (k *Keys) LookUp(ctx context.Context, id string) error {
	if k == nil || id == "" || k.known.Load().byID[id] != nil {
		return nil
	}
	return k.Refresh(ctx)
}

// SigningSecrets returns the signing secrets of a key, newest first, even if it is revoked or expired; nil if no such
// key is known (see LookUp). The slice is shared and must not be changed.
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

// snapshot holds all keys as of one moment. It is immutable.
type snapshot struct {
	byHash map[[sha256.Size]byte]credential // :: hash of a token → its key
	byID   map[string]*member               // :: id → key
}

// credential is the meaning of one token.
type credential struct {
	member *member
	until  time.Time // end of a replaced token; zero: it is the current one
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
	written atomic.Int64 // the value on disk
}

// note stores at most once a second, to avoid contention on a busy key.
func (u *use) note(now time.Time) {
	if at := now.UnixMicro(); at-u.last.Load() >= int64(time.Second/time.Microsecond) {
		u.last.Store(at)
	}
}

// Run keeps the keys as they are in the database, and last uses as they are here, until ctx ends. Errors are logged and
// retried.
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
			k.log.Error("read API keys; changes to keys have no effect until this works again", "error", err)
		} else if err == nil && failed {
			k.log.Info("API keys can be read again")
		}
		failed = err != nil
		if due && !failed {
			due = !k.tryFlush(ctx)
		}
	}
}

// tryFlush is Flush, and reports whether a retry can wait.
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
