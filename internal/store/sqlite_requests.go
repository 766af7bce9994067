package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"tandem"
)

// Accept commits a new request.
func (s *SQLite) Accept(ctx context.Context, r *tandem.Request, lane Lane) error {
	waiting := s.accepting.Add(1)
	defer s.accepting.Add(-1)
	if s.counters.value(counterUnfinished)+waiting > s.cfg.MaxQueue {
		return &tandem.Error{
			Code:       tandem.CodeQueueFull,
			Message:    fmt.Sprintf("%d requests are unfinished, which is all that --max-queue allows; try again later", s.cfg.MaxQueue),
			RetryAfter: 5 * time.Second,
		}
	}
	seq, err := tandem.IDOrder(r.ID)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	it := &item{seq: seq, request: *r, loaded: true, lane: lane, size: len(r.Data)}
	result := make(chan error, 1)
	err = s.submit(ctx, &op{
		urgent: lane != LaneNone,
		apply:  func(tx *tx) error { return insert(tx, it) },
		done: func(err error) {
			if err == nil && lane != LaneNone {
				s.queue.push(it)
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

// insert writes the row of a new request, due now.
func insert(tx *tx, it *item) error {
	r := &it.request
	it.due = tx.store.clock.now()
	lane, due := sql.NullString{}, sql.NullInt64{}
	if it.lane != LaneNone {
		lane, due = sql.NullString{String: string(it.lane), Valid: true}, sql.NullInt64{Int64: micros(it.due), Valid: true}
		tx.count(queueCounter(it.lane), 1)
	}
	_, err := tx.exec(`
		INSERT INTO requests (seq, id, mode, task, status, callback_status, complexity, started_at, lane, due_at, callback_url, data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		it.seq, r.ID, string(r.Mode), r.Task, string(r.Status), string(r.CallbackStatus), r.Complexity,
		nullMicros(r.StartedAt), lane, due, r.CallbackURL, []byte(r.Data))
	var code *sqlite.Error
	if errors.As(err, &code) && code.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return fmt.Errorf("insert %s: %w (%w)", r.ID, ErrExists, err)
	}
	if err != nil {
		return fmt.Errorf("insert %s: %w", r.ID, err)
	}
	tx.count(groupAccepted+string(r.Mode), 1)
	tx.count(groupTask+r.Task, 1)
	tx.count(nowCounter(r.Status), 1)
	tx.count(counterUnfinished, 1)
	tx.count(counterRows, 1)
	return nil
}

// Finish commits how the work of a sync request ended.
func (s *SQLite) Finish(ctx context.Context, id string, outcome Outcome) error {
	seq, err := tandem.IDOrder(id)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	found := false
	err = s.do(ctx, func(tx *tx) error {
		n, err := tx.exec(`
			UPDATE requests
			SET status = ?, result = ?, processing_us = ?, started_at = ?, completed_at = ?, error_code = ?, error_message = ?
			WHERE seq = ? AND id = ? AND mode = 'sync' AND status = 'processing'`,
			string(outcome.Status()), []byte(outcome.Result), outcome.Processing.Microseconds(),
			nullMicros(outcome.StartedAt), nullMicros(outcome.CompletedAt), outcome.ErrorCode, outcome.ErrorMessage, seq, id)
		if err != nil {
			return fmt.Errorf("finish %s: %w", id, err)
		}
		if found = n == 1; found {
			tx.count(nowCounter(tandem.StatusProcessing), -1)
			tx.count(counterUnfinished, -1)
			countOutcome(tx, tandem.ModeSync, &outcome)
		}
		return nil
	})
	if err == nil && !found {
		return tandem.Errorf(tandem.CodeNotFound, "request %s is not a sync request that is running", id)
	}
	return err
}

func countOutcome(tx *tx, mode tandem.Mode, outcome *Outcome) {
	tx.count(endedCounter(outcome.Status()), 1)
	if outcome.ErrorCode != "" {
		tx.count(failureCounter(outcome.ErrorCode), 1)
	}
	if !outcome.StartedAt.IsZero() {
		tx.count(groupWorkCount+string(mode), 1)
		tx.count(groupWorkTime+string(mode), outcome.Processing.Microseconds())
	}
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
	tx.count(nowCounter(tandem.StatusPending), -1)
	tx.count(nowCounter(tandem.StatusProcessing), 1)
	return nil
}

// settle writes what a step returned: the request as it is now, where it waits
// next, which it leaves in it.due, and the attempt. It reports false, and writes
// nothing, when the row is not in the job's lane any more: somebody else has changed it.
func settle(tx *tx, it *item, after *tandem.Request, next *Next) (bool, error) {
	before := it.request.Status
	if it.marked {
		before = tandem.StatusProcessing
	}
	lane, due := sql.NullString{}, sql.NullInt64{}
	if next.Verdict == Again {
		it.due = tx.store.clock.dueAt(next.At)
		lane, due = sql.NullString{String: string(next.Lane), Valid: true}, sql.NullInt64{Int64: micros(it.due), Valid: true}
	}
	var n int64
	var err error
	if o := next.Outcome; o != nil {
		n, err = tx.exec(`
			UPDATE requests
			SET status = ?, result = ?, processing_us = ?, started_at = ?, completed_at = ?, error_code = ?, error_message = ?,
			    lane = ?, due_at = ?
			WHERE seq = ? AND lane = ?`,
			string(after.Status), []byte(o.Result), o.Processing.Microseconds(), nullMicros(o.StartedAt), nullMicros(o.CompletedAt),
			o.ErrorCode, o.ErrorMessage, lane, due, it.seq, string(it.lane))
	} else {
		n, err = tx.exec(`
			UPDATE requests
			SET status = ?, callback_status = ?, callback_attempts = ?, lane = ?, due_at = ?
			WHERE seq = ? AND lane = ?`,
			string(after.Status), string(after.CallbackStatus), after.CallbackAttempts, lane, due, it.seq, string(it.lane))
	}
	if err != nil {
		return false, fmt.Errorf("settle %s: %w", after.ID, err)
	}
	if n == 0 {
		return false, nil
	}
	tx.count(queueCounter(it.lane), -1)
	if next.Verdict == Again {
		tx.count(queueCounter(next.Lane), 1)
	}
	if next.Outcome != nil {
		countOutcome(tx, after.Mode, next.Outcome)
	}
	if after.Status != before {
		for _, status := range []tandem.Status{tandem.StatusPending, tandem.StatusProcessing} {
			if before == status {
				tx.count(nowCounter(status), -1)
			}
			if after.Status == status {
				tx.count(nowCounter(status), 1)
			}
		}
		if next.Outcome == nil && next.Verdict != Again {
			tx.count(endedCounter(after.Status), 1)
		}
	}
	if next.Verdict != Again {
		tx.count(groupCallback+string(after.CallbackStatus), 1)
		tx.count(counterUnfinished, -1)
	}
	if next.Attempt != nil {
		return true, insertAttempt(tx, it.seq, next.Attempt)
	}
	return true, nil
}

func insertAttempt(tx *tx, seq int64, a *tandem.Attempt) error {
	_, err := tx.exec(`
		INSERT OR REPLACE INTO attempts (request, number, outcome, started_at, duration_us, status_code, error, next_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		seq, a.Number, string(a.Outcome), micros(a.StartedAt), int64(a.DurationMS*1000), a.StatusCode, a.Error, nullMicros(a.NextAt))
	if err != nil {
		return fmt.Errorf("log attempt %d: %w", a.Number, err)
	}
	tx.count(groupAttempt+string(a.Outcome), 1)
	return nil
}
