package egress

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"tandem/internal/limit"
)

// The times of a [PutOff].
const (
	minPutOff   = 100 * time.Millisecond // behind a busy destination
	maxPutOff   = 30 * time.Second       // the estimate for a busy destination is not trusted beyond
	probePutOff = time.Second            // while a probe is out
	openJitter  = 2 * time.Second        // after an open breaker's retry time
	maxSpread   = time.Minute            // calls put off one after the other are spread over at most this
)

// destination is one host and port. The client's mu guards its fields, not the breaker.
type destination struct {
	key      string // host:port
	breaker  *limit.Breaker
	inFlight int           // places given out; at most Config.HostConcurrency
	queue    list.List     // of *waiter, the longest waiting in front
	average  time.Duration // moving average of an exchange; 0: none yet
	moved    time.Time     // when a place was last given back, or was first given out

	// The schedule of calls that are put off; it starts anew when the reason changes.
	returnAt  time.Time // when the next one may come back, at the earliest
	returnWhy error     // why the last one was put off
}

// waiter is a call of Reserve that waits.
type waiter struct {
	granted chan grant // has room for the one grant it gets
}

// grant is a place, or the error that Reserve returns instead.
type grant struct {
	report func(limit.Report)
	err    error
}

// PutOff says to come back later; no attempt was made.
type PutOff struct {
	Until  time.Time // not before
	Reason string    // for the log
}

// Error says until when.
func (p *PutOff) Error() string {
	return fmt.Sprintf("put off until %s: %s", p.Until.UTC().Format(time.RFC3339Nano), p.Reason)
}

// Place is the right to make one exchange. Call Post or Release, once. It belongs
// to the goroutine that reserved it.
type Place struct {
	client  *Client
	target  target
	refused error // what Check says of the URL now; then there is no destination
	dest    *destination
	report  func(limit.Report)
	over    bool // given back
}

// Reserve waits for a place at the destination of rawURL, first come, first
// served. It returns a *PutOff when waiting here is not worth it: the breaker is open or
// half-open with its probe out, or too many wait already. It returns ctx's cause when
// ctx ends.
//
// One destination may hold at most half of the waiting places that are still free, so
// that a slow one never takes them all. A URL that Check would refuse by now gets a
// place at once, and Post says blocked.
func (c *Client) Reserve(ctx context.Context, rawURL string) (*Place, error) {
	place := &Place{client: c}
	place.target, place.refused = c.parse(rawURL)
	if place.refused != nil {
		return place, nil //nolint:nilerr // Post says it, as an outcome
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}

	c.mu.Lock()
	key := place.target.key()
	d, held := c.holdLocked(key)
	if !held {
		c.mu.Unlock()
		return nil, &PutOff{Until: time.Now().Add(probePutOff + rand.N(probePutOff)), Reason: "every destination remembered is in use"}
	}
	place.dest = d
	if d.inFlight < c.cfg.HostConcurrency { // then nobody waits: takeBackLocked sees to that
		g := c.grantLocked(d)
		c.mu.Unlock()
		place.report = g.report
		return place.orError(g.err)
	}
	if err := c.mayWaitLocked(d); err != nil {
		c.destinations.Release(d.key)
		c.mu.Unlock()
		return nil, err
	}
	w := &waiter{granted: make(chan grant, 1)}
	element := d.queue.PushBack(w)
	c.waiting++
	c.mu.Unlock()

	select {
	case g := <-w.granted:
		place.report = g.report
		return place.orError(g.err)
	case <-ctx.Done():
		c.leave(d, w, element)
		return nil, context.Cause(ctx)
	}
}

// orError returns the place if there is no error.
func (p *Place) orError(err error) (*Place, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Release gives the place back unused. It does nothing after Post or Release.
func (p *Place) Release() { p.giveBack(limit.Excluded, 0) }

// giveBack ends the place and lets those that wait go on.
func (p *Place) giveBack(report limit.Report, took time.Duration) {
	if p.over {
		return
	}
	p.over = true
	if p.dest == nil {
		return
	}
	c, d := p.client, p.dest
	c.mu.Lock()
	defer c.mu.Unlock()
	if report != limit.Excluded {
		// Weight 1/8: follows a change within some ten exchanges.
		if d.average == 0 {
			d.average = took
		}
		d.average += (took - d.average) / 8
	}
	c.takeBackLocked(d, p.report, report)
}

// grantLocked takes a free place of d, which the caller holds in the table, or says
// why there is none; then the caller's hold is released.
func (c *Client) grantLocked(d *destination) grant {
	report, err := d.breaker.Allow()
	if err != nil {
		c.destinations.Release(d.key)
		return grant{err: c.putOffLocked(d, err)}
	}
	if d.inFlight == 0 {
		d.moved = time.Now()
	}
	d.inFlight++
	return grant{report: report}
}

// takeBackLocked frees a place and wakes those that wait for it. When the report
// opened the breaker, all that wait are put off.
func (c *Client) takeBackLocked(d *destination, tell func(limit.Report), report limit.Report) {
	tell(report)
	d.inFlight--
	d.moved = time.Now()
	c.destinations.Release(d.key)
	for d.queue.Len() > 0 && d.inFlight < c.cfg.HostConcurrency {
		w := d.queue.Remove(d.queue.Front()).(*waiter)
		c.waiting--
		w.granted <- c.grantLocked(d)
	}
}

// leave takes a call whose ctx ended out of the queue, or gives back what it was
// granted in the same moment.
func (c *Client) leave(d *destination, w *waiter, element *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case g := <-w.granted:
		if g.err == nil {
			c.takeBackLocked(d, g.report, limit.Excluded)
		}
	default:
		d.queue.Remove(element)
		c.waiting--
		c.destinations.Release(d.key)
	}
}

// mayWaitLocked returns nil or the *PutOff of a call that finds every place of d taken.
func (c *Client) mayWaitLocked(d *destination) error {
	switch d.breaker.Status().State {
	case limit.StateOpen:
		return c.putOffLocked(d, limit.ErrOpen)
	case limit.StateHalfOpen:
		return c.putOffLocked(d, limit.ErrProbing)
	case limit.StateClosed:
	}
	free := c.cfg.MaxWaiting - c.waiting
	if free < 1 || d.queue.Len() >= max(1, free/2) {
		return c.putOffLocked(d, errBusy)
	}
	return nil
}

// errBusy is why a call is put off although the breaker is closed.
var errBusy = errors.New("too many calls wait for this destination")

// putOffLocked says when a call may come back to d. Calls that are put off one after
// the other come back one after the other, at twice the pace that the destination
// has shown: if all came back at once, all but a few would only be put off again.
func (c *Client) putOffLocked(d *destination, reason error) *PutOff {
	now := time.Now()
	pace := d.average / time.Duration(2*c.cfg.HostConcurrency)
	var first time.Time
	var jitter time.Duration
	switch {
	case errors.Is(reason, limit.ErrOpen):
		// Never before the breaker would let a probe pass.
		first, jitter = d.breaker.Status().RetryAt.Add(time.Millisecond), openJitter
		pace = max(pace, time.Millisecond)
	case errors.Is(reason, limit.ErrProbing):
		first, jitter = now.Add(probePutOff), probePutOff
		pace = max(pace, time.Millisecond)
	default:
		wait := time.Duration(d.queue.Len()) * d.average / time.Duration(c.cfg.HostConcurrency)
		wait = max(wait, now.Sub(d.moved)) // one that hangs from the start has no average to go by
		wait = min(max(wait, minPutOff), maxPutOff)
		first, jitter = now.Add(wait), wait/4
	}
	if !errors.Is(reason, d.returnWhy) {
		d.returnAt, d.returnWhy = time.Time{}, reason
	}
	at := first
	if d.returnAt.After(first) {
		at = d.returnAt
	}
	if at.Sub(first) > maxSpread {
		at = first.Add(rand.N(maxSpread))
	} else {
		d.returnAt = at.Add(pace)
	}
	return &PutOff{Until: at.Add(rand.N(jitter)), Reason: reason.Error()}
}

// Destination is what is known of one host and port.
type Destination struct {
	Host         string    // lower-case host:port
	State        string    // closed, half-open or open
	FailureCount int       // failures in a row
	LastFailure  time.Time // zero: none remembered
	RetryAt      time.Time // when an open breaker lets a probe pass; zero unless open
	InFlight     int       // exchanges now
	Waiting      int       // calls waiting for a place
}

// Breakers counts the destinations remembered by the state of their breaker,
// every state included.
func (c *Client) Breakers() map[string]int {
	count := map[string]int{string(limit.StateClosed): 0, string(limit.StateHalfOpen): 0, string(limit.StateOpen): 0}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.destinations.All() {
		count[string(d.breaker.Status().State)]++
	}
	return count
}

// Found returns at most limit destinations that the client has found failing itself: their breaker is open, and
// nobody has told so.
func (c *Client) Found(limit int) []Destination {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Destination
	for key, d := range c.destinations.All() {
		until := d.breaker.OpenUntil()
		if until.IsZero() {
			continue
		}
		if len(found) == limit {
			break
		}
		status := d.breaker.Status()
		found = append(found, Destination{
			Host: key, State: string(status.State), FailureCount: status.Failures, LastFailure: status.LastFailure, RetryAt: until,
		})
	}
	return found
}

// Learn takes over that somebody else has found a destination failing: its breaker is open until the same moment.
func (c *Client) Learn(d Destination) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, held := c.holdLocked(d.Host)
	if !held {
		return
	}
	known.breaker.Open(d.RetryAt, d.FailureCount, d.LastFailure)
	c.destinations.Release(d.Host)
}

// holdLocked returns a destination, which is in the table until it is released; false: there is no room for it.
func (c *Client) holdLocked(key string) (*destination, bool) {
	return c.destinations.Hold(key, func() *destination {
		return &destination{key: key, breaker: limit.NewBreaker(c.cfg.BreakerFailures, c.cfg.BreakerOpen)}
	})
}

// Destinations returns at most limit destinations, those with failures first,
// then those in use, then the most recently used.
func (c *Client) Destinations(limit int) []Destination {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failing, well []Destination
	for key, d := range c.destinations.All() {
		status := d.breaker.Status()
		seen := Destination{
			Host: key, State: string(status.State), FailureCount: status.Failures, LastFailure: status.LastFailure,
			RetryAt: status.RetryAt, InFlight: d.inFlight, Waiting: d.queue.Len(),
		}
		switch {
		case status.Failures > 0 && len(failing) < limit:
			failing = append(failing, seen)
		case status.Failures == 0 && len(well) < limit:
			well = append(well, seen)
		}
	}
	all := slices.Concat(failing, well)
	return all[:min(max(limit, 0), len(all))]
}
