package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"slices"

	"tandem"
)

// copiedRow is a row as both databases have it: texts as PostgreSQL can keep them (see plain), times in microseconds
// since 1970, no contents as nil. Its fields are pointers, in the order of the statements that read them.
type copiedRow interface{ fields() []any }

// copiedRequest is a request with its place in the queue. It is due by the clock of the target.
type copiedRequest struct {
	id, mode, task, status, callbackStatus, errorCode, errorMessage, callbackURL, owner string
	complexity, callbackAttempts, processing                                            int64
	started, completed, due                                                             sql.NullInt64
	lane, batch, key                                                                    sql.NullString
	data, result                                                                        []byte
}

func (r *copiedRequest) fields() []any {
	return []any{
		&r.id, &r.mode, &r.task, &r.status, &r.callbackStatus, &r.complexity, &r.callbackAttempts, &r.processing,
		&r.started, &r.completed, &r.lane, &r.due, &r.errorCode, &r.errorMessage, &r.callbackURL, &r.batch, &r.key,
		&r.owner, &r.data, &r.result,
	}
}

// copiedAttempt is an attempt to deliver a callback.
type copiedAttempt struct {
	request                               string
	outcome, err                          string
	number, duration, statusCode, started int64
	next                                  sql.NullInt64
}

func (a *copiedAttempt) fields() []any {
	return []any{&a.request, &a.number, &a.outcome, &a.started, &a.duration, &a.statusCode, &a.err, &a.next}
}

// copiedKey is an API key.
type copiedKey struct {
	id, name, scopes, secret                                  string
	tokenHash, oldTokenHash                                   []byte
	oldSecret                                                 sql.NullString
	created                                                   int64
	oldTokenUntil, oldSecretUntil, expires, revoked, lastUsed sql.NullInt64
}

// copiedKeyColumns are those of fields.
const copiedKeyColumns = `id, name, scopes, secret, token_hash, old_token_hash, old_secret,
	created_at, old_token_until, old_secret_until, expires_at, revoked_at, last_used_at`

func (k *copiedKey) fields() []any {
	return []any{
		&k.id, &k.name, &k.scopes, &k.secret, &k.tokenHash, &k.oldTokenHash, &k.oldSecret,
		&k.created, &k.oldTokenUntil, &k.oldSecretUntil, &k.expires, &k.revoked, &k.lastUsed,
	}
}

// copiedSetting is a setting.
type copiedSetting struct{ name, value string }

func (s *copiedSetting) fields() []any { return []any{&s.name, &s.value} }

// copyRest is all that there is little of.
type copyRest struct {
	settings []copiedSetting  // by name
	keys     []copiedKey      // by id
	counters map[string]int64 // :: counter → value, of all nodes together
}

// readSettingsAndKeys reads what both databases keep in the same columns.
func readSettingsAndKeys(ctx context.Context, db querier) (rest copyRest, err error) {
	rest.settings, err = readRows[copiedSetting](ctx, db, nil, `SELECT name, value FROM settings`)
	if err != nil {
		return rest, err
	}
	slices.SortFunc(rest.settings, func(a, b copiedSetting) int { return cmp.Compare(a.name, b.name) })
	rest.keys, err = readRows[copiedKey](ctx, db, nil, `SELECT `+copiedKeyColumns+` FROM keys`)
	slices.SortFunc(rest.keys, func(a, b copiedKey) int { return cmp.Compare(a.id, b.id) })
	return rest, err
}

// copyPage is some requests that follow each other, with all their attempts.
type copyPage struct {
	requests []copiedRequest
	attempts []copiedAttempt
}

// copyReader reads the requests of one side.
type copyReader struct {
	db       querier
	requests string                       // statement: in order of id after $1, at most $2
	attempts string                       // statement: of requests after $1, up to $2
	key      func(id string) (any, error) // of a request, in the statements; "": before all
	aheadUS  int64                        // to be added to due times
}

// pages calls f with all requests, page by page.
func (c *copyReader) pages(ctx context.Context, rows int, f func(copyPage) error) error {
	for last := ""; ; {
		page, err := c.after(ctx, last, rows)
		if err != nil || len(page.requests) == 0 {
			return err
		}
		if err := f(page); err != nil {
			return err
		}
		last = page.requests[len(page.requests)-1].id
	}
}

// after reads the page after a request.
func (c *copyReader) after(ctx context.Context, id string, rows int) (page copyPage, err error) {
	first, err := c.key(id)
	if err != nil {
		return page, err
	}
	bytes := 0
	full := func(r *copiedRequest) bool {
		r.due.Int64 += c.aheadUS // unused where it is NULL
		bytes += len(r.data) + len(r.result)
		return bytes >= copyPageBytes
	}
	page.requests, err = readRows(ctx, c.db, full, c.requests, first, rows)
	if err != nil || len(page.requests) == 0 {
		return page, err
	}
	last, err := c.key(page.requests[len(page.requests)-1].id)
	if err != nil {
		return page, err
	}
	page.attempts, err = readRows[copiedAttempt](ctx, c.db, nil, c.attempts, first, last)
	return page, err
}

// readRows reads rows up to the first for which last is true; nil: all.
func readRows[T any, R interface {
	*T
	copiedRow
}](ctx context.Context, db querier, last func(R) bool, query string, args ...any) (all []T, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		all = append(all, *new(T))
		row := R(&all[len(all)-1])
		fields := row.fields()
		if err := rows.Scan(fields...); err != nil {
			return nil, err
		}
		for _, field := range fields {
			neutral(field)
		}
		if last != nil && last(row) {
			break
		}
	}
	return all, rows.Err()
}

// neutral gives a value the form that is the same for both databases.
func neutral(field any) {
	switch value := field.(type) {
	case *string:
		*value = plain(*value)
	case *sql.NullString:
		value.String = plain(value.String)
	case *[]byte:
		if len(*value) == 0 {
			*value = nil
		}
	}
}

// CopyDigest says what is on one side of a copy.
type CopyDigest struct {
	Requests map[tandem.Status]int64
	Attempts int64
	Keys     int64

	// SHA256 is a hash, in hex, of every row in a form that is the same for both databases: its values in a fixed
	// order, each after its kind and length. It is made of the hash of all requests by id, with lane and due time, and
	// that of all attempts by request, number and outcome; then come API keys by id, settings and counters by name.
	SHA256 string
}

func (d *CopyDigest) same(other *CopyDigest) bool {
	return d.SHA256 == other.SHA256 && maps.Equal(d.Requests, other.Requests) &&
		d.Attempts == other.Attempts && d.Keys == other.Keys
}

// digester makes a CopyDigest.
type digester struct {
	digest             CopyDigest
	requests, attempts hash.Hash
	row                []byte // to be used again
}

func newDigester() *digester {
	return &digester{
		digest:   CopyDigest{Requests: map[tandem.Status]int64{}},
		requests: sha256.New(), attempts: sha256.New(),
	}
}

// page adds some requests, which follow those before.
func (d *digester) page(page copyPage) error {
	for i := range page.requests {
		d.add(d.requests, page.requests[i].fields()...)
		d.digest.Requests[tandem.Status(page.requests[i].status)]++
	}
	for i := range page.attempts {
		d.add(d.attempts, page.attempts[i].fields()...)
	}
	d.digest.Attempts += int64(len(page.attempts))
	return nil
}

// end adds the rest, and returns the digest.
func (d *digester) end(rest *copyRest) CopyDigest {
	all := sha256.New()
	all.Write(d.requests.Sum(nil))
	all.Write(d.attempts.Sum(nil))
	for i := range rest.keys {
		d.add(all, rest.keys[i].fields()...)
	}
	for i := range rest.settings {
		d.add(all, rest.settings[i].fields()...)
	}
	for _, name := range slices.Sorted(maps.Keys(rest.counters)) {
		if value := rest.counters[name]; value != 0 {
			d.add(all, &name, &value)
		}
	}
	d.digest.Keys, d.digest.SHA256 = int64(len(rest.keys)), hex.EncodeToString(all.Sum(nil))
	return d.digest
}

// add hashes a row.
func (d *digester) add(to hash.Hash, fields ...any) {
	d.row = d.row[:0]
	for _, field := range fields {
		switch value := field.(type) {
		case *string:
			d.row = appendText(d.row, *value, true)
		case *sql.NullString:
			d.row = appendText(d.row, value.String, value.Valid)
		case *[]byte:
			d.row = appendText(d.row, *value, *value != nil)
		case *int64:
			d.row = appendNumber(d.row, *value, true)
		case *sql.NullInt64:
			d.row = appendNumber(d.row, value.Int64, value.Valid)
		}
	}
	to.Write(append(d.row, '\n'))
}

func appendText[T string | []byte](row []byte, text T, valid bool) []byte {
	if !valid {
		return append(row, '-')
	}
	return append(binary.AppendUvarint(append(row, 't'), uint64(len(text))), text...)
}

func appendNumber(row []byte, number int64, valid bool) []byte {
	if !valid {
		return append(row, '-')
	}
	return binary.AppendVarint(append(row, 'n'), number)
}
