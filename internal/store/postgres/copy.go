package postgres

import (
	"context"
	"database/sql"
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
	"github.com/jackc/pgx/v5/stdlib"

	"tandem/internal/store"
)

// copyLockTimeout is how long the connection of a copy that was killed may take to end.
const copyLockTimeout = 5 * time.Second

// CopyMark is what the target says of a copy: in the setting copyUnfinished from its first transaction on, and in
// copyFinished from its last one on.
type CopyMark struct {
	From   string    `json:"from"`          // the file, as it was named
	Source string    `json:"source"`        // fingerprint of what is in it
	Over   time.Time `json:"over,omitzero"` // when the copy was; zero: it is not
}

// Settings that keep a CopyMark.
const (
	copyUnfinished = "copy"
	copyFinished   = "copied"
)

// CopyTarget is the PostgreSQL database that is copied to.
type CopyTarget struct {
	store.CopyReader

	pool *sql.DB
	lock *sql.Tx   // open for as long as the copy: one process copies into a database
	conn *sql.Conn // for everything else
}

// OpenCopyTarget connects, brings the schema up to date, and makes sure that nobody else copies into the database.
func OpenCopyTarget(ctx context.Context, url string) (_ *CopyTarget, err error) {
	t := &CopyTarget{}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	cfg, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, url, slog.Default()); err != nil {
		return nil, err
	}
	// A page takes as long as it takes; only locks are not waited for. A plan for any LIMIT would sort the whole table.
	maps.Copy(cfg.ConnConfig.RuntimeParams, map[string]string{
		"statement_timeout": "0", "lock_timeout": inMillis(copyLockTimeout), "plan_cache_mode": "force_custom_plan",
	})
	t.pool = stdlib.OpenDB(*cfg.ConnConfig, stdlib.OptionAfterConnect(sessionOf(cfg.ConnConfig).begin))
	if t.lock, err = t.pool.BeginTx(context.WithoutCancel(ctx), nil); err != nil {
		return nil, err
	}
	// This mode lets everybody read and write, and excludes itself. Only the owner of the table, and roles
	// that may write to it, can take it.
	_, err = t.lock.ExecContext(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`)
	if err == nil {
		_, err = t.lock.ExecContext(ctx, `LOCK TABLE settings IN SHARE UPDATE EXCLUSIVE MODE`)
	}
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok && cause.Code == "55P03" {
		return nil, errors.New("another process copies into it")
	}
	if err != nil {
		return nil, err
	}
	if t.conn, err = t.pool.Conn(ctx); err != nil {
		return nil, err
	}
	t.CopyReader = store.CopyReader{
		DB: t.conn,
		Requests: `
			SELECT 'req_' || replace(requests.id::text, '-', ''), mode, task, status, callback_status,
			       complexity, callback_attempts, processing_us,
			       (extract(epoch FROM started_at) * 1000000)::bigint,
			       (extract(epoch FROM completed_at) * 1000000)::bigint,
			       CASE
			           WHEN queue IS DISTINCT FROM (` + queueOf + `)
			           THEN coalesce(lane, '') || ' in the queue ' || coalesce(queue, '')
			           ELSE lane
			       END,
			       (extract(epoch FROM scheduled_at) * 1000000)::bigint,
			       error_code, error_message, callback_url, batch_id, key_id, owner, data, result
			FROM requests LEFT JOIN river_job ON river_job.id = job_id AND state = 'pending'
			WHERE requests.id > $1
			ORDER BY requests.id
			LIMIT $2`,
		Attempts: `
			SELECT 'req_' || replace(request::text, '-', ''), number, outcome,
			       (extract(epoch FROM started_at) * 1000000)::bigint, duration_us, status_code, error,
			       (extract(epoch FROM next_at) * 1000000)::bigint
			FROM attempts
			WHERE request > $1 AND request <= $2
			ORDER BY request, number, outcome COLLATE "C"`,
		Key: func(id string) (any, error) {
			if id == "" {
				return pgtype.UUID{Valid: true}, nil
			}
			return uuidOf(id)
		},
	}
	return t, nil
}

// Close lets go of the database.
func (t *CopyTarget) Close() {
	if t.conn != nil {
		t.conn.Close() //nolint:errcheck // releases it to the pool
	}
	if t.lock != nil {
		t.lock.Rollback()
	}
	if t.pool != nil {
		t.pool.Close() //nolint:errcheck // lets go of the lock, whatever comes of it
	}
}

// transact runs f in a transaction of conn.
func (t *CopyTarget) transact(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := t.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit there is nothing to roll back
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Ahead is how far the clock of the database is ahead of ours.
func (t *CopyTarget) Ahead(ctx context.Context, ours func() time.Time) (time.Duration, error) {
	var now time.Time
	before := ours()
	if err := t.conn.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return 0, err
	}
	return now.Sub(before.Add(ours().Sub(before) / 2)), nil
}

// Begin returns the mark that it found: of a finished copy of the same source, or of an unfinished copy, which it
// removes. nil: none. Unless the copy is finished, the target is empty but for the new mark, and no node starts on it.
func (t *CopyTarget) Begin(ctx context.Context, fresh CopyMark) (found *CopyMark, err error) {
	err = t.transact(ctx, func(tx *sql.Tx) error {
		found, err = scanMark(tx.QueryRowContext(ctx, selectMark, copyFinished))
		if err != nil || found != nil && found.Source == fresh.Source {
			return err
		}
		found, err = scanMark(tx.QueryRowContext(ctx, selectMark, copyUnfinished))
		if err == nil && found == nil {
			err = refuseUsed(ctx, tx)
		}
		if err == nil {
			err = refuseServed(ctx, tx)
		}
		if err == nil && found != nil {
			err = empty(ctx, tx)
		}
		if err != nil {
			return err
		}
		return keepMark(ctx, tx, copyUnfinished, fresh)
	})
	return found, err
}

// refuseUsed returns an error when somebody has used a database for anything that a copy would be mixed up with.
func refuseUsed(ctx context.Context, tx *sql.Tx) error {
	var requests, keys, counters bool
	err := tx.QueryRowContext(ctx, `
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

// refuseServed returns an error when a node may be at work. A node first announces itself and then looks for the mark
// of a copy. None can announce itself before this transaction ends: a node that is not seen here will see the mark.
func refuseServed(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `LOCK TABLE nodes IN SHARE MODE`); err != nil {
		return err
	}
	var node string
	err := tx.QueryRowContext(ctx, `
		SELECT name
		FROM nodes
		WHERE seen_at >= now() - $1::bigint * interval '1 microsecond'
		LIMIT 1`, deadAfter.Microseconds()).Scan(&node)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("a node on %s serves it, or did seconds ago; stop all that do", node)
}

// empty removes all that an unfinished copy has written, but for counters: keepRest replaces those.
func empty(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `TRUNCATE requests, attempts, keys, river_job`)
	if err == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM settings`)
	}
	return err
}

var (
	copiedRequestColumns = []string{
		"id", "mode", "task", "status", "callback_status", "complexity", "callback_attempts", "processing_us", "job_id",
		"started_at", "completed_at", "lane", "node", "error_code", "error_message", "callback_url", "batch_id", "key_id",
		"owner", "data", "result",
	}
	copiedAttemptColumns = []string{
		"request", "number", "outcome", "started_at", "duration_us", "status_code", "error", "next_at",
	}
)

// Write adds a page. Its jobs are in River's state pending, in which none is dispatched before finish.
func (t *CopyTarget) Write(ctx context.Context, page store.CopyPage) error {
	return t.transact(ctx, func(tx *sql.Tx) error {
		first, err := reserveJobs(ctx, tx, len(page.Requests))
		if err != nil {
			return err
		}
		var jobs copiedJobs
		requests := pgx.CopyFromSlice(len(page.Requests), func(i int) ([]any, error) {
			r := &page.Requests[i]
			if r.Data == nil { // the column is NOT NULL
				r.Data = []byte{}
			}
			id, err := uuidOf(r.ID)
			return []any{
				id, r.Mode, r.Task, r.Status, r.CallbackStatus, int16(r.Complexity), int32(r.CallbackAttempts),
				r.Processing, jobs.add(r, first), timestampOf(r.Started), timestampOf(r.Completed), r.Lane, "",
				r.ErrorCode, r.ErrorMessage, r.CallbackURL, r.Batch, r.Key, r.Owner, r.Data, r.Result,
			}, err
		})
		if err := copyInto(ctx, t.conn, "requests", copiedRequestColumns, requests); err != nil {
			return err
		}
		if err := jobs.insert(ctx, tx); err != nil {
			return err
		}
		return copyInto(ctx, t.conn, "attempts", copiedAttemptColumns,
			pgx.CopyFromSlice(len(page.Attempts), func(i int) ([]any, error) {
				a := &page.Attempts[i]
				id, err := uuidOf(a.Request)
				started := timestampOf(sql.NullInt64{Int64: a.Started, Valid: true})
				return []any{
					id, int32(a.Number), a.Outcome, started, a.Duration, int32(a.StatusCode), a.Error, timestampOf(a.Next),
				}, err
			}))
	})
}

func timestampOf(us sql.NullInt64) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: time.UnixMicro(us.Int64), Valid: us.Valid}
}

// KeepRest writes what there is little of. COPY has no parameters: a server may log those.
func (t *CopyTarget) KeepRest(ctx context.Context, rest store.CopyRest) error {
	counts, err := json.Marshal(rest.Counters)
	if err != nil {
		return err
	}
	return t.transact(ctx, func(tx *sql.Tx) error {
		keys := pgx.CopyFromSlice(len(rest.Keys), func(i int) ([]any, error) { return rest.Keys[i].Fields(), nil })
		columns := strings.FieldsFunc(store.CopiedKeyColumns, func(r rune) bool { return strings.ContainsRune(", \n\t", r) })
		if err := copyInto(ctx, t.conn, "keys", columns, keys); err != nil {
			return err
		}
		var names []string
		for _, setting := range rest.Settings {
			names = append(names, setting.Name)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM settings WHERE name = ANY ($1)`, names); err != nil {
			return err
		}
		settings := pgx.CopyFromSlice(len(rest.Settings), func(i int) ([]any, error) {
			return rest.Settings[i].Fields(), nil
		})
		if err := copyInto(ctx, t.conn, "settings", []string{"name", "value"}, settings); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM counters WHERE node <> ''`); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE counters SET counts = $1 WHERE node = ''`, string(counts))
		return err
	})
}

// ReadRest reads what there is little of; of settings those that the source has as well.
func (t *CopyTarget) ReadRest(ctx context.Context, settings []store.CopiedSetting) (store.CopyRest, error) {
	rest, err := store.ReadSettingsAndKeys(ctx, t.conn)
	if err != nil {
		return rest, err
	}
	rest.Settings = slices.DeleteFunc(rest.Settings, func(of store.CopiedSetting) bool {
		return !slices.ContainsFunc(settings, func(s store.CopiedSetting) bool { return s.Name == of.Name })
	})
	rest.Counters = map[string]int64{}
	rows, err := t.conn.QueryContext(ctx, `SELECT counts FROM counters`)
	if err != nil {
		return rest, err
	}
	defer rows.Close()
	for rows.Next() {
		var counts string
		if err := rows.Scan(&counts); err != nil {
			return rest, err
		}
		if err := addCounts(rest.Counters, counts); err != nil {
			return rest, err
		}
	}
	return rest, rows.Err()
}

// Analyze gathers statistics, for the queries of the comparison and the first of a server: without, the planner sorts
// the whole table for every page.
func (t *CopyTarget) Analyze(ctx context.Context) error {
	if _, err := t.conn.ExecContext(ctx, `ANALYZE requests, attempts, river_job`); err != nil {
		return fmt.Errorf("gather statistics: %w", err)
	}
	return nil
}

// Finish opens the database to those who serve it, and has its jobs dispatched when they are due.
func (t *CopyTarget) Finish(ctx context.Context, mark CopyMark) error {
	err := t.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE river_job SET state = 'available' WHERE state = 'pending'`); err != nil {
			return err
		}
		if err := keepMark(ctx, tx, copyFinished, mark); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM settings WHERE name = $1`, copyUnfinished)
		return err
	})
	if err != nil {
		return fmt.Errorf("finish the copy: %w", err)
	}
	return nil
}

// copiedJobs are the jobs of a page.
type copiedJobs struct {
	ids    []int64
	queues []string
	due    []pgtype.Timestamptz
}

// add makes the job of a request, if it has one: the next after first.
func (j *copiedJobs) add(r *store.CopiedRequest, first int64) pgtype.Int8 {
	if !r.Lane.Valid {
		return pgtype.Int8{}
	}
	id := first + int64(len(j.ids))
	queue := queue{lane: store.Lane(r.Lane.String), owner: r.Owner}
	j.ids, j.queues, j.due = append(j.ids, id), append(j.queues, queue.name()), append(j.due, timestampOf(r.Due))
	return pgtype.Int8{Int64: id, Valid: true}
}

func (j *copiedJobs) insert(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO river_job (id, args, kind, max_attempts, queue, scheduled_at, state)
		SELECT id, '{}', 'request', 25, queue, due, 'pending'
		FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS u(id, queue, due)`, j.ids, j.queues, j.due)
	return err
}

// reserveJobs returns the first of so many job ids that nobody else gets.
func reserveJobs(ctx context.Context, tx *sql.Tx, n int) (first int64, err error) {
	err = tx.QueryRowContext(ctx, `
		SELECT setval('river_job_id_seq', nextval('river_job_id_seq') + $1::bigint) - $1`, n).Scan(&first)
	return first, err
}

// keepMark writes where a copy stands.
func keepMark(ctx context.Context, tx *sql.Tx, name string, mark CopyMark) error {
	text, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, string(text))
	return err
}

// selectMark finds what a database knows of a copy into it, for scanMark.
const selectMark = `SELECT coalesce((SELECT value FROM settings WHERE name = $1), '')`

// scanMark reads the one row of selectMark; nil: there is nothing under that name.
func scanMark(row interface{ Scan(dest ...any) error }) (*CopyMark, error) {
	var text string
	if err := row.Scan(&text); err != nil || text == "" {
		return nil, err
	}
	mark := &CopyMark{}
	if err := json.Unmarshal([]byte(text), mark); err != nil {
		return nil, fmt.Errorf("read where a copy stands: %w", err)
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
	return fmt.Errorf("a copy into this database is not finished; "+
		"run `tandem copy --from %s --to …` again, which begins anew", mark.From)
}
