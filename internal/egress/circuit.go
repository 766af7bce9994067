package egress

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"tandem"
	"tandem/internal/limit"
)

const (
	maxRefusals     = 10_000          // receivers with failed answers; the least recently used is dropped
	maxPath         = 256             // bytes of a path, to distinguish receivers
	maxTurns        = 64              // owners waiting to probe one site
	turnWait        = 4 * time.Second // for the call of one owner to probe; then the next owner may
	localFaultDelay = 5 * time.Second // pause of a site after a local fault
)

// Site is a scheme, host and port.
type Site struct {
	Scheme string // http or https
	Host   string // lower-case host:port
}

// Receiver is the target and the owner of a call: everything that can hold it back. It is comparable.
//
// A failure of the site itself (no connection, no answer, no TLS) counts for all owners. A 5xx answer counts for one
// path of one owner, and for the whole owner once several of its paths have failed in a row: another owner may call
// something else there, with success.
type Receiver struct {
	Site
	Owner string // tandem.Request.Owner: the caller's API key, or without keys the client
	Path  string // of the URL, cut off after 256 bytes; "": all paths of the owner
}

// Receiver returns the receiver of a callback. Its errors are the errors of [Client.Check].
func (c *Client) Receiver(rawURL, owner string) (Receiver, error) {
	t, err := c.parse(rawURL)
	if err != nil {
		return Receiver{}, err
	}
	return t.receiver(owner), nil
}

// String is the site as a URL has it.
func (s Site) String() string { return s.Scheme + "://" + s.Host }

// Room is how many rescheduled calls of an owner may be under way at a destination: none while a breaker holds them
// back, its probe is out, or too many wait already; one if it may probe; else twice the permits, so each permit is
// taken again at once. destination is a site, or a site and a path.
func (c *Client) Room(destination, owner string) int {
	r := Receiver{Owner: owner}
	scheme, rest, _ := strings.Cut(destination, "://")
	host := rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, r.Path = rest[:i], rest[i:]
	}
	r.Site = Site{scheme, host}
	c.mu.Lock()
	defer c.mu.Unlock()
	room := 2 * c.cfg.HostConcurrency
	d, known := c.destinations.Peek(r.Site)
	if !known {
		return room
	}
	if c.fullLocked(d, owner) {
		return 0
	}
	for _, ci := range c.circuitsLocked(d, r) {
		switch {
		case ci == nil:
		case ci.held() != nil:
			return 0
		case ci.Status().State == limit.StateHalfOpen:
			room = 1
		}
	}
	return room
}

// circuit is a breaker and the schedule of the calls held back by it.
type circuit struct {
	*limit.Breaker
	later schedule
}

func newCircuit(failures int, open time.Duration) *circuit {
	return &circuit{Breaker: limit.NewBreaker(failures, open)}
}

// held is why no call may pass now; nil if one may.
func (ci *circuit) held() error {
	switch status := ci.Status(); {
	case status.State == limit.StateOpen:
		return limit.ErrOpen
	case status.Probing:
		return limit.ErrProbing
	default:
		return nil
	}
}

// until is the earliest time for a call held back by the circuit.
func (ci *circuit) until(d *destination, r Receiver, why error) time.Time {
	switch {
	case errors.Is(why, limit.ErrOpen):
		return ci.Status().RetryAt
	case errors.Is(why, errTurn):
		return d.turns.at(r.Owner, ci.Status().RetryAt)
	default:
		return time.Now().Add(probeDelay)
	}
}

// refusal is a circuit opened by the answers of a receiver.
type refusal struct {
	circuit
	lastPath string // the last failed one; of a receiver without a path
}

// The circuits on the way of a call.
const (
	byLocalFault = iota // our own
	byOwner             // answers to an owner
	byPath              // answers to a path of an owner
	byHost
	circuits
)

// circuitsLocked returns the circuits of a receiver; a missing one (nil) lets everything pass.
func (c *Client) circuitsLocked(d *destination, r Receiver) (all [circuits]*circuit) {
	all[byLocalFault], all[byHost] = d.localFault, d.host
	if c.refusals.Len() == 0 { // as a rule
		return all
	}
	if path, known := c.refusals.Peek(r); known {
		all[byPath] = &path.circuit
	}
	r.Path = ""
	if owner, known := c.refusals.Peek(r); known {
		all[byOwner] = &owner.circuit
	}
	return all
}

// heldBy returns the circuit holding a call back, and why; a nil error: none does.
func (d *destination) heldBy(all [circuits]*circuit, r Receiver) (*circuit, error) {
	for _, ci := range all {
		if ci == nil {
			continue
		}
		if why := ci.held(); why != nil {
			return ci, why
		}
	}
	if len(d.turns.list) > 0 && time.Now().Before(d.turns.at(r.Owner, d.host.Status().RetryAt)) {
		return d.host, errTurn
	}
	return d.host, nil
}

// errTurn is why a call is rescheduled although it could probe.
var errTurn = errors.New("another owner's call is to probe the destination first")

// passLocked takes a pass of every circuit, or returns the circuit holding the call back, and why.
func (c *Client) passLocked(d *destination, r Receiver) (passes [circuits]limit.Pass, held *circuit, why error) {
	all := c.circuitsLocked(d, r)
	if held, why = d.heldBy(all, r); why != nil {
		return passes, held, why
	}
	for i, ci := range all {
		if ci != nil {
			passes[i], _ = ci.Allow() // none holds it back, and every change needs c.mu
		}
	}
	if passes[byHost].Probe {
		d.turns.took(r.Owner)
	}
	return passes, nil, nil
}

// reportLocked reports the result of a call to its circuits. It returns the circuit of a failed probe.
func (c *Client) reportLocked(p *Permit, result *Result) (failed *circuit) {
	d := p.dest
	reports := c.judgeLocked(p, result)
	wasOpen := d.host.Status().State == limit.StateOpen
	for i, ci := range c.circuitsLocked(d, p.receiver) {
		report := reports[i]
		switch i {
		case byPath:
			ci = c.refusedLocked(ci, p.receiver, report)
		case byOwner:
			ci, report = c.refusedOwnerLocked(ci, p, report)
		}
		if ci == nil {
			continue
		}
		pass := p.passes[i]
		if pass == (limit.Pass{}) { // the circuit is younger than the call
			pass, _ = ci.Allow()
		}
		pass.Report(report)
		if pass.Probe && report == limit.Failure {
			failed = ci
		}
	}
	switch status := d.host.Status(); {
	case status.State == limit.StateOpen && !wasOpen:
		d.turns.took(p.receiver.Owner) // owners without a failure go first
	case status.State == limit.StateClosed:
		d.turns.list = nil
	}
	return failed
}

// judgeLocked translates the result of a call into a report for each of its circuits.
func (c *Client) judgeLocked(p *Permit, result *Result) (reports [circuits]limit.Report) {
	all := func(trouble, host, answer limit.Report) [circuits]limit.Report {
		return [circuits]limit.Report{byLocalFault: trouble, byHost: host, byOwner: answer, byPath: answer}
	}
	now := time.Now()
	// A host with answers for others is not dead because one of its paths hangs.
	answersOthers := now.Sub(p.dest.answered) < c.cfg.BreakerOpen && !p.passes[byHost].Probe
	switch {
	case result.Interrupted || result.Outcome == tandem.OutcomeBlocked || result.Outcome == "":
		return all(limit.Excluded, limit.Excluded, limit.Excluded)
	case result.local:
		return all(limit.Failure, limit.Excluded, limit.Excluded)
	case result.StatusCode == 0 && result.connected && answersOthers:
		return all(limit.Success, limit.Excluded, limit.Failure)
	case result.StatusCode == 0:
		return all(limit.Success, limit.Failure, limit.Excluded)
	}
	p.dest.answered = now
	if result.StatusCode >= 500 || result.broken {
		return all(limit.Success, limit.Success, limit.Failure)
	}
	return all(limit.Success, limit.Success, limit.Success)
}

// refusedLocked returns the circuit of a receiver. Its first failure makes it.
func (c *Client) refusedLocked(known *circuit, r Receiver, report limit.Report) *circuit {
	if known == nil && report != limit.Failure {
		return nil
	}
	found, held := c.refusals.Hold(r, func() *refusal {
		return &refusal{circuit: *newCircuit(c.cfg.BreakerFailures, c.cfg.BreakerOpen)}
	})
	if !held { // never: none is held for longer than this
		return known
	}
	c.refusals.Release(r)
	return &found.circuit
}

// refusedOwnerLocked is refusedLocked for all paths of an owner. Of failures of one path in a row it counts
// the first only.
func (c *Client) refusedOwnerLocked(known *circuit, p *Permit, report limit.Report) (*circuit, limit.Report) {
	r := p.receiver
	r.Path = ""
	ci := c.refusedLocked(known, r, report)
	if ci == nil {
		return nil, report
	}
	owner, _ := c.refusals.Peek(r)
	if report == limit.Failure && owner.lastPath == p.receiver.Path && !p.passes[byOwner].Probe {
		return ci, limit.Excluded
	}
	if report != limit.Excluded {
		owner.lastPath = p.receiver.Path
	}
	return ci, report
}

// schedule spreads the calls rescheduled for one reason; it starts again when the reason changes.
type schedule struct {
	at  time.Time // when the next one may come back, at the earliest
	why error     // why the last one was rescheduled
}

// next is when a call may come back: not before first, and behind those rescheduled before it, at the
// given pace. If all came back at once, all but a few would only be rescheduled again.
func (s *schedule) next(first time.Time, pace time.Duration, why error) time.Time {
	if !errors.Is(why, s.why) {
		s.at, s.why = time.Time{}, why
	}
	at := first
	if s.at.After(first) {
		at = s.at
	}
	if at.Sub(first) > maxSpread {
		return first.Add(rand.N(maxSpread))
	}
	s.at = at.Add(pace)
	return at
}

// turns are the owners waiting for a half-open breaker to close, in the order of their probes: owners without a probe
// so far come first, then the longest ago.
type turns struct{ list []turn }

type turn struct {
	owner  string
	probed bool      // or its call has opened the breaker
	retry  time.Time // end of the open period with a call scheduled
}

// at is the time for an owner to probe a breaker, half-open since retryAt.
func (t *turns) at(owner string, retryAt time.Time) time.Time {
	position := t.find(owner)
	if position < 0 {
		position = t.newcomer()
	}
	return retryAt.Add(time.Duration(position) * turnWait)
}

// find is the position of an owner; -1 if it does not wait.
func (t *turns) find(owner string) int {
	return slices.IndexFunc(t.list, func(other turn) bool { return other.owner == owner })
}

// newcomer is the position of an owner without a probe so far.
func (t *turns) newcomer() int {
	if i := slices.IndexFunc(t.list, func(other turn) bool { return other.probed }); i >= 0 {
		return i
	}
	return len(t.list)
}

// enter has an owner wait for its turn. It reports whether its call is the first in this open period: the first comes
// back in its turn, all others after it.
func (t *turns) enter(owner string, retryAt time.Time) bool {
	i := t.find(owner)
	if i < 0 {
		i = t.newcomer()
		if i >= maxTurns {
			return false
		}
		t.list = slices.Insert(t.list, i, turn{owner: owner})
		t.list = t.list[:min(len(t.list), maxTurns)]
	}
	first := !t.list[i].retry.Equal(retryAt)
	t.list[i].retry = retryAt
	return first
}

// took records a probe of the owner, or a call of it opening the breaker. Owners before it have missed their turn: they
// have nothing to send any more, or come back as new ones.
func (t *turns) took(owner string) {
	if i := t.find(owner); i >= 0 {
		t.list = slices.Delete(t.list, 0, i+1)
	}
	t.list = append(t.list[:min(len(t.list), maxTurns-1)], turn{owner: owner, probed: true})
}
