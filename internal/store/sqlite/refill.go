package sqlite

import (
	"context"
	"fmt"
	"time"

	"tandem/internal/store"
)

// refill reads due rows from the index into the lanes that run low, and returns
// when the next row becomes due, the zero time when none is known.
func (q *queue) refill(ctx context.Context) (time.Time, error) {
	var soonest time.Time
	for _, name := range store.Lanes {
		next, err := q.refillLane(ctx, q.lanes[name])
		if err != nil {
			return time.Time{}, err
		}
		soonest = store.Sooner(soonest, next)
	}
	next, err := q.refillParked(ctx)
	return store.Sooner(soonest, next), err
}

func (q *queue) refillLane(ctx context.Context, l *lane) (time.Time, error) {
	now := q.store.clock.now()
	wanted, unread, ok := q.beginRefill(l, now)
	if !ok {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.nextLook(l, now), nil
	}
	started := time.Now()
	next, err := time.Time{}, error(nil)
	if unread {
		wanted, next, err = q.store.dueOwners(ctx, l.name, now)
	}
	if q.refilling != nil {
		q.refilling(l.name)
	}
	for i := 0; err == nil && i < len(wanted); i++ {
		err = q.refillOwner(ctx, l, wanted[i])
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	l.rested = time.Now().Add(restFactor * time.Since(started))
	l.gone = nil
	if err != nil {
		l.unread = true
		return time.Time{}, fmt.Errorf("read lane %s: %w", l.name, err)
	}
	if unread {
		l.nextDue = store.Sooner(l.nextDue, next)
	}
	q.startLocked(l)
	return q.nextLook(l, now), nil
}

// beginRefill returns the owners whose rows are to be read from the index. unread: the index is to be searched
// for owners first. Not ok: there is nothing to read.
func (q *queue) beginRefill(l *lane, now time.Time) (owners []string, unread, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.capacity == 0 {
		return nil, false, false
	}
	if !l.nextDue.IsZero() && !l.nextDue.After(now) && time.Now().After(l.rested) {
		l.unread, l.nextDue = true, time.Time{}
	}
	if unread = l.unread && l.ready.Len() <= maxReady/4; unread {
		l.unread = false // set again when something becomes due meanwhile
	} else {
		for owner, sh := range l.shares {
			if l.low(sh) {
				owners = append(owners, owner)
			}
		}
	}
	if !unread && len(owners) == 0 {
		return nil, false, false
	}
	return owners, unread, true
}

// nextLook is when a lane has to look at its index again; zero: when something is pushed or ends.
func (q *queue) nextLook(l *lane, now time.Time) time.Time {
	if rest := time.Until(l.rested); rest > 0 && !l.nextDue.IsZero() && !l.nextDue.After(now.Add(rest)) {
		return now.Add(rest)
	}
	return l.nextDue
}

// refillOwner reads due rows of one owner.
func (q *queue) refillOwner(ctx context.Context, l *lane, owner string) error {
	q.mu.Lock()
	sh := l.share(owner)
	room := l.maxReady() - sh.ready
	most := room + sh.held
	sh.overflow = false           // set again by what is pushed meanwhile and finds no room
	l.gone = map[int64]struct{}{} // what was committed before is as the index shows it
	now := q.store.clock.now()    // not earlier: what found no room until now is to be read
	q.mu.Unlock()
	var items []*item
	more := false
	seqs, err := q.store.due(ctx, l.name, owner, now, most)
	if err == nil {
		var wanted []int64
		wanted, more = q.notHeld(l, seqs, room)
		more = more || len(seqs) == most
		items, err = q.store.loadAll(ctx, l.name, now, wanted)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	sh = l.share(owner)
	sh.overflow = sh.overflow || more || err != nil
	for _, it := range items {
		if l.taken(it.seq) {
			continue
		}
		if sh.ready >= l.maxReady() {
			sh.overflow = true
			break
		}
		q.enqueue(l, it)
	}
	l.forget(sh)
	return err
}

// notHeld returns the rows that are not in memory, at most room, and whether there are more.
func (q *queue) notHeld(l *lane, seqs []int64, room int) (wanted []int64, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, seq := range seqs {
		if _, held := l.held[seq]; held {
			continue
		}
		if len(wanted) >= room {
			return wanted, true
		}
		wanted = append(wanted, seq)
	}
	return wanted, false
}
