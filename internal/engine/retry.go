package engine

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of a schedule.
const (
	maxDelay      = 24 * time.Hour // between two tries
	maxRetryAfter = time.Hour      // what a receiver may ask for
	maxAttempts   = 1000           // tries in all
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

// Delay is how long to wait after the try with number attempt (1, 2, …) has failed.
// It is never less than Backoff and never more than 24 hours. jitter is in [0, 1). A
// receiver's retryAfter, when it is not 0, counts instead of the doubling; it is clamped
// to between Backoff and one hour, and never less than Backoff.
func (s Schedule) Delay(attempt int, jitter float64, retryAfter time.Duration) time.Duration {
	if retryAfter > 0 {
		return max(min(retryAfter, maxRetryAfter), s.Backoff)
	}
	delay := s.Backoff
	for i := 1; i < attempt && delay < maxDelay; i++ {
		delay *= 2 // delay is less than 24 h here: no overflow
	}
	delay += time.Duration(jitter * float64(delay) / 2)
	return min(delay, maxDelay)
}
