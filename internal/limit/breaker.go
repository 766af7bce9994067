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
	elsewhere   time.Time // end of an open period that others have told of; zero: none, or a probe has succeeded since
	probing     bool      // the probe after it is out
	trip        int       // failures in a row that open it
}

// NewBreaker makes a closed breaker that opens at exactly the given number of failures
// in a row (at least 1) and stays open for the given time (more than 0).
func NewBreaker(failures int, open time.Duration) *Breaker {
	b := &Breaker{open: open, trip: failures}
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
	probe, err := b.obey(time.Now())
	if err != nil {
		return nil, err
	}
	done, err := b.steps.Allow()
	if err != nil && probe {
		b.probed(Excluded)
	}
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return nil, ErrOpen
	case err != nil:
		return nil, ErrProbing
	}
	return func(r Report) {
		b.count(r, b.steps.State())
		done(r.err())
		if probe {
			b.probed(r)
		}
	}, nil
}

// Open has the breaker stay open until the given time because others have found that it should, unless it
// does so anyway. Then it is half-open. It also takes over what they know of failures.
func (b *Breaker) Open(until time.Time, failures int, lastFailure time.Time) {
	own := b.Status()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !until.After(time.Now()) || !until.After(b.elsewhere) || own.State == StateOpen && !until.After(own.RetryAt) {
		return
	}
	b.elsewhere = until
	b.failures = max(b.failures, failures)
	if lastFailure.After(b.lastFailure) {
		b.lastFailure = lastFailure
	}
}

// obey refuses a call because of what others have told. Otherwise probe says that this call is the one
// whose report ends that.
func (b *Breaker) obey(now time.Time) (probe bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.elsewhere.IsZero():
		return false, nil
	case now.Before(b.elsewhere):
		return false, ErrOpen
	case b.probing:
		return false, ErrProbing
	default:
		b.probing = true
		return true, nil
	}
}

// probed takes the report of the probe after an open period of others: a failure opens the breaker, as
// one of its own probes would.
func (b *Breaker) probed(r Report) {
	for n := 0; r == Failure && n < b.trip; n++ {
		done, err := b.steps.Allow()
		if err != nil { // it is open
			break
		}
		done(errFailure)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if r != Excluded {
		b.elsewhere = time.Time{}
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
	status := BreakerStatus{State: StateClosed, Failures: b.failures, LastFailure: b.lastFailure}
	told := time.Now().Before(b.elsewhere)
	switch {
	case state == gobreaker.StateOpen && told && b.elsewhere.After(b.retryAt), state != gobreaker.StateOpen && told:
		status.State, status.RetryAt = StateOpen, b.elsewhere
	case state == gobreaker.StateOpen:
		status.State, status.RetryAt = StateOpen, b.retryAt
	case state == gobreaker.StateHalfOpen, !b.elsewhere.IsZero():
		status.State = StateHalfOpen
	}
	return status
}

// OpenUntil is when an open period ends that the breaker has begun itself, told by nobody; zero: it has none.
func (b *Breaker) OpenUntil() time.Time {
	if b.steps.State() != gobreaker.StateOpen {
		return time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retryAt
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
	case r == Success && state != gobreaker.StateOpen && !time.Now().Before(b.elsewhere):
		b.failures = 0
	}
}
