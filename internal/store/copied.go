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

// CopyPageBytes is how much data and results a page of a copy holds, about.
const CopyPageBytes = 16 << 20

// CopiedRow is a row as both databases have it: texts as PostgreSQL can keep them (see plain), times in microseconds
// since 1970, no contents as nil. Its fields are pointers, in the order of the statements that read them.
type CopiedRow interface{ Fields() []any }

// CopiedRequest is a request with its place in the queue. It is due by the clock of the target.
type CopiedRequest struct {
	ID, Mode, Task, Status, CallbackStatus, ErrorCode, ErrorMessage, CallbackURL, Owner string
	Complexity, CallbackAttempts, Processing                                            int64
	Started, Completed, Due                                                             sql.NullInt64
	Lane, Batch, Key                                                                    sql.NullString
	Data, Result                                                                        []byte
}

// Fields are its values.
func (r *CopiedRequest) Fields() []any {
	return []any{
		&r.ID, &r.Mode, &r.Task, &r.Status, &r.CallbackStatus, &r.Complexity, &r.CallbackAttempts, &r.Processing,
		&r.Started, &r.Completed, &r.Lane, &r.Due, &r.ErrorCode, &r.ErrorMessage, &r.CallbackURL, &r.Batch, &r.Key,
		&r.Owner, &r.Data, &r.Result,
	}
}

// CopiedAttempt is an attempt to deliver a callback.
type CopiedAttempt struct {
	Request                               string
	Outcome, Error                        string
	Number, Duration, StatusCode, Started int64
	Next                                  sql.NullInt64
}

// Fields are its values.
func (a *CopiedAttempt) Fields() []any {
	return []any{&a.Request, &a.Number, &a.Outcome, &a.Started, &a.Duration, &a.StatusCode, &a.Error, &a.Next}
}

// CopiedKey is an API key.
type CopiedKey struct {
	id, name, scopes, secret                                  string
	tokenHash, oldTokenHash                                   []byte
	oldSecret                                                 sql.NullString
	created                                                   int64
	oldTokenUntil, oldSecretUntil, expires, revoked, lastUsed sql.NullInt64
}

// CopiedKeyColumns are those of fields.
const CopiedKeyColumns = `id, name, scopes, secret, token_hash, old_token_hash, old_secret,
	created_at, old_token_until, old_secret_until, expires_at, revoked_at, last_used_at`

// Fields are its values.
func (k *CopiedKey) Fields() []any {
	return []any{
		&k.id, &k.name, &k.scopes, &k.secret, &k.tokenHash, &k.oldTokenHash, &k.oldSecret,
		&k.created, &k.oldTokenUntil, &k.oldSecretUntil, &k.expires, &k.revoked, &k.lastUsed,
	}
}

// CopiedSetting is a setting.
type CopiedSetting struct{ Name, Value string }

// Fields are its values.
func (s *CopiedSetting) Fields() []any { return []any{&s.Name, &s.Value} }

// CopyRest is all that there is little of.
type CopyRest struct {
	Settings []CopiedSetting  // by name
	Keys     []CopiedKey      // by id
	Counters map[string]int64 // :: counter → value, of all nodes together
}

// ReadSettingsAndKeys reads what both databases keep in the same columns.
func ReadSettingsAndKeys(ctx context.Context, db Querier) (rest CopyRest, err error) {
	rest.Settings, err = readRows[CopiedSetting](ctx, db, nil, `SELECT name, value FROM settings`)
	if err != nil {
		return rest, err
	}
	slices.SortFunc(rest.Settings, func(a, b CopiedSetting) int { return cmp.Compare(a.Name, b.Name) })
	rest.Keys, err = readRows[CopiedKey](ctx, db, nil, `SELECT `+CopiedKeyColumns+` FROM keys`)
	slices.SortFunc(rest.Keys, func(a, b CopiedKey) int { return cmp.Compare(a.id, b.id) })
	return rest, err
}

// CopyPage is some requests that follow each other, with all their attempts.
type CopyPage struct {
	Requests []CopiedRequest
	Attempts []CopiedAttempt
}

// CopyReader reads the requests of one side.
type CopyReader struct {
	DB       Querier
	Requests string                       // statement: in order of id after $1, at most $2
	Attempts string                       // statement: of requests after $1, up to $2
	Key      func(id string) (any, error) // of a request, in the statements; "": before all
	AheadUS  int64                        // to be added to due times
}

// Pages calls f with all requests, page by page.
func (c *CopyReader) Pages(ctx context.Context, rows int, f func(CopyPage) error) error {
	for last := ""; ; {
		page, err := c.after(ctx, last, rows)
		if err != nil || len(page.Requests) == 0 {
			return err
		}
		if err := f(page); err != nil {
			return err
		}
		last = page.Requests[len(page.Requests)-1].ID
	}
}

// after reads the page after a request.
func (c *CopyReader) after(ctx context.Context, id string, rows int) (page CopyPage, err error) {
	first, err := c.Key(id)
	if err != nil {
		return page, err
	}
	bytes := 0
	full := func(r *CopiedRequest) bool {
		r.Due.Int64 += c.AheadUS // unused where it is NULL
		bytes += len(r.Data) + len(r.Result)
		return bytes >= CopyPageBytes
	}
	page.Requests, err = readRows(ctx, c.DB, full, c.Requests, first, rows)
	if err != nil || len(page.Requests) == 0 {
		return page, err
	}
	last, err := c.Key(page.Requests[len(page.Requests)-1].ID)
	if err != nil {
		return page, err
	}
	page.Attempts, err = readRows[CopiedAttempt](ctx, c.DB, nil, c.Attempts, first, last)
	return page, err
}

// readRows reads rows up to the first for which last is true; nil: all.
func readRows[T any, R interface {
	*T
	CopiedRow
}](ctx context.Context, db Querier, last func(R) bool, query string, args ...any) (all []T, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		all = append(all, *new(T))
		row := R(&all[len(all)-1])
		fields := row.Fields()
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
		*value = Plain(*value)
	case *sql.NullString:
		value.String = Plain(value.String)
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

// Same reports whether both sides hold the same.
func (d *CopyDigest) Same(other *CopyDigest) bool {
	return d.SHA256 == other.SHA256 && maps.Equal(d.Requests, other.Requests) &&
		d.Attempts == other.Attempts && d.Keys == other.Keys
}

// Digester makes a CopyDigest.
type Digester struct {
	digest             CopyDigest
	requests, attempts hash.Hash
	row                []byte // to be used again
}

// NewDigester has read nothing yet.
func NewDigester() *Digester {
	return &Digester{
		digest:   CopyDigest{Requests: map[tandem.Status]int64{}},
		requests: sha256.New(), attempts: sha256.New(),
	}
}

// Begin adds what is to be hashed before all requests.
func (d *Digester) Begin(fields ...any) { d.add(d.requests, fields...) }

// Page adds some requests, which follow those before.
func (d *Digester) Page(page CopyPage) error {
	for i := range page.Requests {
		d.add(d.requests, page.Requests[i].Fields()...)
		d.digest.Requests[tandem.Status(page.Requests[i].Status)]++
	}
	for i := range page.Attempts {
		d.add(d.attempts, page.Attempts[i].Fields()...)
	}
	d.digest.Attempts += int64(len(page.Attempts))
	return nil
}

// End adds the rest, and returns the digest.
func (d *Digester) End(rest *CopyRest) CopyDigest {
	all := sha256.New()
	all.Write(d.requests.Sum(nil))
	all.Write(d.attempts.Sum(nil))
	for i := range rest.Keys {
		d.add(all, rest.Keys[i].Fields()...)
	}
	for i := range rest.Settings {
		d.add(all, rest.Settings[i].Fields()...)
	}
	for _, name := range slices.Sorted(maps.Keys(rest.Counters)) {
		if value := rest.Counters[name]; value != 0 {
			d.add(all, &name, &value)
		}
	}
	d.digest.Keys, d.digest.SHA256 = int64(len(rest.Keys)), hex.EncodeToString(all.Sum(nil))
	return d.digest
}

// add hashes a row.
func (d *Digester) add(to hash.Hash, fields ...any) {
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
