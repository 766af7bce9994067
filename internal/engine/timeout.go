package engine

import (
	"context"
	"sync"
	"time"
)

// timeout bounds how long callers wait for commits. All who come within a tenth of its length
// share a context: a timer for each commit, and a place among the children of its caller's
// context, would cost more than the rest of an acceptance outside the store. Nothing but time ends
// these contexts: a commit cut short because its caller left may or may not have happened.
type timeout struct {
	length time.Duration

	mu     sync.Mutex         // guards the fields below
	shared context.Context    //nolint:containedctx // see above
	end    context.CancelFunc // of shared
	due    time.Time          // when the next one is
}

// context returns one that ends after the length, or up to a tenth of it later.
func (t *timeout) context(now time.Time) context.Context {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !now.Before(t.due) {
		t.due = now.Add(t.length / 10)
		t.shared, t.end = context.WithDeadline(context.Background(), t.due.Add(t.length))
	}
	return t.shared
}

// release ends the last context, once nobody waits.
func (t *timeout) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != nil {
		t.end()
		t.due = time.Time{}
	}
}
