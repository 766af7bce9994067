package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"tandem"
	"tandem/internal/store"
)

// Accept commits new requests.
func (s *Store) Accept(ctx context.Context, lane store.Lane, requests ...*tandem.Request) (err error) {
	if err := s.quotas.Admit(ctx, lane, requests); err != nil {
		return err
	}
	defer func() { s.quotas.Release(ctx, lane, requests, err) }()
	waiting := s.accepting.Add(int64(len(requests)))
	defer s.accepting.Add(-int64(len(requests)))
	if s.counters.Unfinished()+waiting > s.cfg.MaxQueue {
		return store.QueueFull("of all callers", s.cfg.MaxQueue, "max-queue")
	}
	items := make([]item, len(requests))
	pending := 0
	for i, r := range requests {
		seq, err := tandem.IDOrder(r.ID)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		items[i] = item{seq: seq, request: *r, loaded: true, lane: lane, size: len(r.Data)}
		if r.Status == tandem.StatusPending {
			pending++
		}
	}
	result := make(chan error, 1)
	err = s.submit(ctx, &op{
		urgent:   pending > 0,
		promised: true,
		apply: func(tx *tx) error {
			for i := range items {
				if err := insert(tx, &items[i]); err != nil {
					return err
				}
			}
			return nil
		},
		done: func(err error) {
			// ErrUnsure: it is there, if the file comes back.
			if (err == nil || errors.Is(err, store.ErrUnsure)) && lane != store.LaneNone {
				for i := range items {
					s.queue.push(&items[i])
				}
			}
			result <- err
		},
	})
	if err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// insert writes the row of a new request, due now or, if its caller works on it, later.
func insert(tx *tx, it *item) error {
	r := &it.request
	it.due = tx.store.clock.now()
	if tx.store.cfg.Counts(r.Task) {
		tx.own(r.KeyID, 1)
	}
	tx.deltas.Accept(r, it.lane, it.due, &tx.store.cfg)
	if r.Status == tandem.StatusProcessing {
		it.due = it.due.Add(store.CallerLease)
	}
	lane, due := sql.NullString{}, sql.NullInt64{}
	if it.lane != store.LaneNone {
		lane, due = sql.NullString{String: string(it.lane), Valid: true}, sql.NullInt64{Int64: micros(it.due), Valid: true}
	}
	err := tx.requests.add(tx,
		it.seq, r.ID, string(r.Mode), r.Task, string(r.Status), string(r.CallbackStatus), r.Complexity,
		nullMicros(r.StartedAt), lane, due, r.CallbackURL, []byte(r.Data),
		sql.NullString{String: r.BatchID, Valid: r.BatchID != ""},
		sql.NullString{String: r.KeyID, Valid: r.KeyID != ""}, r.Owner)
	if err != nil {
		return insertError(err)
	}
	return nil
}

const insertRequest = `
	INSERT INTO requests (seq, id, mode, task, status, callback_status, complexity, started_at, lane, due_at,
	                      callback_url, data, batch_id, key_id, owner)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

// insertError says of rows that could not be inserted whether one is there already.
func insertError(err error) error {
	if sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return fmt.Errorf("insert requests: %w (%w)", store.ErrExists, err)
	}
	return fmt.Errorf("insert requests: %w", err)
}

// Finish commits what came of work that the caller of Accept did itself.
func (s *Store) Finish(ctx context.Context, job store.Job, next store.Next) error {
	seq, err := tandem.IDOrder(job.Request.ID)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	t, err := next.Apply(&job)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	it := &item{seq: seq, request: job.Request, lane: job.Lane}
	found := false // the writer's, until do returns nil
	err = s.do(ctx, func(tx *tx) (err error) {
		found, err = settle(tx, it, &t)
		return err
	})
	switch {
	case err != nil:
		return err
	case !found:
		return store.NotWorkedOn(job.Request.ID)
	case t.Lane != store.LaneNone:
		s.queue.push(&item{
			seq: seq, request: t.Request, loaded: true, lane: t.Lane, due: it.due, size: len(t.Request.Data),
		})
	}
	return nil
}

// markProcessing notes that the work of a pending request has begun. Nothing
// depends on it but what people see: after a crash both run again.
func markProcessing(tx *tx, it *item, started time.Time) error {
	n, err := tx.exec(`
		UPDATE requests
		SET status = 'processing', started_at = ?
		WHERE seq = ? AND status = 'pending'`, micros(started), it.seq)
	if err != nil || n == 0 {
		return err
	}
	it.marked = true
	tx.undo = append(tx.undo, func() { it.marked = false })
	tx.deltas.Begin(1)
	return nil
}

// settle writes what a step returned: the request as it is now, where it waits
// next, which it leaves in it.due, and the attempt. It reports false, and writes
// nothing, when the row is not in the job's lane and status any more: somebody else has
// changed it.
func settle(tx *tx, it *item, t *store.Transition) (bool, error) {
	after := &t.Request
	before := it.request.Status
	if it.marked {
		before = tandem.StatusProcessing
	}
	lane, due := sql.NullString{}, sql.NullInt64{}
	if t.Lane != store.LaneNone {
		it.due = tx.store.clock.dueAt(t.At)
		lane, due = sql.NullString{String: string(t.Lane), Valid: true}, sql.NullInt64{Int64: micros(it.due), Valid: true}
	}
	parked := sql.NullString{String: t.Parked, Valid: t.Parked != ""}
	var n int64
	var err error
	switch o := t.Outcome; {
	case o != nil && it.lane == store.LaneNone: // its caller's alone: no index of the queue is touched
		n, err = tx.exec(`
			UPDATE requests
			SET status = ?, result = ?, processing_us = ?, started_at = ?, completed_at = ?, error_code = ?, error_message = ?
			WHERE seq = ? AND id = ? AND lane IS NULL AND status = 'processing'`,
			string(after.Status), []byte(o.Result), o.Processing.Microseconds(), nullMicros(o.StartedAt), nullMicros(o.CompletedAt),
			o.ErrorCode, o.ErrorMessage, it.seq, after.ID)
	case o != nil:
		n, err = tx.exec(`
			UPDATE requests
			SET status = ?, result = ?, processing_us = ?, started_at = ?, completed_at = ?, error_code = ?, error_message = ?,
			    callback_attempts = 0, lane = ?, due_at = ?, waits_for = ?
			WHERE seq = ? AND lane = ? AND status = ?`,
			string(after.Status), []byte(o.Result), o.Processing.Microseconds(), nullMicros(o.StartedAt), nullMicros(o.CompletedAt),
			o.ErrorCode, o.ErrorMessage, lane, due, parked, it.seq, string(it.lane), string(before))
	default:
		n, err = tx.exec(`
			UPDATE requests
			SET status = ?, callback_status = ?, callback_attempts = ?, lane = ?, due_at = ?, waits_for = ?
			WHERE seq = ? AND lane = ? AND status = ?`,
			string(after.Status), string(after.CallbackStatus), store.TriesOf(after),
			lane, due, parked, it.seq, string(it.lane), string(before))
	}
	if err != nil {
		return false, fmt.Errorf("settle %s: %w", after.ID, err)
	}
	if n == 0 {
		return false, nil
	}
	tx.deltas.Settle(before, t, &tx.store.cfg)
	if t.Attempt != nil {
		return true, logAttempt(tx, it.seq, t.Attempt)
	}
	return true, nil
}

const insertAttempt = `
	INSERT OR REPLACE INTO attempts (request, number, outcome, started_at, duration_us, status_code, error, next_at)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?)`

func logAttempt(tx *tx, seq int64, a *tandem.Attempt) error {
	err := tx.attempts.add(tx, seq, a.Number, string(a.Outcome), micros(a.StartedAt), store.AttemptMicros(a),
		a.StatusCode, a.Error, nullMicros(a.NextAt))
	if err != nil {
		return fmt.Errorf("log attempts: %w", err)
	}
	return nil
}

// used reads what every owner has waiting or in work.
func (s *Store) used(ctx context.Context) (map[string]store.Used, error) {
	size := "0" // the counts are in the indexes; sizes are not
	if s.cfg.MaxBytesPerOwner > 0 {
		size = "sum(length(data) + coalesce(length(result), 0))"
	}
	all := map[string]store.Used{}
	err := s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, `
			SELECT owner, count(*), `+size+`
			FROM requests INDEXED BY requests_queue
			WHERE lane IS NOT NULL AND waits_for IS NULL
			GROUP BY lane, owner
			UNION ALL
			SELECT owner, count(*), `+size+`
			FROM requests INDEXED BY requests_parked
			WHERE waits_for IS NOT NULL
			GROUP BY waits_for, owner`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var owner string
			var some store.Used
			if err := rows.Scan(&owner, &some.Requests, &some.Bytes); err != nil {
				return err
			}
			all[owner] = all[owner].Plus(some)
		}
		return rows.Err()
	})
	return all, err
}
