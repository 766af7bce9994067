package sqlite

import (
	"context"
	"fmt"
	"time"

	"tandem/internal/limit"
	"tandem/internal/store"
)

const (
	// maxGroups bounds the groups of parked callbacks that are looked after at a time. What is
	// more stays in the index and has its turn when others have nothing to do.
	maxGroups = 4096
	// groupBatch is how many rows of a group are read at a time.
	groupBatch = 256
	// maxAwaiting is how many callbacks wait in memory for a busy destination without being parked, a group
	// has at most half of what the others leave.
	maxAwaiting = 16384
	// groupsPerLook is how many groups are read from the index before other lanes are looked at again.
	groupsPerLook = 64
	// listInterval is how often groups that are not looked after are listed.
	listInterval = 10 * time.Second
)

// parked are callbacks that stay where they are in the index, without a write, for as long as their
// destination cannot take them: its breaker is open, or it has enough to do. It lists them in
// groups, by destination and owner, and dispatches as many as Capacity.Room allows, owners in turns.
type parked struct {
	room         func(destination, owner string) int
	maxAge       time.Duration
	destinations map[string]*destination // :: destination → its groups; those without any are forgotten
	groups       int                     // in all of them; at most maxGroups
	ready        int                     // items in all of them that are parked
	awaiting     int                     // items in all of them that are not
	pressed      bool                    // some found no room in the lane
	unlisted     bool                    // the index may hold groups that are not listed
	after        groupKey                // where to go on listing
	listed       time.Time               // when groups were last listed; monotonic
	looked       time.Time               // when all were last looked through for old ones; monotonic
}

// groupKey names a group.
type groupKey struct{ destination, owner string }

// destination is where some parked callbacks go.
type destination struct {
	name       string
	ready      limit.Turns[*item] // parked ones read from the index, and those that only wait
	dispatched int                // in the lane or running
	groups     map[string]*group  // :: owner → group
}

// group is what one owner has parked for a destination.
type group struct {
	ready   int       // in the destination's ready
	more    bool      // the index may hold due rows that are not held
	nextDue time.Time // when the index holds the next row that is not yet due; zero: none known
}

// open begins: every group that is on disk is to be listed.
func (p *parked) open(capacity store.Capacity) {
	p.room, p.maxAge = capacity.Room, capacity.MaxAge
	if p.room == nil {
		p.room = func(string, string) int { return store.MaxParked }
	}
	p.destinations, p.unlisted = map[string]*destination{}, true
}

// group returns a group, listing it if there is room; nil if there is none.
func (p *parked) group(key groupKey) *group {
	d := p.destinations[key.destination]
	if d != nil && d.groups[key.owner] != nil {
		return d.groups[key.owner]
	}
	if p.groups >= maxGroups || p.destinations == nil {
		p.unlisted = true
		return nil
	}
	d = p.destination(key.destination)
	if d.groups == nil {
		d.groups = map[string]*group{}
	}
	g := &group{}
	d.groups[key.owner] = g
	p.groups++
	return g
}

// destination returns a destination, which forget lets go of. It must not be called before open.
func (p *parked) destination(name string) *destination {
	d := p.destinations[name]
	if d == nil {
		d = &destination{name: name}
		p.destinations[name] = d
	}
	return d
}

// forget lets go of a group that has nothing to do.
func (p *parked) forget(d *destination, owner string) {
	if g := d.groups[owner]; g != nil && g.ready == 0 && !g.more && g.nextDue.IsZero() {
		delete(d.groups, owner)
		p.groups--
	}
	if len(d.groups) == 0 && d.dispatched == 0 {
		delete(p.destinations, d.name)
	}
}

// parkLocked notes a callback that was committed as parked.
func (q *queue) parkLocked(it *item, now time.Time) {
	p := &q.parked
	g := p.group(groupKey{it.parked, it.request.Owner})
	switch {
	case g == nil:
	case !it.due.After(now):
		g.more = true
		if d := p.destinations[it.parked]; g.ready == 0 && d.dispatched < p.room(it.parked, it.request.Owner) {
			store.Notify(q.wake)
		}
	case g.nextDue.IsZero() || it.due.Before(g.nextDue):
		g.nextDue = it.due
		store.Notify(q.wake)
	}
}

// mustPark reports whether a callback to a destination, about to be committed, is to be parked: the destination
// has enough to do, and memory has no room for more that wait for it.
func (q *queue) mustPark(destination, owner string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := &q.parked
	d := p.destinations[destination]
	if d == nil || d.groups[owner] == nil {
		return false
	}
	g := d.groups[owner]
	room := p.room(destination, owner)
	return room > 0 && d.dispatched >= room && (g.more || g.ready >= limit.Share(maxAwaiting, p.awaiting-g.ready))
}

// awaitLocked dispatches a callback that is due, or keeps it in memory while its destination has enough to do,
// which costs no write. It reports false if neither can be: then the step finds out what the callback waits for.
func (q *queue) awaitLocked(it *item) bool {
	p, l, owner := &q.parked, q.lanes[store.LaneDeliver], it.request.Owner
	if p.destinations == nil || l.ready.Len() >= maxReady {
		return false
	}
	room := p.room(it.site, owner)
	d := p.destinations[it.site]
	if room > 0 && (d == nil || d.dispatched < room && d.ready.Len() == 0 && d.groups[owner] == nil) {
		it.from = p.destination(it.site)
		it.from.dispatched++
		q.enqueue(l, it)
		q.startLocked(l)
		return true
	}
	if room == 0 {
		return false
	}
	g := p.group(groupKey{it.site, owner})
	if g == nil || g.more || g.ready >= limit.Share(maxAwaiting, p.awaiting-g.ready) {
		return false
	}
	d = p.destinations[it.site]
	q.keep(it)
	l.hold(it.seq, owner)
	g.ready++
	p.awaiting++
	d.ready.Push(owner, 1+it.size/store.JobBytes, it)
	q.dispatchLocked(d)
	q.startLocked(l)
	return true
}

// awaited lists what waits in memory for each destination without being parked.
func (q *queue) awaited() (heads []store.UndeliveredHead, counts []store.UndeliveredCount) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, d := range q.parked.destinations {
		head, count := store.UndeliveredHead{Destination: name}, store.UndeliveredCount{Destination: name}
		d.ready.Each(func(it *item) {
			if it.parked == "" {
				head.Oldest = store.Sooner(head.Oldest, it.request.CompletedAt)
				count.Count++
			}
		})
		if count.Count > 0 {
			heads, counts = append(heads, head), append(counts, count)
		}
	}
	return heads, counts
}

// unparkLocked follows the end of a callback: from is where it was counted as dispatched, freed what may have room now.
func (q *queue) unparkLocked(from *destination, freed [2]string) {
	if from != nil {
		from.dispatched--
		q.dispatchLocked(from)
	}
	for _, name := range freed {
		if d := q.parked.destinations[name]; d != nil && d != from {
			q.dispatchLocked(d)
		}
	}
}

// dispatchLocked lets go as many callbacks as a destination can take, and asks for more to be read if it runs out.
func (q *queue) dispatchLocked(d *destination) {
	p, l := &q.parked, q.lanes[store.LaneDeliver]
	for {
		it, ok := d.ready.Peek(func(owner string, _ *item) bool { return d.dispatched < p.room(d.name, owner) })
		if !ok {
			break
		}
		if l.ready.Len() >= maxReady {
			p.pressed = true
			return
		}
		d.ready.Take()
		d.dispatched++
		it.from = d
		q.unkeepParked(d, it)
		q.enqueue(l, it)
	}
	if d.ready.Len() > 0 {
		return
	}
	for owner, g := range d.groups {
		if g.more && d.dispatched < p.room(d.name, owner) {
			store.Notify(q.wake)
			return
		}
	}
	for owner := range d.groups {
		p.forget(d, owner)
	}
	p.forget(d, "")
}

// unkeepParked counts an item out of those of its group.
func (q *queue) unkeepParked(d *destination, it *item) {
	if it.parked == "" {
		q.parked.awaiting--
	} else {
		q.parked.ready--
	}
	if it.loaded {
		q.readyBytes -= int64(it.size)
	}
	if g := d.groups[it.request.Owner]; g != nil {
		g.ready--
	}
}

// refillParked reads parked callbacks whose destination can take some, and returns when the next one becomes due.
func (q *queue) refillParked(ctx context.Context) (time.Time, error) {
	l := q.lanes[store.LaneDeliver]
	if l.capacity == 0 {
		return time.Time{}, nil
	}
	if err := q.listGroups(ctx); err != nil {
		return time.Time{}, err
	}
	if err := q.expireParked(ctx); err != nil {
		return time.Time{}, err
	}
	now := q.store.clock.now()
	q.mu.Lock()
	wanted, next := q.wantedGroups(now)
	q.mu.Unlock()
	if len(wanted) > 0 && q.refilling != nil {
		q.refilling(l.name)
	}
	var err error
	for i := 0; err == nil && i < len(wanted); i++ {
		err = q.refillGroup(ctx, wanted[i], now)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	l.gone = nil
	if len(wanted) == groupsPerLook {
		store.Notify(q.wake)
	}
	q.startLocked(l)
	return next, err
}

// wantedGroups returns groups to read from the index, and when the next row of any group becomes due. What was
// read for a destination that has since become unable to take it is let go of: others need the memory.
func (q *queue) wantedGroups(now time.Time) (wanted []groupKey, next time.Time) {
	p := &q.parked
	p.pressed = false
	for _, d := range p.destinations {
		for owner, g := range d.groups {
			room := p.room(d.name, owner)
			if room == 0 && g.ready > 0 {
				q.letGo(d, owner, g)
			}
			if !g.nextDue.IsZero() && !g.nextDue.After(now) {
				g.more, g.nextDue = true, time.Time{}
			}
			next = store.Sooner(next, g.nextDue)
			if g.more && g.ready == 0 && d.dispatched < room &&
				p.ready < store.MaxParked && len(wanted) < groupsPerLook {
				wanted = append(wanted, groupKey{d.name, owner})
			}
		}
		if d.ready.Len() > 0 {
			q.dispatchLocked(d)
		}
	}
	return wanted, next
}

// letGo drops what was read of a group. What waits without being parked is dispatched, so that its step parks it.
func (q *queue) letGo(d *destination, owner string, g *group) {
	l := q.lanes[store.LaneDeliver]
	for g.ready > 0 {
		d.ready.Remove(owner, func(it *item) bool {
			q.unkeepParked(d, it)
			if it.parked == "" {
				q.enqueue(l, it)
				return true
			}
			g.more = true
			l.drop(it.seq)
			return true
		})
	}
}

// refillGroup reads due rows of one group and dispatches what its destination can take.
func (q *queue) refillGroup(ctx context.Context, key groupKey, now time.Time) error {
	l := q.lanes[store.LaneDeliver]
	q.mu.Lock()
	most := groupBatch
	if sh := l.shares[key.owner]; sh != nil {
		most += sh.held
	}
	if g := q.parked.group(key); g != nil {
		g.more = false // set again by what is parked meanwhile
	}
	l.gone = map[int64]struct{}{} // what was committed before is as the index shows it
	q.mu.Unlock()
	seqs, next, err := q.store.dueParked(ctx, key, now, most)
	var items []*item
	more := false
	if err == nil {
		var wanted []int64
		wanted, more = q.notHeld(l, seqs, groupBatch)
		more = more || len(seqs) == most
		items, err = q.store.loadAll(ctx, l.name, now, wanted)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	g := q.parked.group(key)
	if g == nil {
		return err
	}
	d := q.parked.destinations[key.destination]
	g.more = g.more || more || err != nil
	g.nextDue = store.Sooner(g.nextDue, next)
	for _, it := range items {
		if l.taken(it.seq) {
			continue
		}
		q.keep(it)
		l.hold(it.seq, key.owner)
		g.ready++
		q.parked.ready++
		d.ready.Push(key.owner, 1, it)
	}
	q.dispatchLocked(d)
	q.parked.forget(d, key.owner)
	if err != nil {
		return fmt.Errorf("read callbacks parked for %s: %w", key.destination, err)
	}
	return nil
}

// listGroups looks for groups that are on disk and not listed, as many as there is room for.
func (q *queue) listGroups(ctx context.Context) error {
	p := &q.parked
	now := q.store.clock.now()
	q.mu.Lock()
	if !p.unlisted || !p.listed.IsZero() && time.Since(p.listed) < listInterval {
		q.mu.Unlock()
		return nil
	}
	p.unlisted, p.listed = false, time.Now()
	if p.groups >= maxGroups {
		p.makeRoom(now)
	}
	after := p.after
	q.mu.Unlock()
	heads, err := q.store.parkedGroups(ctx, after, maxGroups)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		p.unlisted = true
		return fmt.Errorf("list parked callbacks: %w", err)
	}
	// Not all of them yet, or not what comes before the place where this began.
	p.unlisted = p.unlisted || len(heads) == maxGroups || after != groupKey{}
	p.after = groupKey{}
	for _, head := range heads {
		g := p.group(head.groupKey)
		if g == nil {
			return nil
		}
		if head.due.After(now) {
			g.nextDue = store.Sooner(g.nextDue, head.due)
		} else {
			g.more = true
		}
		if len(heads) == maxGroups {
			p.after = head.groupKey
		}
	}
	return nil
}

// makeRoom drops groups that have nothing to do for a while; they are on disk, to be listed again.
func (p *parked) makeRoom(now time.Time) {
	for _, d := range p.destinations {
		for owner, g := range d.groups {
			later := g.nextDue.After(now.Add(listInterval)) && !g.more
			if g.ready == 0 && (later || p.room(d.name, owner) == 0) {
				g.more, g.nextDue, p.unlisted = false, time.Time{}, true
				p.forget(d, owner)
			}
		}
	}
}

// expireParked dispatches callbacks that are too old, whatever their destination can take.
func (q *queue) expireParked(ctx context.Context) error {
	p, l := &q.parked, q.lanes[store.LaneDeliver]
	if p.maxAge == 0 || time.Since(p.looked) < store.ExpireInterval(p.maxAge) && !p.looked.IsZero() {
		return nil
	}
	p.looked = time.Now()
	now := q.store.clock.now()
	q.expireAwaiting(now.Add(-p.maxAge))
	q.mu.Lock()
	l.gone = map[int64]struct{}{}
	q.mu.Unlock()
	seqs, err := q.store.oldParked(ctx, now.Add(-p.maxAge), store.MaxParked)
	if err != nil {
		return fmt.Errorf("look for parked callbacks that are too old: %w", err)
	}
	wanted, _ := q.notHeld(l, seqs, store.MaxParked)
	items, err := q.store.loadAll(ctx, l.name, now, wanted)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range items {
		if !l.taken(it.seq) {
			q.enqueue(l, it)
		}
	}
	l.gone = nil
	q.startLocked(l)
	return err
}

// expireAwaiting dispatches those that only wait in memory and whose work ended before a time.
func (q *queue) expireAwaiting(ended time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.parked.destinations {
		for owner := range d.groups {
			for d.ready.Remove(owner, func(it *item) bool {
				old := it.parked == "" && it.request.CompletedAt.Before(ended)
				if old {
					q.unkeepParked(d, it)
					q.enqueue(q.lanes[store.LaneDeliver], it)
				}
				return old
			}) {
				continue
			}
		}
	}
}
