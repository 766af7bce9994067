package engine_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem/internal/engine"
)

func TestDelay(t *testing.T) {
	t.Parallel()
	s := engine.Schedule{Attempts: 10, Backoff: time.Second, MaxAge: time.Hour}
	for _, tt := range []struct {
		attempt    int
		jitter     float64
		retryAfter time.Duration
		want       time.Duration
	}{
		{1, 0, 0, time.Second},
		{2, 0, 0, 2 * time.Second},
		{3, 0, 0, 4 * time.Second},
		{3, 0.5, 0, 5 * time.Second},
		{17, 0, 0, 65536 * time.Second},
		{18, 0, 0, 24 * time.Hour},
		{math.MaxInt, 0.99, 0, 24 * time.Hour},
		{1, 0, time.Nanosecond, time.Second},
		{1, 0, time.Second, time.Second},
		{5, 0, 7 * time.Second, 7 * time.Second},
		{5, 0.5, 8 * time.Second, 10 * time.Second},
		{1, 0, time.Hour, time.Hour},
		{1, 0, time.Hour + 1, time.Hour},
		{1, 0, math.MaxInt64, time.Hour},
	} {
		if got := s.Delay(tt.attempt, tt.jitter, tt.retryAfter); got != tt.want {
			t.Errorf("Delay(%d, %v, %v) = %v, want %v", tt.attempt, tt.jitter, tt.retryAfter, got, tt.want)
		}
	}
}

func TestDelayProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := engine.Schedule{
			Attempts: rapid.IntRange(1, 1000).Draw(t, "attempts"),
			Backoff:  time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "backoff")),
			MaxAge:   time.Hour,
		}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		attempt := rapid.IntRange(1, math.MaxInt-1).Draw(t, "attempt")
		jitter := rapid.Float64Range(0, 1).Filter(func(f float64) bool { return f < 1 }).Draw(t, "jitter")
		asked := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "retryAfter"))

		for _, retryAfter := range []time.Duration{0, asked} {
			if got := s.Delay(attempt, jitter, retryAfter); got < s.Backoff || got > 24*time.Hour {
				t.Fatalf("Delay(%d, %v, %v) = %v, want %v to 24h", attempt, jitter, retryAfter, got, s.Backoff)
			}
		}
		plain := s.Delay(attempt, 0, 0)
		if later := s.Delay(attempt+1, 0, 0); later < plain {
			t.Fatalf("attempt %d waits %v, the next one %v", attempt, plain, later)
		}
		for _, retryAfter := range []time.Duration{0, asked} {
			plain := s.Delay(attempt, 0, retryAfter)
			if got := s.Delay(attempt, jitter, retryAfter); got < plain || got > plain+plain/2 {
				t.Fatalf("jitter %v makes %v of %v, want at most half as much again", jitter, got, plain)
			}
		}
	})
}

func TestScheduleValidate(t *testing.T) {
	t.Parallel()
	good := engine.Schedule{Attempts: 3, Backoff: time.Second, MaxAge: time.Hour}
	for _, tt := range []struct {
		name   string
		change func(*engine.Schedule)
		ok     bool
	}{
		{"good", func(*engine.Schedule) {}, true},
		{"no attempt", func(s *engine.Schedule) { s.Attempts = 0 }, false},
		{"one attempt", func(s *engine.Schedule) { s.Attempts = 1 }, true},
		{"1000 attempts", func(s *engine.Schedule) { s.Attempts = 1000 }, true},
		{"1001 attempts", func(s *engine.Schedule) { s.Attempts = 1001 }, false},
		{"no backoff", func(s *engine.Schedule) { s.Backoff = 0 }, false},
		{"a day's backoff", func(s *engine.Schedule) { s.Backoff = 24 * time.Hour }, true},
		{"more than that", func(s *engine.Schedule) { s.Backoff = 24*time.Hour + 1 }, false},
		{"no age", func(s *engine.Schedule) { s.MaxAge = 0 }, false},
	} {
		s := good
		tt.change(&s)
		if err := s.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
	}
}
