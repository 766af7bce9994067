package limit_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/limit"
)

// allowed makes one call that ends at once.
func allowed(t *testing.T, b *limit.Breaker, r limit.Report) {
	t.Helper()
	report, err := b.Allow()
	if err != nil {
		t.Fatalf("Allow: %v", err)
	}
	report.Report(r)
}

func refused(t *testing.T, b *limit.Breaker, want error) {
	t.Helper()
	if _, err := b.Allow(); !errors.Is(err, want) {
		t.Fatalf("Allow = %v, want %v", err, want)
	}
}

func expect(t *testing.T, b *limit.Breaker, want limit.BreakerStatus) {
	t.Helper()
	if diff := cmp.Diff(want, b.Status()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestBreakerLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const open = time.Minute
		b := limit.NewBreaker(5, open)
		expect(t, b, limit.BreakerStatus{State: limit.StateClosed})
		for range 4 {
			allowed(t, b, limit.Failure)
		}
		allowed(t, b, limit.Excluded) // does not break the row, nor add to it
		expect(t, b, limit.BreakerStatus{State: limit.StateClosed, Failures: 4, LastFailure: time.Now()})
		allowed(t, b, limit.Success) // breaks the row
		for range 4 {
			allowed(t, b, limit.Failure)
		}
		expect(t, b, limit.BreakerStatus{State: limit.StateClosed, Failures: 4, LastFailure: time.Now()})
		late, err := b.Allow() // ends after the breaker has opened
		if err != nil {
			t.Fatal(err)
		}
		allowed(t, b, limit.Failure)
		opened := time.Now()
		expect(t, b, limit.BreakerStatus{State: limit.StateOpen, Failures: 5, LastFailure: opened, RetryAt: opened.Add(open)})
		late.Report(limit.Success)
		expect(t, b, limit.BreakerStatus{State: limit.StateOpen, Failures: 5, LastFailure: opened, RetryAt: opened.Add(open)})

		until(t, opened.Add(open).Add(-1))
		refused(t, b, limit.ErrOpen)
		until(t, opened.Add(open))
		expect(t, b, limit.BreakerStatus{
			State: limit.StateHalfOpen, Failures: 5, LastFailure: opened, RetryAt: opened.Add(open),
		})
		probe, err := b.Allow()
		if err != nil {
			t.Fatal(err)
		}
		refused(t, b, limit.ErrProbing)
		probe.Report(limit.Excluded) // interrupted: the next may probe
		probe, err = b.Allow()
		if err != nil {
			t.Fatal(err)
		}
		refused(t, b, limit.ErrProbing)
		probe.Report(limit.Failure)
		again := time.Now()
		expect(t, b, limit.BreakerStatus{State: limit.StateOpen, Failures: 6, LastFailure: again, RetryAt: again.Add(open)})

		until(t, again.Add(open).Add(1))
		allowed(t, b, limit.Success)
		expect(t, b, limit.BreakerStatus{State: limit.StateClosed, LastFailure: again})
		for range 100 { // no memory of the failures before
			allowed(t, b, limit.Success)
		}
		allowed(t, b, limit.Failure)
		expect(t, b, limit.BreakerStatus{State: limit.StateClosed, Failures: 1, LastFailure: time.Now()})
	})
}

// until waits for a moment of the bubble's clock.
func until(t *testing.T, at time.Time) {
	t.Helper()
	<-time.After(time.Until(at))
}

// It opens at exactly the configured number of failures in a row, in any mix of reports.
func TestBreakerOpensAtExactlyN(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 10).Draw(t, "n")
		b := limit.NewBreaker(n, time.Hour)
		inARow := 0
		for range rapid.IntRange(0, 100).Draw(t, "calls") {
			report, err := b.Allow()
			if (err == nil) != (inARow < n) {
				t.Fatalf("after %d of %d failures in a row: Allow = %v", inARow, n, err)
			}
			if err != nil {
				return
			}
			switch r := limit.Report(rapid.IntRange(0, 2).Draw(t, "report")); r {
			case limit.Failure:
				inARow++
				report.Report(r)
			case limit.Success:
				inARow = 0
				report.Report(r)
			default:
				report.Report(r)
			}
		}
	})
}

// However many ask at once, one probe passes.
func TestBreakerLetsOneProbePass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := limit.NewBreaker(1, time.Second)
		allowed(t, b, limit.Failure)
		until(t, time.Now().Add(time.Second+1))
		var passed atomic.Int64
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if _, err := b.Allow(); err == nil {
					passed.Add(1)
				} else if !errors.Is(err, limit.ErrProbing) {
					t.Errorf("Allow = %v, want ErrProbing", err)
				}
			})
		}
		all.Wait()
		if n := passed.Load(); n != 1 {
			t.Errorf("%d probes passed", n)
		}
	})
}

// What others have found keeps a breaker open until the moment they said; then one probe decides.
func TestBreakerOpensForOthers(t *testing.T) {
	t.Parallel()
	const open = time.Minute
	for _, test := range []struct {
		name  string
		probe limit.Report
		want  limit.BreakerState
	}{
		{"success", limit.Success, limit.StateClosed},
		{"failure", limit.Failure, limit.StateOpen},
		{"excluded", limit.Excluded, limit.StateHalfOpen},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := limit.NewBreaker(5, open)
				late, err := b.Allow() // from before it was told
				if err != nil {
					t.Fatal(err)
				}
				failed := time.Now().Add(-time.Second)
				until := time.Now().Add(20 * time.Second)
				b.Open(until, 7, failed)
				b.Open(until.Add(-time.Second), 9, failed) // says nothing new
				told := limit.BreakerStatus{State: limit.StateOpen, Failures: 7, LastFailure: failed, RetryAt: until}
				expect(t, b, told)
				if found := b.OpenUntil(); !found.IsZero() {
					t.Errorf("it says that it was itself who opened until %v", found)
				}
				late.Report(limit.Success)
				expect(t, b, told)
				refused(t, b, limit.ErrOpen)

				<-time.After(20 * time.Second)
				probe, err := b.Allow()
				if err != nil {
					t.Fatal(err)
				}
				refused(t, b, limit.ErrProbing)
				probe.Report(test.probe)
				status := b.Status()
				if status.State != test.want {
					t.Fatalf("after the probe it is %s, want %s", status.State, test.want)
				}
				switch test.want {
				case limit.StateOpen:
					if found := b.OpenUntil(); !found.Equal(time.Now().Add(open)) {
						t.Errorf("its own open period ends at %v", found)
					}
					expect(t, b, limit.BreakerStatus{State: limit.StateOpen, Failures: 8, LastFailure: time.Now(),
						RetryAt: time.Now().Add(open)})
					b.Open(time.Now().Add(time.Second), 1, time.Time{}) // it is open for longer itself
					expect(t, b, limit.BreakerStatus{State: limit.StateOpen, Failures: 8, LastFailure: time.Now(),
						RetryAt: time.Now().Add(open)})
				case limit.StateClosed:
					for range 4 {
						allowed(t, b, limit.Failure)
					}
					allowed(t, b, limit.Success)
				default:
					allowed(t, b, limit.Success) // the next one takes its place
					expect(t, b, limit.BreakerStatus{State: limit.StateClosed, LastFailure: failed})
				}
			})
		})
	}
}
