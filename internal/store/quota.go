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

// Used is what an owner has unfinished.
type Used struct{ Requests, Bytes int64 }

// Plus is the sum of both.
func (u Used) Plus(v Used) Used { return Used{u.Requests + v.Requests, u.Bytes + v.Bytes} }

func (u Used) minus(v Used) Used { return Used{u.Requests - v.Requests, u.Bytes - v.Bytes} }

// Quotas bound what one owner may have unfinished. While all owners together have less than one may
// have, nothing is looked up. Beyond that an owner has what the last reading of the database found, and
// what this process has accepted since. Only a reading that began after a call of Accept can refuse it.
// With several nodes an owner may exceed its quota by what the others accept between two readings.
type Quotas struct {
	limit      Used         // of one owner; 0: none
	unfinished func() int64 // requests of all owners
	read       func(context.Context) (map[string]Used, error)
	log        *slog.Logger

	reading chan struct{} // holds a token while somebody reads

	mu     sync.Mutex      // guards the fields below
	all    int64           // requests in flying
	flying map[string]Used // :: owner → being accepted
	known  map[string]Used // :: owner → unfinished when last read
	since  map[string]Used // :: owner → being accepted when the last reading began, or accepted later
	next   map[string]Used // :: owner → the same for the reading under way; nil: there is none
	began  time.Time       // the last reading; zero: there was none
	ready  time.Time       // when the next reading may begin
	due    time.Time       // when the next reading is due
}

// NewQuotas go by how many requests of all owners are unfinished, and by what read returns of each.
func NewQuotas(cfg Config, unfinished func() int64, read func(context.Context) (map[string]Used, error)) *Quotas {
	q := &Quotas{
		limit: Used{cfg.MaxPerOwner, cfg.MaxBytesPerOwner}, unfinished: unfinished, read: read, log: cfg.Log,
		reading: make(chan struct{}, 1), flying: map[string]Used{}, since: map[string]Used{},
	}
	if q.limit.Requests >= cfg.MaxQueue {
		q.limit.Requests = 0 // MaxQueue says the same
	}
	return q
}

// Admit makes room for requests of one owner, or says why there is none. After nil the caller must call release.
func (q *Quotas) Admit(ctx context.Context, lane Lane, requests []*tandem.Request) error {
	if q.limit == (Used{}) || len(requests) == 0 {
		return nil
	}
	owner, want, arrived := requests[0].Owner, sizeOf(requests), time.Now()
	for refreshed := false; ; refreshed = true {
		q.mu.Lock()
		first, stale := q.began.IsZero(), !q.due.After(arrived)
		var full error
		if q.limit.Bytes == 0 && q.unfinished()+q.all+want.Requests <= q.limit.Requests {
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

// Release says that Accept has returned: the requests are in the database, unless err says that they are not.
func (q *Quotas) Release(ctx context.Context, lane Lane, requests []*tandem.Request, err error) {
	if q.limit == (Used{}) || len(requests) == 0 || lane == LaneNone {
		return
	}
	owner, had := requests[0].Owner, sizeOf(requests)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all -= had.Requests
	if q.flying[owner] = q.flying[owner].minus(had); q.flying[owner] == (Used{}) {
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

func (q *Quotas) add(owner string, want Used) {
	q.all += want.Requests
	q.flying[owner] = q.flying[owner].Plus(want)
	if !q.began.IsZero() {
		q.since[owner] = q.since[owner].Plus(want)
	}
	if q.next != nil {
		q.next[owner] = q.next[owner].Plus(want)
	}
}

// exceeded says whether an owner would have more than it may.
func (q *Quotas) exceeded(owner string, want Used) error {
	has := q.known[owner].Plus(q.since[owner])
	who := "one API key"
	if tandem.KeyOf(owner) == "" {
		who = "one client"
	}
	switch sum := has.Plus(want); {
	case q.limit.Requests > 0 && sum.Requests > q.limit.Requests:
		return QueueFull("of "+who, q.limit.Requests, "max-queue-per-key")
	case q.limit.Bytes > 0 && sum.Bytes > q.limit.Bytes:
		return &tandem.Error{
			Code: tandem.CodeQuotaExceeded,
			Message: fmt.Sprintf("unfinished requests of %s may hold %d bytes of data and results "+
				"(--max-bytes-per-key): they hold %d, and this would add %d; try again later",
				who, q.limit.Bytes, has.Bytes, want.Bytes),
			RetryAfter: 5 * time.Second,
		}
	default:
		return nil
	}
}

// refresh reads what every owner has unfinished, unless somebody has begun to since the caller arrived. If
// somebody is about to, it waits for that only if the caller must know.
func (q *Quotas) refresh(ctx context.Context, arrived time.Time, must bool) error {
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

func sizeOf(requests []*tandem.Request) Used {
	size := Used{Requests: int64(len(requests))}
	for _, r := range requests {
		size.Bytes += int64(len(r.Data))
	}
	return size
}

// QueueFull is the error of Accept when there would be more unfinished requests than a flag allows.
func QueueFull(whose string, limit int64, flag string) error {
	return &tandem.Error{
		Code: tandem.CodeQueueFull,
		Message: fmt.Sprintf("at most %d requests %s may be unfinished at a time (--%s); try again later",
			limit, whose, flag),
		RetryAfter: 5 * time.Second,
	}
}
