package load_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/load"
)

func TestParseThreshold(t *testing.T) {
	t.Parallel()
	tests := map[string]load.Threshold{
		"async.accept.p99<10ms":            {Metric: "async.accept.p99", Operator: "<", Value: 10},
		"async.accept.p99 <= 1.5 s":        {Metric: "async.accept.p99", Operator: "<=", Value: 1500},
		"sync.response.p999>250us":         {Metric: "sync.response.p999", Operator: ">", Value: 0.25},
		"sync.response.max>=250µs":         {Metric: "sync.response.max", Operator: ">=", Value: 0.25},
		"async.end_to_end.p50==0ms":        {Metric: "async.end_to_end.p50", Operator: "==", Value: 0},
		"mixed.async.success_rate>=99.9%":  {Metric: "mixed.async.success_rate", Operator: ">=", Value: 99.9},
		"mixed.sync.success_rate>=99":      {Metric: "mixed.sync.success_rate", Operator: ">=", Value: 99},
		"async.missing==0":                 {Metric: "async.missing", Operator: "==", Value: 0},
		"async.completed_per_second>100/s": {Metric: "async.completed_per_second", Operator: ">", Value: 100},
		"sync.accepted_per_second>100":     {Metric: "sync.accepted_per_second", Operator: ">", Value: 100},
		"async.server.memory<1.5gb":        {Metric: "async.server.memory", Operator: "<", Value: 1500},
		"async.server.cpu<2":               {Metric: "async.server.cpu", Operator: "<", Value: 2},
	}
	for text, want := range tests {
		want.Expression = strings.TrimSpace(text)
		got, err := load.ParseThreshold(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
}

// TestParseThresholdErrors: each says what would have been right.
func TestParseThresholdErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"":                                 "async.accept.p99<10ms",
		"async.accept.p99":                 "async.accept.p99<10ms",
		"<10ms":                            "async.accept.p99<10ms",
		"async.accept.p99<":                "async.accept.p99<10ms",
		"async.accept.p99=10ms":            "<, <=, >, >= or ==",
		"async.accept.p99!=10ms":           "<, <=, >, >= or ==",
		"async.accept.p99<-1ms":            "a number",
		"async.accept.p99<1e3ms":           "a number", // no exponents
		"async.accept.p99<NaNms":           "a number",
		"async.accept.p99<0x10ms":          "a number",
		"async.accept.p99<10ms<20ms":       "a number",
		"async.acept.p99<10ms":             "did you mean async.accept.p99",
		"async.response.p99<10ms":          "no metric async.response.p99",
		"sync.missing==0":                  "no metric sync.missing",
		"async.accept.p98<10ms":            "did you mean async.accept.p90, async.accept.p95, async.accept.p99?",
		"async.accept.p99<10":              "write 10ms, 10us or 10s",
		"async.accept.p99<10%":             "measured in time",
		"async.missing<10ms":               "measured in whole requests",
		"async.success_rate>99ms":          "write 99%",
		"async.server.memory<100":          "write 100mb",
		"sync.accepted<1" + longDigits:     "want a metric",
		"sync.accepted<" + longDigits[:80]: "",
	}
	for text, want := range tests {
		_, err := load.ParseThreshold(text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want it to say %q", text, err, want)
		}
	}
}

var longDigits = strings.Repeat("9", 400)

// TestThresholdCheck: a run that cannot measure it is told so before it starts.
func TestThresholdCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		expression string
		phases     []string
		says       string // "": it can be measured
	}{
		{"async.accept.p99<10ms", nil, ""},
		{"async.accept.p99<10ms", []string{load.PhaseAsync}, ""},
		{"async.accept.p99<10ms", []string{load.PhaseSync, load.PhaseMixed}, "did you mean mixed.async.accept.p99"},
		{"mixed.async.missing==0", []string{load.PhaseMixed}, ""},
		{"mixed.async.missing==0", []string{load.PhaseSync, load.PhaseAsync}, "did you mean async.missing"},
	}
	for _, test := range tests {
		threshold, err := load.ParseThreshold(test.expression)
		if err != nil {
			t.Fatal(err)
		}
		err = threshold.Check(test.phases)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s in %v: %v, want it to say %q", test.expression, test.phases, err, test.says)
		}
	}
}

func TestThresholdEvaluate(t *testing.T) {
	t.Parallel()
	r := busy.report(t)
	r.Phases[1].Async.Response.P99MS = 10
	r.Phases[1].Async.EndToEnd = nil // no callback came
	r.Phases[1].Callbacks.Missing = 3
	r.Phases[0].Sync.Errors = map[string]int64{"http_429": 2, "http_503": 1, "timeout": 4}
	tests := []struct {
		expression string
		measured   bool
		value      float64
		unit       string
		pass       bool
	}{
		{"async.accept.p99<10ms", true, 10, "ms", false},
		{"async.accept.p99<=10ms", true, 10, "ms", true},
		{"async.accept.p99==10ms", true, 10, "ms", true},
		{"async.accept.p99>=10ms", true, 10, "ms", true},
		{"async.accept.p99>10ms", true, 10, "ms", false},
		{"async.accept.p99<0.010001s", true, 10, "ms", true},
		{"async.missing==0", true, 3, "count", false},
		{"async.missing<=3", true, 3, "count", true},
		{"sync.errors==7", true, 7, "count", true},
		{"sync.refused==3", true, 3, "count", true},
		{"async.end_to_end.p50<1s", false, 0, "ms", false},
		{"async.end_to_end.p50>=0ms", false, 0, "ms", false}, // what was not measured is not zero
	}
	for _, test := range tests {
		want := load.ThresholdResult{
			Expression: test.expression, Metric: strings.FieldsFunc(test.expression,
				func(r rune) bool { return strings.ContainsRune("<>=", r) })[0],
			Measured: test.measured, Value: test.value, Unit: test.unit, Pass: test.pass,
		}
		if diff := cmp.Diff(want, evaluate(t, test.expression, r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.expression, diff)
		}
	}
	threshold, err := load.ParseThreshold("mixed.sync.response.p50<1s")
	if err != nil {
		t.Fatal(err)
	}
	for name, report := range map[string]*load.Report{"a phase that did not run": r, "no phases": {}} {
		if result, err := threshold.Evaluate(report); err == nil {
			t.Errorf("%s: %+v, want an error", name, result)
		}
	}
}

// TestMetricNames: each name is there once, is a threshold that can be written, and is in a report that measured
// everything.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	names := load.MetricNames(nil)
	if unique := slices.Compact(slices.Sorted(slices.Values(names))); len(unique) != len(names) || len(names) < 100 {
		t.Errorf("%d names, %d different", len(names), len(unique))
	}
	var measured []string
	for _, metric := range load.Metrics(sleepy.report(t)) {
		measured = append(measured, metric.Name)
		if math.IsNaN(metric.Value) || math.IsInf(metric.Value, 0) {
			t.Errorf("%s is %v", metric.Name, metric.Value)
		}
	}
	if diff := cmp.Diff(names, measured); diff != "" {
		t.Errorf("(-names +measured):\n%s", diff)
	}
	for _, name := range names {
		written := false
		for _, unit := range []string{"", "ms", "mb"} {
			threshold, err := load.ParseThreshold(name + "<1" + unit)
			written = written || err == nil && threshold.Metric == name
		}
		if !written {
			t.Errorf("no threshold can be written for %s", name)
		}
	}
}

// FuzzParseThreshold: what is read is a bound on a metric that exists, and reads the same again.
func FuzzParseThreshold(f *testing.F) {
	for _, text := range []string{"async.accept.p99<10ms", "sync.success_rate>=99.9%", "async.missing==0", "x<1",
		"async.accept.p99<1e9ms", "mixed.sync.errors<9999999999999999999"} {
		f.Add(text)
	}
	names := load.MetricNames(nil)
	f.Fuzz(func(t *testing.T, text string) {
		threshold, err := load.ParseThreshold(text)
		if err != nil {
			return
		}
		if !slices.Contains(names, threshold.Metric) ||
			!slices.Contains([]string{"<", "<=", ">", ">=", "=="}, threshold.Operator) ||
			math.IsNaN(threshold.Value) || math.IsInf(threshold.Value, 0) || threshold.Value < 0 {
			t.Fatalf("%q became %+v", text, threshold)
		}
		again, err := load.ParseThreshold(threshold.Expression)
		if err != nil || again != threshold {
			t.Fatalf("%q became %+v, then %+v, %v", text, threshold, again, err)
		}
	})
}
