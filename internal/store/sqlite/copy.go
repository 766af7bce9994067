package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"tandem"
	"tandem/internal/store"
)

// CopySource is the file that is copied from. It is locked, and read in a transaction that keeps every
// other process from writing; what is changed in that is not committed.
type CopySource struct {
	store.CopyReader

	file        *Store  // its connections and its lock; nothing runs on it
	conn        sqlConn // file.conn
	Total       int64
	Fingerprint string         // of what is in the file
	Rest        store.CopyRest // its counters are those after Recover
}

// OpenCopySource opens a file that is to be copied.
func OpenCopySource(ctx context.Context, url string) (*CopySource, error) {
	return openCopySource(ctx, url, connect)
}

func openCopySource(ctx context.Context, url string, connect connector) (_ *CopySource, err error) {
	path, err := databasePath(url)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is no such file")
	}
	s := &CopySource{file: &Store{cfg: store.Config{URL: url}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.file.file, err = ownFile(path); err != nil {
		return nil, err
	}
	pragmas := append(durable(), "busy_timeout(5000)", "cache_size(-8000)")
	if s.file.readDB, err = connect(dsn(fileName(path)+"mode=rw", pragmas...)); err != nil {
		return nil, err
	}
	s.file.readDB.SetMaxOpenConns(1)
	if err := migrate(ctx, s.file.readDB); err != nil {
		return nil, err
	}
	if s.conn.Conn, err = s.file.readDB.Conn(ctx); err != nil {
		return nil, err
	}
	s.file.conn = s.conn
	if _, err := s.conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return nil, fmt.Errorf("keep others from writing: %w", err)
	}
	s.CopyReader = store.CopyReader{
		DB: s.conn,
		Requests: `
			SELECT id, mode, task, status, callback_status, complexity, callback_attempts, processing_us,
			       started_at, completed_at, lane, due_at, error_code, error_message, callback_url, batch_id, key_id,
			       owner, data, result
			FROM requests
			WHERE seq > $1
			ORDER BY seq
			LIMIT $2`,
		Attempts: `
			SELECT id, number, outcome, attempts.started_at, duration_us, status_code, error, next_at
			FROM attempts CROSS JOIN requests ON seq = request
			WHERE request > $1 AND request <= $2
			ORDER BY request, number, outcome`,
		Key: func(id string) (any, error) {
			if id == "" {
				return -1, nil
			}
			return tandem.IDOrder(id)
		},
	}
	return s, s.identify(ctx)
}

// Close lets go of the file. Its connection ends with the transaction still open, which takes back what recover has
// changed.
func (s *CopySource) Close() error { return s.file.release() }

// identify reads the rest and computes the fingerprint: counters change with whatever is done with requests, so two
// states of a file that have all of this in common are the same but for due times.
func (s *CopySource) identify(ctx context.Context) (err error) {
	var newest sql.NullInt64
	err = s.conn.QueryRowContext(ctx, `SELECT count(*), max(seq) FROM requests`).Scan(&s.Total, &newest)
	if err != nil {
		return err
	}
	if s.Rest, err = store.ReadSettingsAndKeys(ctx, s.conn); err != nil {
		return fmt.Errorf("read settings and API keys: %w", err)
	}
	s.Rest.Settings = slices.DeleteFunc(s.Rest.Settings, func(s store.CopiedSetting) bool { return s.Name == "probe" })
	if s.Rest.Counters, err = readCounters(ctx, s.conn); err != nil {
		return err
	}
	s.file.counters.Set(s.Rest.Counters)
	d := store.NewDigester()
	d.Begin(&s.Total, &newest)
	s.Fingerprint = d.End(&s.Rest).SHA256
	return nil
}

// Recover makes of the file what a start now would, for this copy alone. What waits is due by a clock that is ahead.
func (s *CopySource) Recover(ctx context.Context, now time.Time, ahead time.Duration) error {
	if ahead.Abs() >= minStep {
		s.AheadUS = ahead.Microseconds()
	}
	t := &tx{store: s.file, deltas: store.Deltas{}}
	if _, _, err := repair(t, now); err != nil {
		return err
	}
	values, _, err := s.file.counters.With(t.deltas, now)
	s.Rest.Counters = values
	return errors.Join(err, ctx.Err())
}
