package engine_test

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
)

func TestTotalsOfARunningEngine(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	rc := newReceiver(t, nil)
	if _, err := p.Do(t.Context(), order("sleep")); err != nil {
		t.Fatal(err)
	}
	_, err := p.Do(t.Context(), order("broken"))
	wantCode(t, err, tandem.CodeTaskFailed)
	p.Settled(p.submit("echo", rc.URL).ID)
	p.Settled(p.submit("panicky", rc.URL).ID)
	totals := p.Totals()
	ended := map[engine.Ending]int64{
		{Mode: tandem.ModeSync, Task: "sleep"}:                                   1,
		{Mode: tandem.ModeSync, Task: "broken", ErrorCode: tandem.FailedTask}:    1,
		{Mode: tandem.ModeAsync, Task: "echo"}:                                   1,
		{Mode: tandem.ModeAsync, Task: "panicky", ErrorCode: tandem.FailedPanic}: 1,
	}
	if diff := cmp.Diff(ended, atLeastOne(totals.Ended)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	counts := map[string]uint64{}
	for kind, histogram := range totals.Durations {
		counts[kind] = histogram.Count
	}
	want := map[string]uint64{"sync_response": 2, "async_acceptance": 2, "processing": 4, "accept_to_callback": 2}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("durations (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"closed": 1, "half-open": 0, "open": 0}, totals.Breakers); diff != "" {
		t.Errorf("breakers (-want +got):\n%s", diff)
	}
}

// atLeastOne leaves out what has not happened.
func atLeastOne(ended map[engine.Ending]int64) map[engine.Ending]int64 {
	maps.DeleteFunc(ended, func(_ engine.Ending, count int64) bool { return count == 0 })
	return ended
}

// What is handed back has not ended; what no task does any more has.
func TestTotalsOfStepsWithoutAResult(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle = true })
	job := completed("http://127.0.0.1:9/", 0)
	job.Lane, job.Request.Status, job.Started = store.LaneIO, tandem.StatusPending, func() {}
	job.Request.Task = "retired"
	p.Step(t.Context(), job)
	p.Halt()
	job.Request.Task = "stuck"
	p.Step(t.Context(), job)
	want := map[engine.Ending]int64{{Mode: tandem.ModeAsync, Task: engine.UnknownTask, ErrorCode: tandem.FailedTask}: 1}
	if diff := cmp.Diff(want, atLeastOne(p.Totals().Ended)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}

// Every duration is in the bucket of each bound that it does not exceed, however
// long ago it was measured.
func TestHistogramProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g := engine.NewGauge(epoch)
		var sum time.Duration
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			unit := rapid.SampledFrom([]time.Duration{time.Microsecond, time.Millisecond, time.Second}).Draw(t, "unit")
			return time.Duration(rapid.IntRange(0, 5000).Draw(t, "count")) * unit
		}), 0, 100).Draw(t, "durations")
		for i, d := range list {
			g.Processing(epoch.Add(time.Duration(i)*time.Minute), d) // the ring of windows goes round
			sum += d
		}
		got := g.Totals().Durations["processing"]
		if got.Count != uint64(len(list)) || got.Sum != sum || len(got.Buckets) < 10 {
			t.Fatalf("count %d, sum %v, %d buckets; want %d, %v, at least 10", got.Count, got.Sum, len(got.Buckets), len(list), sum)
		}
		for bound, count := range got.Buckets {
			var want uint64
			for _, d := range list {
				if d <= bound {
					want++
				}
			}
			if count != want {
				t.Fatalf("%d were not longer than %v, want %d", count, bound, want)
			}
		}
	})
}
