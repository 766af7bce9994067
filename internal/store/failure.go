package store

import (
	"context"
	"errors"
	"time"

	"tandem"
)

// Unavailable is what callers are told of a write that failed.
func Unavailable(err error) *tandem.Error {
	return &tandem.Error{
		Code:       tandem.CodeStoreUnavailable,
		Message:    "the database cannot take this now; nothing was accepted; try again later",
		RetryAfter: 5 * time.Second,
		Err:        err,
	}
}

// Unreadable is what callers are told of a read: nil, what they can act on, why ctx ended, or that it failed.
func Unreadable(ctx context.Context, err error) error {
	var known *tandem.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return &tandem.Error{
			Code:       tandem.CodeStoreUnavailable,
			Message:    "the database cannot be read now; try again later",
			RetryAfter: 5 * time.Second,
			Err:        err,
		}
	}
}

// Stopping is what callers are told who come after Close.
func Stopping() error {
	return &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "the server is stopping; try again", RetryAfter: time.Second}
}

// Await waits for the answer of a writer, but not for longer than ctx.
func Await(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
