package load_test

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem/internal/load"
)

// TestScheduleIsArithmetic: whatever the rates, the number of requests planned before
// a moment is the area under the rate up to it, and never goes back.
func TestScheduleIsArithmetic(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Float64Range(0.1, 20_000).Draw(t, "from")
		to := rapid.OneOf(rapid.Just(from), rapid.Float64Range(0.1, 20_000)).Draw(t, "to")
		length := time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(time.Hour)).Draw(t, "length"))
		s := load.NewSchedule(from, to, 0, length)
		if s.Length() != length {
			t.Fatalf("length %v, want %v", s.Length(), length)
		}
		area := func(at time.Duration) float64 {
			x, whole := at.Seconds(), length.Seconds()
			return from*x + (to-from)/whole*x*x/2
		}
		if want := area(length); math.Abs(float64(s.Count())-want) > 1 {
			t.Fatalf("%d requests, want about %v", s.Count(), want)
		}
		if s.Count() == 0 {
			return
		}
		k := rapid.Int64Range(0, s.Count()-1).Draw(t, "k")
		at := s.At(k)
		if at < 0 || at > length {
			t.Fatalf("request %d of %d at %v, want within %v", k, s.Count(), at, length)
		}
		if k > 0 && s.At(k-1) > at {
			t.Fatalf("request %d at %v, after the next one at %v", k-1, s.At(k-1), at)
		}
		// Before the k-th there are k of them; a nanosecond of rounding is some 1e-5 requests.
		if got := area(at); math.Abs(got-float64(k)) > 1e-3+1e-9*float64(k) {
			t.Fatalf("request %d at %v, where %v are due", k, at, got)
		}
	})
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	second := time.Second
	for _, test := range []struct {
		name     string
		from, to float64
		requests int64
		length   time.Duration
		count    int64
		ends     time.Duration
		at       map[int64]time.Duration
	}{
		{"constant", 100, 100, 0, second, 100, second,
			map[int64]time.Duration{0: 0, 1: 10 * time.Millisecond, 99: 990 * time.Millisecond}},
		{"bounded by requests", 100, 100, 30, second, 30, second, map[int64]time.Duration{29: 290 * time.Millisecond}},
		{"length follows from requests", 100, 100, 30, 0, 30, 300 * time.Millisecond,
			map[int64]time.Duration{29: 290 * time.Millisecond}},
		{"less than one a second", 0.1, 0.1, 0, 100 * second, 10, 100 * second, map[int64]time.Duration{9: 90 * second}},
		{"growing", 10, 30, 0, 2 * second, 40, 2 * second, map[int64]time.Duration{0: 0, 15: second}},
		{"falling", 30, 10, 0, 2 * second, 40, 2 * second, map[int64]time.Duration{25: second}},
		{"growing, by requests", 10, 30, 40, 0, 40, 2 * second, map[int64]time.Duration{15: second}},
		{"nothing fits", 0.1, 0.1, 0, time.Microsecond, 0, time.Microsecond, nil},
	} {
		s := load.NewSchedule(test.from, test.to, test.requests, test.length)
		if s.Count() != test.count || s.Length() != test.ends {
			t.Errorf("%s: %d requests in %v, want %d in %v", test.name, s.Count(), s.Length(), test.count, test.ends)
		}
		for k, want := range test.at {
			if got := s.At(k); (got - want).Abs() > time.Microsecond {
				t.Errorf("%s: request %d at %v, want %v", test.name, k, got, want)
			}
		}
	}
}

// TestWaitUntil: never early, and over at once when nobody needs it any more.
func TestWaitUntil(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{-time.Second, 0, 300 * time.Microsecond, 1900 * time.Microsecond,
		2100 * time.Microsecond, 20 * time.Millisecond} {
		due := time.Now().Add(d)
		if !load.WaitUntil(t.Context(), due) || time.Now().Before(due) {
			t.Errorf("a wait of %v was over %v too early", d, time.Until(due))
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	for _, d := range []time.Duration{-time.Second, time.Millisecond, time.Hour} {
		if load.WaitUntil(ctx, time.Now().Add(d)) {
			t.Errorf("a wait of %v ended well although nobody needs it", d)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		retryAfter, rateLimit string
		want                  time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"7", "", 7 * time.Second},
		{"-7", "", 0},
		{"99999999999999999999", "", 0}, // no number of seconds
		{"99999999", "", 1e6 * time.Second},
		{"soon", "", 0},
		{"Sat, 21 Nov 2026 12:00:05 GMT", "", 5 * time.Second},
		{"Sat, 21 Nov 2026 11:59:55 GMT", "", 0},
		{"", `"post";r=0;t=12`, 12 * time.Second},
		{"", `"post";r=1;t=12`, 0},
		{"", `"post"; r=0; t=12, "get";r=5;t=1`, 12 * time.Second},
		{"", `"post";t=12`, 0},
		{"", `"post";r=0`, 0},
		{"", `"post";r=x;t=y`, 0},
		{"3", `"post";r=0;t=12`, 12 * time.Second},
		{"30", `"post";r=0;t=12`, 30 * time.Second},
	} {
		header := http.Header{}
		header.Set("Retry-After", test.retryAfter)
		header.Set("RateLimit", test.rateLimit)
		if got := load.RetryAfter(header, now); got != test.want {
			t.Errorf("Retry-After %q, RateLimit %q: wait %v, want %v", test.retryAfter, test.rateLimit, got, test.want)
		}
	}
}

// TestMergedHistograms: the percentiles of many recorders together are those of one that saw everything.
func TestMergedHistograms(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(2*time.Hour)), 1, 200).Draw(t, "values")
		recorders := make([]load.Recorder, rapid.IntRange(1, 8).Draw(t, "recorders"))
		for i := range recorders {
			recorders[i] = load.NewRecorder()
		}
		one := load.NewRecorder()
		for _, value := range values {
			recorders[rapid.IntRange(0, len(recorders)-1).Draw(t, "recorder")].Observe(time.Duration(value))
			one.Observe(time.Duration(value))
		}
		merged, union := load.Merged(recorders), load.Merged([]load.Recorder{one})
		if merged != union {
			t.Fatalf("merged %+v, union %+v", merged, union)
		}
		// They are the values, to three digits; what is longer than an hour counts as an hour.
		slices.Sort(values)
		for _, check := range []struct{ q, got float64 }{{0.5, merged.P50MS}, {0.9, merged.P90MS}, {0.99, merged.P99MS},
			{1, merged.MaxMS}} {
			rank := max(int(check.q*float64(len(values))+0.5), 1) - 1 // as HdrHistogram rounds
			want := float64(min(values[rank], int64(time.Hour))/1000) / 1000
			if math.Abs(check.got-want) > 0.001+want/1000 {
				t.Fatalf("quantile %v is %v ms, want %v", check.q, check.got, want)
			}
		}
		histogram, err := merged.Histogram()
		if err != nil || histogram.TotalCount() != int64(len(values)) {
			t.Fatalf("decoded: %v", err)
		}
	})
}
