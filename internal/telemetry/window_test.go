package telemetry_test

import (
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/tandemtest"
	"tandem/internal/telemetry"
)

var quiet = slog.New(slog.DiscardHandler)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// gauge is metrics with the time as an argument.
type gauge struct{ *telemetry.Metrics }

func newGauge() gauge { return gauge{telemetry.NewAt(telemetry.Config{Log: quiet}, epoch)} }

func (g gauge) accepted(now time.Time) {
	g.Observe(engine.Event{Step: engine.Accepted, At: now})
}

func (g gauge) processing(now time.Time, d time.Duration) {
	g.Observe(engine.Event{Step: engine.Ran, At: now, Run: engine.Run{Working: d}})
}

func (g gauge) rate(now time.Time) float64 {
	_, perSecond := g.RecentAt(now)
	return perSecond
}

func (g gauge) read(now time.Time) telemetry.Percentiles {
	latencies, _ := g.RecentAt(now)
	return latencies["processing"]
}

func TestRequestsPerSecond(t *testing.T) {
	t.Parallel()
	g := newGauge()
	if rate := g.rate(epoch); rate != 0 {
		t.Errorf("%v before anything happened", rate)
	}
	for second := range 120 { // ten per second
		for range 10 {
			g.accepted(epoch.Add(time.Duration(second) * time.Second))
		}
	}
	for _, tt := range []struct {
		at   time.Duration
		want float64
	}{
		{119*time.Second + 999*time.Millisecond, 10},
		{149 * time.Second, 5}, // the last half minute was silent
		{178 * time.Second, 10.0 / 60},
		{179 * time.Second, 0},
		{1000 * time.Hour, 0},
	} {
		if got := g.rate(epoch.Add(tt.at)); math.Abs(got-tt.want) > 0.01 {
			t.Errorf("after %v: %v per second, want %v", tt.at, got, tt.want)
		}
	}
	young := newGauge()
	young.accepted(epoch)
	young.accepted(epoch.Add(3 * time.Second))
	if got := young.rate(epoch.Add(4 * time.Second)); got != 0.5 {
		t.Errorf("2 requests in the first 4 s: %v per second, want 0.5", got)
	}
}

func TestLatencyOfTheLastFiveMinutes(t *testing.T) {
	t.Parallel()
	g := newGauge()
	g.processing(epoch, time.Second)
	g.processing(epoch.Add(4*time.Minute), 100*time.Hour) // counts as 24 h
	for _, tt := range []struct {
		at    time.Duration
		count int64
	}{
		{0, 1}, // the second one has not happened yet
		{4 * time.Minute, 2},
		{5*time.Minute - time.Second, 2},
		{5 * time.Minute, 1},
		{10 * time.Minute, 0},
	} {
		if got := g.read(epoch.Add(tt.at)).Count; got != tt.count {
			t.Errorf("after %v: %d, want %d", tt.at, got, tt.count)
		}
	}
	g.processing(epoch.Add(5*time.Minute), time.Millisecond) // takes the window of the first
	if got := g.read(epoch.Add(5 * time.Minute)); got.Count != 2 || got.P50 < 0.99 || got.P50 > 1.01 {
		t.Errorf("after the ring has gone round: %+v, want 2 with a median of 1 ms", got)
	}
}

func TestLatencyPercentiles(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g := newGauge()
		micros := rapid.SliceOfN(rapid.Int64Range(0, 86_400_000_000), 1, 200).Draw(t, "µs")
		for i, µs := range micros { // spread over the windows
			g.processing(epoch.Add(time.Duration(i)*time.Second), time.Duration(µs)*time.Microsecond)
		}
		got := g.read(epoch.Add(200 * time.Second))
		slices.Sort(micros)
		for share, value := range map[float64]float64{0.50: got.P50, 0.95: got.P95, 0.99: got.P99} {
			rank := max(int(share*float64(len(micros))+0.5), 1) // the nearest, as HdrHistogram has it
			want := float64(micros[rank-1]) / 1000
			if math.Abs(value-want) > want*0.01+0.001 {
				t.Fatalf("p%v = %v ms of %d, want %v to 1 %%", share*100, value, len(micros), want)
			}
		}
	})
}

// Every duration is in the bucket of each bound that it does not exceed, however
// long ago it was measured.
func TestHistogramProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		g := newGauge()
		var sum time.Duration
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			unit := rapid.SampledFrom([]time.Duration{time.Microsecond, time.Millisecond, time.Second}).Draw(t, "unit")
			return time.Duration(rapid.IntRange(0, 5000).Draw(t, "count")) * unit
		}), 0, 100).Draw(rt, "durations")
		for i, d := range list {
			g.processing(epoch.Add(time.Duration(i)*time.Minute), d) // the ring of windows goes round
			sum += d
		}
		got, buckets := tandemtest.Samples(t, g.Metrics), 0
		if count := got["tandem_processing_seconds_count"]; count != float64(len(list)) {
			rt.Fatalf("count %v, want %d", count, len(list))
		}
		if total := got["tandem_processing_seconds_sum"]; math.Abs(total-sum.Seconds()) > 1e-6 {
			rt.Fatalf("sum %v, want %v", total, sum.Seconds())
		}
		for sample, count := range got {
			bound, ok := strings.CutPrefix(sample, `tandem_processing_seconds_bucket{le="`)
			if !ok {
				continue
			}
			most, err := strconv.ParseFloat(strings.TrimSuffix(bound, `"}`), 64)
			if err != nil {
				rt.Fatal(err)
			}
			buckets++
			want := 0
			for _, d := range list {
				if d.Seconds() <= most {
					want++
				}
			}
			if count != float64(want) {
				rt.Fatalf("%v were not longer than %v s, want %d", count, most, want)
			}
		}
		if buckets < 10 {
			rt.Fatalf("%d buckets", buckets)
		}
	})
}

// Nothing that happens to a request allocates while the debug log is off.
func TestObserveDoesNotAllocate(t *testing.T) { //nolint:paralleltest // others would allocate meanwhile
	g := newGauge()
	event := engine.Event{
		At: epoch, Attempt: tandem.Attempt{Outcome: tandem.OutcomeDelivered},
		Run: engine.Run{Request: tandem.Request{Mode: tandem.ModeAsync, Task: "echo"}, Waited: true, Took: time.Millisecond},
	}
	for event.Step = engine.Begun; event.Step <= engine.Called; event.Step++ {
		if n := testing.AllocsPerRun(100, func() { g.Observe(event) }); n != 0 {
			t.Errorf("step %d: %v allocations", event.Step, n)
		}
	}
}
