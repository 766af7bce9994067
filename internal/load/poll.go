package load

import (
	"context"
	"sync"
	"time"

	"tandem"
)

const (
	pollPace   = 50 * time.Millisecond // between two polls: at most 20 a second
	pollAgain  = 500 * time.Millisecond
	maxWatched = 100_000 // polled requests; more than that are missing
)

// pollBase is the address for callbacks when nobody can call us: RFC 6761 promises no address for its name.
const pollBase = "https://tandem-load.invalid/"

// poller looks for results where no callback can reach the run. It asks for one request at a
// time, at a polite pace, and not before the service says it is worth while.
type poller struct {
	mu      sync.Mutex // guards waiting
	waiting []watched  // in the order of their polls
	more    chan struct{}
}

// watched is a polled request.
type watched struct {
	number  uint64
	id      string
	planned time.Duration // on the clock of the run
	due     time.Duration // not to be asked for before
}

func newPoller() *poller { return &poller{more: make(chan struct{}, 1)} }

// add queues a request for polling.
func (l *poller) add(w watched) {
	l.mu.Lock()
	if len(l.waiting) < maxWatched {
		l.waiting = append(l.waiting, w)
	}
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// next takes the next request to poll.
func (l *poller) next() (watched, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return watched{}, false
	}
	first := l.waiting[0]
	l.waiting = l.waiting[1:]
	return first, true
}

// run polls until ctx ends, and drops the rest.
func (l *poller) run(ctx context.Context, p *running) {
	defer func() {
		l.mu.Lock()
		l.waiting = nil
		l.mu.Unlock()
	}()
	r := p.run
	for {
		w, ok := l.next()
		if !ok {
			select {
			case <-l.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !pause(ctx, max(pollPace, w.due-r.now())) {
			return
		}
		found, again, err := r.service.lookup(ctx, w.id)
		now := r.now()
		switch found.Status {
		case tandem.StatusCompleted, tandem.StatusCallbackSent, tandem.StatusCallbackFailed, tandem.StatusFailed:
			r.inbox.polled(w.number, landing{
				at: now, endToEnd: now - w.planned,
				processing: time.Duration(found.ProcessingTimeMS * float64(time.Millisecond)),
				failed:     found.Status == tandem.StatusFailed,
			})
		default:
			w.due = now + max(again, pollAgain)
			l.add(w)
		}
		// After a refused poll it pauses.
		if err != nil && again > 0 && !pause(ctx, min(again, maxHeeded)) {
			return
		}
	}
}
