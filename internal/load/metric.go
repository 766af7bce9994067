package load

import (
	"slices"
	"strings"
)

// The units of a [Metric].
const (
	UnitMilliseconds = "ms"
	UnitPerSecond    = "per_second"
	UnitPercent      = "percent"
	UnitCount        = "count"
	UnitCores        = "cores"
	UnitMegabytes    = "mb"
)

// Metric is one figure of a report under the name that thresholds, insights and
// comparisons use: <phase>.<clock>.<statistic>, such as async.accept.p99, or
// <phase>.<count>, such as async.missing. The mixed phase has two sides: mixed.sync.… and mixed.async.….
type Metric struct {
	Name           string
	Unit           string // ms, per_second, percent, count, cores or mb
	Value          float64
	HigherIsBetter bool
}

// gauge is a metric of one side of a phase: its name there, and how it is read.
// The value is missing, not zero, when it was not measured.
type gauge struct {
	name   string
	unit   string
	higher bool
	read   func(*Phase, *Side) (float64, bool)
}

// statistics are the last part of a clock's metrics.
var statistics = []struct {
	name string
	read func(*Latency) float64
}{
	{"min", func(l *Latency) float64 { return l.MinMS }},
	{"mean", func(l *Latency) float64 { return l.MeanMS }},
	{"p50", func(l *Latency) float64 { return l.P50MS }},
	{"p90", func(l *Latency) float64 { return l.P90MS }},
	{"p95", func(l *Latency) float64 { return l.P95MS }},
	{"p99", func(l *Latency) float64 { return l.P99MS }},
	{"p999", func(l *Latency) float64 { return l.P999MS }},
	{"max", func(l *Latency) float64 { return l.MaxMS }},
}

// clock is the metrics of one distribution.
func clock(name string, of func(*Phase, *Side) *Latency) []gauge {
	var gauges []gauge
	for _, statistic := range statistics {
		gauges = append(gauges, gauge{
			name: name + "." + statistic.name, unit: UnitMilliseconds,
			read: func(p *Phase, s *Side) (float64, bool) {
				latency := of(p, s)
				if latency == nil || latency.Count == 0 {
					return 0, false
				}
				return statistic.read(latency), true
			},
		})
	}
	return gauges
}

// figure is a metric that every side has.
func figure(name, unit string, higher bool, read func(*Side) float64) gauge {
	return gauge{name: name, unit: unit, higher: higher, read: func(_ *Phase, s *Side) (float64, bool) { return read(s), true }}
}

// callback is a counter of what came back.
func callback(name string, higher bool, read func(*Callbacks) int64) gauge {
	return gauge{name: name, unit: UnitCount, higher: higher, read: func(p *Phase, _ *Side) (float64, bool) {
		if p.Callbacks == nil {
			return 0, false
		}
		return float64(read(p.Callbacks)), true
	}}
}

// use is a metric of the server's own account.
func use(name, unit string, read func(*ServerUse, *Phase) (float64, bool)) gauge {
	return gauge{name: name, unit: unit, read: func(p *Phase, _ *Side) (float64, bool) {
		if p.Server == nil {
			return 0, false
		}
		return read(p.Server, p)
	}}
}

// common are the metrics of both sides, besides the clocks that only one has.
var common = slices.Concat(
	clock("service", func(_ *Phase, s *Side) *Latency { return &s.Service }),
	clock("processing", func(_ *Phase, s *Side) *Latency { return s.Processing }),
	clock("lag", func(p *Phase, _ *Side) *Latency { return &p.Lag }),
	clock("generator_lag", func(p *Phase, _ *Side) *Latency { return &p.OwnLag }),
	[]gauge{
		figure("planned", UnitCount, true, func(s *Side) float64 { return float64(s.Planned) }),
		figure("sent", UnitCount, true, func(s *Side) float64 { return float64(s.Sent) }),
		figure("retried", UnitCount, false, func(s *Side) float64 { return float64(s.Retried) }),
		figure("accepted", UnitCount, true, func(s *Side) float64 { return float64(s.Accepted) }),
		figure("completed", UnitCount, true, func(s *Side) float64 { return float64(s.Completed) }),
		figure("work_failed", UnitCount, false, func(s *Side) float64 { return float64(s.WorkFailed) }),
		figure("accepted_per_second", UnitPerSecond, true, func(s *Side) float64 { return s.AcceptedPerSecond }),
		figure("completed_per_second", UnitPerSecond, true, func(s *Side) float64 { return s.CompletedPerSecond }),
		figure("success_rate", UnitPercent, true, func(s *Side) float64 { return s.SuccessRatePercent }),
		figure("errors", UnitCount, false, func(s *Side) float64 { return float64(s.errors()) }),
		figure("refused", UnitCount, false, func(s *Side) float64 { return float64(s.refused()) }),
		use("server.cpu", UnitCores, func(u *ServerUse, _ *Phase) (float64, bool) { return u.CPUCores, true }),
		use("server.cpu_per_request", UnitMilliseconds, func(u *ServerUse, p *Phase) (float64, bool) { return u.perRequest(p) }),
		use("server.memory", UnitMegabytes, func(u *ServerUse, _ *Phase) (float64, bool) {
			return float64(u.MaxMemoryBytes) / 1e6, u.MaxMemoryBytes > 0
		}),
	},
)

// syncGauges and asyncGauges are all metrics of a side, in the order of a reader's interest.
var (
	syncGauges = slices.Concat(
		clock("response", func(_ *Phase, s *Side) *Latency { return &s.Response }),
		common,
	)
	asyncGauges = slices.Concat(
		clock("accept", func(_ *Phase, s *Side) *Latency { return &s.Response }),
		clock("end_to_end", func(_ *Phase, s *Side) *Latency { return s.EndToEnd }),
		clock("delivery_lag", func(_ *Phase, s *Side) *Latency { return s.DeliveryLag }),
		common,
		[]gauge{
			callback("expected", true, func(c *Callbacks) int64 { return c.Expected }),
			callback("delivered", true, func(c *Callbacks) int64 { return c.Delivered }),
			callback("missing", false, func(c *Callbacks) int64 { return c.Missing }),
			callback("duplicate", false, func(c *Callbacks) int64 { return c.Duplicate }),
			callback("bad_signature", false, func(c *Callbacks) int64 { return c.BadSignature }),
			callback("malformed", false, func(c *Callbacks) int64 { return c.Malformed }),
			callback("unknown", false, func(c *Callbacks) int64 { return c.Unknown }),
			callback("before_answer", false, func(c *Callbacks) int64 { return c.BeforeAnswer }),
			callback("late", false, func(c *Callbacks) int64 { return c.Late }),
			callback("unanswered", false, func(c *Callbacks) int64 { return c.Unanswered }),
			callback("misbehaved", false, func(c *Callbacks) int64 { return c.Misbehaved }),
			callback("redelivered", false, func(c *Callbacks) int64 { return c.Redelivered }),
			callback("polled", true, func(c *Callbacks) int64 { return c.Polled }),
		},
	)
)

// sides are the prefixes of metrics, with what stands behind them.
var sides = []struct {
	phase, prefix string
	words         string // in sentences
	gauges        []gauge
	of            func(*Phase) *Side
}{
	{PhaseSync, "sync", "the sync phase", syncGauges, func(p *Phase) *Side { return p.Sync }},
	{PhaseAsync, "async", "the async phase", asyncGauges, func(p *Phase) *Side { return p.Async }},
	{PhaseMixed, "mixed.sync", "the mixed phase, sync side", syncGauges, func(p *Phase) *Side { return p.Sync }},
	{PhaseMixed, "mixed.async", "the mixed phase, async side", asyncGauges, func(p *Phase) *Side { return p.Async }},
}

// Metrics lists every figure that was measured, phase by phase.
func Metrics(r *Report) []Metric {
	var metrics []Metric
	for _, side := range sides {
		phase := r.phase(side.phase)
		if phase == nil || side.of(phase) == nil {
			continue
		}
		for _, gauge := range side.gauges {
			if value, ok := gauge.read(phase, side.of(phase)); ok {
				metrics = append(metrics, Metric{
					Name: side.prefix + "." + gauge.name, Unit: gauge.unit, Value: value, HigherIsBetter: gauge.higher,
				})
			}
		}
	}
	return metrics
}

// metricNames lists every name that there is in a run of these phases; none means all.
func metricNames(phases []string) []string {
	var names []string
	for _, side := range sides {
		if len(phases) > 0 && !slices.Contains(phases, side.phase) {
			continue
		}
		for _, gauge := range side.gauges {
			names = append(names, side.prefix+"."+gauge.name)
		}
	}
	return names
}

// metricUnit tells the unit of a metric; it is not ok when there is none of that name.
func metricUnit(name string) (unit string, ok bool) {
	for _, side := range sides {
		rest, found := strings.CutPrefix(name, side.prefix+".")
		if !found {
			continue
		}
		for _, gauge := range side.gauges {
			if gauge.name == rest {
				return gauge.unit, true
			}
		}
	}
	return "", false
}

// phase finds a phase by its name; nil: it did not run.
func (r *Report) phase(name string) *Phase {
	for i := range r.Phases {
		if r.Phases[i].Name == name {
			return &r.Phases[i]
		}
	}
	return nil
}

// errors counts the requests that did not get the answer they asked for.
func (s *Side) errors() int64 {
	var sum int64
	for _, n := range s.Errors {
		sum += n
	}
	return sum
}

// refused counts the answers that say "not now".
func (s *Side) refused() int64 { return s.Errors["http_429"] + s.Errors["http_503"] }

// accepted counts what the server took on, from both sides.
func (p *Phase) accepted() int64 {
	var sum int64
	for _, side := range []*Side{p.Sync, p.Async} {
		if side != nil {
			sum += side.Accepted
		}
	}
	return sum
}

// leastCPU is how many seconds of CPU time are worth dividing: kernels count hundredths.
const leastCPU = 0.1

// perRequest is the server's CPU time for one accepted request, in milliseconds.
func (u *ServerUse) perRequest(p *Phase) (float64, bool) {
	if u == nil || u.CPUSeconds < leastCPU || p.accepted() == 0 {
		return 0, false
	}
	return u.CPUSeconds * 1000 / float64(p.accepted()), true
}
