package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"tandem/internal/store"
)

// OpenTraced is Open, and seen is called with every statement that is
// prepared or run on any of its connections, from any goroutine.
func OpenTraced(ctx context.Context, cfg store.Config, seen func(statement string)) (*Store, error) {
	return open(ctx, cfg, traced(seen), seen)
}

// OpenHandleTraced is OpenTraced for a handle.
func OpenHandleTraced(ctx context.Context, cfg store.HandleConfig, seen func(statement string)) (store.Handle, error) {
	return openHandle(ctx, cfg, traced(seen))
}

// ReadTraced reads a file as a copy does, and tells seen of every statement.
func ReadTraced(ctx context.Context, url string, seen func(statement string)) error {
	s, err := openCopySource(ctx, url, traced(seen))
	if err != nil {
		return err
	}
	err = s.Recover(ctx, time.Now(), 0)
	if err == nil {
		err = s.Pages(ctx, 4096, store.NewDigester().Page)
	}
	return errors.Join(err, s.Close())
}

func traced(seen func(string)) connector {
	return func(dsn string) (*sql.DB, error) {
		plain, err := sql.Open("sqlite", dsn)
		if err != nil {
			return nil, err
		}
		defer plain.Close() // it was opened for its driver only
		return sql.OpenDB(&tracer{plain.Driver(), dsn, seen}), nil
	}
}

// tracer makes connections that tell what is asked of them.
type tracer struct {
	driver driver.Driver
	dsn    string
	seen   func(string)
}

func (t *tracer) Driver() driver.Driver { return t.driver }

func (t *tracer) Connect(context.Context) (driver.Conn, error) {
	conn, err := t.driver.Open(t.dsn)
	if err != nil {
		return nil, err
	}
	return &tracedConn{conn.(sqliteConn), t.seen}, nil
}

// sqliteConn is what database/sql finds in a connection of modernc.org/sqlite.
type sqliteConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type tracedConn struct {
	sqliteConn
	seen func(string)
}

func (c *tracedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.seen(query)
	return c.sqliteConn.PrepareContext(ctx, query)
}

func (c *tracedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.seen(query)
	return c.sqliteConn.ExecContext(ctx, query, args)
}

func (c *tracedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.seen(query)
	return c.sqliteConn.QueryContext(ctx, query, args)
}
