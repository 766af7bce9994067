package limit

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Reasons [Breaker.Allow] lets nothing pass.
var (
	ErrOpen    = errors.New("circuit breaker is open")
	ErrProbing = errors.New("circuit breaker is half-open and its probe is out")
)

// Report says what became of a call that a [Breaker] let pass.
type Report int

// The reports. Excluded is for a call that tells nothing about the other side:
// it was not made, or we broke it off ourselves. It leaves the failures in a row as
// they are, and a probe that ends so gives its place to the next call.
const (
	Excluded Report = iota
	Success
	Failure
)

// err is how gobreaker is told.
func (r Report) err() error {
	switch r {
	case Success:
		return nil
	case Failure:
		return errFailure
	default:
		return errExcluded
	}
}

// What gobreaker hears; nobody else does.
var (
	errFailure  = errors.New("failure")
	errExcluded = errors.New("excluded")
)

// Breaker stops calls to something that keeps failing. Closed, it lets
// everything pass and opens at a number of failures in a row. Open, it lets nothing
// pass for a while. Then it is half-open and lets exactly one probe pass: success
// closes it, failure opens it again. It may be used from any number of goroutines.
type Breaker struct {
	steps *gobreaker.TwoStepCircuitBreaker[struct{}]
	open  time.Duration

	// mu guards the fields below. It is taken while gobreaker holds its own lock
	// (its OnStateChange), so gobreaker must not be called with it held.
	mu          sync.Mutex
	failures    int       // in a row; gobreaker forgets them when it opens
	lastFailure time.Time // zero: none so far
	retryAt     time.Time // end of the last open period
}

// NewBreaker makes a closed breaker that opens at exactly the given number of failures
// in a row (at least 1) and stays open for the given time (more than 0).
func NewBreaker(failures int, open time.Duration) *Breaker {
	b := &Breaker{open: open}
	b.steps = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1,
		Timeout:     open,
		// gobreaker's own default trips one failure late.
		ReadyToTrip:  func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= uint32(failures) },
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errExcluded) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				b.opened()
			}
		},
	})
	return b
}

// Allow asks for one call. Who gets a nil error must call report once, whatever
// happens, or a half-open breaker would wait for its probe for ever. Otherwise the
// error is ErrOpen or ErrProbing. A report about a call from before the breaker
// last changed its state does not move it.
func (b *Breaker) Allow() (report func(Report), err error) {
	done, err := b.steps.Allow()
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return nil, ErrOpen
	case err != nil:
		return nil, ErrProbing
	}
	return func(r Report) {
		b.count(r, b.steps.State())
		done(r.err())
	}, nil
}

// BreakerState is the state of a [Breaker] as /stats shows it.
type BreakerState string

// The states of a breaker.
const (
	StateClosed   BreakerState = "closed"
	StateHalfOpen BreakerState = "half-open"
	StateOpen     BreakerState = "open"
)

// BreakerStatus is what a [Breaker] knows.
type BreakerStatus struct {
	State       BreakerState
	Failures    int       // in a row, those that came in while it was open included
	LastFailure time.Time // zero: none so far
	RetryAt     time.Time // when a probe may pass; zero unless open
}

// Status returns where the breaker stands now.
func (b *Breaker) Status() BreakerStatus {
	state := b.steps.State()
	b.mu.Lock()
	defer b.mu.Unlock()
	status := BreakerStatus{Failures: b.failures, LastFailure: b.lastFailure}
	switch state {
	case gobreaker.StateOpen:
		status.State, status.RetryAt = StateOpen, b.retryAt
	case gobreaker.StateHalfOpen:
		status.State = StateHalfOpen
	default:
		status.State = StateClosed
	}
	return status
}

// opened notes when the open period ends.
func (b *Breaker) opened() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retryAt = time.Now().Add(b.open)
}

// count keeps the failures in a row. A success that arrives while the breaker is
// open belongs to a call from before: it does not close the breaker, so it must not
// make the breaker look healthy either.
func (b *Breaker) count(r Report, state gobreaker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r == Failure:
		b.failures++
		b.lastFailure = time.Now()
	case r == Success && state != gobreaker.StateOpen:
		b.failures = 0
	}
}
