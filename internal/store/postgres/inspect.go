package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// remarks are what is said at the start of a setting of the database, role or server that is off.
// :: parameter → what follows from it
var remarks = map[string]string{
	"fsync": "fsync is off: when the machine of the database fails, all of it may be lost, " +
		"with what was accepted; turn it on",
	"full_page_writes": "full_page_writes is off: when the machine of the database fails, " +
		"all of it may be damaged; turn it on",
	"synchronous_commit": "synchronous_commit is off for this role or database; " +
		"tandem turns it on for its own sessions",
}

// inspect logs which settings endanger what tandem promises, and whether every role may connect: a role
// that connects can take all connections and locks, and send notifications.
func (s *Store) inspect(ctx context.Context) error {
	var name string
	rows, err := s.pool.Query(ctx, `
		SELECT name FROM pg_settings WHERE name = ANY ($1) AND reset_val = 'off' ORDER BY name`,
		[]string{"fsync", "full_page_writes", "synchronous_commit"})
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&name}, func() error {
			s.cfg.Log.Warn(remarks[name])
			return nil
		})
	}
	var public bool
	if err == nil {
		err = s.pool.QueryRow(ctx, `
			SELECT current_database(), has_database_privilege('public', current_database(), 'CONNECT')`,
		).Scan(&name, &public)
	}
	if err != nil {
		return fmt.Errorf("read the settings of the database: %w", err)
	}
	if public {
		s.cfg.Log.Warn("every role of the server may connect to this database, and slow tandem down; take that away",
			"statement", "REVOKE CONNECT ON DATABASE "+pgx.Identifier{name}.Sanitize()+" FROM PUBLIC")
	}
	return nil
}
