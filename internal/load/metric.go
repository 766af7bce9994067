package load

import (
	"math"
	"regexp"
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

// Metric is one figure of a report, under its name in thresholds, insights and comparisons:
// <phase>.<clock>.<statistic>, such as async.accept.p99, or <phase>.<count>, such as async.missing. The mixed phase has
// two sides: mixed.sync.… and mixed.async.….
type Metric struct {
	Name           string
	Unit           string // ms, per_second, percent, count, cores or mb
	Value          float64
	HigherIsBetter bool
}

// sides are the prefixes of metrics.
var sides = []struct {
	phase, prefix string
	words         string // in sentences
	async         bool
}{
	{PhaseSync, "sync", "the sync phase", false},
	{PhaseAsync, "async", "the async phase", true},
	{PhaseMixed, "mixed.sync", "the mixed phase, sync side", false},
	{PhaseMixed, "mixed.async", "the mixed phase, async side", true},
}

// statistics are the last part of the metrics of a distribution.
var statistics = []string{"min", "mean", "p50", "p90", "p95", "p99", "p999", "max"}

// measure lists the metrics of one side, in the order of a reader's interest. A missing one is NaN.
func measure(p *Phase, s *Side, async bool) []Metric {
	var list []Metric
	more := func(name, unit string, value float64) { list = append(list, Metric{name, unit, value, true}) }
	less := func(name, unit string, value float64) { list = append(list, Metric{name, unit, value, false}) }
	count := func(name string, n int64) { less(name, UnitCount, float64(n)) }
	clock := func(name string, l *Latency) {
		if l == nil || l.Count == 0 {
			n := math.NaN()
			l = &Latency{MinMS: n, MeanMS: n, P50MS: n, P90MS: n, P95MS: n, P99MS: n, P999MS: n, MaxMS: n}
		}
		for i, ms := range []float64{l.MinMS, l.MeanMS, l.P50MS, l.P90MS, l.P95MS, l.P99MS, l.P999MS, l.MaxMS} {
			less(name+"."+statistics[i], UnitMilliseconds, ms)
		}
	}
	if async {
		clock("accept", &s.Response)
		clock("end_to_end", s.EndToEnd)
		clock("delivery_lag", s.DeliveryLag)
	} else {
		clock("response", &s.Response)
	}
	clock("service", &s.Service)
	clock("processing", s.Processing)
	clock("lag", &p.Lag)
	clock("generator_lag", &p.OwnLag)
	more("planned", UnitCount, float64(s.Planned))
	more("sent", UnitCount, float64(s.Sent))
	count("retried", s.Retried)
	more("accepted", UnitCount, float64(s.Accepted))
	more("completed", UnitCount, float64(s.Completed))
	count("work_failed", s.WorkFailed)
	more("accepted_per_second", UnitPerSecond, s.AcceptedPerSecond)
	more("completed_per_second", UnitPerSecond, s.CompletedPerSecond)
	more("success_rate", UnitPercent, s.SuccessRatePercent)
	var errors int64
	for _, n := range s.Errors {
		errors += n
	}
	count("errors", errors)
	count("refused", s.Errors["http_429"]+s.Errors["http_503"])
	cores, memory, cost := math.NaN(), math.NaN(), math.NaN()
	if p.Server != nil {
		cores = p.Server.CPUCores
		if p.Server.MaxMemoryBytes > 0 {
			memory = float64(p.Server.MaxMemoryBytes) / 1e6
		}
		if ms := p.cpuPerRequest(); ms > 0 {
			cost = ms
		}
	}
	less("server.cpu", UnitCores, cores)
	less("server.cpu_per_request", UnitMilliseconds, cost)
	less("server.memory", UnitMegabytes, memory)
	if async {
		list = append(list, callbackMetrics(p.Callbacks)...)
	}
	return list
}

// callbackMetrics lists the counters of callbacks.
func callbackMetrics(callbacks *Callbacks) []Metric {
	var c Callbacks
	if callbacks != nil {
		c = *callbacks
	}
	list := []Metric{
		{Name: "expected", Value: float64(c.Expected), HigherIsBetter: true},
		{Name: "delivered", Value: float64(c.Delivered), HigherIsBetter: true},
		{Name: "missing", Value: float64(c.Missing)},
		{Name: "duplicate", Value: float64(c.Duplicate)},
		{Name: "bad_signature", Value: float64(c.BadSignature)},
		{Name: "malformed", Value: float64(c.Malformed)},
		{Name: "unknown", Value: float64(c.Unknown)},
		{Name: "before_answer", Value: float64(c.BeforeAnswer)},
		{Name: "late", Value: float64(c.Late)},
		{Name: "unanswered", Value: float64(c.Unanswered)},
		{Name: "misbehaved", Value: float64(c.Misbehaved)},
		{Name: "redelivered", Value: float64(c.Redelivered)},
		{Name: "polled", Value: float64(c.Polled), HigherIsBetter: true},
	}
	for i := range list {
		list[i].Unit = UnitCount
		if callbacks == nil {
			list[i].Value = math.NaN()
		}
	}
	return list
}

// Metrics lists every measured figure, phase by phase.
func Metrics(r *Report) []Metric {
	var metrics []Metric
	for _, side := range sides {
		phase := r.phase(side.phase)
		if phase == nil || phase.side(side.async) == nil {
			continue
		}
		for _, metric := range measure(phase, phase.side(side.async), side.async) {
			if !math.IsNaN(metric.Value) {
				metric.Name = side.prefix + "." + metric.Name
				metrics = append(metrics, metric)
			}
		}
	}
	return metrics
}

// knownMetrics lists all possible metrics of these phases, without values; no phases means all.
func knownMetrics(phases []string) []Metric {
	var metrics []Metric
	for _, side := range sides {
		if len(phases) > 0 && !slices.Contains(phases, side.phase) {
			continue
		}
		for _, metric := range measure(&Phase{}, &Side{}, side.async) {
			metrics = append(metrics, Metric{Name: side.prefix + "." + metric.Name, Unit: metric.Unit})
		}
	}
	return metrics
}

// metricNames lists the names of knownMetrics.
func metricNames(phases []string) []string {
	var names []string
	for _, metric := range knownMetrics(phases) {
		names = append(names, metric.Name)
	}
	return names
}

// metricUnit returns the unit of a metric; not ok: it is unknown.
func metricUnit(name string) (unit string, ok bool) {
	metrics := knownMetrics(nil)
	at := slices.IndexFunc(metrics, func(m Metric) bool { return m.Name == name })
	if at < 0 {
		return "", false
	}
	return metrics[at].Unit, true
}

// figures are the metrics of a report.
// :: name → metric
type figures map[string]Metric

func figuresOf(r *Report) figures {
	metrics := figures{}
	for _, metric := range Metrics(r) {
		metrics[metric.Name] = metric
	}
	return metrics
}

// value is a figure to decide by; 0 when it was not measured.
func (f figures) value(name string) float64 { return f[name].Value }

// placeholder stands for a figure in a text.
var placeholder = regexp.MustCompile(`\{[a-z0-9_.]+\}`)

// fill replaces each {name} in a text by its figure and returns the names. It is not ok when one is missing.
func (f figures) fill(text string) (filled string, names []string, ok bool) {
	ok = true
	filled = placeholder.ReplaceAllStringFunc(text, func(name string) string {
		name = strings.Trim(name, "{}")
		metric, measured := f[name]
		ok = ok && measured
		names = append(names, name)
		return metric.show()
	})
	return filled, names, ok
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

// side returns one side of the phase; nil: it did not run.
func (p *Phase) side(async bool) *Side {
	switch {
	case p == nil:
		return nil
	case async:
		return p.Async
	default:
		return p.Sync
	}
}

// both lists the existing sides.
func (p *Phase) both() []*Side {
	return slices.DeleteFunc([]*Side{p.Sync, p.Async}, func(s *Side) bool { return s == nil })
}

// leastCPU is the least CPU time to divide, in seconds: kernels count hundredths.
const leastCPU = 0.1

// cpuPerRequest is the server's CPU time for one accepted request, in milliseconds; 0: not measured.
func (p *Phase) cpuPerRequest() float64 {
	var accepted int64
	for _, side := range p.both() {
		accepted += side.Accepted
	}
	if p.Server == nil || p.Server.CPUSeconds < leastCPU || accepted == 0 {
		return 0
	}
	return p.Server.CPUSeconds * 1000 / float64(accepted)
}
