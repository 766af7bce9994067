package load

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
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

// scales says what a number is multiplied by to be in the unit of the metric:
// :: unit of the metric → unit as written → factor. Times need a unit, because
// there are three that everybody means.
var scales = map[string]map[string]float64{
	UnitMilliseconds: {"us": 1e-3, "µs": 1e-3, "ms": 1, "s": 1e3},
	UnitPerSecond:    {"": 1, "/s": 1},
	UnitPercent:      {"": 1, "%": 1},
	UnitCount:        {"": 1},
	UnitCores:        {"": 1},
	UnitMegabytes:    {"mb": 1, "gb": 1e3},
}

// ParseThreshold reads an expression: a metric, an operator (<, <=, >, >=, ==)
// and a number with its unit (us, ms, s for times, % for percentages, mb for memory, nothing for counts and rates).
func ParseThreshold(text string) (Threshold, error) {
	parts := threshold.FindStringSubmatch(text)
	if len(text) > maxThreshold || parts == nil {
		return Threshold{}, fmt.Errorf("threshold %.100q: want a metric, <, <=, >, >= or ==, and a number, such as %s", text, ThresholdSyntax)
	}
	name, operator, number, unit := parts[1], parts[2], parts[3], parts[4]
	metricUnit, ok := metricUnit(name)
	if !ok {
		return Threshold{}, fmt.Errorf("threshold %q: there is no metric %s; did you mean %s?", text, name, near(name, metricNames(nil)))
	}
	factor, ok := scales[metricUnit][unit]
	if !ok {
		return Threshold{}, fmt.Errorf("threshold %q: %s is measured in %s; write %s", text, name, unitNames[metricUnit], unitExample(metricUnit, number))
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(value*factor, 0) {
		return Threshold{}, fmt.Errorf("threshold %q: %s is too large a number", text, number)
	}
	return Threshold{Expression: strings.TrimSpace(text), Metric: name, Operator: operator, Value: value * factor}, nil
}

// unitNames are the units in words.
var unitNames = map[string]string{
	UnitMilliseconds: "time", UnitPerSecond: "requests per second", UnitPercent: "percent",
	UnitCount: "whole requests", UnitCores: "cores", UnitMegabytes: "megabytes",
}

// unitExample writes a number in a unit of a metric.
func unitExample(unit, number string) string {
	switch unit {
	case UnitMilliseconds:
		return number + "ms, " + number + "us or " + number + "s"
	case UnitPercent:
		return number + "%"
	case UnitMegabytes:
		return number + "mb"
	default:
		return number
	}
}

// Check reports a threshold that a run of these phases cannot measure; none means all phases.
func (t Threshold) Check(phases []string) error {
	names := metricNames(phases)
	if !slices.Contains(names, t.Metric) {
		return fmt.Errorf("threshold %q: this run has no %s; did you mean %s?", t.Expression, t.Metric, near(t.Metric, names))
	}
	return nil
}

// Evaluate compares a report with the threshold. A metric that could have been
// measured and was not, such as the end-to-end time when no callback came, fails:
// nothing shows that the bound was kept. It is an error when the phases of
// the report have no such metric at all.
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
	result := ThresholdResult{Expression: t.Expression, Metric: t.Metric, Unit: unit}
	for _, metric := range Metrics(r) {
		if metric.Name == t.Metric {
			result.Measured, result.Value, result.Pass = true, metric.Value, t.holds(metric.Value)
		}
	}
	return result, nil
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

// near lists the three names that are the fewest keystrokes away.
func near(name string, names []string) string {
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(distance(name, a), distance(name, b)) })
	return strings.Join(names[:min(3, len(names))], ", ")
}

// distance counts the keystrokes between two names (Levenshtein).
func distance(a, b string) int {
	if strings.HasSuffix(b, "."+a) {
		return 1 // the same in another phase
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
