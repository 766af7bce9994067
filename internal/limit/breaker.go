package limit

import (
	"errors"
	"sync"
	"time"
)

// Reasons [Breaker.Allow] lets nothing pass.
var (
	ErrOpen    = errors.New("circuit breaker is open")
	ErrProbing = errors.New("circuit breaker is half-open and its probe is out")
)

// Report is the result of a call after it passed a [Breaker].
type Report int

// The reports. Excluded is for a call without evidence about the other side: it was not made, or we broke it off
// ourselves. It leaves the failures in a row unchanged, and after such a probe the next call may probe.
const (
	Excluded Report = iota
	Success
	Failure
)

// Breaker stops calls to a failing destination. Closed, it lets everything pass and opens at a number of failures in a
// row. Open, it lets nothing pass for a while. Then it is half-open and lets exactly one probe pass: success closes it,
// failure opens it again. It may be used from any number of goroutines.
type Breaker struct {
	trip int           // failures in a row to open it
	open time.Duration // how long it stays open

	mu          sync.Mutex // guards the fields below
	failures    int        // in a row
	lastFailure time.Time  // zero: none so far
	retryAt     time.Time  // when an open breaker becomes half-open; zero: it is closed
	ownRetryAt  time.Time  // the same for the last open period begun by itself; zero: it has closed since
	probing     bool       // a probe is out
	epoch       int        // counts the changes between open and closed
}

// NewBreaker makes a closed breaker. It opens at exactly the given number of failures in a row (at least 1) and stays
// open for the given time (more than 0).
func NewBreaker(failures int, open time.Duration) *Breaker {
	return &Breaker{trip: failures, open: open}
}

// Pass is the right to make one call. Its Report must be called once in any case, or a half-open breaker would wait for
// its probe for ever. The zero Pass reports to nobody.
type Pass struct {
	breaker *Breaker
	epoch   int
	Probe   bool // the breaker is half-open, and this call decides its next state
}

// Allow asks for one call. The error is ErrOpen or ErrProbing.
func (b *Breaker) Allow() (Pass, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pass := Pass{breaker: b, epoch: b.epoch}
	switch b.stateLocked() {
	case StateOpen:
		return Pass{}, ErrOpen
	case StateHalfOpen:
		if b.probing {
			return Pass{}, ErrProbing
		}
		b.probing, pass.Probe = true, true
	case StateClosed:
	}
	return pass, nil
}

// Report takes the result of the call. A call from before the breaker last opened or closed does not move it, but its
// failure is counted while the breaker is open.
func (p Pass) Report(r Report) {
	b := p.breaker
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	current := p.epoch == b.epoch
	if p.Probe && current {
		b.probing = false
	}
	switch {
	case r == Failure && (current || !b.retryAt.IsZero()):
		b.failures++
		b.lastFailure = time.Now()
		if current && (p.Probe || b.failures >= b.trip) {
			b.ownRetryAt = b.lastFailure.Add(b.open)
			b.retryAt = b.ownRetryAt
			b.epoch++
		}
	case r == Success && current:
		b.failures = 0
		if p.Probe {
			b.retryAt, b.ownRetryAt = time.Time{}, time.Time{}
			b.epoch++
		}
	}
}

// Open keeps the breaker open until the given time on the word of others, unless it stays open longer anyway or its own
// probe is out. It also takes over their count of failures.
func (b *Breaker) Open(until time.Time, failures int, lastFailure time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !until.After(time.Now()) || !until.After(b.retryAt) || b.probing {
		return
	}
	b.retryAt = until
	b.epoch++
	b.failures = max(b.failures, failures)
	if lastFailure.After(b.lastFailure) {
		b.lastFailure = lastFailure
	}
}

// BreakerState is the state of a [Breaker] as /stats shows it.
type BreakerState string

// The states of a breaker.
const (
	StateClosed   BreakerState = "closed"
	StateHalfOpen BreakerState = "half-open"
	StateOpen     BreakerState = "open"
)

// BreakerStatus is a snapshot of a [Breaker].
type BreakerStatus struct {
	State       BreakerState
	Failures    int       // in a row, including those while it was open
	LastFailure time.Time // zero: none so far
	RetryAt     time.Time // when a probe may pass; zero while closed
	Probing     bool      // a probe is out
}

// Status returns where the breaker stands now.
func (b *Breaker) Status() BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BreakerStatus{b.stateLocked(), b.failures, b.lastFailure, b.retryAt, b.probing}
}

// OpenUntil is the end of an open period begun by the breaker itself; zero: it has none.
func (b *Breaker) OpenUntil() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !time.Now().Before(b.ownRetryAt) {
		return time.Time{}
	}
	return b.ownRetryAt
}

func (b *Breaker) stateLocked() BreakerState {
	switch {
	case b.retryAt.IsZero():
		return StateClosed
	case time.Now().Before(b.retryAt):
		return StateOpen
	default:
		return StateHalfOpen
	}
}
