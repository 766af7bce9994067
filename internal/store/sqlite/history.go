package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"tandem"
	"tandem/internal/store"
)

// read runs a function that reads, in memory while the writer waits.
func (s *Store) read(ctx context.Context, f func(store.Querier) error) error {
	var err error
	if s.memory {
		s.connMu.Lock()
		defer s.connMu.Unlock()
		err = f(s.readDB)
	} else if err = s.lost(); err == nil { // a new connection would open what has taken its place
		err = f(s.readDB)
	}
	return store.Unreadable(ctx, err)
}

// columns are what scan reads, in its order.
const columns = `seq, id, mode, task, status, callback_status, complexity, callback_attempts, processing_us,
	started_at, completed_at, error_code, error_message, callback_url, batch_id, key_id, owner, data, result`

func scan(row interface{ Scan(...any) error }) (seq int64, r tandem.Request, err error) {
	var mode, status, callback string
	var processing int64
	var tries int
	var started, completed sql.NullInt64
	var batch, key sql.NullString
	var data, result []byte
	err = row.Scan(&seq, &r.ID, &mode, &r.Task, &status, &callback, &r.Complexity, &tries, &processing,
		&started, &completed, &r.ErrorCode, &r.ErrorMessage, &r.CallbackURL, &batch, &key, &r.Owner, &data, &result)
	if err != nil {
		return 0, r, err
	}
	r.Mode, r.Status, r.CallbackStatus = tandem.Mode(mode), tandem.Status(status), tandem.CallbackStatus(callback)
	store.ReadTries(&r, tries)
	r.BatchID, r.KeyID, r.Data, r.Result = batch.String, key.String, data, result
	r.ProcessingTimeMS = float64(processing) / 1000
	r.StartedAt, r.CompletedAt = fromMicros(started), fromMicros(completed)
	r.CreatedAt, err = tandem.IDTime(r.ID)
	return seq, r, err
}

// Request returns one request with its attempts.
func (s *Store) Request(ctx context.Context, id string) (tandem.Request, error) {
	var r tandem.Request
	unknown := store.NotFound(id)
	order, err := tandem.IDOrder(id)
	if err != nil {
		return r, unknown
	}
	err = s.read(ctx, func(q store.Querier) error {
		seq, found, err := scan(q.QueryRowContext(ctx, `SELECT `+columns+` FROM requests WHERE seq = ? AND id = ?`, order, id))
		if errors.Is(err, sql.ErrNoRows) {
			return unknown
		}
		if err != nil {
			return err
		}
		r = found
		if r.Attempts, err = attempts(ctx, q, seq); err != nil || !store.WaitsForNextAttempt(&r) {
			return err
		}
		var due sql.NullInt64
		err = q.QueryRowContext(ctx, `
			SELECT due_at
			FROM requests
			WHERE seq = ? AND due_at > ?`, seq, micros(s.clock.now())).Scan(&due)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		r.Attempts[len(r.Attempts)-1].NextAt = fromMicros(due)
		return err
	})
	return r, err
}

func attempts(ctx context.Context, q store.Querier, seq int64) ([]tandem.Attempt, error) {
	rows, err := q.QueryContext(ctx, `
		SELECT number, outcome, started_at, duration_us, status_code, error, next_at
		FROM attempts
		WHERE request = ?
		ORDER BY number, started_at`, seq)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []tandem.Attempt
	for rows.Next() {
		var a tandem.Attempt
		var outcome string
		var started, duration int64
		var next sql.NullInt64
		if err := rows.Scan(&a.Number, &outcome, &started, &duration, &a.StatusCode, &a.Error, &next); err != nil {
			return nil, err
		}
		a.Outcome, a.StartedAt, a.NextAt = tandem.Outcome(outcome), time.UnixMicro(started).UTC(), fromMicros(next)
		a.DurationMS = float64(duration) / 1000
		list = append(list, a)
	}
	return list, rows.Err()
}

// Requests returns a page of the history.
//
// A filter on mode, status or task becomes a union over every combination of
// the three, each a range of requests_history in order of seq; one on a key always
// does, with ranges of requests_key. SQLite merges
// them row by row and stops at the limit, so a page costs the same however
// rare its rows are among the rest.
func (s *Store) Requests(ctx context.Context, f store.Filter) (store.Page, error) {
	from, before := tandem.OrderOf(f.Since), int64(math.MaxInt64)
	if !f.Until.IsZero() {
		before = tandem.OrderOf(f.Until)
	}
	if f.Cursor != "" {
		last, err := f.Last()
		if err != nil {
			return store.Page{}, err
		}
		order, err := tandem.IDOrder(last)
		if err != nil {
			return store.Page{}, err
		}
		before = min(before, order)
	}
	query, args := pageQuery(f, s.counters.Tasks(), from, before)
	pager := store.Pager{Filter: &f}
	if query == "" {
		return pager.Page, nil
	}
	err := s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, query, append(args, f.Limit+1, f.Offset)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			_, r, err := scan(rows)
			if err != nil {
				return err
			}
			if !pager.Add(r) {
				break
			}
		}
		// Closed before the next query: in memory there is one connection.
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || !f.CountsAll(&s.cfg) {
			return err
		}
		pager.Page.Total, err = s.countedRows(ctx, q, f.Key)
		return err
	})
	return pager.Page, err
}

// countedRows is how many requests of Config.Counted are in the history: all of them, or those of a key.
func (s *Store) countedRows(ctx context.Context, q store.Querier, key string) (n int64, err error) {
	if key == "" {
		return s.counters.Kept(&s.cfg), nil
	}
	err = q.QueryRowContext(ctx, `SELECT submissions FROM key_totals WHERE key_id = ?`, key).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, err
}

// pageQuery returns the statement for a filter and its arguments up to LIMIT
// ? OFFSET ?; "" when nothing can match.
func pageQuery(f store.Filter, tasks []string, from, before int64) (string, []any) {
	if f.Batch != "" && f.Key != "" { // the few rows of a batch are looked through
		return `SELECT ` + columns + ` FROM requests INDEXED BY requests_batch WHERE batch_id = ? AND key_id = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ? OFFSET ?`,
			[]any{f.Batch, f.Key, from, before}
	}
	if f.Batch != "" {
		return `SELECT ` + columns + ` FROM requests INDEXED BY requests_batch WHERE batch_id = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ? OFFSET ?`,
			[]any{f.Batch, from, before}
	}
	if f.Mode == "" && f.Status == "" && f.Task == "" && f.Key == "" {
		return `SELECT ` + columns + ` FROM requests WHERE seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ? OFFSET ?`, []any{from, before}
	}
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
	arm, owner := `
		SELECT seq AS row FROM requests INDEXED BY requests_history
		WHERE mode = ? AND status = ? AND task = ? AND seq >= ? AND seq < ?`, []any{}
	if f.Key != "" {
		arm, owner = `
		SELECT seq AS row FROM requests INDEXED BY requests_key
		WHERE key_id = ? AND mode = ? AND status = ? AND task = ? AND seq >= ? AND seq < ?`, []any{f.Key}
	}
	var arms []string
	var args []any
	for _, mode := range modes {
		for _, status := range statuses {
			if mode == tandem.ModeSync && (status == tandem.StatusCallbackSent || status == tandem.StatusCallbackFailed) {
				continue // a sync request has no callback
			}
			for _, task := range tasks {
				arms, args = append(arms, arm), append(args, owner...)
				args = append(args, string(mode), string(status), task, from, before)
			}
		}
	}
	if len(arms) == 0 {
		return "", nil
	}
	return `
	WITH page AS MATERIALIZED (` + strings.Join(arms, `
		UNION ALL`) + `
		ORDER BY row DESC
		LIMIT ? OFFSET ?)
	SELECT ` + columns + ` FROM page JOIN requests ON seq = row ORDER BY row DESC`, args
}

// Stats returns the counters. It waits for the commit under way, so that what
// it returns is never older than a row that the caller has seen.
func (s *Store) Stats(ctx context.Context) (store.Stats, error) {
	s.connMu.Lock()
	stats := s.counters.Stats(s.clock.now(), &s.cfg)
	s.connMu.Unlock()
	if failure := s.failure.Load(); failure != nil {
		stats.Unavailable = *failure
	}
	now := s.clock.now()
	err := s.read(ctx, func(q store.Querier) error {
		for _, lane := range store.Lanes {
			heads, err := dueHeads(ctx, q, lane, now)
			if err != nil {
				return err
			}
			for _, head := range heads {
				stats.OldestDue = store.Sooner(stats.OldestDue, head.oldest)
			}
		}
		return nil
	})
	return stats, err
}

// chunkBytes bounds one chunk of deletions, as ChunkRows does.
const chunkBytes = 1 << 20

// Retain deletes finished requests that were made before the given time.
func (s *Store) Retain(ctx context.Context, before time.Time) (int, error) {
	deleted := 0
	after, rows := int64(-1), store.ChunkRows
	for {
		old, last, err := s.finished(ctx, after, tandem.OrderOf(before), rows)
		if err == nil && last == after {
			return deleted, nil
		}
		var n int
		var took time.Duration
		if err == nil {
			n, took, err = s.deleteRows(ctx, old)
		}
		deleted += n
		switch {
		case ctx.Err() != nil:
			return deleted, nil //nolint:nilerr // to stop early is no error: the rest goes next time
		case err != nil:
			return deleted, fmt.Errorf("delete what is past its retention: %w", err)
		}
		after, rows = last, nextChunk(rows, took)
	}
}

// nextChunk sizes a chunk so that it holds the writer for some 10 ms, far below the 50 ms allowed.
func nextChunk(rows int, took time.Duration) int {
	switch {
	case took > 20*time.Millisecond:
		return max(rows/4, 1)
	case took > 10*time.Millisecond:
		return max(rows/2, 1)
	case took < 4*time.Millisecond:
		return min(rows*2, store.ChunkRows)
	default:
		return rows
	}
}

// finished lists rows after one seq and before another of which nothing is left
// to do, and the seq up to which it has looked; that is after itself at the end.
func (s *Store) finished(ctx context.Context, after, before int64, limit int) (old []oldRow, last int64, err error) {
	last = after
	err = s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, `
			SELECT seq, task, key_id, lane IS NULL AND status NOT IN ('pending', 'processing'), length(data) + coalesce(length(result), 0)
			FROM requests
			WHERE seq > ? AND seq < ?
			ORDER BY seq
			LIMIT ?`, after, before, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		bytes := 0
		for rows.Next() && bytes < chunkBytes {
			var row oldRow
			var over bool
			var size int
			if err := rows.Scan(&row.seq, &row.task, &row.key, &over, &size); err != nil {
				return err
			}
			last = row.seq
			if over {
				old = append(old, row)
				bytes += size
			}
		}
		return rows.Err()
	})
	return old, last, err
}

// oldRow is a finished row that may be deleted.
type oldRow struct {
	seq  int64
	task string
	key  sql.NullString
}

// deleteRows deletes rows with their attempts, and returns how long that held the writer.
func (s *Store) deleteRows(ctx context.Context, old []oldRow) (deleted int, took time.Duration, err error) {
	if len(old) == 0 {
		return 0, 0, nil
	}
	var gone int           // the writer's, until do returns nil
	var held time.Duration // the same
	err = s.do(ctx, func(tx *tx) error {
		start := time.Now()
		gone = 0
		counted := int64(0)
		for _, row := range old {
			if _, err := tx.exec(`DELETE FROM attempts WHERE request = ?`, row.seq); err != nil {
				return err
			}
			n, err := tx.exec(`DELETE FROM requests WHERE seq = ? AND lane IS NULL`, row.seq)
			if err != nil {
				return err
			}
			gone += int(n)
			if s.cfg.Counts(row.task) {
				counted += n
				tx.own(row.key.String, -n)
			}
		}
		tx.deltas.Delete(int64(gone), counted, &s.cfg)
		held = time.Since(start)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	return gone, held, nil
}

// trim keeps the in-memory database within memoryRows finished rows and
// memoryBytes, oldest first.
func (s *Store) trim(ctx context.Context) error {
	after := int64(-1)
	for {
		var pages, free, size int64
		err := s.read(ctx, func(q store.Querier) error {
			return q.QueryRowContext(ctx, `
				SELECT page_count, freelist_count, page_size
				FROM pragma_page_count, pragma_freelist_count, pragma_page_size`).Scan(&pages, &free, &size)
		})
		if err != nil {
			return err
		}
		over := s.counters.Over() - memoryRows
		if over <= 0 && (pages-free)*size <= memoryBytes {
			return nil
		}
		old, last, err := s.finished(ctx, after, math.MaxInt64, store.ChunkRows)
		if err != nil || last == after {
			return err
		}
		after = last
		if _, _, err := s.deleteRows(ctx, old); err != nil {
			return err
		}
	}
}
