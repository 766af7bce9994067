package load_test

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"tandem/internal/load"
)

// sample describes a run that never happened: a service with some slots, work of some length, and
// callers. [sample.report] works out what a generator would have measured, the same for the same seed.
type sample struct {
	requests    int
	concurrency int
	rate        float64 // per second; 0: closed loop
	slots       int
	workMS      float64
	acceptMS    float64
	mixed       bool
	callbacks   load.Callbacks // on top of what comes
	seed        uint64
}

// sleepy is work that waits on a service with many slots: async frees its callers at once.
var sleepy = sample{requests: 1800, concurrency: 64, rate: 60, slots: 32, workMS: 240, acceptMS: 1.1, mixed: true,
	seed: 1}

// busy is work that computes on two cores: both ways complete equally fast.
var busy = sample{requests: 1500, concurrency: 20, slots: 2, workMS: 24, acceptMS: 1.3, seed: 2}

// clocks are the times of a side, in milliseconds since the phase began.
type clocks struct {
	planned, answered, done, seen []float64
	work                          []float64
}

func (s sample) report(t testing.TB) *load.Report {
	t.Helper()
	random := rand.New(rand.NewPCG(s.seed, 7))
	r := &load.Report{
		Schema: load.SchemaVersion, Tool: "tandem 1.2.3", Mode: "balanced", Valid: true,
		StartedAt: time.Date(2026, 11, 21, 23, 15, 0, 0, time.UTC),
		Target: load.Target{URL: "http://127.0.0.1:8000", Version: "1.2.3", Mode: "demo", MetricsRead: true,
			ClockOffsetMS: 0.08},
		Settings: load.Settings{
			Requests: int64(s.requests), Concurrency: s.concurrency, RatePerSecond: s.rate, WarmupSeconds: 1,
			SyncRatio: 0.5, Task: "sleep", Complexity: 3, DataBytes: 14, TimeoutSeconds: 30, DrainSeconds: 30, Seed: s.seed,
			On429: load.On429Count, Completion: load.CompletionCallback, CallbackURL: "http://127.0.0.1:41234", Signed: true,
		},
		Generator: load.Generator{CPUSeconds: 3.2, CPUShare: 0.05, MaxMemoryBytes: 38_000_000, Cores: 2, LagP99MS: 0.4,
			SharesMachine: true},
		Warnings: []string{"the service runs on the generator's machine: their CPU competes"},
	}
	if s.slots < 10 {
		r.Settings.Task = "compute"
	}
	r.Phases = append(r.Phases, s.phase(t, random, load.PhaseSync, 1), s.phase(t, random, load.PhaseAsync, 0))
	if s.mixed {
		r.Phases = append(r.Phases, s.phase(t, random, load.PhaseMixed, r.Settings.SyncRatio))
	}
	for _, phase := range r.Phases {
		r.WallSeconds += phase.WallSeconds + 0.5
	}
	r.Comparison, r.Insights = load.Compare(r), load.Insights(r)
	return r
}

// around draws a time that is mostly near the middle and sometimes much longer.
func around(random *rand.Rand, middle float64) float64 {
	return middle * math.Exp(0.22*random.NormFloat64()+0.5*math.Max(0, random.ExpFloat64()-3.5))
}

func (s sample) phase(t testing.TB, random *rand.Rand, name string, syncRatio float64) load.Phase {
	t.Helper()
	var sides [2]clocks // sync, async
	callers, slots := make([]float64, s.concurrency), make([]float64, s.slots)
	for k := range s.requests {
		caller := earliest(callers)
		planned := callers[caller]
		if s.rate > 0 {
			planned = float64(k) * 1000 / s.rate
		}
		side := &sides[1]
		if random.Float64() < syncRatio {
			side = &sides[0]
		}
		begin := max(planned, callers[caller])
		accepted := begin + around(random, s.acceptMS)
		slot, work := earliest(slots), s.workMS*(1+0.03*random.NormFloat64())
		slots[slot] = max(slots[slot], accepted) + work
		done := slots[slot] + around(random, 0.4)
		answered, seen := accepted, done+around(random, 1.5)
		if side == &sides[0] {
			answered, seen = done, done
		}
		callers[caller] = answered
		side.planned, side.answered = append(side.planned, planned), append(side.answered, answered)
		side.done, side.seen, side.work = append(side.done, done), append(side.seen, seen), append(side.work, work)
	}
	phase := load.Phase{Name: name, Loop: "closed", Lag: latency(t, nil), OwnLag: latency(t, nil)}
	if s.rate > 0 {
		phase.Loop = "open"
		phase.Lag = latency(t, draw(random, s.requests, 0.06))
		phase.OwnLag = phase.Lag
	}
	for _, side := range sides {
		phase.SendSeconds = max(phase.SendSeconds, last(side.answered)/1000)
		phase.WallSeconds = max(phase.WallSeconds, last(side.seen)/1000)
	}
	phase.Server = &load.ServerUse{MaxMemoryBytes: 61_000_000 + int64(random.IntN(9e6))}
	for _, work := range [][]float64{sides[0].work, sides[1].work} {
		for i := range work {
			phase.Server.CPUSeconds += 0.0003
			if s.slots < 10 {
				phase.Server.CPUSeconds += work[i] / 1000
			}
		}
	}
	phase.Server.CPUCores = phase.Server.CPUSeconds / phase.WallSeconds
	if n := int64(len(sides[0].planned)); n > 0 {
		phase.Sync = side(t, sides[0], phase, n, n)
	}
	if n := int64(len(sides[1].planned)); n > 0 {
		c := s.callbacks
		c.Expected, c.Delivered = n, n-c.Missing
		phase.Callbacks = &c
		phase.Async = side(t, sides[1], phase, n, c.Delivered)
		phase.Async.EndToEnd = new(latency(t, differences(sides[1].planned, sides[1].seen)))
		phase.Async.DeliveryLag = new(latency(t, differences(sides[1].done, sides[1].seen)))
	}
	return phase
}

// side makes the figures of one side; missing results are not taken out of the distributions.
func side(t testing.TB, c clocks, phase load.Phase, n, completed int64) *load.Side {
	t.Helper()
	side := &load.Side{
		Planned: n, Sent: n, Accepted: n, Completed: completed,
		AcceptedPerSecond: float64(n) / phase.SendSeconds, CompletedPerSecond: float64(completed) / phase.WallSeconds,
		SuccessRatePercent: 100 * float64(completed) / float64(n), Errors: map[string]int64{}, SeriesStepSeconds: 1,
		Response:   latency(t, differences(c.planned, c.answered)),
		Processing: new(latency(t, c.work)),
	}
	side.Service = side.Response // nobody waited for a place
	answers, ends := map[int][]float64{}, map[int][]float64{}
	steps := make([]load.Step, int(last(c.seen)/1000)+1)
	for i := range c.planned {
		answered, seen := int(c.answered[i]/1000), int(c.seen[i]/1000)
		steps[int(c.planned[i]/1000)].Sent++
		steps[answered].Accepted++
		steps[seen].Completed++
		answers[answered] = append(answers[answered], c.answered[i]-c.planned[i])
		ends[seen] = append(ends[seen], c.seen[i]-c.planned[i])
	}
	for i := range steps {
		steps[i].Second = int64(i)
		steps[i].P50MS, steps[i].P99MS = share(answers[i], 0.5), share(answers[i], 0.99)
		if !slices.Equal(c.answered, c.seen) {
			steps[i].EndP50MS, steps[i].EndP99MS = share(ends[i], 0.5), share(ends[i], 0.99)
		}
	}
	side.Series = steps
	return side
}

// share is a quantile of a few times; 0 of none.
func share(times []float64, q float64) float64 {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return math.Round(times[int(q*float64(len(times)-1)+0.5)]*1000) / 1000
}

// latency is the distribution of times in milliseconds.
func latency(t testing.TB, times []float64) load.Latency {
	t.Helper()
	histogram := hdrhistogram.New(1, time.Hour.Microseconds(), 3)
	for _, ms := range times {
		if err := histogram.RecordValue(max(1, int64(ms*1000))); err != nil {
			t.Fatal(err)
		}
	}
	encoded, err := histogram.EncodeV2()
	if err != nil {
		t.Fatal(err)
	}
	l := load.Latency{Count: histogram.TotalCount(), HDR: string(encoded)}
	if l.Count == 0 {
		return l
	}
	l.MinMS, l.MeanMS, l.MaxMS = float64(histogram.Min())/1000, histogram.Mean()/1000, float64(histogram.Max())/1000
	for i, value := range histogram.ValueAtPercentilesSlice([]float64{50, 90, 95, 99, 99.9}) {
		*[]*float64{&l.P50MS, &l.P90MS, &l.P95MS, &l.P99MS, &l.P999MS}[i] = float64(value) / 1000
	}
	return l
}

func draw(random *rand.Rand, n int, middle float64) []float64 {
	times := make([]float64, n)
	for i := range times {
		times[i] = around(random, middle)
	}
	return times
}

func differences(from, to []float64) []float64 {
	times := make([]float64, len(from))
	for i := range from {
		times[i] = to[i] - from[i]
	}
	return times
}

func earliest(times []float64) int {
	at := 0
	for i := range times {
		if times[i] < times[at] {
			at = i
		}
	}
	return at
}

func last(times []float64) float64 {
	if len(times) == 0 {
		return 0
	}
	return slices.MaxFunc(times, cmp.Compare)
}
