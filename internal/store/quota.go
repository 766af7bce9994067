package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"tandem"
)

// The times of [quotas].
const (
	quotaAge   = 2 * time.Second        // a reading is used for this long, or for 20 times as long as it took
	quotaPause = 100 * time.Millisecond // at least, or 4 times as long as it took, between two readings
	quotaRead  = 10 * time.Second       // one reading takes at most
)

// used is what an owner has unfinished.
type used struct{ requests, bytes int64 }

func (u used) plus(v used) used { return used{u.requests + v.requests, u.bytes + v.bytes} }

func (u used) minus(v used) used { return used{u.requests - v.requests, u.bytes - v.bytes} }

// quotas bound what one owner may have unfinished. While all owners together have less than one may
// have, nothing is looked up. Beyond that an owner has what the last reading of the database found, and
// what this process has accepted since. Only a reading that began after a call of Accept can refuse it.
// With several nodes an owner may exceed its quota by what the others accept between two readings.
type quotas struct {
	limit      used         // of one owner; 0: none
	unfinished func() int64 // requests of all owners
	read       func(context.Context) (map[string]used, error)
	log        *slog.Logger

	reading chan struct{} // holds a token while somebody reads

	mu     sync.Mutex      // guards the fields below
	all    int64           // requests in flying
	flying map[string]used // :: owner → being accepted
	known  map[string]used // :: owner → unfinished when last read
	since  map[string]used // :: owner → being accepted when the last reading began, or accepted later
	next   map[string]used // :: owner → the same for the reading under way; nil: there is none
	began  time.Time       // the last reading; zero: there was none
	ready  time.Time       // when the next reading may begin
	due    time.Time       // when the next reading is due
}

func newQuotas(cfg Config, unfinished func() int64, read func(context.Context) (map[string]used, error)) *quotas {
	q := &quotas{
		limit: used{cfg.MaxPerOwner, cfg.MaxBytesPerOwner}, unfinished: unfinished, read: read, log: cfg.Log,
		reading: make(chan struct{}, 1), flying: map[string]used{}, since: map[string]used{},
	}
	if q.limit.requests >= cfg.MaxQueue {
		q.limit.requests = 0 // MaxQueue says the same
	}
	return q
}

// admit makes room for requests of one owner, or says why there is none. After nil the caller must call release.
func (q *quotas) admit(ctx context.Context, lane Lane, requests []*tandem.Request) error {
	if q.limit == (used{}) || len(requests) == 0 {
		return nil
	}
	owner, want, arrived := requests[0].Owner, sizeOf(requests), time.Now()
	for refreshed := false; ; refreshed = true {
		q.mu.Lock()
		first, stale := q.began.IsZero(), !q.due.After(arrived)
		var full error
		if q.limit.bytes == 0 && q.unfinished()+q.all+want.requests <= q.limit.requests {
			first, stale = false, false
		} else if !first {
			full = q.exceeded(owner, want)
		}
		switch {
		case full != nil && q.began.After(arrived):
			q.mu.Unlock()
			return full
		case full == nil && (refreshed || !stale):
			if lane != LaneNone { // work that its caller waits for is bounded by the slots
				q.add(owner, want)
			}
			q.mu.Unlock()
			return nil
		}
		q.mu.Unlock()
		if err := q.refresh(ctx, arrived, full != nil || first); err != nil {
			return err
		}
	}
}

// release says that Accept has returned: the requests are in the database, unless err says that they are not.
func (q *quotas) release(ctx context.Context, lane Lane, requests []*tandem.Request, err error) {
	if q.limit == (used{}) || len(requests) == 0 || lane == LaneNone {
		return
	}
	owner, had := requests[0].Owner, sizeOf(requests)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all -= had.requests
	if q.flying[owner] = q.flying[owner].minus(had); q.flying[owner] == (used{}) {
		delete(q.flying, owner)
	}
	if err == nil || errors.Is(err, ErrUnsure) || ctx.Err() != nil {
		return
	}
	if !q.began.IsZero() {
		q.since[owner] = q.since[owner].minus(had)
	}
	if q.next != nil {
		q.next[owner] = q.next[owner].minus(had)
	}
}

func (q *quotas) add(owner string, want used) {
	q.all += want.requests
	q.flying[owner] = q.flying[owner].plus(want)
	if !q.began.IsZero() {
		q.since[owner] = q.since[owner].plus(want)
	}
	if q.next != nil {
		q.next[owner] = q.next[owner].plus(want)
	}
}

// exceeded says whether an owner would have more than it may.
func (q *quotas) exceeded(owner string, want used) error {
	has := q.known[owner].plus(q.since[owner])
	who := "one API key"
	if tandem.KeyOf(owner) == "" {
		who = "one client"
	}
	switch sum := has.plus(want); {
	case q.limit.requests > 0 && sum.requests > q.limit.requests:
		return queueFull("of "+who, q.limit.requests, "max-queue-per-key")
	case q.limit.bytes > 0 && sum.bytes > q.limit.bytes:
		return &tandem.Error{
			Code: tandem.CodeQuotaExceeded,
			Message: fmt.Sprintf("unfinished requests of %s may hold %d bytes of data and results "+
				"(--max-bytes-per-key): they hold %d, and this would add %d; try again later",
				who, q.limit.bytes, has.bytes, want.bytes),
			RetryAfter: 5 * time.Second,
		}
	default:
		return nil
	}
}

// refresh reads what every owner has unfinished, unless somebody has begun to since the caller arrived. If
// somebody is about to, it waits for that only if the caller must know.
func (q *quotas) refresh(ctx context.Context, arrived time.Time, must bool) error {
	select {
	case q.reading <- struct{}{}:
	default:
		if !must {
			return nil
		}
		select {
		case q.reading <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer func() { <-q.reading }()
	q.mu.Lock()
	began, pause := q.began, time.Until(q.ready)
	q.mu.Unlock()
	if began.After(arrived) {
		return nil
	}
	if pause > 0 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	q.mu.Lock()
	q.next = maps.Clone(q.flying)
	q.mu.Unlock()
	began = time.Now()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), quotaRead) // others wait for it too
	defer cancel()
	known, err := q.read(bounded)
	if err != nil {
		q.log.Warn("cannot read what each API key has unfinished; using what was read before", "error", err)
	}
	now := time.Now()
	took := now.Sub(began)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil {
		q.known, q.since = known, q.next
	}
	q.next = nil
	q.began, q.ready, q.due = began, now.Add(max(quotaPause, 4*took)), now.Add(max(quotaAge, 20*took))
	return nil
}

func sizeOf(requests []*tandem.Request) used {
	size := used{requests: int64(len(requests))}
	for _, r := range requests {
		size.bytes += int64(len(r.Data))
	}
	return size
}

// queueFull is the error of Accept when there would be more unfinished requests than a flag allows.
func queueFull(whose string, limit int64, flag string) error {
	return &tandem.Error{
		Code: tandem.CodeQueueFull,
		Message: fmt.Sprintf("at most %d requests %s may be unfinished at a time (--%s); try again later",
			limit, whose, flag),
		RetryAfter: 5 * time.Second,
	}
}
