package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

// Migrations is what runs the migrations of a database.
func Migrations(dialect goose.Dialect, db *sql.DB, files fs.FS) (*goose.Provider, error) {
	provider, err := goose.NewProvider(dialect, db, files, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return provider, nil
}

// Versions returns the version of a schema, and the newest one that this program knows.
func Versions(ctx context.Context, provider *goose.Provider) (version, newest int64, err error) {
	sources := provider.ListSources()
	newest = sources[len(sources)-1].Version
	if version, err = provider.GetDBVersion(ctx); err != nil {
		return 0, 0, err
	}
	if version > newest {
		return 0, 0, fmt.Errorf("its schema is version %d, this tandem knows up to %d: it was written by a newer tandem; start that one, or name another database", version, newest)
	}
	return version, newest, nil
}
