package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	zombiezen "zombiezen.com/go/sqlite"
)

// writerConn is the connection that the writer has for itself. Only one goroutine may use it at a time.
type writerConn interface {
	// exec must run a statement and return how many rows it changed.
	exec(statement string, args ...any) (int64, error)
	// text must return the only column of the first row of a query; found is false if there is no row.
	text(query string) (value string, found bool, err error)
	Close() error
}

// directConn is a connection without database/sql, which takes a third of the time of a small statement
// (docs/decisions/0018-sqlite-without-database-sql.md). The engine below, and so the locks on the file, are those of the
// other connections: both drivers call modernc.org/sqlite/lib.
type directConn struct {
	conn  *zombiezen.Conn
	stmts map[string]*zombiezen.Stmt // :: SQL text → statement
	seen  func(statement string)     // nil but in tests
}

// openDirect opens a connection that reads and writes. name is a URI.
func openDirect(name string, seen func(string), pragmas ...string) (*directConn, error) {
	conn, err := zombiezen.OpenConn(name, zombiezen.OpenReadWrite, zombiezen.OpenCreate, zombiezen.OpenURI)
	if err != nil {
		return nil, err
	}
	d := &directConn{conn: conn, stmts: map[string]*zombiezen.Stmt{}, seen: seen}
	conn.SetBusyTimeout(busyTimeout)
	for _, pragma := range pragmas {
		if _, _, err := d.text(`PRAGMA ` + pragma); err != nil {
			return nil, errors.Join(fmt.Errorf("PRAGMA %s: %w", pragma, err), d.Close())
		}
	}
	return d, nil
}

// prepared returns a statement with its parameters set.
func (d *directConn) prepared(text string, args []any) (*zombiezen.Stmt, error) {
	stmt, ok := d.stmts[text]
	if !ok {
		if d.seen != nil {
			d.seen(text)
		}
		var err error
		if stmt, err = d.conn.Prepare(text); err != nil {
			return nil, err
		}
		d.stmts[text] = stmt
	}
	for i, arg := range args {
		switch v := arg.(type) {
		case string:
			stmt.BindText(i+1, v)
		case int64:
			stmt.BindInt64(i+1, v)
		case int:
			stmt.BindInt64(i+1, int64(v))
		case []byte:
			if v == nil {
				stmt.BindNull(i + 1)
			} else {
				stmt.BindBytes(i+1, v)
			}
		case nil:
			stmt.BindNull(i + 1)
		case sql.NullString:
			if v.Valid {
				stmt.BindText(i+1, v.String)
			} else {
				stmt.BindNull(i + 1)
			}
		case sql.NullInt64:
			if v.Valid {
				stmt.BindInt64(i+1, v.Int64)
			} else {
				stmt.BindNull(i + 1)
			}
		default:
			return nil, fmt.Errorf("parameter %d of %.40q: no way to bind a %T", i+1, text, arg)
		}
	}
	return stmt, nil
}

func (d *directConn) exec(text string, args ...any) (int64, error) {
	stmt, err := d.prepared(text, args)
	if err != nil {
		return 0, err
	}
	_, err = stmt.Step()
	if reset := stmt.Reset(); err == nil {
		err = reset
	}
	return int64(d.conn.Changes()), err
}

func (d *directConn) text(query string) (value string, found bool, err error) {
	stmt, err := d.prepared(query, nil)
	if err != nil {
		return "", false, err
	}
	if found, err = stmt.Step(); found {
		value = stmt.ColumnText(0)
	}
	if reset := stmt.Reset(); err == nil {
		err = reset
	}
	return value, found, err
}

func (d *directConn) Close() error { return d.conn.Close() } // and with it its statements

// sqlConn is a connection of database/sql as a writerConn.
type sqlConn struct{ *sql.Conn }

func (c sqlConn) exec(text string, args ...any) (int64, error) {
	result, err := c.ExecContext(context.Background(), text, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (c sqlConn) text(query string) (value string, found bool, err error) {
	err = c.QueryRowContext(context.Background(), query).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return value, err == nil, err
}

// busyTimeout is how long a statement waits for another program's lock on the database.
const busyTimeout = 5 * time.Second

// sqliteCode returns the extended result code of an error of either driver; 0 if it is none of SQLite's.
func sqliteCode(err error) int {
	if code, ok := errors.AsType[*sqlite.Error](err); ok {
		return code.Code()
	}
	if code := zombiezen.ErrCode(err); code != zombiezen.ResultOK && code != zombiezen.ResultError {
		return int(code)
	}
	return 0
}
