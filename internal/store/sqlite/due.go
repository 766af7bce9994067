package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"math"
	"time"

	"tandem/internal/store"
)

// jobColumns are what scan reads of a row that is dispatched: of data and
// result only the one that the job needs, and that only if it is at most ? bytes.
const jobColumns = `seq, requests.id, mode, task, status, callback_status, complexity, callback_attempts, processing_us,
	started_at, completed_at, error_code, error_message, callback_url, batch_id, key_id, owner,
	CASE WHEN lane = 'deliver' OR length(data) > ? THEN x'' ELSE data END,
	CASE WHEN lane = 'deliver' AND length(result) <= ? THEN result END`

// load reads the rest of an item from disk. It reports false when the row is
// no longer due in its lane.
func (s *Store) load(it *item) (bool, error) {
	found := true
	err := s.read(context.Background(), func(q store.Querier) error {
		_, r, err := scan(q.QueryRowContext(context.Background(), `
			SELECT `+jobColumns+`
			FROM requests
			WHERE seq = ? AND lane = ? AND due_at <= ?`,
			math.MaxInt64, math.MaxInt64, it.seq, string(it.lane), micros(it.due)))
		if errors.Is(err, sql.ErrNoRows) {
			found = false
			return nil
		}
		it.request, it.loaded = r, true
		return err
	})
	return found, err
}

// due lists at most limit rows of an owner in a lane that are due, longest first. It reads the index alone: most
// of what it finds may be held already.
func (s *Store) due(ctx context.Context, lane store.Lane, owner string, now time.Time, limit int) ([]int64, error) {
	return s.seqs(ctx, `
		SELECT seq
		FROM requests INDEXED BY requests_queue
		WHERE lane = ? AND waits_for IS NULL AND owner = ? AND due_at <= ?
		ORDER BY due_at, seq
		LIMIT ?`, string(lane), owner, micros(now), limit)
}

// seqs reads a list of rows.
func (s *Store) seqs(ctx context.Context, query string, args ...any) (seqs []int64, err error) {
	err = s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var seq int64
			if err := rows.Scan(&seq); err != nil {
				return err
			}
			seqs = append(seqs, seq)
		}
		return rows.Err()
	})
	return seqs, err
}

// dueHead is what one owner has in a lane.
type dueHead struct {
	owner  string
	oldest time.Time // when its oldest row that is due became so; zero: none is due
	next   time.Time // when its next row becomes due; zero: all are
}

// dueHeads lists the owners that have rows in a lane. It goes from owner to owner in the index, so it costs
// the same however many rows each has.
func dueHeads(ctx context.Context, q store.Querier, lane store.Lane, now time.Time) (heads []dueHead, err error) {
	rows, err := q.QueryContext(ctx, `
		WITH RECURSIVE owners (name) AS (
			SELECT min(owner)
			FROM requests INDEXED BY requests_queue
			WHERE lane = ?1 AND waits_for IS NULL
			UNION ALL
			SELECT (
				SELECT min(owner)
				FROM requests INDEXED BY requests_queue
				WHERE lane = ?1 AND waits_for IS NULL AND owner > name
			)
			FROM owners
			WHERE name IS NOT NULL
		)
		SELECT name,
		       (SELECT min(due_at) FROM requests INDEXED BY requests_queue
		        WHERE lane = ?1 AND waits_for IS NULL AND owner = name AND due_at <= ?2),
		       (SELECT min(due_at) FROM requests INDEXED BY requests_queue
		        WHERE lane = ?1 AND waits_for IS NULL AND owner = name AND due_at > ?2)
		FROM owners
		WHERE name IS NOT NULL`, string(lane), micros(now))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var head dueHead
		var oldest, next sql.NullInt64
		if err := rows.Scan(&head.owner, &oldest, &next); err != nil {
			return nil, err
		}
		head.oldest, head.next = fromMicros(oldest), fromMicros(next)
		heads = append(heads, head)
	}
	return heads, rows.Err()
}

// dueOwners lists the owners that have due rows in a lane, and when the next row becomes due; zero: there is none.
func (s *Store) dueOwners(ctx context.Context, lane store.Lane, now time.Time) (owners []string, next time.Time, err error) {
	err = s.read(ctx, func(q store.Querier) error {
		heads, err := dueHeads(ctx, q, lane, now)
		for _, head := range heads {
			next = store.Sooner(next, head.next)
			if !head.oldest.IsZero() {
				owners = append(owners, head.owner)
			}
		}
		return err
	})
	return owners, next, err
}

// parkedHead is a group of parked callbacks and when its first row is due.
type parkedHead struct {
	groupKey

	due time.Time
}

// parkedGroups lists at most limit groups of parked callbacks after one, by destination and owner.
func (s *Store) parkedGroups(ctx context.Context, after groupKey, limit int) (heads []parkedHead, err error) {
	err = s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, `
			WITH RECURSIVE heads (destination, owner, due_at) AS (
				SELECT waits_for, owner, due_at FROM (
					SELECT waits_for, owner, due_at
					FROM requests INDEXED BY requests_parked
					WHERE waits_for IS NOT NULL AND (waits_for, owner) > (?1, ?2)
					ORDER BY waits_for, owner, due_at
					LIMIT 1
				)
				UNION ALL
				SELECT next.waits_for, next.owner, next.due_at
				FROM heads JOIN requests AS next ON next.seq = (
					SELECT seq
					FROM requests INDEXED BY requests_parked
					WHERE waits_for IS NOT NULL AND (waits_for, owner) > (heads.destination, heads.owner)
					ORDER BY waits_for, owner, due_at
					LIMIT 1
				)
				LIMIT ?3
			)
			SELECT destination, owner, due_at FROM heads`, after.destination, after.owner, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var head parkedHead
			var due int64
			if err := rows.Scan(&head.destination, &head.owner, &due); err != nil {
				return err
			}
			head.due = time.UnixMicro(due)
			heads = append(heads, head)
		}
		return rows.Err()
	})
	return heads, err
}

// dueParked lists at most limit rows of a group that are due, longest first, and when its next row becomes due.
func (s *Store) dueParked(
	ctx context.Context, key groupKey, now time.Time, limit int,
) (seqs []int64, next time.Time, err error) {
	seqs, err = s.seqs(ctx, `
		SELECT seq
		FROM requests INDEXED BY requests_parked
		WHERE waits_for = ? AND owner = ? AND due_at <= ?
		ORDER BY due_at, seq
		LIMIT ?`, key.destination, key.owner, micros(now), limit)
	if err != nil {
		return nil, time.Time{}, err
	}
	var at sql.NullInt64
	err = s.read(ctx, func(q store.Querier) error {
		return q.QueryRowContext(ctx, `
			SELECT min(due_at)
			FROM requests INDEXED BY requests_parked
			WHERE waits_for = ? AND owner = ? AND due_at > ?`, key.destination, key.owner, micros(now)).Scan(&at)
	})
	return seqs, fromMicros(at), err
}

// oldParked lists at most limit parked callbacks whose work ended before a time. It reads the whole index.
func (s *Store) oldParked(ctx context.Context, ended time.Time, limit int) ([]int64, error) {
	return s.seqs(ctx, `
		SELECT seq
		FROM requests INDEXED BY requests_parked
		WHERE waits_for IS NOT NULL AND completed_at < ?
		LIMIT ?`, micros(ended), limit)
}

// loadAll reads those rows of a lane that are still due, in the order asked for, complete unless
// they are large.
func (s *Store) loadAll(ctx context.Context, lane store.Lane, now time.Time, seqs []int64) ([]*item, error) {
	wanted, err := json.Marshal(seqs)
	if err != nil {
		return nil, err
	}
	items := make([]*item, 0, len(seqs))
	err = s.read(ctx, func(q store.Querier) error {
		rows, err := q.QueryContext(ctx, `
			SELECT due_at, length(CASE lane WHEN 'deliver' THEN result ELSE data END), coalesce(waits_for, ''),
			       `+jobColumns+`
			FROM json_each(?) AS wanted CROSS JOIN requests ON seq = wanted.value
			WHERE lane = ? AND due_at <= ?`, store.SmallJob, store.SmallJob, string(wanted), string(lane), micros(now))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			it := &item{lane: lane}
			var at int64
			var size sql.NullInt64
			it.seq, it.request, err = scan(prefixed{rows, []any{&at, &size, &it.parked}})
			if err != nil {
				return err
			}
			it.due, it.size = time.UnixMicro(at), int(size.Int64)
			it.loaded = it.size <= store.SmallJob
			items = append(items, it)
		}
		return rows.Err()
	})
	return items, err
}

// prefixed scans some columns of its own before those of scan.
type prefixed struct {
	rows  *sql.Rows
	first []any
}

func (p prefixed) Scan(rest ...any) error { return p.rows.Scan(append(p.first, rest...)...) }
