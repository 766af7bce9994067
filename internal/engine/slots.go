package engine

import (
	"context"
	"sync"

	"tandem"
	"tandem/internal/limit"
)

// asyncEvery: while both wait, one freed slot of this many goes to async, which so
// never starves; the others go to sync, where somebody is waiting.
const asyncEvery = 4

// slots are the concurrency slots for work of one kind, shared by sync and async. Each side has
// its own queue, which serves its owners round-robin.
type slots struct {
	count     int // how many there are
	maxInside int // how many sync orders may hold or wait for one

	mu     sync.Mutex     // guards the fields below
	free   int            // not held; 0 while anybody waits
	inside int            // sync orders that have joined
	owners map[string]int // :: owner → its part of inside; owners without any are forgotten
	turn   int            // freed slots given away while both waited, modulo asyncEvery
	sync   limit.Turns[*waiter]
	async  limit.Turns[*waiter]
}

// waiter stands in a queue. ready is closed, by the one who gives the slot, once it has one.
type waiter struct{ ready chan struct{} }

func newSlots(count, maxWaiting int) *slots {
	return &slots{count: count, maxInside: count + maxWaiting, free: count, owners: map[string]int{}}
}

// join lets a sync order of an owner in, before it costs anything; it returns false when
// as many are inside as may be, or too many of them are this owner's. part undoes it. Async work
// needs no such bound: the store dispatches a bounded number of jobs.
func (s *slots) join(owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.owners[owner]
	if s.inside >= s.maxInside || own >= limit.Share(s.maxInside, s.inside-own) {
		return false
	}
	s.inside++
	s.owners[owner]++
	return true
}

func (s *slots) part(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
	if s.owners[owner]--; s.owners[owner] == 0 {
		delete(s.owners, owner)
	}
}

// acquire waits for a slot. It returns ctx's cause when ctx has ended by then, a slot
// that came free in the same moment notwithstanding; then the caller holds none.
func (s *slots) acquire(ctx context.Context, mode tandem.Mode, owner string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	queue := &s.async
	if mode == tandem.ModeSync {
		queue = &s.sync
	}
	w := &waiter{ready: make(chan struct{})}
	queue.Push(owner, 1, w)
	s.mu.Unlock()

	select {
	case <-w.ready:
		if ctx.Err() == nil {
			return nil
		}
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.ready: // both happened: the slot goes to the next one
		s.releaseLocked()
	default:
		queue.Remove(owner, func(other *waiter) bool { return other == w })
	}
	return context.Cause(ctx)
}

// tryAcquire takes a slot if one is free. Those who wait are not overtaken: while anybody
// does, none is.
func (s *slots) tryAcquire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		return false
	}
	s.free--
	return true
}

// release gives a slot back, to the one whose turn it is.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked()
}

func (s *slots) releaseLocked() {
	queue := &s.sync
	switch {
	case s.sync.Len() == 0 && s.async.Len() == 0:
		s.free++
		return
	case s.sync.Len() == 0:
		queue = &s.async
	case s.async.Len() > 0:
		s.turn = (s.turn + 1) % asyncEvery
		if s.turn == 0 {
			queue = &s.async
		}
	}
	w, _ := queue.Peek(func(string, *waiter) bool { return true })
	queue.Take()
	close(w.ready)
}
