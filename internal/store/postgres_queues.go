package store

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
)

// A job's queue in River's table is its lane and its owner, "io|key_1"; of a parked callback it is its destination and
// its owner, "parked|https://example.com:443|key_1". A node fetches from each queue what its owner may have, so one
// owner's jobs never stand before another's, and parked ones stay where they are, without a write.

// queueOf is that name, in SQL, of what has a lane, an owner and waits_for (” or NULL: not parked).
const queueOf = `CASE
	WHEN coalesce(waits_for, '') <> '' THEN 'parked|' || waits_for || '|' || owner
	WHEN owner <> '' THEN lane || '|' || owner
	ELSE lane
END`

// pgQueue is one queue of River's table.
type pgQueue struct {
	lane        Lane
	destination string // of a parked one; else ""
	owner       string
}

// parseQueue reads the name of a queue; false: it is none of ours.
func parseQueue(name string) (pgQueue, bool) {
	if rest, parked := strings.CutPrefix(name, "parked|"); parked {
		i := strings.LastIndexByte(rest, '|') // a path may have one, an owner has none
		if i < 0 {
			return pgQueue{}, false
		}
		return pgQueue{LaneDeliver, rest[:i], rest[i+1:]}, true
	}
	lane, owner, _ := strings.Cut(name, "|")
	q := pgQueue{lane: Lane(lane), owner: owner}
	return q, slices.Contains(Lanes, q.lane)
}

func (q pgQueue) name() string {
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
)

// pgQueues are the queues that this node knows of.
type pgQueues struct {
	mu     sync.Mutex          // guards the fields below
	known  map[pgQueue]*pgHead // as last listed, and what this node has put somewhere since
	parked map[string]bool     // destinations of those that are parked
	listed time.Time           // monotonic
	rested time.Time           // not listed before: it takes long; monotonic
	after  string              // where the next list begins: the last one was full
	turn   int                 // which parked queues are the next to be asked
	short  map[Lane]bool       // :: lane → an owner was given less than it could have had, because it holds so much
}

// pgHead is what is known of a queue.
type pgHead struct {
	due time.Time // when its first job is due, by our clock, as far as is known
}

func newPgQueues() *pgQueues {
	return &pgQueues{known: map[pgQueue]*pgHead{}, parked: map[string]bool{}, short: map[Lane]bool{}}
}

// ended reports whether the end of a job lets its lane be asked for more.
func (k *pgQueues) ended(lane Lane) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	short := k.short[lane]
	k.short[lane] = false
	return short
}

// note remembers a queue that this node has put a job into, due after a while.
func (k *pgQueues) note(q pgQueue, delay time.Duration) {
	due := time.Now().Add(delay)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch head := k.known[q]; {
	case head != nil && due.Before(head.due):
		head.due = due
	case head == nil && len(k.known) < maxQueues:
		k.known[q] = &pgHead{due: due}
		if q.destination != "" {
			k.parked[q.destination] = true
		}
	}
}

// parkedFor reports whether callbacks may be parked for a destination.
func (k *pgQueues) parkedFor(destination string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.parked[destination]
}

// old reports whether the list is older than is good enough.
func (k *pgQueues) old(enough time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	return now.Sub(k.listed) > enough && now.After(k.rested)
}

// listQueues goes from queue to queue in River's index, so it costs the same however many jobs each has.
const listQueues = `
	WITH RECURSIVE queues (name) AS (
		(SELECT queue FROM river_job WHERE state = 'available' AND queue > $1 ORDER BY queue LIMIT 1)
		UNION ALL
		SELECT (SELECT queue FROM river_job WHERE state = 'available' AND queue > name ORDER BY queue LIMIT 1)
		FROM queues
		WHERE name IS NOT NULL
	)
	SELECT name, now(), (
		SELECT scheduled_at FROM river_job
		WHERE state = 'available' AND queue = name AND priority = 1
		ORDER BY scheduled_at
		LIMIT 1
	)
	FROM queues
	WHERE name IS NOT NULL
	LIMIT $2`

// eachQueue calls f with every queue that has a job and how long it is until the first is due, at most maxQueues
// after a name. It returns the name to go on after, "" at the end.
func eachQueue(ctx context.Context, on interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, after string, f func(q pgQueue, wait time.Duration)) (next string, err error) {
	rows, err := on.Query(ctx, listQueues, after, maxQueues)
	if err != nil {
		return "", err
	}
	var name string
	var now, due pgtype.Timestamptz
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&name, &now, &due}, func() error {
		n++
		if q, ours := parseQueue(name); ours && due.Valid {
			f(q, due.Time.Sub(now.Time))
		}
		return nil
	})
	if n < maxQueues {
		name = ""
	}
	return name, err
}

// list looks for queues that have jobs.
func (s *Postgres) list(ctx context.Context) error {
	k := s.queues
	k.mu.Lock()
	after := k.after
	k.mu.Unlock()
	began := time.Now()
	known := map[pgQueue]*pgHead{}
	next, err := eachQueue(ctx, s.pool, after, func(q pgQueue, wait time.Duration) {
		known[q] = &pgHead{due: began.Add(wait)}
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
	k.known, k.after, k.listed = known, next, time.Now()
	clear(k.parked)
	for q := range known {
		if q.destination != "" {
			k.parked[q.destination] = true
		}
	}
	k.rested = k.listed.Add(10 * k.listed.Sub(began))
	return nil
}

// ask is from which queues to fetch, and at most how many jobs from each.
type ask struct {
	names []string
	most  []int32
}

// asks shares out what may be fetched for a lane: of at most `most` jobs each owner may have half of what the others
// leave, and each destination as many parked callbacks as it can take. capacity is how many the node may hold.
func (s *Postgres) asks(lane Lane, capacity, most int) ask {
	k := s.queues
	k.mu.Lock()
	defer k.mu.Unlock()
	held, owners := s.held.of(lane)
	own := []pgQueue{{lane: lane}} // always asked: the answer also says whether we are taken for dead
	var parked []pgQueue
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
			a.names, a.most = append(a.names, q.name()), append(a.most, int32(room))
		}
	}
	for i := range parked {
		if len(a.names) >= len(own)+parkedFetch {
			break
		}
		q := parked[(k.turn+i)%len(parked)]
		if room := s.room(q.destination, q.owner) - s.held.at(q.destination); room > 0 {
			a.names, a.most = append(a.names, q.name()), append(a.most, int32(min(room, most)))
		}
	}
	if len(parked) > 0 {
		k.turn = (k.turn + parkedFetch) % len(parked)
		s.wakes.add(lane, parkedLook)
	}
	return a
}

// room is Capacity.Room.
func (s *Postgres) room(destination, owner string) int {
	if room := s.capacity.Load().Room; room != nil {
		return room(destination, owner)
	}
	return maxParkedReady
}

// expireParked dispatches callbacks that are older than maxAge, whatever their destination can take.
func (s *Postgres) expireParked(ctx context.Context, maxAge time.Duration) error {
	var moved int64
	err := s.do(ctx, func(ctx context.Context, tx pgx.Tx, _ map[string]int64) error {
		tag, err := tx.Exec(ctx, `
			UPDATE river_job
			SET queue = 'deliver'
			WHERE state = 'available' AND queue <> 'deliver' AND id = ANY (ARRAY(
				SELECT job_id
				FROM requests
				WHERE waits_for IS NOT NULL AND completed_at < now() - $1::bigint * interval '1 microsecond'
				LIMIT $2))`, maxAge.Microseconds(), maxParkedReady)
		moved = tag.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("look for parked callbacks that are too old: %w", err)
	}
	if moved > 0 {
		s.wakes.add(LaneDeliver, 0)
	}
	return nil
}
