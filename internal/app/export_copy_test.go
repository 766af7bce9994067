package app

import (
	"time"
)

// InPages has a copy commit after so many rows.
func (c CopyConfig) InPages(rows int) CopyConfig {
	c.rows = rows
	return c
}

// WithClock has a copy go by another clock.
func (c CopyConfig) WithClock(now func() time.Time) CopyConfig {
	c.now = now
	return c
}
