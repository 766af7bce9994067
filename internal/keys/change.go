package keys

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem"
	"tandem/internal/store"
)

// Refresh takes over changes by other processes. Without any it costs one read of the last change's mark.
func (k *Keys) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	asked, began := k.clock(), time.Now()
	mark, now, err := k.db.Poll(ctx, "keys", k.mark)
	if err != nil {
		return fmt.Errorf("look for changes: %w", err)
	}
	k.ahead.Store(int64(ahead(now, asked, time.Since(began))))
	if mark = cmp.Or(mark, neverChanged); mark == k.mark {
		return nil
	}
	return k.loadLocked(ctx, mark)
}

// ahead is how far the clock of the database is ahead of ours. The answer took a while, half of it either way. Clocks
// within a second of each other count as equal.
func ahead(theirs, asked time.Time, took time.Duration) time.Duration {
	off := theirs.Sub(asked.Add(took / 2))
	if theirs.IsZero() || off.Abs()-took/2 < time.Second {
		return 0
	}
	return off
}

// loadLocked reads all keys. mark was read before them: if they change in between, the next
// Refresh reads them again.
func (k *Keys) loadLocked(ctx context.Context, mark string) error {
	k.mark = ""
	rows, err := k.db.QueryContext(ctx, `
		SELECT id, name, scopes, token_hash, old_token_hash, old_token_until, secret, old_secret, old_secret_until,
		       created_at, expires_at, revoked_at, last_used_at
		FROM keys`)
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	defer rows.Close()
	before, next := k.known.Load(), &snapshot{byHash: map[[32]byte]credential{}, byID: map[string]*member{}}
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
	k.mark = mark
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
	if err := k.loadLocked(ctx, ""); err != nil { // "": the next Refresh reads them again
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
	now := k.clock()
	if err := n.Validate(now); err != nil {
		return Made{}, err
	}
	now = k.shared(now)
	if !n.ExpiresAt.IsZero() {
		n.ExpiresAt = k.shared(n.ExpiresAt)
	}
	made := Made{
		Key: tandem.Key{
			ID: idPrefix + strings.ToLower(rand.Text()[:12]), Name: n.Name, Scopes: slices.Clone(n.Scopes),
			CreatedAt: now.UTC().Truncate(time.Microsecond), ExpiresAt: n.ExpiresAt.UTC().Truncate(time.Microsecond),
		},
		Token: tandem.NewToken(), Secret: tandem.NewSecret(),
	}
	scopes := make([]string, len(n.Scopes))
	for i, scope := range n.Scopes {
		scopes[i] = string(scope)
	}
	hash := made.Token.Hash()
	err := k.change(ctx, func(ctx context.Context, tx store.Tx) error {
		if err := makeRoom(ctx, tx, now); err != nil {
			return err
		}
		err := withSecret(ctx, tx, made.Secret, func() error {
			_, err := tx.ExecContext(ctx, `
				INSERT INTO keys (id, name, scopes, token_hash, secret, created_at, expires_at)
				VALUES ($1, $2, $3, $4, `+stashed+`, $5, $6)`,
				made.Key.ID, n.Name, strings.Join(scopes, " "), hash[:],
				made.Key.CreatedAt.UnixMicro(), nullMicros(made.Key.ExpiresAt))
			return err
		})
		if err != nil && k.db.Duplicate(err) {
			return ErrExists
		}
		return err
	})
	if err != nil {
		return Made{}, fmt.Errorf("create key %q: %w", n.Name, err)
	}
	return made, nil
}

// makeRoom refuses a key beyond Max; at the bound, long revoked keys go.
func makeRoom(ctx context.Context, tx store.Tx, now time.Time) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM keys`).Scan(&n); err != nil || n < Max {
		return err
	}
	result, err := forget(ctx, tx, now)
	if err != nil {
		return err
	}
	gone, err := result.RowsAffected()
	if err == nil && gone == 0 {
		err = fmt.Errorf("there are %d already, the maximum; a revoked one counts for %d days",
			Max, forgetRevoked/(24*time.Hour))
	}
	return err
}

// forget deletes long revoked keys.
func forget(ctx context.Context, tx store.Tx, now time.Time) (sql.Result, error) {
	return tx.ExecContext(ctx, `DELETE FROM keys WHERE revoked_at < $1`, now.Add(-forgetRevoked).UnixMicro())
}

// Revoke makes a key, named by its id or name, invalid for good. Work in progress goes on, and its callbacks are signed
// as before.
func (k *Keys) Revoke(ctx context.Context, which string) (tandem.Key, error) {
	key, err := k.update(ctx, which, func(ctx context.Context, tx store.Tx, key *tandem.Key, now time.Time) error {
		_, err := tx.ExecContext(ctx, `UPDATE keys SET revoked_at = $1 WHERE id = $2`, now.UnixMicro(), key.ID)
		return err
	})
	if err != nil {
		return key, fmt.Errorf("revoke key %q: %w", which, err)
	}
	return key, nil
}

// Rotate gives a key another token. The previous one stays valid for the overlap, an older one does not.
func (k *Keys) Rotate(
	ctx context.Context, which string, token tandem.Token, overlap time.Duration,
) (tandem.Key, error) {
	hash := token.Hash()
	key, err := k.update(ctx, which, func(ctx context.Context, tx store.Tx, key *tandem.Key, now time.Time) error {
		if !key.ExpiresAt.IsZero() && !now.Before(key.ExpiresAt) {
			return errors.New("it has expired, and a new token would have as well; create another key")
		}
		if overlap <= 0 {
			_, err := tx.ExecContext(ctx, `
				UPDATE keys
				SET token_hash = $1, old_token_hash = NULL, old_token_until = NULL
				WHERE id = $2`, hash[:], key.ID)
			return err
		}
		_, err := tx.ExecContext(ctx, `
			UPDATE keys
			SET old_token_hash = token_hash, old_token_until = $1, token_hash = $2
			WHERE id = $3`, now.Add(overlap).UnixMicro(), hash[:], key.ID)
		return err
	})
	if err != nil {
		return key, fmt.Errorf("rotate key %q: %w", which, err)
	}
	return key, nil
}

// RotateSigning gives a key another signing secret. During the overlap callbacks carry two signatures, by the new and
// by the previous secret.
func (k *Keys) RotateSigning(
	ctx context.Context, which string, secret tandem.Secret, overlap time.Duration,
) (tandem.Key, error) {
	key, err := k.update(ctx, which, func(ctx context.Context, tx store.Tx, key *tandem.Key, now time.Time) error {
		return withSecret(ctx, tx, secret, func() error {
			if overlap <= 0 {
				_, err := tx.ExecContext(ctx, `
					UPDATE keys
					SET secret = `+stashed+`, old_secret = NULL, old_secret_until = NULL
					WHERE id = $1`, key.ID)
				return err
			}
			_, err := tx.ExecContext(ctx, `
				UPDATE keys
				SET old_secret = secret, old_secret_until = $1, secret = `+stashed+`
				WHERE id = $2`, now.Add(overlap).UnixMicro(), key.ID)
			return err
		})
	})
	if err != nil {
		return key, fmt.Errorf("rotate the signing secret of key %q: %w", which, err)
	}
	return key, nil
}

// stashed is the secret of withSecret, in a statement of its f.
const stashed = `(SELECT value FROM settings WHERE name = 'stashed')`

// withSecret runs f while stashed reads a secret, for one statement of f.
func withSecret(ctx context.Context, tx store.Tx, secret tandem.Secret, f func() error) error {
	if err := tx.KeepSecret(ctx, "stashed", secret.Reveal()); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM settings WHERE name = 'stashed'`)
	return err
}

// update changes one key, unless it is revoked. f gets the time by the clock of the database.
func (k *Keys) update(
	ctx context.Context, which string, f func(context.Context, store.Tx, *tandem.Key, time.Time) error,
) (tandem.Key, error) {
	var key tandem.Key
	err := k.change(ctx, func(ctx context.Context, tx store.Tx) error {
		var expires sql.NullInt64
		err := tx.QueryRowContext(ctx, `
			SELECT id, name, expires_at
			FROM keys
			WHERE (id = $1 OR name = $1) AND revoked_at IS NULL`, which).
			Scan(&key.ID, &key.Name, &expires)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		key.ExpiresAt = fromMicros(expires)
		return f(ctx, tx, &key, k.shared(k.clock()))
	})
	return key, err
}

// change runs f in a transaction, marks the keys as changed and takes the change over here as well. Changes by all
// processes come one after the other. Nothing cuts one short once it has begun: it waits for about changeTimeout.
func (k *Keys) change(ctx context.Context, f func(context.Context, store.Tx) error) error {
	ctx = context.WithoutCancel(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	mark := rand.Text()
	err := k.db.Transact(ctx, changeTimeout, func(ctx context.Context, tx store.Tx) error {
		_, err := tx.ExecContext(ctx, `
			INSERT INTO settings (name, value) VALUES ('keys', $1)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, mark) // first: on PostgreSQL others wait for this row
		if err != nil {
			return err
		}
		return f(ctx, tx)
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if err := k.loadLocked(ctx, mark); err != nil {
		k.log.Warn("API keys were changed; read them anew later", "error", err) // the next Refresh does
	}
	return nil
}

// flushChunk is how many last uses are written at a time: other writers wait for each chunk.
const flushChunk = 500

// Flush writes the last uses of keys since the last Flush. While others write it fails soon, because Refresh waits for
// it.
func (k *Keys) Flush(ctx context.Context) error {
	var used []*member
	for _, m := range k.known.Load().byID {
		if m.used.last.Load() != m.used.written.Load() {
			used = append(used, m)
		}
	}
	// All processes lock the rows in this order.
	slices.SortFunc(used, func(a, b *member) int { return strings.Compare(a.key.ID, b.key.ID) })
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
	err := k.db.Transact(context.WithoutCancel(ctx), 0, func(ctx context.Context, tx store.Tx) error {
		for i, m := range chunk {
			written[i] = m.used.last.Load()
			_, err := tx.ExecContext(ctx, `
				UPDATE keys
				SET last_used_at = $1
				WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)`, written[i], m.key.ID)
			if err != nil {
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
