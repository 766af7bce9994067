package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"tandem"
	"tandem/internal/store"
)

// reading runs a function that reads, for a bounded time, and says so in words for people when it cannot. The function may
// be run twice.
func (s *Store) reading(ctx context.Context, f func(context.Context) error) error {
	err := errAway
	if !s.away.Load() {
		bounded, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		err = f(bounded)
		if lostConnection(err) && bounded.Err() == nil { // all of them, more likely than not
			s.reads.Reset()
			err = f(bounded)
		}
		s.noteRead(ctx, err)
	}
	return store.Unreadable(ctx, err)
}

// noteRead logs once that reads get no connection, and once that they do again.
func (s *Store) noteRead(ctx context.Context, err error) {
	_, refused := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case ctx.Err() != nil: // its caller has left, which says nothing
	case refused && !s.unread.Swap(true):
		s.cfg.Log.Error("no connection to read from the database; reads are refused until there is one",
			"error", Explain(err))
	case !refused && s.unread.Load() && s.unread.Swap(false):
		s.cfg.Log.Info("the database can be read again")
	}
}

// lostConnection reports whether a statement failed because its connection broke or was ended: by
// somebody (57P..), or by the server, for which this node was too slow (25P03).
func lostConnection(err error) bool {
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(cause.Code, "57P") || cause.Code == "25P03"
	}
	_, ours := errors.AsType[*tandem.Error](err)
	return err != nil && !ours && !errors.Is(err, pgx.ErrNoRows)
}

// noAnswer reports whether a statement failed without a word of the database about it: one that says why, such as
// that its disk is full, can still be read.
func noAnswer(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	_, told := errors.AsType[*pgconn.PgError](err)
	return err != nil && (!told || lostConnection(err))
}

// requestColumns are what scan reads, in its order, before data and result.
const requestColumns = `id, mode, task, status, callback_status, complexity, callback_attempts, processing_us,
	started_at, completed_at, error_code, error_message, callback_url,
	coalesce(batch_id, ''), coalesce(key_id, ''), owner`

// scan reads a request, after columns of the caller's own.
func scan(row pgx.Row, first ...any) (r tandem.Request, err error) {
	var id pgtype.UUID
	var processing int64
	var tries int
	var started, completed pgtype.Timestamptz
	var data, result []byte
	err = row.Scan(append(first, &id, &r.Mode, &r.Task, &r.Status, &r.CallbackStatus, &r.Complexity,
		&tries, &processing, &started, &completed, &r.ErrorCode, &r.ErrorMessage, &r.CallbackURL,
		&r.BatchID, &r.KeyID, &r.Owner, &data, &result)...)
	if err != nil {
		return r, err
	}
	store.ReadTries(&r, tries)
	r.ID, r.Data, r.Result = tandem.ID(id.Bytes), data, result
	r.ProcessingTimeMS = float64(processing) / 1000
	r.StartedAt, r.CompletedAt = utc(started), utc(completed)
	r.CreatedAt, err = tandem.IDTime(r.ID)
	return r, err
}

func utc(t pgtype.Timestamptz) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return t.Time.UTC()
}

// Request returns one request with its attempts.
func (s *Store) Request(ctx context.Context, id string) (tandem.Request, error) {
	var r tandem.Request
	unknown := store.NotFound(id)
	key, err := uuidOf(id)
	if err != nil {
		return r, unknown
	}
	err = s.reading(ctx, func(ctx context.Context) error {
		found, err := scan(s.reads.QueryRow(ctx, `SELECT `+requestColumns+`, data, result FROM requests WHERE id = $1`, key))
		if errors.Is(err, pgx.ErrNoRows) {
			return unknown
		}
		if err != nil {
			return err
		}
		r = found
		if r.Attempts, err = s.attempts(ctx, key); err != nil || !store.WaitsForNextAttempt(&r) {
			return err
		}
		var due pgtype.Timestamptz
		err = s.reads.QueryRow(ctx, `
			SELECT job.scheduled_at
			FROM requests JOIN river_job AS job ON job.id = requests.job_id
			WHERE requests.id = $1 AND job.scheduled_at > now()`, key).Scan(&due)
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		r.Attempts[len(r.Attempts)-1].NextAt = utc(due)
		return err
	})
	return r, err
}

func (s *Store) attempts(ctx context.Context, key pgtype.UUID) ([]tandem.Attempt, error) {
	rows, err := s.reads.Query(ctx, `
		SELECT number, outcome, started_at, duration_us, status_code, error, next_at
		FROM attempts
		WHERE request = $1
		ORDER BY number, started_at`, key)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (tandem.Attempt, error) {
		var a tandem.Attempt
		var duration int64
		var started, next pgtype.Timestamptz
		err := row.Scan(&a.Number, &a.Outcome, &started, &duration, &a.StatusCode, &a.Error, &next)
		a.StartedAt, a.NextAt, a.DurationMS = utc(started), utc(next), float64(duration)/1000
		return a, err
	})
}

// firstID returns the least id of an order, as it is kept.
func firstID(order int64) pgtype.UUID {
	id := pgtype.UUID{Valid: true}
	ms := order >> 12
	for i := range 6 {
		id.Bytes[i] = byte(ms >> (40 - 8*i))
	}
	id.Bytes[6], id.Bytes[7] = 0x70|byte(order>>8&0x0f), byte(order)
	return id
}

// endID is after every id.
var endID = pgtype.UUID{Valid: true, Bytes: [16]byte{
	math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8,
	math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8, math.MaxUint8,
}}

// orderID is firstID, but for the moment after the last id there can be.
func orderID(t time.Time) pgtype.UUID {
	order := tandem.OrderOf(t)
	if order>>12 >= 1<<48 {
		return endID
	}
	return firstID(order)
}

// Requests returns a page of the history. A filter becomes a union of ranges of
// an index, as in the other store, which PostgreSQL merges row by row.
func (s *Store) Requests(ctx context.Context, f store.Filter) (store.Page, error) {
	from, before := orderID(f.Since), endID
	if !f.Until.IsZero() {
		before = orderID(f.Until)
	}
	if f.Cursor != "" {
		last, err := f.Last()
		if err != nil {
			return store.Page{}, err
		}
		id, err := uuidOf(last)
		if err != nil {
			return store.Page{}, err
		}
		if string(id.Bytes[:]) < string(before.Bytes[:]) {
			before = id
		}
	}
	query, args := pageQuery(f, s.total(ctx).Tasks(), from, before)
	pager := store.Pager{Filter: &f}
	if query == "" {
		return pager.Page, nil
	}
	err := s.reading(ctx, func(ctx context.Context) error {
		rows, err := s.reads.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		pager = store.Pager{Filter: &f} // nothing of a try that was cut off
		for rows.Next() {
			r, err := scan(rows)
			if err != nil {
				return err
			}
			if !pager.Add(r) {
				break
			}
		}
		rows.Close()
		if err := rows.Err(); err != nil || !f.CountsAll(&s.cfg) {
			return err
		}
		pager.Page.Total, err = s.countedRows(ctx, f.Key)
		return err
	})
	return pager.Page, err
}

// countedRows is how many requests of Config.Counted are in the history: all of them, or those of a key, which are
// counted in its index.
func (s *Store) countedRows(ctx context.Context, key string) (n int64, err error) {
	if key == "" {
		return s.total(ctx).Kept(&s.cfg), nil
	}
	err = s.reads.QueryRow(ctx, `SELECT count(*) FROM requests WHERE key_id = $1 AND task = $2`, key,
		s.cfg.Counted).Scan(&n)
	return n, err
}

// pageArm is the statement for the first rows of those whose columns have given values, in the order of the index over the columns and id.
// It reads that many entries of the index and no more, and then drops those that are of other values: with the
// values as a condition PostgreSQL may take the order of id for a shortcut, and go through all of the history for rows that are nowhere.
func pageArm(columns, values []string) string {
	keys := strings.Join(columns, ", ")
	same := make([]string, len(columns))
	for i := range columns {
		same[i] = columns[i] + " = " + values[i]
	}
	return `
		(SELECT id
		FROM (
			SELECT ` + keys + `, id
			FROM requests
			WHERE (` + keys + `, id) < (` + strings.Join(values, ", ") + `, $2) AND ` + columns[0] + ` IS NOT NULL
			ORDER BY ` + strings.Join(columns, " DESC, ") + ` DESC, id DESC
			LIMIT $3::bigint + $4::bigint) AS entries
		WHERE ` + strings.Join(same, " AND ") + ` AND id >= $1)`
}

// postgresPage returns the statement for a filter and its arguments; "" when nothing can match.
func pageQuery(f store.Filter, tasks []string, from, before pgtype.UUID) (string, []any) {
	args := []any{from, before, f.Limit + 1, f.Offset}
	add := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(len(args))
	}
	const selected = `SELECT ` + requestColumns + `, data, result FROM `
	const page = ` WHERE id >= $1 AND id < $2 ORDER BY id DESC LIMIT $3::bigint OFFSET $4::bigint`
	var owner, ownerValue []string
	if f.Key != "" {
		owner, ownerValue = []string{"key_id"}, []string{add(f.Key)}
	}
	if f.Batch != "" { // the few rows of a batch are looked through
		batch := `batch_id = ` + add(f.Batch)
		if f.Key != "" {
			batch += ` AND key_id = ` + ownerValue[0]
		}
		return selected + `(SELECT * FROM requests WHERE ` + batch + ` OFFSET 0) AS batch` + page, args
	}
	if f.Mode == "" && f.Status == "" && f.Task == "" && f.Key == "" {
		return selected + `requests` + page, args
	}
	columns := slices.Concat(owner, []string{"mode", "status", "task"})
	modes, statuses := tandem.Modes, tandem.Statuses
	if f.Mode != "" {
		modes = []tandem.Mode{f.Mode}
	}
	if f.Status != "" {
		statuses = []tandem.Status{f.Status}
	}
	if f.Task != "" || len(tasks) == 0 {
		tasks = []string{f.Task}
	}
	var arms []string
	for _, mode := range modes {
		for _, status := range statuses {
			if mode == tandem.ModeSync && (status == tandem.StatusCallbackSent || status == tandem.StatusCallbackFailed) {
				continue // a sync request has no callback
			}
			for _, task := range tasks {
				values := slices.Concat(ownerValue, []string{add(string(mode)), add(string(status)), add(task)})
				arms = append(arms, pageArm(columns, values))
			}
		}
	}
	if len(arms) == 0 {
		return "", nil
	}
	return `
	WITH page AS MATERIALIZED (
		SELECT id AS row FROM (` + strings.Join(arms, `
		UNION ALL`) + `) AS arms
		ORDER BY row DESC
		LIMIT $3::bigint OFFSET $4::bigint)
	SELECT ` + requestColumns + `, data, result FROM page JOIN requests ON id = row ORDER BY row DESC`, args
}

// Stats returns the counters of all nodes.
func (s *Store) Stats(ctx context.Context) (store.Stats, error) {
	stats := s.total(ctx).Stats(s.now(), &s.cfg)
	if failure := s.failure.Load(); failure != nil {
		stats.Unavailable = *failure
		return stats, nil
	}
	err := s.reading(ctx, func(ctx context.Context) (err error) {
		stats.OldestDue, err = s.oldestDue(ctx, store.Lanes...)
		return err
	})
	return stats, err
}

// Retain deletes finished requests that were made before the given time, in chunks of
// transactions that last some milliseconds each.
func (s *Store) Retain(ctx context.Context, before time.Time) (int, error) {
	deleted := 0
	after := pgtype.UUID{Valid: true}
	for {
		chunk := oldChunk{after: after, before: orderID(before), cfg: &s.cfg}
		err := ctx.Err()
		if err == nil {
			err = s.do(ctx, chunk.delete)
		}
		switch {
		case ctx.Err() != nil:
			return deleted, nil //nolint:nilerr // to stop early is no error: the rest goes next time
		case err != nil:
			return deleted, fmt.Errorf("delete what is past its retention: %w", err)
		}
		deleted += chunk.deleted
		if !chunk.last.Valid {
			return deleted, nil
		}
		after = chunk.last
	}
}

// oldChunk is a part of the history that retention looks at.
type oldChunk struct {
	after, before pgtype.UUID
	cfg           *store.Config
	last          pgtype.UUID // up to where it has looked; not valid: there was nothing
	deleted       int
}

func (c *oldChunk) delete(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error {
	var counted int64
	err := tx.QueryRow(ctx, `
		WITH looked AS MATERIALIZED (
			SELECT id, task, job_id IS NULL AND status NOT IN ('pending', 'processing') AS over
			FROM requests
			WHERE id > $1 AND id < $2
			ORDER BY id
			LIMIT $3
		), gone AS (
			DELETE FROM requests
			WHERE id = ANY (ARRAY(SELECT id FROM looked WHERE over))
			RETURNING id, task
		), tries AS (
			DELETE FROM attempts
			WHERE request = ANY (ARRAY(SELECT id FROM gone))
		)
		SELECT (SELECT id FROM looked ORDER BY id DESC LIMIT 1), count(*), count(*) FILTER (WHERE task = $4)
		FROM gone`, c.after, c.before, store.ChunkRows, c.cfg.Counted).Scan(&c.last, &c.deleted, &counted)
	if err != nil {
		return err
	}
	deltas.Delete(int64(c.deleted), counted, c.cfg)
	return nil
}
