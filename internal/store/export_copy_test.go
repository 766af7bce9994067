package store

import (
	"context"
	"errors"
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

// ReadTraced reads a file as a copy does, and tells seen of every statement.
func ReadTraced(ctx context.Context, url string, seen func(statement string)) error {
	s, err := openCopySource(ctx, CopyConfig{From: url, connect: traced(seen)})
	if err != nil {
		return err
	}
	err = s.recover(ctx, time.Now(), 0)
	if err == nil {
		err = s.pages(ctx, copyPageRows, newDigester().page)
	}
	return errors.Join(err, s.close())
}
