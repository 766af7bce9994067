package egress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"tandem"
	"tandem/internal/limit"
)

// The times of a [PutOff].
const (
	minPutOff   = 100 * time.Millisecond // behind a busy destination
	maxPutOff   = 30 * time.Second       // the estimate for a busy destination is not trusted beyond
	probePutOff = time.Second            // while a probe is out
	openJitter  = 2 * time.Second        // after an open breaker's retry time
	warnOutage  = time.Minute            // between two warnings that a destination has started to fail
	maxSpread   = time.Minute            // calls rescheduled one after the other are spread over at most this
)

// destination is a site that calls go to. The client's mu guards its fields.
type destination struct {
	site     Site
	host     *circuit             // opened when there is no connection, no TLS or no answer
	trouble  *circuit             // opened by trouble of our own
	turns    turns                // who may probe host
	answered time.Time            // when it last gave any answer; zero: never
	inFlight int                  // places given out; at most Config.HostConcurrency
	queue    limit.Turns[*waiter] // by owner
	average  time.Duration        // moving average of an exchange; 0: none yet
	moved    time.Time            // when a place was last given back, or was first given out
	busy     schedule             // of calls that find too many waiting
	failing  time.Time            // since when nothing has been delivered, as logged; zero: not logged
	warned   time.Time            // when the log last said so
}

// waiter is a call of Reserve that waits.
type waiter struct {
	receiver Receiver
	granted  chan grant // has room for the one grant it gets
}

// grant is a place, or the error that Reserve returns instead.
type grant struct {
	passes [circuits]limit.Pass
	err    error
}

// PutOff says to come back later; no attempt was made.
type PutOff struct {
	Until       time.Time // not before
	Reason      string    // for the log
	Destination string    // what holds the call back, as [Client.Room] takes it; "": the table of destinations is full
	Held        bool      // there is no Room at Destination: the call need not come back before there is
}

// Error says until when.
func (p *PutOff) Error() string {
	return fmt.Sprintf("put off until %s: %s", p.Until.UTC().Format(time.RFC3339Nano), p.Reason)
}

// Place is the right to make one exchange. Call Post or Release, once. It belongs to the goroutine that reserved it.
type Place struct {
	client   *Client
	target   *target // shared, not to be changed; nil if refused
	receiver Receiver
	refused  error // what Check says of the URL now; then there is no destination
	dest     *destination
	passes   [circuits]limit.Pass
	over     bool // given back
}

// Reserve waits for a place at the destination of rawURL. owner is who the call is made for (tandem.Request.Owner).
// Owners take turns, and the calls of one are served in order. Reserve returns a *PutOff when waiting is not worth it:
// a breaker is open or half-open with its probe out, or too many wait already. It returns ctx's cause when ctx ends.
//
// One destination may hold at most half of the waiting places that are still free, and one for each owner, so that a
// slow one never takes them all. A URL that Check would refuse now gets a place at once, and Post returns
// OutcomeBlocked.
func (c *Client) Reserve(ctx context.Context, rawURL, owner string) (*Place, error) {
	place := &Place{client: c}
	place.target, place.refused = c.parse(rawURL)
	if place.refused != nil {
		return place, nil //nolint:nilerr // Post says it, as an outcome
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	place.receiver = place.target.receiver(owner)

	c.mu.Lock()
	d, held := c.holdLocked(place.receiver.Site)
	if !held {
		c.mu.Unlock()
		until := time.Now().Add(probePutOff + rand.N(probePutOff))
		return nil, &PutOff{Until: until, Reason: "every destination remembered is in use"}
	}
	place.dest = d
	if d.inFlight < c.cfg.HostConcurrency { // then nobody waits: takeBackLocked sees to that
		g := c.grantLocked(d, place.receiver)
		c.mu.Unlock()
		return place.granted(g)
	}
	if err := c.mayWaitLocked(d, place.receiver); err != nil {
		c.destinations.Release(d.site)
		c.mu.Unlock()
		return nil, err
	}
	w := &waiter{receiver: place.receiver, granted: make(chan grant, 1)}
	d.queue.Push(owner, 1, w)
	c.waiting++
	c.mu.Unlock()

	select {
	case g := <-w.granted:
		return place.granted(g)
	case <-ctx.Done():
		c.leave(place, w)
		return nil, context.Cause(ctx)
	}
}

// granted returns the place with its passes, or the error.
func (p *Place) granted(g grant) (*Place, error) {
	if g.err != nil {
		return nil, g.err
	}
	p.passes = g.passes
	return p, nil
}

// Destinations are what may have room after the exchange, as [Client.Room] takes them: the site and the path of the
// owner's calls. They are "" if the URL is refused.
func (p *Place) Destinations() (site, path string) {
	if p.dest == nil {
		return "", ""
	}
	site = p.receiver.String()
	return site, site + p.receiver.Path
}

// Release gives the place back unused. It does nothing after Post or Release.
func (p *Place) Release() { p.giveBack(&Result{}) }

// giveBack ends the place and grants it to waiting calls. It sets PutOff of a result that uses up no attempt.
func (p *Place) giveBack(result *Result) {
	if p.over {
		return
	}
	p.over = true
	if p.dest == nil {
		return
	}
	c := p.client
	c.mu.Lock()
	c.takeBackLocked(p, result)
	started, recovered := p.dest.outage(result, time.Now())
	c.mu.Unlock()
	switch { // without the lock: a log may be slow
	case started:
		c.cfg.Log.Warn("destination fails: callbacks to it are delayed", "host", p.receiver.Host,
			"scheme", p.receiver.Scheme, "outcome", result.Outcome, "status_code", result.StatusCode,
			"error", result.Message)
	case recovered > 0:
		c.cfg.Log.Info("destination has recovered", "host", p.receiver.Host, "scheme", p.receiver.Scheme,
			"failed_for", recovered)
	}
}

// outage reports whether the destination has started to fail with this result, or for how long it had failed
// until now. One that does both all the time is reported every warnOutage.
func (d *destination) outage(result *Result, now time.Time) (started bool, recovered time.Duration) {
	switch result.Outcome {
	case tandem.OutcomeDelivered:
		if !d.failing.IsZero() {
			recovered = max(now.Sub(d.failing), 1)
			d.failing = time.Time{}
		}
	case tandem.OutcomeConnect, tandem.OutcomeTLS, tandem.OutcomeTimeout, tandem.OutcomeHTTPError,
		tandem.OutcomeRedirect, tandem.OutcomeThrottled:
		// A 429 comes from a receiver that is well; a 503 may be a proxy whose backend is down.
		fails := !result.troubled && result.StatusCode != http.StatusTooManyRequests
		if fails && d.failing.IsZero() && (d.warned.IsZero() || now.Sub(d.warned) >= warnOutage) {
			d.failing, d.warned, started = now, now, true
		}
	case tandem.OutcomeGone, tandem.OutcomeBlocked, tandem.OutcomeExpired: // of one callback, not of its destination
	}
	return started, recovered
}

// grantLocked takes a free place of d, which the caller holds in the table, or says
// why there is none; then the caller's hold is released.
func (c *Client) grantLocked(d *destination, r Receiver) grant {
	passes, held, why := c.passLocked(d, r)
	if why != nil {
		c.destinations.Release(d.site)
		return grant{err: c.putOffLocked(d, r, held, why)}
	}
	if d.inFlight == 0 {
		d.moved = time.Now()
	}
	d.inFlight++
	return grant{passes: passes}
}

// takeBackLocked frees a place and grants it to those that wait for it. When the result
// opened a breaker, all that wait for it are rescheduled.
func (c *Client) takeBackLocked(p *Place, result *Result) {
	d := p.dest
	if result.Outcome != "" && result.Outcome != tandem.OutcomeBlocked && !result.troubled {
		// Weight 1/8: follows a change within some ten exchanges.
		if d.average == 0 {
			d.average = result.Duration
		}
		d.average += (result.Duration - d.average) / 8
	}
	failed := c.reportLocked(p, result)
	if result.troubled {
		failed = d.trouble
	}
	if failed != nil {
		why := failed.held()
		if why == nil { // it has not opened: the call is from before it last did
			why = limit.ErrProbing
		}
		result.PutOff = c.putOffLocked(d, p.receiver, failed, why)
	}
	d.inFlight--
	d.moved = time.Now()
	c.destinations.Release(d.site)
	for d.queue.Len() > 0 && d.inFlight < c.cfg.HostConcurrency {
		w, _ := d.queue.Peek(anyWaiter)
		d.queue.Take()
		c.waiting--
		w.granted <- c.grantLocked(d, w.receiver)
	}
}

// leave takes a call whose ctx ended out of the queue, or gives back what it was granted in the same moment.
func (c *Client) leave(p *Place, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case g := <-w.granted:
		if g.err == nil {
			p.passes = g.passes
			c.takeBackLocked(p, &Result{})
		}
	default:
		p.dest.queue.Remove(w.receiver.Owner, func(other *waiter) bool { return other == w })
		c.waiting--
		c.destinations.Release(p.dest.site)
	}
}

// mayWaitLocked returns nil or the *PutOff of a call that finds every place of d taken.
func (c *Client) mayWaitLocked(d *destination, r Receiver) error {
	held, why := d.heldBy(c.circuitsLocked(d, r), r)
	if why == nil && d.host.Status().State == limit.StateHalfOpen { // its probe is on its way
		held, why = d.host, limit.ErrProbing
	}
	if why != nil {
		return c.putOffLocked(d, r, held, why)
	}
	if c.fullLocked(d, r.Owner) {
		return c.putOffLocked(d, r, nil, errBusy)
	}
	return nil
}

// anyWaiter lets Peek return the first waiter.
func anyWaiter(string, *waiter) bool { return true }

// fullLocked reports whether no more calls of an owner may wait for d. Only calls of its own
// keep the first one of an owner from waiting for its turn.
func (c *Client) fullLocked(d *destination, owner string) bool {
	free := c.cfg.MaxWaiting - c.waiting
	return free < 1 || d.queue.Len() >= max(1, free/2) && d.queue.Waiting(owner) > 0
}

// errBusy is why a call is rescheduled although nothing holds it back.
var errBusy = errors.New("too many calls wait for this destination")

// waitLocked is how long a call would wait for a place, by what the destination has shown.
func (d *destination) waitLocked(concurrency int) time.Duration {
	wait := time.Duration(d.queue.Len()) * d.average / time.Duration(concurrency)
	wait = max(wait, time.Since(d.moved)) // one that hangs from the start has no average to go by
	return min(max(wait, minPutOff), maxPutOff)
}

// putOffLocked says when a call may come back to d; held is the circuit that holds it back, if any.
// Rescheduled calls come back one after the other, at twice the pace that the destination has shown.
// But the first call of each owner in an open period of the host comes back as soon as it may probe.
func (c *Client) putOffLocked(d *destination, r Receiver, held *circuit, why error) *PutOff {
	putOff := &PutOff{Until: c.backLocked(d, r, held, why), Reason: why.Error(), Destination: d.site.String()}
	putOff.Held = errors.Is(why, limit.ErrOpen) || errors.Is(why, limit.ErrProbing)
	if held != nil && held == c.circuitsLocked(d, r)[byPath] {
		putOff.Destination += r.Path
	}
	return putOff
}

// backLocked is the time of putOffLocked.
func (c *Client) backLocked(d *destination, r Receiver, held *circuit, why error) time.Time {
	pace := d.average / time.Duration(2*c.cfg.HostConcurrency)
	if held == nil {
		wait := d.waitLocked(c.cfg.HostConcurrency)
		return d.busy.next(time.Now().Add(wait), pace, why).Add(rand.N(wait / 4))
	}
	// Never before the breaker would let a probe pass.
	first, jitter := held.until(d, r, why).Add(time.Millisecond), openJitter
	if errors.Is(why, limit.ErrProbing) {
		jitter = probePutOff
	}
	if retryAt := held.Status().RetryAt; held == d.host && !errors.Is(why, limit.ErrProbing) &&
		d.turns.enter(r.Owner, retryAt) {
		return d.turns.at(r.Owner, retryAt).Add(time.Millisecond + rand.N(jitter))
	}
	return held.later.next(first, max(pace, time.Millisecond), why).Add(rand.N(jitter))
}

// Destination is what is known of one site.
type Destination struct {
	Site
	State        string    // closed, half-open or open: the worst of its breakers, those of owners and paths included
	FailureCount int       // failures in a row, of the breaker that has most
	LastFailure  time.Time // zero: none remembered
	RetryAt      time.Time // when an open breaker lets a probe pass; zero unless open
	InFlight     int       // exchanges now
	Waiting      int       // calls waiting for a place
}

// add has the destination show a breaker if that is in a worse state than those before.
func (d *Destination) add(status limit.BreakerStatus) {
	worse := func(state limit.BreakerState) int {
		return slices.Index([]limit.BreakerState{limit.StateClosed, limit.StateHalfOpen, limit.StateOpen}, state)
	}
	if worse(status.State) > worse(limit.BreakerState(d.State)) {
		d.State, d.RetryAt = string(status.State), time.Time{}
	}
	if status.State == limit.StateOpen && status.RetryAt.After(d.RetryAt) {
		d.RetryAt = status.RetryAt
	}
	d.FailureCount = max(d.FailureCount, status.Failures)
	if status.LastFailure.After(d.LastFailure) {
		d.LastFailure = status.LastFailure
	}
}

// allLocked returns every destination remembered, those in use first, then the most recently used.
func (c *Client) allLocked() []Destination {
	all := make([]Destination, 0, c.destinations.Len())
	of := make(map[Site]int, c.destinations.Len())
	for site, d := range c.destinations.All() {
		seen := Destination{Site: site, InFlight: d.inFlight, Waiting: d.queue.Len()}
		seen.add(d.host.Status())
		of[site] = len(all)
		all = append(all, seen)
	}
	for r, refusal := range c.refusals.All() {
		if i, known := of[r.Site]; known {
			all[i].add(refusal.Status())
		}
	}
	return all
}

// Breakers counts the destinations remembered by their state, every state included.
func (c *Client) Breakers() map[string]int {
	count := map[string]int{string(limit.StateClosed): 0, string(limit.StateHalfOpen): 0, string(limit.StateOpen): 0}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.allLocked() {
		count[d.State]++
	}
	return count
}

// Found returns at most limit destinations that the client has found failing itself: it opened the
// breaker of the host, not another node. What single owners were answered is not published.
func (c *Client) Found(limit int) []Destination {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Destination
	for site, d := range c.destinations.All() {
		until := d.host.OpenUntil()
		if until.IsZero() {
			continue
		}
		if len(found) == limit {
			break
		}
		seen := Destination{Site: site}
		seen.add(d.host.Status())
		seen.RetryAt = until
		found = append(found, seen)
	}
	return found
}

// Learn opens the breaker of a destination that another node has found failing, until the same moment.
func (c *Client) Learn(d Destination) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, held := c.holdLocked(d.Site)
	if !held {
		return
	}
	known.host.Open(d.RetryAt, d.FailureCount, d.LastFailure)
	c.destinations.Release(d.Site)
}

// holdLocked returns a destination, which is in the table until it is released; false: there is no room for it.
func (c *Client) holdLocked(site Site) (*destination, bool) {
	return c.destinations.Hold(site, func() *destination {
		return &destination{
			site: site, host: newCircuit(c.cfg.BreakerFailures, c.cfg.BreakerOpen),
			trouble: newCircuit(1, troubleSleep),
		}
	})
}

// Destinations returns at most limit destinations, those with failures first,
// then those in use, then the most recently used.
func (c *Client) Destinations(limit int) []Destination {
	c.mu.Lock()
	all := c.allLocked()
	c.mu.Unlock()
	slices.SortStableFunc(all, func(a, b Destination) int { return min(b.FailureCount, 1) - min(a.FailureCount, 1) })
	return all[:min(max(limit, 0), len(all))]
}
