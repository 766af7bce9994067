package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/jackc/pgx/v5"
)

// copySource is the file that is copied from. It is locked, and read in a transaction that keeps every
// other process from writing; what is changed in that is not committed.
type copySource struct {
	db          *SQLite // its connection and its lock; nothing runs on it
	requests    int64
	fingerprint string   // of what is in the file
	rest        copyRest // after mend
	aheadUS     int64    // to be added to due times
}

func openCopySource(ctx context.Context, cfg CopyConfig) (_ *copySource, err error) {
	path, err := databasePath(cfg.From)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is no such file")
	}
	s := &copySource{db: &SQLite{cfg: Config{URL: cfg.From}, stmts: map[string]*sql.Stmt{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.db.file, err = ownFile(path); err != nil {
		return nil, err
	}
	if s.db.writeDB, err = cfg.connect(dsn(fileName(path)+"mode=rw", append(durable(), "busy_timeout(5000)", "cache_size(-8000)")...)); err != nil {
		return nil, err
	}
	s.db.writeDB.SetMaxOpenConns(1)
	if err := migrate(ctx, s.db.writeDB); err != nil {
		return nil, err
	}
	if s.db.conn, err = s.db.writeDB.Conn(ctx); err != nil {
		return nil, err
	}
	if _, err := s.db.conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return nil, fmt.Errorf("keep others from writing: %w", err)
	}
	return s, s.identify(ctx)
}

// close lets go of the file. Its connection ends with the transaction still open, which takes back what mend has changed.
func (s *copySource) close() error { return s.db.release() }

// identify computes the fingerprint: counters change with whatever is done with requests, so two states
// of a file that have all of this in common are the same but for due times.
func (s *copySource) identify(ctx context.Context) error {
	var newest sql.NullInt64
	if err := s.db.conn.QueryRowContext(ctx, `SELECT count(*), max(seq) FROM requests`).Scan(&s.requests, &newest); err != nil {
		return err
	}
	if err := s.db.counters.load(ctx, s.db.conn); err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	rest, err := s.readRest(ctx)
	if err != nil {
		return err
	}
	d := newDigester()
	d.number(s.requests)
	d.nullNumber(newest)
	d.end()
	s.fingerprint = d.rest(&rest).SHA256
	return nil
}

// readRest reads what there is little of, with the counters as they are in memory.
func (s *copySource) readRest(ctx context.Context) (rest copyRest, err error) {
	rest.counters, rest.settings = s.db.counters.values, map[string]string{}
	rows, err := s.db.conn.QueryContext(ctx, `SELECT name, value FROM settings WHERE name <> 'probe'`)
	if err != nil {
		return rest, fmt.Errorf("read settings: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return rest, fmt.Errorf("read settings: %w", err)
		}
		rest.settings[name] = value
	}
	if err := rows.Err(); err != nil {
		return rest, fmt.Errorf("read settings: %w", err)
	}
	keys, err := s.db.conn.QueryContext(ctx, `SELECT `+copiedKeyColumns+` FROM keys ORDER BY id`)
	if err != nil {
		return rest, fmt.Errorf("read API keys: %w", err)
	}
	defer keys.Close()
	for keys.Next() {
		var k copiedKey
		if err := k.scan(keys); err != nil {
			return rest, fmt.Errorf("read API keys: %w", err)
		}
		rest.keys = append(rest.keys, k)
	}
	if err := keys.Err(); err != nil {
		return rest, fmt.Errorf("read API keys: %w", err)
	}
	return rest, nil
}

// mend makes of the file what a start at the time of the mark would, for this copy alone.
func (s *copySource) mend(ctx context.Context, mark copyMark) error {
	s.aheadUS = mark.AheadUS
	t := &tx{store: s.db, deltas: map[string]int64{}}
	if _, _, err := mend(t, mark.Began); err != nil {
		return err
	}
	values, _, err := s.db.counters.with(t.deltas, mark.Began)
	if err != nil {
		return err
	}
	s.db.counters.values = values
	s.rest, err = s.readRest(ctx)
	return err
}

// sourceRows are requests that are read one by one.
type sourceRows struct {
	*sql.Rows

	aheadUS int64
}

// after reads at most limit requests (-1: all) after one of the given order, by order.
func (s *copySource) after(ctx context.Context, order int64, limit int) (*sourceRows, error) {
	const query = `
		SELECT seq, id, mode, task, status, callback_status, complexity, callback_attempts, processing_us, started_at, completed_at,
		       lane, due_at, error_code, error_message, callback_url, batch_id, key_id, data, result
		FROM requests
		WHERE seq > ?
		ORDER BY seq
		LIMIT ?`
	rows, err := s.db.conn.QueryContext(ctx, query, order, limit) //nolint:rowserrcheck // next does
	return &sourceRows{rows, s.aheadUS}, err
}

// next returns the next request, nil at the end.
func (s *sourceRows) next() (*copiedRequest, error) {
	if !s.Next() {
		return nil, s.Err()
	}
	r := &copiedRequest{}
	err := s.Scan(&r.order, &r.id, &r.mode, &r.task, &r.status, &r.callbackStatus, &r.complexity, &r.callbackAttempts, &r.processing,
		&r.started, &r.completed, &r.lane, &r.due, &r.errorCode, &r.errorMessage, &r.callbackURL, &r.batch, &r.key, &r.data, &r.result)
	if err != nil {
		return nil, err
	}
	for _, text := range [...]*string{
		&r.mode, &r.task, &r.status, &r.callbackStatus, &r.errorCode, &r.errorMessage, &r.callbackURL, &r.lane.String, &r.batch.String, &r.key.String,
	} {
		*text = plain(*text)
	}
	if r.data == nil { // as the driver has no bytes; an empty result is none
		r.data = []byte{}
	}
	if r.due.Valid {
		r.due.Int64 += s.aheadUS
	}
	return r, nil
}

// attempts reads the tries of the requests after one order and up to another, by order.
func (s *copySource) attempts(ctx context.Context, after, last int64) (*sourceAttempts, error) {
	const query = `
		SELECT id, number, outcome, attempts.started_at, duration_us, status_code, error, next_at
		FROM attempts CROSS JOIN requests ON seq = request
		WHERE request > ? AND request <= ?
		ORDER BY request, number, outcome`
	rows, err := s.db.conn.QueryContext(ctx, query, after, last) //nolint:rowserrcheck // next does
	return &sourceAttempts{rows}, err
}

// sourceAttempts are attempts that are read one by one.
type sourceAttempts struct{ *sql.Rows }

// next returns the next attempt, nil at the end.
func (s *sourceAttempts) next() (*copiedAttempt, error) {
	if !s.Next() {
		return nil, s.Err()
	}
	a := &copiedAttempt{}
	if err := s.Scan(&a.request, &a.number, &a.outcome, &a.started, &a.duration, &a.statusCode, &a.err, &a.next); err != nil {
		return nil, err
	}
	a.outcome, a.err = plain(a.outcome), plain(a.err)
	return a, nil
}

// copyAttempts copies the tries of the requests of a chunk.
func (s *copySource) copyAttempts(ctx context.Context, tx pgx.Tx, after, last int64) error {
	attempts, err := s.attempts(ctx, after, last)
	if err != nil {
		return err
	}
	defer attempts.Close()
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"attempts"}, copiedAttemptColumns, pgx.CopyFromFunc(func() ([]any, error) {
		a, err := attempts.next()
		if a == nil || err != nil {
			return nil, err
		}
		return a.values()
	}))
	return errors.Join(err, attempts.Close())
}

// digest reads all of the file.
func (s *copySource) digest(ctx context.Context) (CopyDigest, error) {
	d := newDigester()
	if err := s.digestRequests(ctx, d); err != nil {
		return d.digest, err
	}
	attempts, err := s.attempts(ctx, -1, math.MaxInt64)
	if err != nil {
		return d.digest, err
	}
	defer attempts.Close()
	for {
		a, err := attempts.next()
		if err != nil {
			return d.digest, err
		}
		if a == nil {
			return d.rest(&s.rest), nil
		}
		d.attempt(a)
	}
}

func (s *copySource) digestRequests(ctx context.Context, d *digester) error {
	rows, err := s.after(ctx, -1, -1)
	if err != nil {
		return err
	}
	defer rows.Close()
	for {
		r, err := rows.next()
		if r == nil || err != nil {
			return err
		}
		r.dataSum, r.resultSum = sumOf(r.data), sumOf(r.result)
		d.request(r)
	}
}
