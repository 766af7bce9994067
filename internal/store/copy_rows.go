package store

import (
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"tandem"
)

// copiedRequest is a request with its place in the queue, as both databases keep it. Texts are as PostgreSQL
// can keep them (see plain), times microseconds since 1970, due ones by the clock of the target.
type copiedRequest struct {
	order                                                                    int64 // tandem.IDOrder; of the source only
	id                                                                       string
	mode, task, status, callbackStatus, errorCode, errorMessage, callbackURL string
	complexity, callbackAttempts, processing                                 int64
	started, completed, due                                                  sql.NullInt64
	lane, batch, key                                                         sql.NullString
	data, result                                                             []byte // of the source only; result nil: none
	dataSum, resultSum                                                       []byte // SHA-256, when it is to be compared
}

// copiedColumns are those of requests that values fills in, in its order.
var copiedColumns = []string{
	"id", "mode", "task", "status", "callback_status", "complexity", "callback_attempts", "processing_us", "job_id",
	"started_at", "completed_at", "lane", "node", "error_code", "error_message", "callback_url", "batch_id", "key_id", "data", "result",
}

// values is the row for PostgreSQL. No node works on it.
func (r *copiedRequest) values(job pgtype.Int8) ([]any, error) {
	id, err := uuidOf(r.id)
	return []any{
		id, r.mode, r.task, r.status, r.callbackStatus, int16(r.complexity), int32(r.callbackAttempts), r.processing, job,
		copiedTime(r.started), copiedTime(r.completed), r.lane, "", r.errorCode, r.errorMessage, r.callbackURL, r.batch, r.key, r.data, r.result,
	}, err
}

func copiedTime(us sql.NullInt64) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: time.UnixMicro(us.Int64), Valid: us.Valid}
}

func microsOf(t pgtype.Timestamptz) sql.NullInt64 {
	return sql.NullInt64{Int64: t.Time.UnixMicro(), Valid: t.Valid}
}

// copiedAttempt is a try of a callback, as both databases keep it.
type copiedAttempt struct {
	request                      string
	number, duration, statusCode int64
	outcome, err                 string
	started                      int64
	next                         sql.NullInt64
}

var copiedAttemptColumns = []string{"request", "number", "outcome", "started_at", "duration_us", "status_code", "error", "next_at"}

func (a *copiedAttempt) values() ([]any, error) {
	id, err := uuidOf(a.request)
	return []any{
		id, int32(a.number), a.outcome, copiedTime(sql.NullInt64{Int64: a.started, Valid: true}), a.duration, int32(a.statusCode), a.err, copiedTime(a.next),
	}, err
}

// copyRest is all that there is little of: at most MaxKeys keys, and some dozens of others.
type copyRest struct {
	settings map[string]string
	keys     []copiedKey      // by id
	counters map[string]int64 // :: counter → value, of all nodes together
}

// copiedKey is an API key, as both databases keep it.
type copiedKey struct {
	id, name, scopes, secret                                  string
	tokenHash, oldTokenHash                                   []byte
	oldSecret                                                 sql.NullString
	created                                                   int64
	oldTokenUntil, oldSecretUntil, expires, revoked, lastUsed sql.NullInt64
}

// copiedKeyColumns are what scan reads and values returns, in their order.
const copiedKeyColumns = `id, name, scopes, secret, token_hash, old_token_hash, old_secret, created_at, old_token_until, old_secret_until, expires_at, revoked_at, last_used_at`

func (k *copiedKey) scan(row interface{ Scan(...any) error }) error {
	return row.Scan(&k.id, &k.name, &k.scopes, &k.secret, &k.tokenHash, &k.oldTokenHash, &k.oldSecret,
		&k.created, &k.oldTokenUntil, &k.oldSecretUntil, &k.expires, &k.revoked, &k.lastUsed)
}

func (k *copiedKey) values() []any {
	return []any{k.id, k.name, k.scopes, k.secret, k.tokenHash, k.oldTokenHash, k.oldSecret,
		k.created, k.oldTokenUntil, k.oldSecretUntil, k.expires, k.revoked, k.lastUsed}
}

// CopyDigest says what is on one side of a copy.
type CopyDigest struct {
	Requests map[tandem.Status]int64
	Attempts int64
	Keys     int64

	// SHA256 is the hash, in hex, of every row in a form that is the same for both databases: its values in a fixed
	// order, each after its kind and length, times in microseconds. Requests come first, by id, with lane and due time; then
	// attempts by request, number and outcome, API keys by id, settings and counters by name.
	SHA256 string
}

func (d *CopyDigest) same(other *CopyDigest) bool {
	return d.SHA256 == other.SHA256 && maps.Equal(d.Requests, other.Requests) && d.Attempts == other.Attempts && d.Keys == other.Keys
}

// digester makes a CopyDigest.
type digester struct {
	digest CopyDigest
	rows   int64 // requests so far
	sum    hash.Hash
	row    []byte
}

func newDigester() *digester {
	return &digester{digest: CopyDigest{Requests: map[tandem.Status]int64{}}, sum: sha256.New()}
}

// text, bytes, number, nullText and nullNumber append a value to the row.
func (d *digester) text(value string) {
	d.row = binary.AppendUvarint(append(d.row, 't'), uint64(len(value)))
	d.row = append(d.row, value...)
}

func (d *digester) number(value int64) { d.row = binary.AppendVarint(append(d.row, 'n'), value) }

func (d *digester) nullText(value sql.NullString) {
	if !value.Valid {
		d.row = append(d.row, '-')
		return
	}
	d.text(value.String)
}

func (d *digester) bytes(value []byte) {
	d.nullText(sql.NullString{String: string(value), Valid: value != nil})
}

func (d *digester) nullNumber(value sql.NullInt64) {
	if !value.Valid {
		d.row = append(d.row, '-')
		return
	}
	d.number(value.Int64)
}

// end hashes the row.
func (d *digester) end() {
	d.row = append(d.row, '\n')
	d.sum.Write(d.row)
	d.row = d.row[:0]
}

func (d *digester) request(r *copiedRequest) {
	for _, text := range [...]string{r.id, r.mode, r.task, r.status, r.callbackStatus, r.errorCode, r.errorMessage, r.callbackURL} {
		d.text(text)
	}
	for _, number := range [...]int64{r.complexity, r.callbackAttempts, r.processing} {
		d.number(number)
	}
	for _, number := range [...]sql.NullInt64{r.started, r.completed, r.due} {
		d.nullNumber(number)
	}
	for _, text := range [...]sql.NullString{r.lane, r.batch, r.key} {
		d.nullText(text)
	}
	d.bytes(r.dataSum)
	d.bytes(r.resultSum)
	d.end()
	d.digest.Requests[tandem.Status(r.status)]++
	d.rows++
}

func (d *digester) attempt(a *copiedAttempt) {
	d.text(a.request)
	d.text(a.outcome)
	d.text(a.err)
	for _, number := range [...]int64{a.number, a.duration, a.statusCode, a.started} {
		d.number(number)
	}
	d.nullNumber(a.next)
	d.end()
	d.digest.Attempts++
}

// rest adds what comes last, and returns the digest.
func (d *digester) rest(rest *copyRest) CopyDigest {
	for i := range rest.keys {
		k := &rest.keys[i]
		for _, text := range [...]string{k.id, k.name, k.scopes, k.secret} {
			d.text(text)
		}
		d.bytes(k.tokenHash)
		d.bytes(k.oldTokenHash)
		d.nullText(k.oldSecret)
		d.number(k.created)
		for _, number := range [...]sql.NullInt64{k.oldTokenUntil, k.oldSecretUntil, k.expires, k.revoked, k.lastUsed} {
			d.nullNumber(number)
		}
		d.end()
	}
	d.digest.Keys = int64(len(rest.keys))
	for _, name := range slices.Sorted(maps.Keys(rest.settings)) {
		d.text(name)
		d.text(rest.settings[name])
		d.end()
	}
	for _, name := range slices.Sorted(maps.Keys(rest.counters)) {
		if rest.counters[name] != 0 {
			d.text(name)
			d.number(rest.counters[name])
			d.end()
		}
	}
	d.digest.SHA256 = hex.EncodeToString(d.sum.Sum(nil))
	return d.digest
}

// sumOf is what is compared instead of contents; nil for none.
func sumOf(content []byte) []byte {
	if content == nil {
		return nil
	}
	sum := sha256.Sum256(content)
	return sum[:]
}
