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

// The times of a [Reschedule].
const (
	minDelay   = 100 * time.Millisecond // behind a busy destination
	maxDelay   = 30 * time.Second       // the estimate for a busy destination is not trusted beyond
	probeDelay = time.Second            // while a probe is out
	openJitter = 2 * time.Second        // after an open breaker's retry time
	warnOutage = time.Minute            // between two warnings about a failing destination
	maxSpread  = time.Minute            // calls rescheduled one after the other are spread over at most this
)

// destination is a called site. The client's mu guards its fields.
type destination struct {
	site       Site
	host       *circuit             // opened when there is no connection, no TLS or no answer
	localFault *circuit             // opened by a local fault
	turns      turns                // order of probes of host
	answered   time.Time            // when it last gave any answer; zero: never
	inFlight   int                  // permits in use; at most Config.HostConcurrency
	queue      limit.Turns[*waiter] // by owner
	average    time.Duration        // moving average of an exchange; 0: none yet
	moved      time.Time            // when a permit was last released, or first granted
	busy       schedule             // of calls behind too many waiting ones
	failing    time.Time            // since when nothing has been delivered, as logged; zero: not logged
	warned     time.Time            // when the log last said so
}

// waiter is a waiting call of Reserve.
type waiter struct {
	receiver Receiver
	granted  chan grant // has room for the one grant it gets
}

// grant is a permit, or the error for Reserve to return.
type grant struct {
	passes [circuits]limit.Pass
	err    error
}

// Reschedule asks the caller to come back later; no attempt was made.
type Reschedule struct {
	Until       time.Time // not before
	Reason      string    // for the log
	Destination string    // where the call is held back, as [Client.Room] takes it; "": the table of destinations is full
	Held        bool      // there is no Room at Destination: the call need not come back before there is
}

// Error says until when.
func (p *Reschedule) Error() string {
	return fmt.Sprintf("rescheduled until %s: %s", p.Until.UTC().Format(time.RFC3339Nano), p.Reason)
}

// Permit is the right to make one exchange. Call Post, Do or Release, once, from the goroutine of Reserve.
type Permit struct {
	client   *Client
	target   *target // shared, not to be changed; nil if refused
	receiver Receiver
	refused  error // error of Check now; then there is no destination
	dest     *destination
	passes   [circuits]limit.Pass
	over     bool // released
}

// Reserve waits for a permit at the destination of rawURL. owner is tandem.Request.Owner. Owners take turns, and the
// calls of one are served in order. Reserve returns a *Reschedule when waiting is not worth it: a breaker is open or
// half-open with its probe out, or too many wait already. It returns ctx's cause when ctx ends.
//
// One destination may hold at most half of the free waiting places, and one for each owner, so a slow one never takes
// them all. A URL that Check would refuse now gets a permit at once, and Post returns OutcomeBlocked.
func (c *Client) Reserve(ctx context.Context, rawURL, owner string) (*Permit, error) {
	permit := &Permit{client: c}
	permit.target, permit.refused = c.parse(rawURL)
	if permit.refused != nil {
		return permit, nil //nolint:nilerr // Post says it, as an outcome
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	permit.receiver = permit.target.receiver(owner)

	c.mu.Lock()
	d, held := c.holdLocked(permit.receiver.Site)
	if !held {
		c.mu.Unlock()
		until := time.Now().Add(probeDelay + rand.N(probeDelay))
		return nil, &Reschedule{Until: until, Reason: "every destination remembered is in use"}
	}
	permit.dest = d
	if d.inFlight < c.cfg.HostConcurrency { // then nobody waits: see reclaimLocked
		g := c.grantLocked(d, permit.receiver)
		c.mu.Unlock()
		return permit.granted(g)
	}
	if err := c.mayWaitLocked(d, permit.receiver); err != nil {
		c.destinations.Release(d.site)
		c.mu.Unlock()
		return nil, err
	}
	w := &waiter{receiver: permit.receiver, granted: make(chan grant, 1)}
	d.queue.Push(owner, 1, w)
	c.waiting++
	c.mu.Unlock()

	select {
	case g := <-w.granted:
		return permit.granted(g)
	case <-ctx.Done():
		c.leave(permit, w)
		return nil, context.Cause(ctx)
	}
}

// granted returns the permit with its passes, or the error.
func (p *Permit) granted(g grant) (*Permit, error) {
	if g.err != nil {
		return nil, g.err
	}
	p.passes = g.passes
	return p, nil
}

// Destinations may have room after the exchange, as [Client.Room] takes them: the site, and the path of the owner's
// calls. They are "" if the URL is refused.
func (p *Permit) Destinations() (site, path string) {
	if p.dest == nil {
		return "", ""
	}
	site = p.receiver.String()
	return site, site + p.receiver.Path
}

// Release returns the permit unused. It does nothing after Post, Do or Release.
func (p *Permit) Release() { p.finish(&Result{}) }

// finish ends the permit and grants it to waiting calls. It sets Reschedule of a result without an attempt.
func (p *Permit) finish(result *Result) {
	if p.over {
		return
	}
	p.over = true
	if p.dest == nil {
		return
	}
	c := p.client
	c.mu.Lock()
	c.reclaimLocked(p, result)
	started, recovered := p.dest.outage(result, time.Now())
	c.mu.Unlock()
	switch { // without the lock: a log may be slow
	case started:
		c.cfg.Log.Warn("destination fails: calls to it are delayed", "host", p.receiver.Host,
			"scheme", p.receiver.Scheme, "outcome", result.Outcome, "status_code", result.StatusCode,
			"error", result.Message)
	case recovered > 0:
		c.cfg.Log.Info("destination has recovered", "host", p.receiver.Host, "scheme", p.receiver.Scheme,
			"failed_for", recovered)
	}
}

// outage reports whether the destination has started to fail with this result, or how long it had failed until now. A
// flapping one is reported every warnOutage.
func (d *destination) outage(result *Result, now time.Time) (started bool, recovered time.Duration) {
	switch result.Outcome {
	case tandem.OutcomeDelivered:
		if !d.failing.IsZero() {
			recovered = max(now.Sub(d.failing), 1)
			d.failing = time.Time{}
		}
	case tandem.OutcomeConnect, tandem.OutcomeTLS, tandem.OutcomeTimeout, tandem.OutcomeHTTPError,
		tandem.OutcomeRedirect, tandem.OutcomeThrottled:
		// A 429 comes from a healthy receiver; a 503 may come from a proxy with its backend down.
		fails := !result.local && result.StatusCode != http.StatusTooManyRequests
		if fails && d.failing.IsZero() && (d.warned.IsZero() || now.Sub(d.warned) >= warnOutage) {
			d.failing, d.warned, started = now, now, true
		}
	case tandem.OutcomeGone, tandem.OutcomeBlocked, tandem.OutcomeExpired: // of one callback, not of its destination
	}
	return started, recovered
}

// grantLocked takes a free permit of d, or returns the reason and releases the caller's hold on d.
func (c *Client) grantLocked(d *destination, r Receiver) grant {
	passes, held, why := c.passLocked(d, r)
	if why != nil {
		c.destinations.Release(d.site)
		return grant{err: c.rescheduleLocked(d, r, held, why)}
	}
	if d.inFlight == 0 {
		d.moved = time.Now()
	}
	d.inFlight++
	return grant{passes: passes}
}

// reclaimLocked frees a permit and grants it to waiting calls. When the result opened a breaker, all of them are
// rescheduled.
func (c *Client) reclaimLocked(p *Permit, result *Result) {
	d := p.dest
	if result.Outcome != "" && result.Outcome != tandem.OutcomeBlocked && !result.local {
		// Weight 1/8: follows a change within some ten exchanges.
		if d.average == 0 {
			d.average = result.Duration
		}
		d.average += (result.Duration - d.average) / 8
	}
	failed := c.reportLocked(p, result)
	if result.local {
		failed = d.localFault
	}
	if failed != nil {
		why := failed.held()
		if why == nil { // it has not opened: the call is from before it last did
			why = limit.ErrProbing
		}
		result.Reschedule = c.rescheduleLocked(d, p.receiver, failed, why)
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

// leave removes a call from the queue when its ctx ended, or returns a permit granted in the same moment.
func (c *Client) leave(p *Permit, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case g := <-w.granted:
		if g.err == nil {
			p.passes = g.passes
			c.reclaimLocked(p, &Result{})
		}
	default:
		p.dest.queue.Remove(w.receiver.Owner, func(other *waiter) bool { return other == w })
		c.waiting--
		c.destinations.Release(p.dest.site)
	}
}

// mayWaitLocked decides about a call when every permit of d is taken: nil, it may wait, or a *Reschedule.
func (c *Client) mayWaitLocked(d *destination, r Receiver) error {
	held, why := d.heldBy(c.circuitsLocked(d, r), r)
	if why == nil && d.host.Status().State == limit.StateHalfOpen { // its probe is on its way
		held, why = d.host, limit.ErrProbing
	}
	if why != nil {
		return c.rescheduleLocked(d, r, held, why)
	}
	if c.fullLocked(d, r.Owner) {
		return c.rescheduleLocked(d, r, nil, errBusy)
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

// waitLocked estimates the wait for a permit by the recent exchanges of the destination.
func (d *destination) waitLocked(concurrency int) time.Duration {
	wait := time.Duration(d.queue.Len()) * d.average / time.Duration(concurrency)
	wait = max(wait, time.Since(d.moved)) // a destination hanging from the start has no average
	return min(max(wait, minDelay), maxDelay)
}

// rescheduleLocked says when a call may come back to d; held is the circuit holding it back, if any. Rescheduled calls
// come back one after the other, at twice the recent pace of the destination. But the first call of each owner in an
// open period of the host comes back as soon as it may probe.
func (c *Client) rescheduleLocked(d *destination, r Receiver, held *circuit, why error) *Reschedule {
	later := &Reschedule{Until: c.dueLocked(d, r, held, why), Reason: why.Error(), Destination: d.site.String()}
	later.Held = errors.Is(why, limit.ErrOpen) || errors.Is(why, limit.ErrProbing)
	if held != nil && held == c.circuitsLocked(d, r)[byPath] {
		later.Destination += r.Path
	}
	return later
}

// dueLocked is the time of rescheduleLocked.
func (c *Client) dueLocked(d *destination, r Receiver, held *circuit, why error) time.Time {
	pace := d.average / time.Duration(2*c.cfg.HostConcurrency)
	if held == nil {
		wait := d.waitLocked(c.cfg.HostConcurrency)
		return d.busy.next(time.Now().Add(wait), pace, why).Add(rand.N(wait / 4))
	}
	// Never before the breaker would let a probe pass.
	first, jitter := held.until(d, r, why).Add(time.Millisecond), openJitter
	if errors.Is(why, limit.ErrProbing) {
		jitter = probeDelay
	}
	if retryAt := held.Status().RetryAt; held == d.host && !errors.Is(why, limit.ErrProbing) &&
		d.turns.enter(r.Owner, retryAt) {
		return d.turns.at(r.Owner, retryAt).Add(time.Millisecond + rand.N(jitter))
	}
	return held.later.next(first, max(pace, time.Millisecond), why).Add(rand.N(jitter))
}

// Destination is the state of one site.
type Destination struct {
	Site
	State        string    // closed, half-open or open: the worst of its breakers, those of owners and paths included
	FailureCount int       // failures in a row, of the worst breaker
	LastFailure  time.Time // zero: none remembered
	RetryAt      time.Time // when an open breaker lets a probe pass; zero unless open
	InFlight     int       // exchanges now
	Waiting      int       // calls waiting for a permit
}

// add makes the destination show a breaker if its state is the worst so far.
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

// Failing returns at most limit destinations with a host breaker opened by this client, not by another node. Answers to
// single owners are not published.
func (c *Client) Failing(limit int) []Destination {
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

// MarkFailing opens the breaker of a destination because another node found it failing, until the same moment.
func (c *Client) MarkFailing(d Destination) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, held := c.holdLocked(d.Site)
	if !held {
		return
	}
	known.host.Open(d.RetryAt, d.FailureCount, d.LastFailure)
	c.destinations.Release(d.Site)
}

// holdLocked returns a destination and keeps it in the table until its release; false: there is no room for it.
func (c *Client) holdLocked(site Site) (*destination, bool) {
	return c.destinations.Hold(site, func() *destination {
		return &destination{
			site: site, host: newCircuit(c.cfg.BreakerFailures, c.cfg.BreakerOpen),
			localFault: newCircuit(1, localFaultDelay),
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
