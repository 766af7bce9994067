package work_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem/internal/work"
)

func TestDelay(t *testing.T) {
	t.Parallel()
	s := work.Retry{Attempts: 10, Backoff: time.Second, MaxAge: time.Hour}
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
		s := work.Retry{
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

func TestRetryValidate(t *testing.T) {
	t.Parallel()
	good := work.Retry{Attempts: 3, Backoff: time.Second, MaxAge: time.Hour}
	for _, tt := range []struct {
		name   string
		change func(*work.Retry)
		ok     bool
	}{
		{"good", func(*work.Retry) {}, true},
		{"no attempt", func(s *work.Retry) { s.Attempts = 0 }, false},
		{"one attempt", func(s *work.Retry) { s.Attempts = 1 }, true},
		{"1000 attempts", func(s *work.Retry) { s.Attempts = 1000 }, true},
		{"1001 attempts", func(s *work.Retry) { s.Attempts = 1001 }, false},
		{"no backoff", func(s *work.Retry) { s.Backoff = 0 }, false},
		{"a day's backoff", func(s *work.Retry) { s.Backoff = 24 * time.Hour }, true},
		{"more than that", func(s *work.Retry) { s.Backoff = 24*time.Hour + 1 }, false},
		{"at most as long as the backoff", func(s *work.Retry) { s.Max = time.Second }, true},
		{"at most less than the backoff", func(s *work.Retry) { s.Max = time.Second - 1 }, false},
		{"at most a day", func(s *work.Retry) { s.Max = 24 * time.Hour }, true},
		{"at most more than a day", func(s *work.Retry) { s.Max = 24*time.Hour + 1 }, false},
		{"no age", func(s *work.Retry) { s.MaxAge = 0 }, false},
	} {
		s := good
		tt.change(&s)
		if err := s.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
	}
}

// Waits grow with age, within bounds, so that a day has few calls in it and an outage of minutes is noticed to be over.
func TestDelayByAge(t *testing.T) {
	t.Parallel()
	s := work.Retry{Attempts: 1, Backoff: time.Second, Max: 15 * time.Minute, MaxAge: 24 * time.Hour}
	rapid.Check(t, func(t *rapid.T) {
		age := time.Duration(rapid.Int64Range(-int64(time.Minute), int64(48*time.Hour)).Draw(t, "age"))
		asked := time.Duration(rapid.SampledFrom([]int64{0, 1, int64(time.Minute), int64(100 * time.Hour)}).Draw(t,
			"retry after"))
		delay := s.DelayByAge(age, rapid.Float64Range(0, 0.999).Draw(t, "jitter"), asked)
		most := 15*time.Minute + 15*time.Minute/2
		if asked > 0 {
			most = time.Hour * 3 / 2
		}
		if delay < time.Second || delay > most {
			t.Fatalf("%v", delay)
		}
	})
	for age, want := range map[time.Duration]time.Duration{
		0: time.Second, time.Second: time.Second, 3 * time.Second: 3 * time.Second,
		15 * time.Minute: 15 * time.Minute, 16 * time.Minute: 15 * time.Minute,
	} {
		if got := s.DelayByAge(age, 0, 0); got != want {
			t.Errorf("at %v: %v, want %v", age, got, want)
		}
	}
	calls := 0
	for age := time.Duration(0); age < 24*time.Hour; age += s.DelayByAge(age, rand.Float64(), 0) {
		calls++
	}
	if calls < 60 || calls > 110 {
		t.Errorf("%d calls in 24 hours", calls)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	accepted := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ended := accepted.Add(10 * time.Second)
	policy := work.Retry{Attempts: 3, Backoff: 2 * time.Second, Max: time.Minute, MaxAge: time.Hour}
	careless, once := policy, policy
	careless.Unknown, once.Attempts = true, 1
	again, held := work.Again("busy", 0, true), work.Held("open", ended.Add(time.Minute))
	for name, tt := range map[string]struct {
		policy  work.Retry
		attempt int
		result  work.Result
		timeout bool
		want    time.Duration // after it ended; 0: never
	}{
		"done":                       {policy, 1, work.Done(nil, ""), false, 0},
		"failed":                     {policy, 1, work.Failed("no"), false, 0},
		"zero":                       {policy, 1, work.Result{}, false, 0},
		"no policy":                  {work.Retry{}, 1, again, false, 0},
		"no policy, not counted":     {work.Retry{}, 1, work.Again("busy", 0, false), false, 0},
		"no policy, held":            {work.Retry{}, 1, held, false, 0},
		"first":                      {policy, 1, again, false, 2 * time.Second},
		"second":                     {policy, 2, again, false, 4 * time.Second},
		"the last":                   {policy, 3, again, false, 0},
		"the only one":               {once, 1, again, false, 0},
		"it says when":               {policy, 1, work.Again("busy", 7*time.Second, true), false, 7 * time.Second},
		"not counted: as long again": {once, 1, work.Again("busy", 0, false), false, 10 * time.Second},
		"not counted, it says when":  {once, 1, work.Again("busy", 7*time.Second, false), false, 7 * time.Second},
		"held":                       {once, 1, held, false, time.Minute},
		"unknown":                    {policy, 1, work.Unknown("cut"), false, 0},
		"unknown, allowed":           {careless, 1, work.Unknown("cut"), false, 2 * time.Second},
		"unknown, allowed, the last": {careless, 3, work.Unknown("cut"), false, 0},
		"timeout":                    {policy, 1, work.Failed("cut"), true, 0},
		"timeout, allowed":           {careless, 1, work.Failed("cut"), true, 2 * time.Second},
		"held for longer than it may take": {policy, 1, work.Held("", ended.Add(2*time.Hour)), false,
			time.Hour - 20*time.Second},
	} {
		at, runs, more := tt.policy.After(work.Ended{
			Result: tt.result, Attempt: tt.attempt, Accepted: accepted, At: ended, Timeout: tt.timeout,
		}, 0)
		if more != (tt.want > 0) || more && at.Sub(ended) != tt.want {
			t.Errorf("%s: %v after it ended, %v; want %v", name, at.Sub(ended), more, tt.want)
		}
		wantRuns := tt.attempt
		if !more {
			wantRuns = 0
		} else if strings.Contains(name, "not counted") || strings.Contains(name, "held") {
			wantRuns--
		}
		if runs != wantRuns {
			t.Errorf("%s: %d runs count, want %d", name, runs, wantRuns)
		}
	}
}
