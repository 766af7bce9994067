package store

import (
	"cmp"
	"fmt"
	"log/slog"
)

// DefaultMaxQueue is that of [Config].
const DefaultMaxQueue = 1_000_000

// Config of a store. Zero fields take the defaults named.
type Config struct {
	URL      string // ":memory:", a path, "file:" and a path, or postgres://…
	MaxQueue int64  // unfinished requests on disk; beyond it Accept refuses; DefaultMaxQueue
	// Of one owner (tandem.Request.Owner). Beyond either Accept refuses.
	MaxPerOwner      int64 // unfinished requests; 0: MaxQueue
	MaxBytesPerOwner int64 // data and results of unfinished requests; 0: any number

	// Counted is the task that Stats.Counted and Page.Total are about; "": none. It is the same whenever the database is
	// opened.
	Counted string

	Nodes *Nodes       // filled in with who shares the database; nil: nobody asks
	Log   *slog.Logger // slog.Default
}

// WithDefaults fills in the defaults.
func (c Config) WithDefaults() (Config, error) {
	c.MaxQueue = cmp.Or(c.MaxQueue, DefaultMaxQueue)
	if c.MaxQueue < 0 {
		return c, fmt.Errorf("max queue %d: want at least 1", c.MaxQueue)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, nil
}

// Counts reports whether requests of a task are counted on their own.
func (c Config) Counts(task string) bool { return task != "" && task == c.Counted }
