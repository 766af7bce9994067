package engine

import (
	"container/list"
	"context"
	"sync"

	"tandem"
)

// asyncEvery: while both wait, one freed slot of this many goes to async, which so
// never starves; the others go to sync, where somebody is waiting.
const asyncEvery = 4

// slots are the places for work of one kind, shared by sync and async. Those who
// wait are served in order of arrival, each side in its own queue.
type slots struct {
	count     int // how many there are
	maxInside int // how many sync orders may hold or wait for one

	mu     sync.Mutex // guards the fields below
	free   int        // not held; 0 while anybody waits
	inside int        // sync orders that have joined
	turn   int        // freed slots given away while both waited, modulo asyncEvery
	sync   list.List  // of *waiter, the one who has waited longest in front
	async  list.List  // the same
}

// waiter stands in a queue. ready is closed, by whoever gives the slot, once it has one.
type waiter struct{ ready chan struct{} }

func newSlots(count, maxWaiting int) *slots {
	return &slots{count: count, maxInside: count + maxWaiting, free: count}
}

// join lets a sync order in, before it costs anything; it returns false when all
// slots are taken and the queue is as long as it may be. part undoes it. Async work
// needs no such bound: the store hands out a bounded number of jobs.
func (s *slots) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside >= s.maxInside {
		return false
	}
	s.inside++
	return true
}

func (s *slots) part() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
}

// acquire waits for a slot. It returns ctx's cause when ctx has ended by then, a slot
// that came free in the same moment notwithstanding; then the caller holds none.
func (s *slots) acquire(ctx context.Context, mode tandem.Mode) error {
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
	place := queue.PushBack(w)
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
		queue.Remove(place)
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
	w := queue.Remove(queue.Front()).(*waiter)
	close(w.ready)
}
