package load

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"tandem/internal/term"
)

// Threshold is a bound on one metric of a report, such as async.accept.p99<10ms.
type Threshold struct {
	Expression string  // as given
	Metric     string  // see Metrics
	Operator   string  // <, <=, >, >=, ==
	Value      float64 // in the unit of the metric
}

// ThresholdSyntax shows how a threshold is written, for hints.
const ThresholdSyntax = "'async.accept.p99<10ms', 'sync.success_rate>=99%' or 'async.missing==0'"

// maxThreshold bounds the length of an expression: the longest sensible one has half of it.
const maxThreshold = 100

// threshold is name, operator, number and unit.
var threshold = regexp.MustCompile(`^\s*([a-z0-9_.]+)\s*(<=|>=|==|<|>)\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ%/]*)\s*$`)

// units define the form of a bound on a metric. Times need a unit, because three are common.
// :: unit of the metric → its name, an example, and the factor of each allowed unit
var units = map[string]struct {
	name, example string // %[1]s is the number
	factors       map[string]float64
}{
	UnitMilliseconds: {
		"time", "%[1]sms, %[1]sus or %[1]ss", map[string]float64{"us": 1e-3, "µs": 1e-3, "ms": 1, "s": 1e3},
	},
	UnitPerSecond: {"requests per second", "%[1]s", map[string]float64{"": 1, "/s": 1}},
	UnitPercent:   {"percent", "%[1]s%%", map[string]float64{"": 1, "%": 1}},
	UnitCount:     {"whole requests", "%[1]s", map[string]float64{"": 1}},
	UnitCores:     {"cores", "%[1]s", map[string]float64{"": 1}},
	UnitMegabytes: {"megabytes", "%[1]smb", map[string]float64{"mb": 1, "gb": 1e3}},
}

// ParseThreshold reads an expression: a metric, an operator (<, <=, >, >=, ==)
// and a number with its unit (us, ms, s for times, % for percentages, mb for memory, nothing for counts and rates).
func ParseThreshold(text string) (Threshold, error) {
	parts := threshold.FindStringSubmatch(text)
	if len(text) > maxThreshold || parts == nil {
		return Threshold{}, fmt.Errorf("threshold %.100q: want a metric, <, <=, >, >= or ==, and a number, such as %s",
			text, ThresholdSyntax)
	}
	name, operator, number := parts[1], parts[2], parts[3]
	metricUnit, ok := metricUnit(name)
	if !ok {
		return Threshold{}, fmt.Errorf("threshold %q: there is no metric %s; did you mean %s?",
			text, name, near(name, metricNames(nil)))
	}
	unit := units[metricUnit]
	factor, ok := unit.factors[parts[4]]
	if !ok {
		return Threshold{}, fmt.Errorf("threshold %q: %s is measured in %s; write %s",
			text, name, unit.name, fmt.Sprintf(unit.example, number))
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(value*factor, 0) {
		return Threshold{}, fmt.Errorf("threshold %q: %s is too large a number", text, number)
	}
	return Threshold{strings.TrimSpace(text), name, operator, value * factor}, nil
}

// Check reports a threshold without a metric in these phases; none means all phases.
func (t Threshold) Check(phases []string) error {
	names := metricNames(phases)
	if !slices.Contains(names, t.Metric) {
		return fmt.Errorf("threshold %q: this run has no %s; did you mean %s?",
			t.Expression, t.Metric, near(t.Metric, names))
	}
	return nil
}

// Evaluate compares a report with the threshold. A missing measurement, such as the end-to-end time without a callback,
// fails: nothing proves the bound. It is an error when the phases of the report cannot have the metric.
func (t Threshold) Evaluate(r *Report) (ThresholdResult, error) {
	var phases []string
	for _, phase := range r.Phases {
		phases = append(phases, phase.Name)
	}
	if len(phases) == 0 {
		return ThresholdResult{}, fmt.Errorf("threshold %q: the run has no phases", t.Expression)
	}
	if err := t.Check(phases); err != nil {
		return ThresholdResult{}, err
	}
	unit, _ := metricUnit(t.Metric)
	metric, ok := figuresOf(r)[t.Metric]
	return ThresholdResult{
		Expression: t.Expression, Metric: t.Metric, Unit: unit,
		Measured: ok, Value: metric.Value, Pass: ok && t.holds(metric.Value),
	}, nil
}

// Shown is the measured value, for people.
func (t ThresholdResult) Shown() string {
	if !t.Measured {
		return "nothing was measured"
	}
	return Metric{Unit: t.Unit, Value: t.Value}.show()
}

// holds reports whether a value is within the bound.
func (t Threshold) holds(value float64) bool {
	switch t.Operator {
	case "<":
		return value < t.Value
	case "<=":
		return value <= t.Value
	case ">":
		return value > t.Value
	case ">=":
		return value >= t.Value
	default:
		return value == t.Value
	}
}

// near lists the three closest names; first the same in another phase.
func near(name string, names []string) string {
	typos := func(other string) int {
		if strings.HasSuffix(other, "."+name) {
			return 1
		}
		return term.Typos(name, other)
	}
	names = slices.SortedStableFunc(slices.Values(names), func(a, b string) int { return cmp.Compare(typos(a), typos(b)) })
	return strings.Join(names[:min(3, len(names))], ", ")
}
