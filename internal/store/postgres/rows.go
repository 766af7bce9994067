package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"tandem"
	"tandem/internal/store"
)

// batchTx is the transaction of a batch. What is of one kind is written by one statement, whose
// parameters are arrays, a column each. A job is inserted into River's table by the
// statement that writes the row which names it: River's own inserts would take a statement
// more and know no time but the node's.
type batchTx struct {
	pgx.Tx

	store  *Store
	deltas store.Deltas // what this transaction adds
}

// row is a new request.
type row struct {
	request *tandem.Request
	lane    store.Lane
	delay   time.Duration // before it is dispatched
}

// workMark notes that the work of a job has begun. Nothing depends on it but what people see, and
// which rows are left when a node dies.
type workMark struct {
	job int64
	at  time.Time
}

// settlement is what came of a job, or, without a job, of work that the caller of Accept did itself.
type settlement struct {
	store.Transition

	job   int64
	found bool // the row still named the job, and has been written; set by the transaction
}

func (t *batchTx) apply(ctx context.Context, ops []*op) error {
	var rows []row
	var marks []*workMark
	var settles []*settlement
	for _, o := range ops {
		switch {
		case o.accept != nil:
			rows = append(rows, o.accept...)
		case o.mark != nil:
			marks = append(marks, o.mark)
		case o.settle != nil:
			settles = append(settles, o.settle)
		}
	}
	if err := t.insert(ctx, rows); err != nil {
		return err
	}
	if err := t.settle(ctx, settles); err != nil {
		return err
	}
	if err := t.mark(ctx, marks); err != nil { // after the results: what has ended need not be marked
		return err
	}
	for _, o := range ops {
		if o.apply == nil {
			continue
		}
		if err := o.apply(ctx, t.Tx, t.deltas); err != nil {
			return err
		}
	}
	return nil
}

// insertRequests: a caller's lease or a moment is added to the clock of the database, which
// is the only one that due times are compared with.
const insertRequests = `
	WITH fresh AS MATERIALIZED (
		SELECT u.*, '' AS waits_for, CASE WHEN lane <> '' THEN nextval('river_job_id_seq') END AS job_id
		FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::timestamptz[], $8::text[],
		            $9::bigint[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bytea[])
		     AS u(id, mode, task, status, callback_status, complexity, started_at, lane, delay_us,
		          callback_url, batch_id, key_id, owner, data)
	), jobs AS (
		INSERT INTO river_job (id, args, kind, max_attempts, queue, scheduled_at, state)
		SELECT job_id, '{}', 'request', 25, ` + queueOf + `, now() + delay_us * interval '1 microsecond', 'available'
		FROM fresh
		WHERE lane <> ''
	)
	INSERT INTO requests (id, mode, task, status, callback_status, complexity, started_at, lane, job_id, node,
	                      callback_url, batch_id, key_id, owner, data)
	SELECT id, mode, task, status, callback_status, complexity, started_at, nullif(lane, ''), job_id, $15, callback_url,
	       nullif(batch_id, ''), nullif(key_id, ''), owner, data
	FROM fresh`

func (t *batchTx) insert(ctx context.Context, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	n := len(rows)
	ids, data := make([]pgtype.UUID, n), make([][]byte, n)
	started := make([]pgtype.Timestamptz, n)
	complexity, delays := make([]int32, n), make([]int64, n)
	var texts [9][]string
	for i := range rows {
		r, lane := rows[i].request, rows[i].lane
		id, err := uuidOf(r.ID)
		if err != nil {
			return err
		}
		ids[i], data[i], started[i], complexity[i] = id, []byte(r.Data), timestamp(r.StartedAt), int32(r.Complexity)
		delays[i] = rows[i].delay.Microseconds()
		for column, text := range [...]string{
			string(r.Mode), r.Task, string(r.Status), string(r.CallbackStatus), string(lane),
			r.CallbackURL, r.BatchID, r.KeyID, r.Owner,
		} {
			texts[column] = append(texts[column], store.Plain(text))
		}
		t.deltas.Accept(r, lane, t.store.now(), &t.store.cfg)
	}
	_, err := t.Exec(ctx, insertRequests, ids, texts[0], texts[1], texts[2], texts[3], complexity, started, texts[4], delays,
		texts[5], texts[6], texts[7], texts[8], data, t.store.node)
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok && cause.Code == "23505" {
		return fmt.Errorf("insert requests: %w (%w)", store.ErrExists, err)
	}
	if err != nil {
		return fmt.Errorf("insert requests: %w", err)
	}
	return nil
}

// mark waits for no row: two transactions would wait for each other, each with the mark of a job whose result the other has.
func (t *batchTx) mark(ctx context.Context, marks []*workMark) error {
	if len(marks) == 0 {
		return nil
	}
	jobs, at := make([]int64, len(marks)), make([]pgtype.Timestamptz, len(marks))
	for i, m := range marks {
		jobs[i], at[i] = m.job, timestamp(m.at)
	}
	tag, err := t.Exec(ctx, `
		UPDATE requests
		SET status = 'processing', started_at = u.at, node = $3
		FROM unnest($1::bigint[], $2::timestamptz[]) AS u(job, at)
		WHERE job_id = u.job AND id = ANY (ARRAY(
			SELECT id
			FROM requests
			WHERE job_id = ANY ($1) AND status = 'pending'
			FOR UPDATE SKIP LOCKED))`, jobs, at, t.store.node)
	if err != nil {
		return fmt.Errorf("note that work has begun: %w", err)
	}
	t.deltas.Begin(tag.RowsAffected())
	return nil
}

// settleRequests writes what steps returned to those rows that still name the job, deletes the
// job and inserts the one that comes next. A job that is deleted is one that River
// completes in vain; one that died with its node before River did is not run again.
const settleRequests = `
	WITH ended AS MATERIALIZED (
		SELECT u.*, r.status AS before, r.owner, r.job_id AS old_job,
		       CASE WHEN u.lane <> '' THEN nextval('river_job_id_seq') END AS new_job
		FROM unnest($1::int[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::int[], $8::boolean[],
		            $9::bytea[], $10::bigint[], $11::timestamptz[], $12::timestamptz[],
		            $13::text[], $14::text[], $15::text[], $16::text[], $17::bigint[])
		     AS u(n, id, job, from_lane, status, callback_status, callback_attempts, worked, result, processing_us,
		          started_at, completed_at, error_code, error_message, lane, waits_for, delay_us)
		JOIN requests AS r ON r.id = u.id
		WHERE r.id = ANY ($2) AND CASE WHEN u.job = 0 THEN r.status = 'processing' AND coalesce(r.lane, '') = u.from_lane ELSE r.job_id = u.job END
		FOR UPDATE OF r
	), old_jobs AS (
		DELETE FROM river_job
		WHERE id = ANY (ARRAY(SELECT old_job FROM ended))
	), new_jobs AS (
		INSERT INTO river_job (id, args, kind, max_attempts, queue, scheduled_at, state)
		SELECT new_job, '{}', 'request', 25, ` + queueOf + `, now() + delay_us * interval '1 microsecond', 'available'
		FROM ended
		WHERE lane <> ''
	)
	UPDATE requests AS r
	SET status = e.status, callback_status = e.callback_status, callback_attempts = e.callback_attempts,
	    lane = nullif(e.lane, ''), waits_for = nullif(e.waits_for, ''), job_id = e.new_job,
	    result = CASE WHEN e.worked THEN e.result ELSE r.result END,
	    processing_us = CASE WHEN e.worked THEN e.processing_us ELSE r.processing_us END,
	    started_at = CASE WHEN e.worked THEN e.started_at ELSE r.started_at END,
	    completed_at = CASE WHEN e.worked THEN e.completed_at ELSE r.completed_at END,
	    error_code = CASE WHEN e.worked THEN e.error_code ELSE r.error_code END,
	    error_message = CASE WHEN e.worked THEN e.error_message ELSE r.error_message END
	FROM ended AS e
	WHERE r.id = e.id AND r.id = ANY ($2)
	RETURNING e.n, e.before`

// errTwice says that a batch holds two results for one row.
var errTwice = errors.New("two results for one request in one transaction")

func (t *batchTx) settle(ctx context.Context, settles []*settlement) error {
	if len(settles) == 0 {
		return nil
	}
	n := len(settles)
	numbers, attemptsMade := make([]int32, n), make([]int32, n)
	ids, results := make([]pgtype.UUID, n), make([][]byte, n)
	jobs, processing, delays := make([]int64, n), make([]int64, n), make([]int64, n)
	worked := make([]bool, n)
	started, completed := make([]pgtype.Timestamptz, n), make([]pgtype.Timestamptz, n)
	var texts [7][]string
	seen := make(map[pgtype.UUID]bool, n)
	for i, s := range settles {
		s.found = false
		id, err := uuidOf(s.Request.ID)
		if err != nil {
			return err
		}
		if seen[id] {
			return errTwice
		}
		seen[id] = true
		numbers[i], ids[i], jobs[i], attemptsMade[i] = int32(i), id, s.job, int32(store.TriesOf(&s.Request))
		delays[i] = delayUntil(s.At).Microseconds()
		var o store.Outcome
		if s.Outcome != nil {
			o, worked[i] = *s.Outcome, true
		}
		results[i], processing[i] = []byte(o.Result), o.Processing.Microseconds()
		started[i], completed[i] = timestamp(o.StartedAt), timestamp(o.CompletedAt)
		for column, text := range [...]string{
			string(s.From), string(s.Request.Status), string(s.Request.CallbackStatus),
			o.ErrorCode, o.ErrorMessage, string(s.Lane), s.Parked,
		} {
			texts[column] = append(texts[column], store.Plain(text))
		}
	}
	rows, err := t.Query(ctx, settleRequests, numbers, ids, jobs, texts[0], texts[1], texts[2], attemptsMade, worked, results, processing,
		started, completed, texts[3], texts[4], texts[5], texts[6], delays)
	if err != nil {
		return fmt.Errorf("settle requests: %w", err)
	}
	var number int32
	var before string
	_, err = pgx.ForEachRow(rows, []any{&number, &before}, func() error {
		settles[number].found = true
		t.deltas.Settle(tandem.Status(before), &settles[number].Transition, &t.store.cfg)
		return nil
	})
	if err != nil {
		return fmt.Errorf("settle requests: %w", err)
	}
	return t.logAttempts(ctx, settles)
}

// delayUntil says how long to wait from now, which is what the monotonic reading of a
// step's time knows best.
func delayUntil(at time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(time.Until(at), 0)
}

// logAttempts adds the tries of those results that were written.
func (t *batchTx) logAttempts(ctx context.Context, settles []*settlement) error {
	var ids []pgtype.UUID
	var numbers, codes []int32
	var outcomes, errs []string
	var durations []int64
	var started, next []pgtype.Timestamptz
	for _, s := range settles {
		a := s.Attempt
		if a == nil || !s.found {
			continue
		}
		id, err := uuidOf(s.Request.ID)
		if err != nil {
			return err
		}
		ids, numbers, outcomes = append(ids, id), append(numbers, int32(a.Number)), append(outcomes, string(a.Outcome))
		started, durations = append(started, timestamp(a.StartedAt)), append(durations, store.AttemptMicros(a))
		codes, errs, next = append(codes, int32(a.StatusCode)), append(errs, store.Plain(a.Error)), append(next, timestamp(a.NextAt))
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := t.Exec(ctx, `
		INSERT INTO attempts (request, number, outcome, started_at, duration_us, status_code, error, next_at)
		SELECT request, number, outcome, started_at, duration_us, status_code, error, next_at
		FROM unnest($1::uuid[], $2::int[], $3::text[], $4::timestamptz[], $5::bigint[], $6::int[], $7::text[], $8::timestamptz[])
		     AS u(request, number, outcome, started_at, duration_us, status_code, error, next_at)
		ON CONFLICT (request, number, outcome) DO UPDATE
		SET started_at = excluded.started_at, duration_us = excluded.duration_us, status_code = excluded.status_code,
		    error = excluded.error, next_at = excluded.next_at`,
		ids, numbers, outcomes, started, durations, codes, errs, next)
	if err != nil {
		return fmt.Errorf("log attempts: %w", err)
	}
	return nil
}

// uuidOf is how a request id is kept.
func uuidOf(id string) (pgtype.UUID, error) {
	kept := pgtype.UUID{Valid: true}
	if _, err := tandem.IDOrder(id); err != nil {
		return kept, err
	}
	_, err := hex.Decode(kept.Bytes[:], []byte(id[len(id)-2*len(kept.Bytes):]))
	return kept, err
}

// timestamp keeps the zero time as NULL.
func timestamp(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

// Accept commits new requests.
func (s *Store) Accept(ctx context.Context, lane store.Lane, requests ...*tandem.Request) (err error) {
	if err := s.quotas.Admit(ctx, lane, requests); err != nil {
		return err
	}
	defer func() { s.quotas.Release(ctx, lane, requests, err) }()
	waiting := s.accepting.Add(int64(len(requests)))
	defer s.accepting.Add(-int64(len(requests)))
	if s.unfinished()+waiting > s.cfg.MaxQueue {
		return store.QueueFull("of all callers", s.cfg.MaxQueue, "max-queue")
	}
	if s.away.Load() { // writers may be waiting for an answer, and this would wait for them
		return store.Unavailable(errAway)
	}
	rows := make([]row, len(requests))
	pending := false
	var held []string // by a caller
	for i, r := range requests {
		if _, err := tandem.IDOrder(r.ID); err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		kept := *r // the caller may leave first
		rows[i] = row{request: &kept, lane: lane}
		if r.Status == tandem.StatusProcessing {
			rows[i].delay = store.CallerLease
			held = append(held, r.ID)
		} else {
			pending = true
		}
	}
	o := &op{accept: rows, after: func() {
		if pending {
			for _, r := range requests {
				s.queues.note(queue{lane: lane, owner: r.Owner}, 0)
			}
			s.wakes.add(lane, 0)
		}
	}}
	held = s.callers.hold(lane, held)
	err = s.await(ctx, s.accepts, o)
	if err != nil {
		o.gone.Store(true)
		s.callers.leave(held, ctx.Err() != nil || errors.Is(err, store.ErrUnsure))
	}
	return err
}

// used reads what every owner has waiting or in work.
func (s *Store) used(ctx context.Context) (map[string]store.Used, error) {
	size := "0"
	if s.cfg.MaxBytesPerOwner > 0 {
		size = "coalesce(sum(octet_length(data) + coalesce(octet_length(result), 0)), 0)::bigint"
	}
	var all map[string]store.Used
	err := s.reading(ctx, func(ctx context.Context) error {
		rows, err := s.reads.Query(ctx, `
			SELECT owner, count(*), `+size+`
			FROM requests
			WHERE job_id IS NOT NULL
			GROUP BY owner`)
		if err != nil {
			return err
		}
		all = map[string]store.Used{}
		var owner string
		var some store.Used
		_, err = pgx.ForEachRow(rows, []any{&owner, &some.Requests, &some.Bytes}, func() error {
			all[owner] = some
			return nil
		})
		return err
	})
	return all, err
}

// Finish commits what came of work that the caller of Accept did itself.
func (s *Store) Finish(ctx context.Context, job store.Job, next store.Next) error {
	if _, err := tandem.IDOrder(job.Request.ID); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	t, err := next.Apply(&job)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	o := &op{settle: &settlement{Transition: t}}
	o.after = func() { s.queued(&t) }
	if err := s.await(ctx, s.results, o); err != nil {
		return err // the caller may try again
	}
	s.callers.leave([]string{job.Request.ID}, false)
	switch {
	case o.settle.found, o.unsure && s.kept(ctx, o.settle):
		return nil
	default:
		return store.NotWorkedOn(job.Request.ID)
	}
}

// kept reports whether a result is on record, by a commit whose answer was lost. Other nodes may have gone on
// from there, so a result is recognized by when its work or its attempt began.
func (s *Store) kept(ctx context.Context, result *settlement) bool {
	r, err := s.Request(ctx, result.Request.ID)
	began := func(kept, said time.Time) bool { return kept.Equal(said.Truncate(time.Microsecond)) }
	switch o, attempt := result.Outcome, result.Attempt; {
	case err != nil:
		return false
	case o != nil:
		return r.ErrorCode == o.ErrorCode && began(r.StartedAt, o.StartedAt)
	case attempt != nil:
		return slices.ContainsFunc(r.Attempts, func(a tandem.Attempt) bool {
			return began(a.StartedAt, attempt.StartedAt)
		})
	default:
		return r.Status == result.Request.Status
	}
}

// queued notes where a step has put a job, and notifies the nodes that work on its lane.
func (s *Store) queued(t *store.Transition) {
	owner := t.Request.Owner
	for _, destination := range t.Freed {
		if s.queues.parkedFor(destination) && s.room(destination, owner) > 0 {
			s.wakes.add(store.LaneDeliver, 0)
		}
	}
	if t.Lane == store.LaneNone {
		return
	}
	delay := delayUntil(t.At)
	s.queues.note(queue{lane: t.Lane, destination: t.Parked, owner: owner}, delay)
	if t.Parked == "" || delay > 0 || s.room(t.Parked, owner) > 0 {
		s.wakes.add(t.Lane, delay)
	}
}
