package engine

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of a schedule.
const (
	maxDelay      = 24 * time.Hour   // between two attempts
	maxRetryAfter = time.Hour        // what a receiver may ask for
	maxAttempts   = 1000             // attempts in all
	maxLastLead   = 10 * time.Second // from the last attempt to the deadline
)

// Schedule says when a callback that failed is tried again: after Backoff, twice
// that, four times that, and so on, each up to half as long again by chance (so
// that callbacks which failed together do not come back together).
type Schedule struct {
	Attempts int           // tries in all, 1..1000; 3
	Backoff  time.Duration // before the second try, doubled for each further one, at most 24 h; 1 s
	MaxAge   time.Duration // after the work ended: older callbacks are given up; 24 h
}

func (s Schedule) withDefaults() Schedule {
	if s.Attempts == 0 {
		s.Attempts = 3
	}
	if s.Backoff == 0 {
		s.Backoff = time.Second
	}
	if s.MaxAge == 0 {
		s.MaxAge = 24 * time.Hour
	}
	return s
}

// Validate says what is wrong with a schedule that has its defaults.
func (s Schedule) Validate() error {
	switch {
	case s.Attempts < 1 || s.Attempts > maxAttempts:
		return fmt.Errorf("callback attempts %d: must be between 1 and %d", s.Attempts, maxAttempts)
	case s.Backoff <= 0 || s.Backoff > maxDelay:
		return fmt.Errorf("callback backoff %s: must be more than 0 and at most %s", s.Backoff, maxDelay)
	case s.MaxAge <= 0:
		return errors.New("callback maximum age: must be more than 0")
	}
	return nil
}

// Delay is how long to wait after the attempt with this number (1, 2, …) has failed. It is never less
// than Backoff and never more than 24 hours. jitter is in [0, 1). A receiver's retryAfter, if it is
// not 0, replaces the doubling; it is clamped to between Backoff and one hour. Jitter makes both
// longer by up to a half: a receiver may send many callers the same Retry-After.
func (s Schedule) Delay(attempt int, jitter float64, retryAfter time.Duration) time.Duration {
	delay := s.Backoff
	if retryAfter > 0 {
		delay = max(min(retryAfter, maxRetryAfter), s.Backoff)
	} else {
		for i := 1; i < attempt && delay < maxDelay; i++ {
			delay *= 2 // delay is less than 24 h here: no overflow
		}
	}
	return min(lengthen(delay, jitter), maxDelay)
}

// lengthen makes a delay longer by up to a half. jitter is in [0, 1).
func lengthen(delay time.Duration, jitter float64) time.Duration {
	return delay + time.Duration(jitter*float64(delay)/2)
}

// next is when to try again what should be tried at the given time and no later than deadline, at
// which it is marked as failed. What would come too late gets a last attempt shortly before the deadline
// instead, unless that is less than Backoff from now.
func (s Schedule) next(now, at, deadline time.Time) time.Time {
	if at.Before(deadline) {
		return at
	}
	if last := deadline.Add(-min(maxLastLead, s.MaxAge/10)); !last.Before(now.Add(s.Backoff)) {
		return last
	}
	return deadline
}
