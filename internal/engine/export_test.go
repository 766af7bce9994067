package engine

import (
	"context"
	"time"

	"tandem"
	"tandem/internal/store"
)

// MaxSyncWaiters is how many sync orders may wait for slots of one kind.
const MaxSyncWaiters = maxSyncWaiters

// Step does one job, without a store that dispatches it, and returns what comes of it.
func (e *Engine) Step(ctx context.Context, job store.Job) store.Transition {
	t, err := e.step(ctx, job).Apply(&job)
	if err != nil {
		panic(err)
	}
	return t
}

// Slots are slots on their own.
type Slots struct{ s *slots }

func NewSlots(count, maxWaiting int) Slots { return Slots{newSlots(count, maxWaiting)} }

func (s Slots) Join(owner string) bool { return s.s.join(owner) }
func (s Slots) Part(owner string)      { s.s.part(owner) }
func (s Slots) Release()               { s.s.release() }
func (s Slots) Acquire(ctx context.Context, mode tandem.Mode) error {
	return s.s.acquire(ctx, mode, "")
}

// Free is how many slots nobody holds; Waiting how many wait for one.
func (s Slots) Free() int {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return s.s.free
}

func (s Slots) Waiting() int {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return s.s.sync.Len() + s.s.async.Len()
}

// Timeout for the tests of its arithmetic.
type Timeout = timeout

func NewTimeout(length time.Duration) *Timeout { return &timeout{length: length} }

func (t *timeout) Context(now time.Time) context.Context { return t.context(now) }

func (t *timeout) Release() { t.release() }
