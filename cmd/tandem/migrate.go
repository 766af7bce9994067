package main

import (
	"context"

	"tandem/internal/app"
	"tandem/internal/store/postgres"
)

// migrateCommand brings a database up to date, so that a start need not: serve does
// the same, and nodes that start together wait for the first of them.
type migrateCommand struct {
	DB string `name:"db" required:"" placeholder:"URL" env:"TANDEM_DB" help:"The database, postgres://… or @FILE."`
}

// Validate refuses other databases; kong calls it.
func (c *migrateCommand) Validate() error {
	if err := app.ReadDatabase("db", &c.DB); err != nil {
		return asFailure(err)
	}
	if c.DB != "" && !postgres.Names(c.DB) { // kong says that it is missing
		return badArgument(
			"a file is brought up to date by serve",
			"--db %s: only a PostgreSQL database is shared and needs this",
			app.Redact(c.DB),
		)
	}
	return nil
}

// Run migrates.
func (c *migrateCommand) Run(ctx context.Context, t *terminal) error {
	if err := postgres.Migrate(ctx, c.DB); err != nil {
		return err
	}
	t.printf("%s is up to date\n", app.Redact(c.DB))
	return nil
}
