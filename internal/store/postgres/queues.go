package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tandem/internal/limit"
	"tandem/internal/store"
)

// A job's queue in River's table is its lane and its owner, "io|key_1"; of a parked callback it is its destination and
// its owner, "parked|https://example.com:443|key_1". A node fetches from each queue what its owner may have, so one
// owner's jobs never stand before another's, and parked ones stay where they are, without a write.

// queueOf is that name, in SQL, of a row with a lane, an owner and waits_for (empty or NULL: not parked).
const queueOf = `CASE
	WHEN coalesce(waits_for, '') <> '' THEN 'parked|' || waits_for || '|' || owner
	WHEN owner <> '' THEN lane || '|' || owner
	ELSE lane
END`

// queue is one queue of River's table.
type queue struct {
	lane        store.Lane
	destination string // of a parked one; else ""
	owner       string
}

// parseQueue reads the name of a queue; false: it is none of ours.
func parseQueue(name string) (queue, bool) {
	if rest, parked := strings.CutPrefix(name, "parked|"); parked {
		i := strings.LastIndexByte(rest, '|') // a path may have one, an owner has none
		if i < 0 {
			return queue{}, false
		}
		return queue{store.LaneDeliver, rest[:i], rest[i+1:]}, true
	}
	lane, owner, _ := strings.Cut(name, "|")
	q := queue{lane: store.Lane(lane), owner: owner}
	return q, slices.Contains(store.Lanes, q.lane)
}

func (q queue) name() string {
	switch {
	case q.destination != "":
		return "parked|" + q.destination + "|" + q.owner
	case q.owner != "":
		return string(q.lane) + "|" + q.owner
	default:
		return string(q.lane)
	}
}

const (
	// listFresh is for how long a list of queues is good enough for a fetch that finds all it asks for, listStale for
	// any: a queue that somebody else has begun is found by then.
	listFresh = time.Second
	listStale = 100 * time.Millisecond
	// maxQueues bounds the queues listed at a time. What is more is listed later, from where this list ended.
	maxQueues = 16_384
	// parkedFetch bounds the parked queues that one fetch asks, and parkedLook is how soon they are asked again.
	parkedFetch = 64
	parkedLook  = time.Second
	// listRest: after a list none is made for this many times as long as it took. While somebody keeps a
	// transaction open, a list steps over every job that there was since.
	listRest = 50
	// lateCommit is how long before a fetch a job may have become available that the fetch has not seen, because the
	// transaction that inserted it was under way. What took longer the next list finds.
	lateCommit = time.Second
)

// queues are the queues that this node knows of.
type queues struct {
	mu     sync.Mutex           // guards the fields below
	known  map[queue]*queueHead // as last listed, and what this node has put somewhere since
	parked map[string]bool      // destinations of those that are parked
	listed time.Time            // monotonic
	rested time.Time            // not listed before: it takes long; monotonic
	after  string               // where the next list begins: the last one was full
	next   int                  // which parked queues are the next to be asked
	look   time.Time            // before then a fetch comes that asks parked queues; monotonic
	short  map[store.Lane]bool  // :: lane → an owner was given less than it could have had, because it holds so much

	// since: no queue that is not known has anything available from before. By the clock of the database.
	since time.Time
}

// queueHead is what is known of a queue.
type queueHead struct {
	due   time.Time // when its first job is due, by our clock, as far as is known
	since time.Time // nothing is available from before: a fetch need not step over it; by the clock of the database
}

func newQueues() *queues {
	return &queues{known: map[queue]*queueHead{}, parked: map[string]bool{}, short: map[store.Lane]bool{}}
}

// sinceLocked is from when on a queue may have something available.
func (k *queues) sinceLocked(q queue) time.Time {
	if head := k.known[q]; head != nil {
		return head.since
	}
	return k.since
}

// lookAll forgets from when on queues may have something available: something has come that is from before.
func (k *queues) lookAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.since = time.Time{}
	for _, head := range k.known {
		head.since = time.Time{}
	}
}

// fetched notes what a fetch has shown. Of a queue that gave less than was asked for, nothing more was
// available at that moment of the database. whole: the fetch got as many jobs as it asked for in all.
func (k *queues) fetched(asked ask, items []*item, at time.Time, whole bool) {
	last, got := map[string]time.Time{}, map[string]int32{}
	for _, it := range items {
		name := it.queue.name()
		last[name], got[name] = it.due, got[name]+1 // they come in this order
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, name := range asked.names {
		since := at.Add(-lateCommit)
		if (whole || got[name] == asked.most[i]) && last[name].Before(since) {
			since = last[name] // zero: it got none, and there may be some
		}
		q, _ := parseQueue(name)
		head := k.known[q]
		if head == nil && q.owner == "" && q.destination == "" { // a lane's own queue
			head = &queueHead{since: k.since}
			k.known[q] = head
		}
		// If since is still what it was, nothing from before has come meanwhile.
		if head != nil && head.since.Equal(asked.since[i]) && since.After(head.since) {
			head.since = since
		}
	}
}

// ended reports whether the end of a job lets its lane be asked for more.
func (k *queues) ended(lane store.Lane) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	short := k.short[lane]
	k.short[lane] = false
	return short
}

// note remembers a queue that this node has put a job into, due after a while.
func (k *queues) note(q queue, delay time.Duration) {
	due := time.Now().Add(delay)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch head := k.known[q]; {
	case head != nil && due.Before(head.due):
		head.due = due
	case head == nil && len(k.known) < maxQueues:
		k.known[q] = &queueHead{due: due, since: k.since}
		if q.destination != "" {
			k.parked[q.destination] = true
		}
	}
}

// parkedFor reports whether callbacks may be parked for a destination.
func (k *queues) parkedFor(destination string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.parked[destination]
}

// old reports whether the list is older than is good enough.
func (k *queues) old(enough time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	return now.Sub(k.listed) > enough && now.After(k.rested)
}

// listQueues goes from queue to queue in River's index, so it costs the same however many jobs each has.
const listQueues = `
	WITH RECURSIVE queues AS (
		(
			SELECT queue, scheduled_at
			FROM river_job
			WHERE state = 'available' AND queue > $1
			ORDER BY queue, priority, scheduled_at, id
			LIMIT 1
		)
		UNION ALL
		SELECT following.queue, following.scheduled_at
		FROM queues
		CROSS JOIN LATERAL (
			SELECT queue, scheduled_at
			FROM river_job
			WHERE state = 'available' AND queue > queues.queue
			ORDER BY queue, priority, scheduled_at, id
			LIMIT 1
		) AS following
	)
	SELECT now(), queue, scheduled_at
	FROM (SELECT) AS always
	LEFT JOIN (SELECT * FROM queues LIMIT $2) AS listed ON true`

// list looks for queues that have jobs, at most maxQueues at a time.
func (s *Store) list(ctx context.Context, pool *pool) error {
	k := s.queues
	k.mu.Lock()
	after := k.after
	k.mu.Unlock()
	began := time.Now()
	rows, err := pool.Query(ctx, listQueues, after, maxQueues)
	if err != nil {
		return fmt.Errorf("list queues: %w", err)
	}
	known := map[queue]*queueHead{}
	var now time.Time
	var name pgtype.Text
	var due pgtype.Timestamptz
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&now, &name, &due}, func() error {
		if name.Valid {
			n++
		}
		if q, ours := parseQueue(name.String); ours && due.Valid {
			known[q] = &queueHead{due: began.Add(due.Time.Sub(now)), since: store.Sooner(now.Add(-lateCommit), due.Time)}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list queues: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for q, head := range k.known { // what was put there while we listed
		if _, listed := known[q]; !listed && head.due.After(began) && len(known) < 2*maxQueues {
			known[q] = head
		}
	}
	next, since := name.String, time.Time{}
	if n < maxQueues {
		next = ""
		if after == "" { // these are all
			since = now.Add(-lateCommit)
		}
	}
	k.known, k.after, k.since, k.listed = known, next, since, time.Now()
	clear(k.parked)
	for q := range known {
		if q.destination != "" {
			k.parked[q.destination] = true
		}
	}
	k.rested = k.listed.Add(listRest * k.listed.Sub(began))
	return nil
}

// oldestDue is when the job of some lanes became due that has waited longest, by our clock; zero: none waits. Parked
// callbacks do not count.
func (s *Store) oldestDue(ctx context.Context, lanes ...store.Lane) (oldest time.Time, err error) {
	k := s.queues
	if k.old(0) {
		if err := s.list(ctx, s.reads); err != nil {
			return oldest, err
		}
	}
	var a ask
	k.mu.Lock()
	for _, lane := range lanes {
		a.add(k, queue{lane: lane}, 1)
	}
	for q := range k.known {
		if q.destination == "" && q.owner != "" && slices.Contains(lanes, q.lane) {
			a.add(k, q, 1)
		}
	}
	k.mu.Unlock()
	var due pgtype.Timestamptz
	var now time.Time
	err = s.reads.QueryRow(ctx, `
		SELECT now(), min(due)
		FROM unnest($1::text[], $2::timestamptz[]) AS ask (name, since)
		CROSS JOIN LATERAL (
			SELECT scheduled_at AS due
			FROM river_job
			WHERE state = 'available' AND queue = ask.name AND priority = 1
			      AND scheduled_at >= ask.since AND scheduled_at <= now()
			ORDER BY scheduled_at
			LIMIT 1
		) AS first`, a.names, a.since).Scan(&now, &due)
	if err == nil && due.Valid {
		oldest = time.Now().Add(due.Time.Sub(now)) // the database's clock may differ
	}
	return oldest, err
}

// ask is from which queues to fetch, at most how many jobs from each, and from when on they may be available.
type ask struct {
	names []string
	most  []int32
	since []time.Time
}

// add is called with the lock of k.
func (a *ask) add(k *queues, q queue, most int) {
	a.names, a.most, a.since = append(a.names, q.name()), append(a.most, int32(most)), append(a.since, k.sinceLocked(q))
}

// asks shares out what may be fetched for a lane: of at most `most` jobs each owner may have half of what the others
// leave, and each destination as many parked callbacks as it can take. capacity is how many the node may hold.
func (s *Store) asks(lane store.Lane, capacity, most int) ask {
	k := s.queues
	k.mu.Lock()
	defer k.mu.Unlock()
	held, owners := s.held.of(lane)
	own := []queue{{lane: lane}} // always asked: the answer also says whether we were declared dead
	var parked []queue
	now := time.Now()
	for q, head := range k.known {
		switch {
		case q.lane != lane || head.due.After(now):
		case q.destination != "":
			parked = append(parked, q)
		case q.owner != "":
			own = append(own, q)
		}
	}
	var a ask
	for _, q := range own {
		room := limit.Share(capacity, held-owners[q.owner]) - owners[q.owner]
		if room < most {
			k.short[lane] = true
		}
		if room = min(room, most/len(own)+1); room > 0 {
			a.add(k, q, room)
		}
	}
	for i := range parked {
		if len(a.names) >= len(own)+parkedFetch {
			break
		}
		q := parked[(k.next+i)%len(parked)]
		if room := s.room(q.destination, q.owner) - s.held.at(q.destination); room > 0 {
			a.add(k, q, min(room, most))
		}
	}
	if len(parked) > 0 {
		k.next = (k.next + parkedFetch) % len(parked)
		if now.After(k.look) { // each fetch that planned one more would have it for ever
			k.look = now.Add(parkedLook)
			s.wakes.add(lane, parkedLook)
		}
	}
	return a
}

// room is Capacity.Room.
func (s *Store) room(destination, owner string) int {
	if room := s.capacity.Load().Room; room != nil {
		return room(destination, owner)
	}
	return store.MaxParked
}

// expireParked dispatches callbacks that are older than maxAge, whatever their destination can take.
func (s *Store) expireParked(ctx context.Context, maxAge time.Duration) error {
	var moved int64
	err := s.do(ctx, func(ctx context.Context, tx pgx.Tx, _ store.Deltas) error {
		tag, err := tx.Exec(ctx, `
			UPDATE river_job
			SET queue = 'deliver'
			WHERE state = 'available' AND queue <> 'deliver' AND id = ANY (ARRAY(
				SELECT job_id
				FROM requests
				WHERE waits_for IS NOT NULL AND completed_at < now() - $1::bigint * interval '1 microsecond'
				LIMIT $2))`, maxAge.Microseconds(), store.MaxParked)
		moved = tag.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("look for parked callbacks that are too old: %w", err)
	}
	if moved > 0 {
		s.queues.lookAll()
		s.wakes.add(store.LaneDeliver, 0)
	}
	return nil
}
