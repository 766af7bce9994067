package sqlite

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tandem"
	"tandem/internal/limit"
	"tandem/internal/store"
)

const (
	// maxReady bounds the jobs of a lane that wait in memory. What is more
	// stays in the index requests_queue, from which the lane is refilled.
	maxReady = 4096
	// minReady is how many of them an owner may have, however many owners there are.
	minReady = 4
	// maxReadyBytes bounds the data that waiting jobs hold in memory, all lanes
	// together. A job beyond it is read again when its turn comes.
	maxReadyBytes = 32 << 20
	// pressureCommits is over how many commits the requests that each accepts are averaged. At Pressing
	// jobs step back: those who ask are waiting, and those called back are not. Then a lane runs fewJobs
	// at once, until half of MaxQueue is used up. The average is a long one because callers who were
	// answered together ask again together: between two waves of them there are commits of jobs alone.
	pressureCommits = 32
	fewJobs         = 8
	// restFactor is for how many times as long as it took a lane does not read the
	// index again for what has become due. Thousands of jobs that it dispatches may wait for
	// a slow destination; their rows would be read for every one that comes due.
	restFactor = 4
	// burstPause is how long nothing is accepted when a burst is over.
	burstPause = 50 * time.Millisecond
)

// item is a request in a lane.
type item struct {
	seq     int64          // the row; known once it is committed
	request tandem.Request // as of its last commit; the id only unless loaded
	loaded  bool           // request is complete
	lane    store.Lane
	due     time.Time
	size    int          // bytes of data or result that the job will hold
	marked  bool         // the row says processing; the writer's
	parked  string       // the destination that the row waits for; "": none
	site    string       // where the callback goes, unless parked says so; "": not known
	from    *destination // where it is counted as dispatched; nil: nowhere
}

// lane is the part of the queue for one kind of slot.
type lane struct {
	name     store.Lane
	capacity int                // jobs that may run at once; 0 until Work
	running  int                // jobs dispatched and not yet committed
	ready    limit.Turns[*item] // due; at most maxReady and minReady for each owner
	shares   map[string]*share  // :: owner → what it has here; owners that have nothing are forgotten
	gone     map[int64]struct{} // seqs committed since refill began to read an owner or a group; nil: it does not
	unread   bool               // the index may hold due rows of owners that are not in shares
	nextDue  time.Time          // when the index holds the next row that is not yet due; zero: none known
	rested   time.Time          // the index is not read before for what has become due; monotonic

	// held are seqs in ready, running, or being committed into this lane: they must not be dispatched from
	// the index a second time.
	held map[int64]*share
}

// share is what one owner has in a lane.
type share struct {
	owner    string
	ready    int   // in ready
	running  int   // dispatched and not yet committed
	bytes    int64 // held by those
	held     int   // in held
	overflow bool  // the index holds due rows of this owner that are not in held
}

func newLane(name store.Lane) *lane {
	// unread: what is on disk is to be looked for.
	return &lane{name: name, shares: map[string]*share{}, held: map[int64]*share{}, unread: true}
}

// share returns what an owner has here. It is forgotten by drop.
func (l *lane) share(owner string) *share {
	sh := l.shares[owner]
	if sh == nil {
		sh = &share{owner: owner}
		l.shares[owner] = sh
	}
	return sh
}

// hold keeps a row from being dispatched from the index.
func (l *lane) hold(seq int64, owner string) {
	if _, held := l.held[seq]; held {
		return
	}
	sh := l.share(owner)
	sh.held++
	l.held[seq] = sh
}

// drop takes hold back.
func (l *lane) drop(seq int64) {
	sh, held := l.held[seq]
	if !held {
		return
	}
	delete(l.held, seq)
	sh.held--
	l.forget(sh)
}

// taken reports whether a row that was just read from the index is in held, or was committed meanwhile.
func (l *lane) taken(seq int64) bool {
	_, held := l.held[seq]
	_, gone := l.gone[seq]
	return held || gone
}

// forget lets go of an owner that has nothing here.
func (l *lane) forget(sh *share) {
	if sh.held == 0 && !sh.overflow {
		delete(l.shares, sh.owner)
	}
}

// maxReady is how many jobs of one owner may wait in memory.
func (l *lane) maxReady() int { return max(minReady, maxReady/(len(l.shares)+1)) }

// low reports whether an owner's jobs are to be read from the index.
func (l *lane) low(sh *share) bool { return sh.overflow && sh.ready <= l.maxReady()/4 }

// queue dispatches jobs. It lives in memory and may be lost at any moment: the
// index requests_queue is the truth, and refill reads it.
type queue struct {
	store *Store
	wake  chan struct{} // one token: look at what the index holds

	mu         sync.Mutex
	lanes      map[store.Lane]*lane
	step       store.Step // nil until Work
	budget     int64
	stopping   bool  // dispatch nothing more
	runBytes   int64 // held by running jobs
	readyBytes int64 // held by ready jobs
	parked     parked
	next       *lane          // its first job found too few bytes left and is the next to get some, or small ones would always be quicker; nil: none
	jobs       sync.WaitGroup // running jobs; Add under mu and not once stopping

	// Work's own: how many requests were accepted when it last saw a burst go on, and when that was.
	accepted   int64
	acceptedAt time.Time

	// a fault point, nil but in tests: called before the rows of owners are read from the index
	refilling func(store.Lane)
	committed func(id string, from store.Lane) // a fault point, nil but in tests: called between the commit of a result and handing its request on
}

func (q *queue) init(s *Store) {
	q.store = s
	q.wake = make(chan struct{}, 1)
	q.lanes = map[store.Lane]*lane{}
	for _, name := range store.Lanes {
		q.lanes[name] = newLane(name)
	}
}

// Work dispatches due jobs until ctx ends.
func (s *Store) Work(ctx context.Context, capacity store.Capacity, step store.Step) error {
	q := &s.queue
	q.mu.Lock()
	if q.step != nil {
		q.mu.Unlock()
		return fmt.Errorf("hand out work: already done by another call")
	}
	q.step, q.budget = step, capacity.Budget()
	for name, n := range capacity.Jobs {
		if l, ok := q.lanes[name]; ok {
			l.capacity = n
		}
	}
	q.parked.open(capacity)
	q.mu.Unlock()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		next, err := q.look(ctx)
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, store.ErrMoved) { // which the writer has logged
				s.cfg.Log.Error("refill the queue; trying again in a second", "error", err)
			}
			next = time.Time{}
		}
		wait := store.LookInterval
		if !next.IsZero() {
			wait = min(max(next.Sub(s.clock.now()), 0), store.LookInterval)
		}
		if q.inBurst() {
			wait = min(wait, burstPause)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-s.trimming:
			if err := s.trim(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("trim the in-memory database", "error", err)
			}
		case <-timer.C:
			if s.memory { // few large rows may be too much, too: the writer asks by their number
				store.Notify(s.trimming)
			}
		}
	}
	q.mu.Lock()
	q.stopping = true
	q.mu.Unlock()
	q.jobs.Wait()
	return nil
}

// push puts a committed item into its lane: to run now, to wait in memory, or
// to be found in the index later. It does not block.
func (q *queue) push(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pushLocked(it)
}

func (q *queue) pushLocked(it *item) {
	l := q.lanes[it.lane]
	if _, ok := l.held[it.seq]; ok {
		return // refill saw the row before us
	}
	now := q.store.clock.now()
	if it.parked != "" {
		q.parkLocked(it, now)
		return
	}
	if it.due.After(now) {
		if l.nextDue.IsZero() || it.due.Before(l.nextDue) {
			l.nextDue = it.due
			store.Notify(q.wake)
		}
		return
	}
	if it.site != "" && q.awaitLocked(it) {
		return
	}
	sh := l.share(it.request.Owner)
	if l.unread || sh.overflow || sh.ready >= l.maxReady() { // the index holds older ones: first come, first served
		sh.overflow = true
		return
	}
	q.enqueue(l, it)
	q.startLocked(l)
}

// enqueue appends to ready, with the data if memory allows.
func (q *queue) enqueue(l *lane, it *item) {
	q.keep(it)
	l.hold(it.seq, it.request.Owner)
	l.share(it.request.Owner).ready++
	l.ready.Push(it.request.Owner, 1+it.size/store.JobBytes, it)
}

// keep counts what an item that waits in memory holds, or has it read again when its turn comes.
func (q *queue) keep(it *item) {
	if it.loaded && q.readyBytes+int64(it.size) > maxReadyBytes {
		r := &it.request
		it.request, it.loaded = tandem.Request{ID: r.ID, Owner: r.Owner, CompletedAt: r.CompletedAt}, false
	}
	if it.loaded {
		q.readyBytes += int64(it.size)
	}
}

// startLocked starts as many ready jobs as capacity and memory allow.
func (q *queue) startLocked(l *lane) {
	capacity := q.allowed(l)
	for !q.stopping && l.running < capacity {
		it, ok := l.ready.Peek(func(owner string, it *item) bool {
			sh := l.shares[owner]
			return store.MayRun(l.capacity, l.running, sh.running) && store.MayHold(q.budget, q.runBytes, sh.bytes, int64(it.size))
		})
		if !ok || q.next != nil && q.next != l {
			break
		}
		if q.runBytes > 0 && q.runBytes+int64(it.size) > q.budget {
			q.next = l
			break
		}
		q.next = nil
		l.ready.Take()
		if it.loaded {
			q.readyBytes -= int64(it.size)
		}
		sh := l.shares[it.request.Owner]
		sh.ready--
		sh.running++
		sh.bytes += int64(it.size)
		l.running++
		q.runBytes += int64(it.size)
		q.jobs.Add(1)
		go q.run(l, it)
		if l.low(sh) {
			store.Notify(q.wake)
		}
	}
	if l.capacity > 0 && l.ready.Len() <= maxReady/4 && (l.unread || q.parked.pressed) {
		store.Notify(q.wake)
	}
}

func (q *queue) startAllLocked() {
	if q.next != nil {
		q.startLocked(q.next)
	}
	for _, l := range q.lanes {
		q.startLocked(l)
	}
}

// allowed is how many jobs of a lane may run now. A burst is accepted at the
// price of the work: at full load both get slower, and only one of them has
// somebody waiting. The fuller the queue, the less that holds.
func (q *queue) allowed(l *lane) int {
	if !q.inBurst() {
		return l.capacity
	}
	half := q.store.cfg.MaxQueue / 2
	over := max(q.store.counters.Unfinished()-half, 0)
	return min(max(fewJobs, int(int64(l.capacity)*over/max(half, 1))), l.capacity)
}

func (q *queue) inBurst() bool { return q.store.pressure.Load() >= store.Pressing*pressureCommits }

// endBurst lets jobs go on when nothing has been accepted for burstPause. The
// commits of the few that run cannot be waited for: they may take as long as a task may.
func (q *queue) endBurst() {
	if !q.inBurst() {
		return
	}
	now := time.Now()
	if n := q.store.counters.Accepted(tandem.ModeAsync); n != q.accepted {
		q.accepted, q.acceptedAt = n, now
	}
	if now.Sub(q.acceptedAt) < burstPause {
		return
	}
	q.store.pressure.Store(0)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.startAllLocked()
}

// run does one job and commits what came of it. Then, in one step, it gives back
// what the job held and hands its request on: between the two the index might hand it
// out as well.
func (q *queue) run(l *lane, it *item) {
	defer q.jobs.Done()
	size := it.size
	next, freed := q.job(l, it)
	if q.committed != nil {
		q.committed(it.request.ID, l.name)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	sh := l.shares[it.request.Owner]
	sh.running--
	sh.bytes -= int64(size)
	l.running--
	q.runBytes -= int64(size)
	l.drop(it.seq)
	if l.gone != nil {
		l.gone[it.seq] = struct{}{}
	}
	if next != nil {
		q.lanes[next.lane].drop(it.seq)
		q.pushLocked(next)
	}
	q.unparkLocked(it.from, freed)
	q.startAllLocked() // the bytes given back may let a job of another lane go
}

// job loads an item if need be, steps it and commits. It returns the item to
// dispatch next, held already in its lane, or nil if there is none, and which destinations may have room.
func (q *queue) job(l *lane, it *item) (next *item, freed [2]string) {
	s := q.store
	if !it.loaded {
		if found, err := s.load(it); err != nil {
			s.cfg.Log.Error("read a request to work on; it stays in the queue", "request_id", it.request.ID, "error", err)
			q.later(l)
			return nil, freed
		} else if !found {
			return nil, freed // settled since refill saw it
		}
	}
	job := store.Job{
		Lane: l.name, Request: it.request, Parked: it.parked,
		Started: func() {}, Answered: func() { q.answered(it) },
	}
	var mark *time.Timer
	marked := make(chan struct{})
	if l.name != store.LaneDeliver {
		job.Started = func() {
			started := time.Now()
			mark = time.AfterFunc(store.MarkDelay, func() {
				defer close(marked)
				_ = s.submit(context.Background(), &op{apply: func(tx *tx) error { return markProcessing(tx, it, started) }}) // refused at the very end only, when nobody looks
			})
		}
	}
	does := q.step(context.Background(), job)
	if mark != nil && !mark.Stop() {
		<-marked // it is in the writer's channel, ahead of what follows
	}
	t, err := does.Apply(&job)
	if err != nil {
		s.cfg.Log.Error("a job ended against the rules; it stays in the queue", "error", err)
		t, err = store.Release().Apply(&job)
		t.At = time.Now().Add(store.LookInterval)
	}
	if err != nil { // never: every job may be released
		q.later(l)
		return nil, freed
	}
	if t.Lane == store.LaneNone {
		q.settle(it, &t)
		return nil, t.Freed
	}
	site := ""
	if t.Outcome != nil && t.Destination != "" {
		site = t.Destination
		if q.mustPark(site, it.request.Owner) {
			t.Parked = site
		}
	}
	q.hold(t.Lane, it)
	if !q.settle(it, &t) {
		q.drop(t.Lane, it.seq)
		return nil, t.Freed
	}
	after := t.Request
	size := len(after.Data)
	if t.Lane == store.LaneDeliver {
		after.Data, size = nil, len(after.Result) // a callback carries the result alone
	}
	return &item{
		seq: it.seq, request: after, loaded: true, lane: t.Lane, due: it.due, size: size, parked: t.Parked, site: site,
	}, t.Freed
}

// answered lets the next callback go to a destination that has answered one.
func (q *queue) answered(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d := it.from; d != nil {
		it.from = nil
		q.unparkLocked(d, [2]string{})
		q.startLocked(q.lanes[store.LaneDeliver])
	}
}

// hold keeps the index from handing a request out in the lane that it is being
// committed into; drop takes it back.
func (q *queue) hold(name store.Lane, it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes[name].hold(it.seq, it.request.Owner)
}

func (q *queue) drop(name store.Lane, seq int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes[name].drop(seq)
}

// later has the lane look at its index again in a while, for a row that
// could not be worked on.
func (q *queue) later(l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at := q.store.clock.now().Add(store.LookInterval); l.nextDue.IsZero() || at.Before(l.nextDue) {
		l.nextDue = at
	}
	store.Notify(q.wake)
}

// settle commits a result, and tries again for as long as the database does
// not take it: giving up would do the work twice. It gives up when the store stops,
// and reports false also when there is nothing to settle any more.
func (q *queue) settle(it *item, t *store.Transition) bool {
	for tries := 0; ; tries++ {
		found := false
		err := q.store.do(context.Background(), func(tx *tx) (err error) {
			found, err = settle(tx, it, t)
			return err
		})
		if err == nil || errors.Is(err, store.ErrUnsure) { // ErrUnsure: it is committed, if the file comes back
			if !found {
				q.store.cfg.Log.Error("the row of a request was changed or deleted by somebody else while it was worked on", "request_id", t.Request.ID)
			}
			return found
		}
		q.mu.Lock()
		stopping := q.stopping
		q.mu.Unlock()
		if stopping && tries >= 3 {
			q.store.cfg.Log.Error("a result could not be kept; its request will run again after the next start", "request_id", t.Request.ID, "error", err)
			return false
		}
		pause := time.NewTimer(store.RetrySettle)
		<-pause.C
	}
}

// look brings forward what waits if the clock was set back, ends a burst, and
// refills the lanes. It returns when the next row becomes due, the zero time when none is known.
func (q *queue) look(ctx context.Context) (time.Time, error) {
	if q.store.clock.setBack() > 0 {
		if err := q.store.do(ctx, func(*tx) error { return nil }); err != nil { // every transaction begins with it
			return time.Time{}, fmt.Errorf("follow the clock: %w", err)
		}
	}
	q.endBurst()
	return q.refill(ctx)
}

// forget has all lanes look at the index again: its due times have changed.
func (q *queue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range q.lanes {
		l.unread, l.nextDue = true, time.Time{}
	}
	q.parked.unlisted = true
	store.Notify(q.wake)
}
