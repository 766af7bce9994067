package sqlite

import (
	"context"
	"database/sql"
)

// OpenWriterConn opens a file as the writer does, or with database/sql.
func OpenWriterConn(ctx context.Context, path string, direct bool) (
	exec func(string, ...any) (int64, error), closeConn func() error, err error,
) {
	if direct {
		conn, err := openDirect(fileName(path), nil, durable()...)
		if err != nil {
			return nil, nil, err
		}
		return conn.exec, conn.Close, nil
	}
	db, err := sql.Open("sqlite", dsn(fileName(path), durable()...))
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(1)
	statements := map[string]*sql.Stmt{}
	exec = func(text string, args ...any) (int64, error) {
		if statements[text] == nil {
			if statements[text], err = db.PrepareContext(ctx, text); err != nil {
				return 0, err
			}
		}
		result, err := statements[text].ExecContext(ctx, args...)
		if err != nil {
			return 0, err
		}
		return result.RowsAffected()
	}
	return exec, db.Close, nil
}

// InsertRequest adds a row to the table requests.
const InsertRequest = insertRequest
