package engine

import (
	"context"
	"sync"
	"time"
)

// patience bounds how long callers wait for commits. All who come within a tenth of its length
// share a context: a timer for each commit, and a place among the children of its caller's
// context, would cost more than the rest of an acceptance outside the store. Nothing but time ends
// these contexts: a commit cut short because its caller left may or may not have happened.
type patience struct {
	length time.Duration

	mu     sync.Mutex         // guards the fields below
	shared context.Context    //nolint:containedctx // see above
	end    context.CancelFunc // of shared
	due    time.Time          // when the next one is
}

// wait returns a context that ends after the length, or up to a tenth of it later.
func (p *patience) wait(now time.Time) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !now.Before(p.due) {
		p.due = now.Add(p.length / 10)
		p.shared, p.end = context.WithDeadline(context.Background(), p.due.Add(p.length))
	}
	return p.shared
}

// release is for when nobody waits any more.
func (p *patience) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		p.end()
		p.due = time.Time{}
	}
}
