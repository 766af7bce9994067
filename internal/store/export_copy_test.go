package store

import (
	"context"
	"errors"
	"time"
)

// InChunks has a copy commit after so many rows.
func (c CopyConfig) InChunks(rows int) CopyConfig {
	c.chunk = rows
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
	err = s.mend(ctx, copyMark{Began: time.Now()})
	if err == nil {
		_, err = s.digest(ctx)
	}
	return errors.Join(err, s.close())
}
