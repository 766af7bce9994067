package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"tandem"
)

const (
	copyPatience = 5 * time.Second // how long the connection of one that was killed may take to end
)

// copyTarget is the PostgreSQL database that is copied to.
type copyTarget struct {
	pool *pgPool
	lock pgx.Tx        // open for as long as the copy: one process copies into a database
	conn *pgxpool.Conn // for everything else
}

// openCopyTarget connects, brings the schema up to date, and makes sure that nobody else copies into the database.
func openCopyTarget(ctx context.Context, url string) (_ *copyTarget, err error) {
	t := &copyTarget{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	cfg, err := parsePostgres(url)
	if err != nil {
		return nil, err
	}
	// A chunk takes as long as it takes; only locks are not waited for. A plan for any LIMIT would sort the whole table.
	maps.Copy(cfg.ConnConfig.RuntimeParams, map[string]string{
		"statement_timeout": "0", "lock_timeout": inMillis(copyPatience), "plan_cache_mode": "force_custom_plan",
	})
	if t.pool, err = newPool(ctx, cfg); err != nil {
		return nil, err
	}
	if err := migratePostgres(ctx, url, slog.Default()); err != nil {
		return nil, err
	}
	if t.lock, err = t.pool.Begin(ctx); err != nil {
		return nil, err
	}
	// This mode lets everybody read and write, and excludes itself. Only the owner of the table, and roles
	// that may write to it, can take it.
	_, err = t.lock.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`)
	if err == nil {
		_, err = t.lock.Exec(ctx, `LOCK TABLE settings IN SHARE UPDATE EXCLUSIVE MODE`)
	}
	if err != nil {
		if cause, ok := errors.AsType[*pgconn.PgError](err); ok && cause.Code == "55P03" {
			return nil, errors.New("another process copies into it")
		}
		return nil, err
	}
	if t.conn, err = t.pool.Acquire(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// close lets go of the database.
func (t *copyTarget) close() {
	if t.conn != nil {
		t.conn.Conn().Close(context.Background()) //nolint:errcheck // whatever comes of it
		t.conn.Release()
	}
	if t.lock != nil {
		t.lock.Conn().Close(context.Background()) //nolint:errcheck // lets go of the lock, whatever comes of it
		t.lock.Rollback(context.Background())     //nolint:errcheck // releases the connection
	}
	if t.pool != nil {
		t.pool.Close()
	}
}

// transact runs f in a transaction.
func (t *copyTarget) transact(ctx context.Context, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, t.conn, f)
}

// ahead is how far the clock of the database is ahead of ours.
func (t *copyTarget) ahead(ctx context.Context, ours func() time.Time) (time.Duration, error) {
	var now time.Time
	before := ours()
	if err := t.conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return 0, err
	}
	return now.Sub(before.Add(ours().Sub(before) / 2)), nil
}

// begin returns the mark of a copy that is in the target, or, if that is empty, leaves fresh there. From then on
// no node starts, and begin finds those that have started before.
func (t *copyTarget) begin(ctx context.Context, fresh copyMark) (mark copyMark, err error) {
	made := false
	err = t.transact(ctx, func(tx pgx.Tx) error {
		if known, err := scanMark(tx.QueryRow(ctx, selectMark, copyFinished)); err != nil {
			return err
		} else if known != nil && known.Source == fresh.Source {
			mark = *known
			return nil
		}
		if known, err := scanMark(tx.QueryRow(ctx, selectMark, copyUnfinished)); err != nil {
			return err
		} else if known != nil {
			mark = *known
			return nil
		}
		if err := refuseUsed(ctx, tx); err != nil {
			return err
		}
		mark, made = fresh, true
		return keepMark(ctx, tx, copyUnfinished, fresh)
	})
	if err != nil || !mark.Over.IsZero() {
		return mark, err
	}
	var node string
	err = t.conn.QueryRow(ctx, `
		SELECT name
		FROM nodes
		WHERE seen_at >= now() - $1::bigint * interval '1 microsecond'
		LIMIT 1`, deadAfter.Microseconds()).Scan(&node)
	if errors.Is(err, pgx.ErrNoRows) {
		return mark, nil
	}
	if err == nil {
		err = fmt.Errorf("a node on %s serves it, or did seconds ago; stop all that do", node)
	}
	if made {
		if _, undo := t.conn.Exec(ctx, `DELETE FROM settings WHERE name = $1`, copyUnfinished); undo != nil {
			err = errors.Join(err, undo)
		}
	}
	return mark, err
}

// refuseUsed returns an error when somebody has used a database for anything that a copy would be mixed up with.
func refuseUsed(ctx context.Context, tx pgx.Tx) error {
	var requests, keys, counters bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM requests) OR EXISTS (SELECT FROM river_job),
		       EXISTS (SELECT FROM keys),
		       EXISTS (SELECT FROM counters WHERE counts <> '{}')`).Scan(&requests, &keys, &counters)
	const hint = "; a copy needs a database of its own: create an empty one"
	switch {
	case err != nil:
		return err
	case requests:
		return errors.New("it holds requests already" + hint)
	case keys:
		return errors.New("it holds API keys already" + hint)
	case counters:
		return errors.New("it was used already, and counts requests that are gone" + hint)
	default:
		return nil
	}
}

// keepRest writes what there is little of, in place of what an earlier try has written.
func (t *copyTarget) keepRest(ctx context.Context, rest copyRest) error {
	counts, err := json.Marshal(rest.counters)
	if err != nil {
		return err
	}
	err = t.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM keys`); err != nil {
			return err
		}
		keys := pgx.CopyFromSlice(len(rest.keys), func(i int) ([]any, error) { return rest.keys[i].values(), nil })
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"keys"}, strings.Split(copiedKeyColumns, ", "), keys); err != nil {
			return err
		}
		names := slices.Collect(maps.Keys(rest.settings))
		if _, err := tx.Exec(ctx, `DELETE FROM settings WHERE name = ANY ($1)`, names); err != nil {
			return err
		}
		settings := pgx.CopyFromSlice(len(names), func(i int) ([]any, error) {
			return []any{names[i], rest.settings[names[i]]}, nil
		})
		// COPY has no parameters, which a server may log.
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"settings"}, []string{"name", "value"}, settings)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM counters WHERE node <> ''`); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE counters SET counts = $1 WHERE node = ''`, string(counts))
		return err
	})
	if err != nil {
		return fmt.Errorf("copy settings, API keys and counters: %w", err)
	}
	return nil
}

// finish opens the database to those who serve it.
func (t *copyTarget) finish(ctx context.Context, mark copyMark) error {
	err := t.transact(ctx, func(tx pgx.Tx) error {
		if err := releaseJobs(ctx, tx); err != nil {
			return err
		}
		if err := keepMark(ctx, tx, copyFinished, mark); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM settings WHERE name = $1`, copyUnfinished)
		return err
	})
	if err != nil {
		return fmt.Errorf("finish the copy: %w", err)
	}
	return nil
}

// digest reads all of the target that the source has as well, and tells tick of the requests so far.
func (t *copyTarget) digest(ctx context.Context, settings map[string]string, tick func(requests int64)) (CopyDigest, error) {
	d := newDigester()
	// For these queries and for the first of a server: without, the planner sorts the whole table for every part of it.
	if _, err := t.conn.Exec(ctx, `ANALYZE requests, attempts, river_job`); err != nil {
		return d.digest, fmt.Errorf("gather statistics: %w", err)
	}
	for after := (pgtype.UUID{Valid: true}); ; {
		last, err := t.digestRequests(ctx, d, after)
		if err != nil {
			return d.digest, err
		}
		tick(d.rows)
		if last == after {
			break
		}
		after = last
	}
	if err := t.digestAttempts(ctx, d); err != nil {
		return d.digest, err
	}
	rest, err := t.readRest(ctx, settings)
	if err != nil {
		return d.digest, err
	}
	return d.rest(&rest), nil
}

// digestRequests adds some requests after one, and returns the last. The lane is that of the row and of its job alike.
func (t *copyTarget) digestRequests(ctx context.Context, d *digester, after pgtype.UUID) (last pgtype.UUID, err error) {
	last = after
	rows, err := t.conn.Query(ctx, `
		SELECT requests.id, mode, task, status, callback_status, complexity, callback_attempts, processing_us, started_at, completed_at,
		       CASE WHEN lane IS DISTINCT FROM queue THEN coalesce(lane, '') || ' in the queue ' || coalesce(queue, '') ELSE lane END, scheduled_at,
		       error_code, error_message, callback_url, batch_id, key_id, sha256(data), sha256(result)
		FROM requests LEFT JOIN river_job ON river_job.id = job_id AND state = 'pending'
		WHERE requests.id > $1
		ORDER BY requests.id
		LIMIT $2`, after, copyRows)
	if err != nil {
		return last, err
	}
	var r copiedRequest
	var started, completed, due pgtype.Timestamptz
	_, err = pgx.ForEachRow(rows, []any{
		&last, &r.mode, &r.task, &r.status, &r.callbackStatus, &r.complexity, &r.callbackAttempts, &r.processing, &started, &completed,
		&r.lane, &due, &r.errorCode, &r.errorMessage, &r.callbackURL, &r.batch, &r.key, &r.dataSum, &r.resultSum,
	}, func() error {
		r.id = tandem.ID(last.Bytes)
		r.started, r.completed, r.due = microsOf(started), microsOf(completed), microsOf(due)
		d.request(&r)
		return nil
	})
	return last, err
}

func (t *copyTarget) digestAttempts(ctx context.Context, d *digester) error {
	rows, err := t.conn.Query(ctx, `
		SELECT request, number, outcome, started_at, duration_us, status_code, error, next_at
		FROM attempts
		ORDER BY request, number, outcome COLLATE "C"`)
	if err != nil {
		return err
	}
	var a copiedAttempt
	var id pgtype.UUID
	var started, next pgtype.Timestamptz
	_, err = pgx.ForEachRow(rows, []any{&id, &a.number, &a.outcome, &started, &a.duration, &a.statusCode, &a.err, &next}, func() error {
		a.request, a.started, a.next = tandem.ID(id.Bytes), started.Time.UnixMicro(), microsOf(next)
		d.attempt(&a)
		return nil
	})
	return err
}

// readRest reads what there is little of; of settings those that are asked for.
func (t *copyTarget) readRest(ctx context.Context, settings map[string]string) (copyRest, error) {
	rest := copyRest{settings: map[string]string{}, counters: map[string]int64{}}
	rows, err := t.conn.Query(ctx, `SELECT name, value FROM settings WHERE name = ANY($1)`, slices.Collect(maps.Keys(settings)))
	if err != nil {
		return rest, err
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		rest.settings[name] = value
		return nil
	})
	if err != nil {
		return rest, err
	}
	if rows, err = t.conn.Query(ctx, `SELECT `+copiedKeyColumns+` FROM keys ORDER BY id COLLATE "C"`); err != nil {
		return rest, err
	}
	rest.keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k copiedKey, err error) {
		err = k.scan(row)
		return k, err
	})
	if err != nil {
		return rest, err
	}
	if rows, err = t.conn.Query(ctx, `SELECT counts FROM counters`); err != nil {
		return rest, err
	}
	_, err = pgx.ForEachRow(rows, []any{&value}, func() error { return addCounts(rest.counters, value) })
	return rest, err
}

// copiedJobs are the jobs of a chunk.
type copiedJobs struct {
	ids   []int64
	lanes []string
	due   []pgtype.Timestamptz
}

// add makes the job of a request, if it has one: the next after first.
func (j *copiedJobs) add(r *copiedRequest, first int64) pgtype.Int8 {
	if !r.lane.Valid {
		return pgtype.Int8{}
	}
	id := first + int64(len(j.ids))
	j.ids, j.lanes, j.due = append(j.ids, id), append(j.lanes, r.lane.String), append(j.due, copiedTime(r.due))
	return pgtype.Int8{Int64: id, Valid: true}
}

// insert adds the jobs in River's state pending, in which nobody hands them out: release does, at the end of the copy.
func (j *copiedJobs) insert(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO river_job (id, args, kind, max_attempts, queue, scheduled_at, state)
		SELECT id, '{}', 'request', 25, lane, due, 'pending'
		FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS u(id, lane, due)`, j.ids, j.lanes, j.due)
	return err
}

// reserveJobs returns the first of so many job ids that nobody else gets.
func reserveJobs(ctx context.Context, tx pgx.Tx, n int) (first int64, err error) {
	err = tx.QueryRow(ctx, `SELECT setval('river_job_id_seq', nextval('river_job_id_seq') + $1::bigint) - $1`, n).Scan(&first)
	return first, err
}

// releaseJobs has the jobs of a copy handed out when they are due.
func releaseJobs(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE river_job SET state = 'available' WHERE state = 'pending'`)
	return err
}

// keepMark writes how far a copy is.
func keepMark(ctx context.Context, tx pgx.Tx, name string, mark copyMark) error {
	text, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, string(text))
	return err
}

// selectMark finds what a database knows of a copy into it, for scanMark.
const selectMark = `SELECT coalesce((SELECT value FROM settings WHERE name = $1), '')`

// scanMark reads the one row of selectMark; nil: there is nothing under that name.
func scanMark(row interface{ Scan(dest ...any) error }) (*copyMark, error) {
	var text string
	if err := row.Scan(&text); err != nil || text == "" {
		return nil, err
	}
	mark := &copyMark{}
	if err := json.Unmarshal([]byte(text), mark); err != nil {
		return nil, fmt.Errorf("read how far a copy is: %w", err)
	}
	return mark, nil
}

// refuseUnfinished returns an error when a copy into a database is not finished: it is not to be used before. The
// row is that of selectMark for copyUnfinished.
func refuseUnfinished(row interface{ Scan(dest ...any) error }) error {
	mark, err := scanMark(row)
	if err != nil || mark == nil {
		return err
	}
	return fmt.Errorf("a copy into this database is not finished; run `tandem copy --from %s --to …` again, and it goes on", mark.From)
}
