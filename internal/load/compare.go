package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"tandem/internal/term"
)

// NamedReport is a report and the file it came from.
type NamedReport struct {
	Name   string
	Report *Report
}

// Comparisons sets groups of runs against the first one.
type Comparisons struct {
	Base     string   // name of the first group
	Runs     int      // how many it has
	Against  []Versus // one per further group
	Warnings []string // differences between the runs themselves
}

// Versus is one group of runs against the base.
type Versus struct {
	Name    string
	Runs    int
	Changes []Change
}

// Change is a metric in both groups. Ratio is new to base; Low and High are its spread, over every run against every
// run, and equal to it with one run per group. So a difference counts only when all runs agree on it.
type Change struct {
	Metric         string
	Unit           string
	HigherIsBetter bool
	Base, New      float64 // medians over the runs
	Ratio          float64 // +Inf when the base is zero and the new figure is not
	Low, High      float64
	WithinNoise    bool // the spread contains 1: the repeats disagree about a difference
	Regression     bool // worse than the bound, in the best case of the spread
	single         bool // one run each: there is no spread
}

// judged are the compared metrics: the waits of callers, and the throughput. Maxima, minima and the server's own
// account vary too much between equal runs.
var judged = []string{
	"response.p50", "response.p99", "accept.p50", "accept.p99", "end_to_end.p50", "end_to_end.p99",
	"accepted_per_second", "completed_per_second", "success_rate", "missing", "errors",
}

// CompareReports sets runs against each other. Repeats of one group are files with the same name up to a number at its
// end (base-1.json, base-2.json, new-1.json, …); if there is only one such group, every file is a group. The first
// group is the base. maxRegression is the allowed loss of a figure, such as 0.1; negative: no bound. With a bound,
// differing, interrupted or invalid runs are an error; without one they are a warning.
func CompareReports(reports []NamedReport, maxRegression float64) (*Comparisons, error) {
	if len(reports) < 2 {
		return nil, errors.New("compare reports: want two or more")
	}
	if math.IsNaN(maxRegression) || math.IsInf(maxRegression, 0) {
		return nil, fmt.Errorf("compare reports: a regression of %v is no share", maxRegression)
	}
	groups := repeatsOf(reports)
	base := groups[0]
	result := &Comparisons{Base: base.name, Runs: len(base.runs), Warnings: unlike(reports)}
	if maxRegression >= 0 && len(result.Warnings) > 0 {
		return nil, fmt.Errorf("compare reports: no regression can be judged: %s", strings.Join(result.Warnings, "; "))
	}
	for _, other := range groups[1:] {
		versus := Versus{Name: other.name, Runs: len(other.runs)}
		for _, side := range sides {
			for _, name := range judged {
				if change, ok := changed(base, other, side.prefix+"."+name); ok {
					change.Regression = change.exceeds(maxRegression)
					versus.Changes = append(versus.Changes, change)
				}
			}
		}
		if len(versus.Changes) == 0 {
			return nil, fmt.Errorf("compare reports: %s and %s have no metric in common", base.name, other.name)
		}
		result.Against = append(result.Against, versus)
	}
	return result, nil
}

// Regressions lists the metrics worse than the bound, beyond the spread.
func (c *Comparisons) Regressions() []Change {
	var found []Change
	for _, versus := range c.Against {
		for _, change := range versus.Changes {
			if change.Regression {
				found = append(found, change)
			}
		}
	}
	return found
}

// repeats are runs of the same thing.
type repeats struct {
	name string
	runs []figures
}

// repeatsOf finds the repeats, in the order of their first file.
func repeatsOf(reports []NamedReport) []repeats {
	grouped := func(name func(string) string) (groups []repeats) {
		for _, report := range reports {
			name := name(report.Name)
			at := slices.IndexFunc(groups, func(g repeats) bool { return g.name == name })
			if at < 0 {
				groups, at = append(groups, repeats{name: name}), len(groups)
			}
			groups[at].runs = append(groups[at].runs, figuresOf(report.Report))
		}
		return groups
	}
	if groups := grouped(withoutNumber); len(groups) > 1 {
		return groups
	}
	var each []repeats
	for _, report := range reports {
		each = append(each, repeats{report.Name, []figures{figuresOf(report.Report)}})
	}
	return each
}

// withoutNumber is the name of a file without extension, number and separator.
func withoutNumber(name string) string {
	stem := strings.TrimSuffix(name, filepath.Ext(name))
	short := strings.TrimRight(strings.TrimRight(stem, "0123456789"), "-_. ")
	if short == "" || strings.HasSuffix(short, string(filepath.Separator)) {
		return stem // the number is all of the name
	}
	return short
}

// values reads a metric from every run of a group; nil when one has none.
func (g repeats) values(metric string) []float64 {
	var values []float64
	for _, run := range g.runs {
		m, ok := run[metric]
		if !ok {
			return nil
		}
		values = append(values, m.Value)
	}
	return values
}

// changed compares one metric.
func changed(base, other repeats, metric string) (Change, bool) {
	before, after := base.values(metric), other.values(metric)
	if before == nil || after == nil {
		return Change{}, false
	}
	m := base.runs[0][metric]
	change := Change{
		Metric: metric, Unit: m.Unit, HigherIsBetter: m.HigherIsBetter,
		Base: median(before), New: median(after), single: len(before) == 1 && len(after) == 1,
		Low: math.Inf(1), High: math.Inf(-1),
	}
	change.Ratio = proportion(change.New, change.Base)
	for _, b := range before {
		for _, a := range after {
			ratio := proportion(a, b)
			change.Low, change.High = min(change.Low, ratio), max(change.High, ratio)
		}
	}
	change.WithinNoise = change.Low <= 1 && change.High >= 1
	return change, true
}

// exceeds reports whether even the best case of the spread is worse than the bound.
func (c Change) exceeds(most float64) bool {
	switch {
	case most < 0:
		return false
	case c.HigherIsBetter:
		return c.High < 1-most
	default:
		return c.Low > 1+most
	}
}

// proportion of two non-negative figures; 0 to 0 is 1.
func proportion(a, b float64) float64 {
	switch {
	case a == b:
		return 1
	case b == 0:
		return math.Inf(1)
	default:
		return a / b
	}
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// comparableSettings must be equal for comparable figures. Seed, timeouts and addresses may differ.
var comparableSettings = []string{
	"task", "complexity", "data_bytes", "concurrency", "rate_per_second", "ramp_from_per_second", "requests",
	"duration_seconds", "sync_ratio", "completion", "on_429", "sink_fail_rate", "sink_delay_seconds",
	"cores of the generator",
}

// settingsByName are the settings as they are written in JSON.
func (r *Report) settingsByName() map[string]string {
	text, err := json.Marshal(r.Settings)
	var raw map[string]json.RawMessage
	if err = errors.Join(err, json.Unmarshal(text, &raw)); err != nil {
		return nil // numbers and texts: it cannot fail
	}
	settings := map[string]string{"cores of the generator": fmt.Sprint(r.Generator.Cores)}
	for name, value := range raw {
		settings[name] = string(value)
	}
	if r.phase(PhaseMixed) == nil {
		settings["sync_ratio"] = ""
	}
	return settings
}

// unlike lists unwanted differences between runs.
func unlike(reports []NamedReport) []string {
	var found []string
	first := reports[0].Report.settingsByName()
	for _, report := range reports {
		if report.Report.Interrupted {
			found = append(found, report.Name+" was interrupted")
		}
		if !report.Report.Valid {
			found = append(found, report.Name+" is invalid")
		}
		settings := report.Report.settingsByName()
		for _, name := range comparableSettings {
			if first[name] != settings[name] {
				found = append(found, fmt.Sprintf("%s is %s in %s and %s in %s",
					name, first[name], reports[0].Name, settings[name], report.Name))
			}
		}
	}
	return found
}

// WriteComparisons writes the comparison for people, as plain text of at most 78 columns.
func WriteComparisons(w io.Writer, c *Comparisons) error {
	t := term.Page{Width: tableWidth}
	for i, versus := range c.Against {
		if i > 0 {
			t.Linef("")
		}
		t.Paragraph("", fmt.Sprintf("%s (%s) against %s (%s)", versus.Name, runs(versus.Runs), c.Base, runs(c.Runs)))
		lines := [][]string{{"", "base", "new", "ratio", "spread"}}
		for _, change := range versus.Changes {
			lines = append(lines, []string{change.Metric, change.show(change.Base), change.show(change.New),
				showRatio(change.Ratio), change.spread(), change.verdict()})
		}
		t.Linef("")
		t.Table([]int{-32, 8, 8, 5, 9}, lines)
		t.Linef("")
		t.Paragraph("", versus.meaning(c.Runs))
	}
	var worse []string
	for _, change := range c.Regressions() {
		worse = append(worse, fmt.Sprintf("%s: %s instead of %s%s",
			change.Metric, change.show(change.New), change.show(change.Base), change.best()))
	}
	t.List("Worse than allowed", worse)
	t.List("What makes the runs unlike each other", c.Warnings)
	if _, err := io.WriteString(w, t.String()); err != nil {
		return fmt.Errorf("write comparison: %w", err)
	}
	return nil
}

// runs counts runs in words.
func runs(n int) string {
	if n == 1 {
		return "one run"
	}
	return fmt.Sprintf("%d runs", n)
}

// meaning explains the spread.
func (v Versus) meaning(base int) string {
	if v.Runs == 1 && base == 1 {
		return "One run each: how much of a difference is chance cannot be told. Repeat the runs, in turn, to know the " +
			"spread."
	}
	return fmt.Sprintf("The spread is over every run against every run; noise: they do not agree on a direction. Two "+
		"equal "+
		"services would differ at random in %s of the figures; more repeats lower that.",
		showPercent(200/orders(v.Runs+base, base)))
}

// orders counts the possible orders of the runs of two groups; in two of them one group is all before the other.
func orders(n, k int) float64 {
	ways := 1.0
	for i := range k {
		ways = ways * float64(n-i) / float64(i+1)
	}
	return math.Round(ways)
}

func (c Change) show(value float64) string { return Metric{Unit: c.Unit, Value: value}.show() }

func (c Change) spread() string {
	if c.single {
		return ""
	}
	return strings.TrimSuffix(showRatio(c.Low), "×") + "–" + strings.TrimSuffix(showRatio(c.High), "×")
}

// best writes the end of the spread in favour of the new figure.
func (c Change) best() string {
	kinder := c.Low
	if c.HigherIsBetter {
		kinder = c.High
	}
	if c.single || math.IsInf(kinder, 1) {
		return ""
	}
	return ", in the best of the repeats " + showRatio(kinder) + " of the base"
}

// showRatio writes a ratio to base.
func showRatio(ratio float64) string {
	switch {
	case math.IsInf(ratio, 1):
		return "∞"
	case ratio >= 99.5:
		return fmt.Sprintf("%.0f×", ratio)
	default:
		return fmt.Sprintf("%.2f×", ratio)
	}
}

// verdict is one word about a change.
func (c Change) verdict() string {
	switch {
	case c.Regression:
		return "WORSE"
	case math.Abs(c.Ratio-1) < 0.005: // as far as the ratio is shown
		return "same"
	case c.WithinNoise:
		return "noise"
	case c.Ratio > 1 == c.HigherIsBetter:
		return "better"
	default:
		return "worse"
	}
}
