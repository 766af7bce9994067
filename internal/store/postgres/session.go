package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	transactionTimeout = "transaction_timeout" // new in PostgreSQL 17
	fullInterval       = time.Second           // how long a server without a free connection is not asked for another
	fullPause          = 5 * time.Millisecond  // between two looks for a connection that has become idle
)

// ourParameters are set in every session, whatever the role or the database says, unless the URL
// says otherwise. synchronous_commit is not among them: see setParameters.
func ourParameters() map[string]string {
	return map[string]string{
		"application_name":  "tandem",
		"client_encoding":   "UTF8",
		"statement_timeout": inMillis(readTimeout),
		"lock_timeout":      inMillis(writeTimeout),

		// A listener is idle for as long as there is no work, and schema changes take their time.
		"idle_session_timeout": "0",
		transactionTimeout:     "0",

		// Statements wait for the rows of others and go on. At another level they would fail instead.
		"default_transaction_isolation": "read committed",

		// A node that is stopped or cut off sends the server nothing, in a transaction or on the network.
		"idle_in_transaction_session_timeout": inMillis(idleTimeout),
		"tcp_keepalives_idle":                 inSeconds(silenceTimeout),
		"tcp_keepalives_interval":             inSeconds(silenceTimeout),
		"tcp_keepalives_count":                "2",
		"tcp_user_timeout":                    inMillis(silenceTimeout),
	}
}

// startupParameters are those that stay in the startup packet. PgBouncer refuses most others there.
var startupParameters = []string{"application_name", "options", "replication"}

// session prepares the connections of a pool.
type session struct {
	names, values []string    // of parameters
	own           atomic.Bool // a pooler stands between, and gives each connection a session of its own
}

// sessionOf takes the parameters of the session out of the startup packet. They are set once the
// connection stands: also because target_session_attrs=read-write refuses a session that says it is read-only.
func sessionOf(cfg *pgx.ConnConfig) *session {
	s := &session{}
	for _, name := range slices.Sorted(maps.Keys(cfg.RuntimeParams)) {
		if !slices.Contains(startupParameters, name) {
			s.names, s.values = append(s.names, name), append(s.values, cfg.RuntimeParams[name])
			delete(cfg.RuntimeParams, name)
		}
	}
	return s
}

// setParameters sets parameters, skipping one that older servers do not know. It turns
// synchronous_commit on where the role or the database turns it off; other values, remote_apply
// for one, are as safe or safer. It does nothing if a pooler may share the session: the
// process id in the first answer of the server is then not that of the session, unless $4.
const setParameters = `
	SELECT set_config(name, value, false)
	FROM unnest($1::text[], $2::text[]) AS parameter (name, value)
	WHERE ($4 OR pg_backend_pid() = $3)
	      AND (name <> '` + transactionTimeout + `' OR current_setting(name, true) IS NOT NULL)
	UNION ALL
	SELECT set_config('synchronous_commit', 'on', false)
	WHERE ($4 OR pg_backend_pid() = $3) AND current_setting('synchronous_commit') = 'off'`

// begin prepares a new connection.
func (s *session) begin(ctx context.Context, conn *pgx.Conn) error {
	set := func(shared bool) (int64, error) {
		pid := int32(conn.PgConn().PID())
		tag, err := conn.Exec(ctx, setParameters, pgx.QueryExecModeExec, s.names, s.values, pid, shared)
		return tag.RowsAffected(), err
	}
	n, err := set(s.own.Load())
	if err != nil || n > 0 {
		return err
	}
	if err := refuseSharedSessions(ctx, conn); err != nil {
		return err
	}
	s.own.Store(true)
	_, err = set(true)
	return err
}

// errSharedSessions is what is said of a pooler that gives each transaction another session.
var errSharedSessions = errors.New("a pooler stands between that pools transactions or statements; " +
	"tandem needs sessions of its own: set pool_mode = session for this database, or name the server itself")

// refuseSharedSessions finds out whether two connections share sessions: with pooling by
// transaction, one that begins is given the session that the other has just used.
func refuseSharedSessions(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	other, err := pgx.ConnectConfig(ctx, conn.Config())
	if err != nil {
		return err
	}
	defer other.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it was a probe
	if _, err := other.Exec(ctx, `BEGIN`); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the pooler gives tandem no second connection; "+
				"its pool has to hold as many as pool_max_conns allows: %w", err)
		}
		return fmt.Errorf("%w: %w", errSharedSessions, err)
	}
	if _, err := other.Exec(ctx, `ROLLBACK`); err != nil {
		return err
	}
	const backend = `SELECT pg_backend_pid()`
	for range 3 {
		var before, others, after int32
		err := conn.QueryRow(ctx, backend, pgx.QueryExecModeExec).Scan(&before)
		if err == nil {
			_, err = other.Exec(ctx, `BEGIN`)
		}
		if err == nil {
			err = other.QueryRow(ctx, backend, pgx.QueryExecModeExec).Scan(&others)
		}
		if err == nil {
			err = conn.QueryRow(ctx, backend, pgx.QueryExecModeExec).Scan(&after)
		}
		if err == nil {
			_, err = other.Exec(ctx, `ROLLBACK`)
		}
		if err != nil {
			return err
		}
		if before == others || before != after {
			return errSharedSessions
		}
	}
	return nil
}

// pool is a pool that waits for one of its own connections when the server has none left for
// it to grow by: its limit may be lower than pool_max_conns, or others may have taken them.
type pool struct {
	*pgxpool.Pool

	refused atomic.Pointer[refusal] // the last time that the server had no connection left
}

// refusal is an error of the server for which it is not asked again for a while.
type refusal struct {
	err   error
	until time.Time
}

// newPool makes a pool that has not connected yet.
func newPool(ctx context.Context, cfg *pgxpool.Config) (p *pool, err error) {
	p = &pool{}
	cfg.AfterConnect = sessionOf(cfg.ConnConfig).begin
	cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if last := p.refused.Load(); last != nil && time.Now().Before(last.until) {
			return last.err
		}
		return nil
	}
	p.Pool, err = pgxpool.NewWithConfig(ctx, cfg)
	return p, err
}

// waiting calls f, which needs a connection and has not begun when it gets none, until it gets one: for
// as long as this pool has connections in use, at most until ctx ends or readTimeout is over.
func (p *pool) waiting(ctx context.Context, f func() error) error {
	var deadline time.Time
	for {
		err := f()
		if !noneLeft(err) {
			return err
		}
		now := time.Now()
		if last := p.refused.Load(); last == nil || !errors.Is(err, last.err) {
			p.refused.Store(&refusal{err, now.Add(fullInterval)})
		}
		if deadline.IsZero() {
			deadline = now.Add(readTimeout)
		}
		if stat := p.Stat(); stat.AcquiredConns()+stat.IdleConns() == 0 || now.After(deadline) {
			return err
		}
		pause := time.NewTimer(fullPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// noneLeft reports whether the server refused a connection because it has none left for this role,
// this database, or at all.
func noneLeft(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); !ok {
		return false
	}
	cause, ok := errors.AsType[*pgconn.PgError](err)
	return ok && cause.Code == "53300"
}

// Acquire is pgxpool's, waiting.
func (p *pool) Acquire(ctx context.Context) (conn *pgxpool.Conn, err error) {
	err = p.waiting(ctx, func() error {
		conn, err = p.Pool.Acquire(ctx)
		return err
	})
	return conn, err
}

// Begin is pgxpool's, waiting.
func (p *pool) Begin(ctx context.Context) (tx pgx.Tx, err error) {
	err = p.waiting(ctx, func() error {
		tx, err = p.Pool.Begin(ctx)
		return err
	})
	return tx, err
}

// Exec is pgxpool's, waiting.
func (p *pool) Exec(ctx context.Context, statement string, args ...any) (tag pgconn.CommandTag, err error) {
	err = p.waiting(ctx, func() error {
		tag, err = p.Pool.Exec(ctx, statement, args...)
		return err
	})
	return tag, err
}

// Query is pgxpool's, waiting.
func (p *pool) Query(ctx context.Context, statement string, args ...any) (rows pgx.Rows, err error) {
	err = p.waiting(ctx, func() error {
		rows, err = p.Pool.Query(ctx, statement, args...) //nolint:sqlclosecheck // our caller closes them
		return err
	})
	return rows, err
}

// QueryRow is pgxpool's, waiting. The statement runs when the row is scanned.
func (p *pool) QueryRow(ctx context.Context, statement string, args ...any) pgx.Row {
	return rowFunc(func(to ...any) error {
		return p.waiting(ctx, func() error { return p.Pool.QueryRow(ctx, statement, args...).Scan(to...) })
	})
}

// rowFunc is a row that a function scans.
type rowFunc func(to ...any) error

// Scan scans it.
func (f rowFunc) Scan(to ...any) error { return f(to...) }
