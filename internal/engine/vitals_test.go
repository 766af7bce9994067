package engine_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/engine"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestVitalsOfARunningEngine(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	rc := newReceiver(t, nil)
	if _, err := p.Do(t.Context(), order("sleep")); err != nil {
		t.Fatal(err)
	}
	p.Settled(p.submit("echo", rc.URL).ID)
	v := p.Vitals()
	want := map[string]int64{"sync_response": 1, "async_acceptance": 1, "processing": 2, "accept_to_callback": 1}
	got := map[string]int64{}
	for kind, p := range v.Latency {
		got[kind] = p.Count
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if p50 := v.Latency["sync_response"].P50; p50 < 49 || p50 > patience.Seconds()*1000 {
		t.Errorf("sync_response p50 %v ms, want the 50 of the task and a little more", p50)
	}
	if v.RequestsPerSecond <= 0 || v.RequestsPerSecond > 2 {
		t.Errorf("%v requests per second, want at most 2", v.RequestsPerSecond)
	}
	if len(v.Destinations) != 1 || v.Destinations[0].Host != rc.Listener.Addr().String() {
		t.Errorf("destinations %+v, want %s", v.Destinations, rc.Listener.Addr())
	}
}

func TestRequestsPerSecond(t *testing.T) {
	t.Parallel()
	g := engine.NewGauge(epoch)
	if rate := g.Read(epoch).RequestsPerSecond; rate != 0 {
		t.Errorf("%v before anything happened", rate)
	}
	for second := range 120 { // ten per second
		for range 10 {
			g.Accepted(epoch.Add(time.Duration(second) * time.Second))
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
		if got := g.Read(epoch.Add(tt.at)).RequestsPerSecond; math.Abs(got-tt.want) > 0.01 {
			t.Errorf("after %v: %v per second, want %v", tt.at, got, tt.want)
		}
	}
	young := engine.NewGauge(epoch)
	young.Accepted(epoch)
	young.Accepted(epoch.Add(3 * time.Second))
	if got := young.Read(epoch.Add(4 * time.Second)).RequestsPerSecond; got != 0.5 {
		t.Errorf("2 requests in the first 4 s: %v per second, want 0.5", got)
	}
}

func TestLatencyOfTheLastFiveMinutes(t *testing.T) {
	t.Parallel()
	g := engine.NewGauge(epoch)
	g.Processing(epoch, time.Second)
	g.Processing(epoch.Add(4*time.Minute), 100*time.Hour) // counts as 24 h
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
		if got := g.Read(epoch.Add(tt.at)).Latency["processing"].Count; got != tt.count {
			t.Errorf("after %v: %d, want %d", tt.at, got, tt.count)
		}
	}
	g.Processing(epoch.Add(5*time.Minute), time.Millisecond) // takes the window of the first
	if got := g.Read(epoch.Add(5 * time.Minute)).Latency["processing"]; got.Count != 2 || got.P50 < 0.99 || got.P50 > 1.01 {
		t.Errorf("after the ring has gone round: %+v, want 2 with a median of 1 ms", got)
	}
}

func TestLatencyPercentiles(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g := engine.NewGauge(epoch)
		micros := rapid.SliceOfN(rapid.Int64Range(0, 86_400_000_000), 1, 200).Draw(t, "µs")
		for i, µs := range micros { // spread over the windows
			g.Processing(epoch.Add(time.Duration(i)*time.Second), time.Duration(µs)*time.Microsecond)
		}
		got := g.Read(epoch.Add(200 * time.Second)).Latency["processing"]
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
