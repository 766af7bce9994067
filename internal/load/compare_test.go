package load_test

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"tandem/internal/load"
)

// small is a report with one figure of each kind.
func small(acceptP99, perSecond float64, missing int64) *load.Report {
	return &load.Report{Valid: true, Phases: []load.Phase{{
		Name: load.PhaseAsync, Callbacks: &load.Callbacks{Expected: 100, Missing: missing},
		Async: &load.Side{
			CompletedPerSecond: perSecond, AcceptedPerSecond: perSecond, SuccessRatePercent: 100,
			Response: load.Latency{Count: 100, P50MS: 1, P99MS: acceptP99},
		},
	}}}
}

func named(name string, r *load.Report) load.NamedReport {
	return load.NamedReport{Name: name, Report: r}
}

// change finds the change of a metric in the first comparison.
func change(t *testing.T, c *load.Comparisons, metric string) load.Change {
	t.Helper()
	for _, change := range c.Against[0].Changes {
		if change.Metric == metric {
			return change
		}
	}
	t.Fatalf("no %s", metric)
	return load.Change{}
}

// TestCompareReportsGroups: repeats are told by the number at the end of the name.
func TestCompareReportsGroups(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files []string
		want  string // base (runs) | other (runs) …
	}{
		{"two files", []string{"a.json", "b.json"}, "a 1 | b 1"},
		{"repeats in turn", []string{"base-1.json", "new-1.json", "base-2.json", "new-2.json"}, "base 2 | new 2"},
		{"repeats in blocks", []string{"out/base1.json", "out/base2.json", "out/base3.json", "out/new1.json"},
			"out/base 3 | out/new 1"},
		{"numbers only at the end of one name", []string{"run-1.json", "run-2.json", "run-3.json"},
			"run-1.json 1 | run-2.json 1 | run-3.json 1"},
		{"nothing but numbers", []string{"7.json", "8.json"}, "7 1 | 8 1"},
		{"numbers in folders", []string{"a/1.json", "b/1.json"}, "a/1 1 | b/1 1"},
		{"three groups", []string{"a.json", "b_01.json", "b_02.json", "c.json"}, "a 1 | b 2 | c 1"},
		{"the same file twice", []string{"a.json", "a.json"}, "a.json 1 | a.json 1"},
	}
	for _, test := range tests {
		var reports []load.NamedReport
		for _, file := range test.files {
			reports = append(reports, named(filepath.FromSlash(file), small(1, 1, 0)))
		}
		c, err := load.CompareReports(reports, -1)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := c.Base + " " + strings.Repeat("I", c.Runs)
		for _, versus := range c.Against {
			got += " | " + versus.Name + " " + strings.Repeat("I", versus.Runs)
		}
		want := strings.NewReplacer(" 1", " I", " 2", " II", " 3", " III").Replace(test.want)
		if got := filepath.ToSlash(got); got != want {
			t.Errorf("%s: %s, want %s", test.name, got, want)
		}
	}
}

// TestCompareReportsBound: a regression counts when even the best of the repeats is beyond the bound.
func TestCompareReportsBound(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		metric    string
		base, new []*load.Report
		bound     float64
		ratio     float64
		low, high float64
		worse     bool
		noise     bool
	}{
		{"at the bound", "async.accept.p99", []*load.Report{small(10, 1, 0)}, []*load.Report{small(11, 1, 0)}, 0.1, 1.1, 1.1,
			1.1, false, false},
		{"just beyond", "async.accept.p99", []*load.Report{small(10, 1, 0)}, []*load.Report{small(11.01, 1, 0)}, 0.1, 1.101,
			1.101, 1.101, true, false},
		{"no bound", "async.accept.p99", []*load.Report{small(10, 1, 0)}, []*load.Report{small(99, 1, 0)}, -1, 9.9, 9.9, 9.9,
			false, false},
		{"better", "async.accept.p99", []*load.Report{small(10, 1, 0)}, []*load.Report{small(5, 1, 0)}, 0, 0.5, 0.5, 0.5,
			false, false},
		{"fewer per second", "async.completed_per_second", []*load.Report{small(1, 100, 0)}, []*load.Report{small(1, 89, 0)},
			0.1, 0.89, 0.89, 0.89, true, false},
		{"more per second", "async.completed_per_second", []*load.Report{small(1, 100, 0)}, []*load.Report{small(1, 300, 0)},
			0.1, 3, 3, 3, false, false},
		{"first one missing", "async.missing", []*load.Report{small(1, 1, 0)}, []*load.Report{small(1, 1, 1)}, 5, math.Inf(1),
			math.Inf(1), math.Inf(1), true, false},
		{
			"every run agrees", "async.accept.p99", []*load.Report{small(10, 1, 0), small(20, 1, 0)},
			[]*load.Report{small(30, 1, 0), small(26, 1, 0)},
			0.1, 28.0 / 15, 1.3, 3, true, false,
		},
		{
			"one is within the bound", "async.accept.p99", []*load.Report{small(10, 1, 0), small(20, 1, 0)},
			[]*load.Report{small(30, 1, 0), small(21, 1, 0)},
			0.1, 25.5 / 15, 1.05, 3, false, false,
		},
		{
			"they disagree", "async.accept.p99", []*load.Report{small(10, 1, 0), small(20, 1, 0), small(12, 1, 0)},
			[]*load.Report{small(15, 1, 0), small(18, 1, 0)},
			0.1, 16.5 / 12, 0.75, 1.8, false, true,
		},
	}
	for _, test := range tests {
		var reports []load.NamedReport
		for _, r := range test.base {
			reports = append(reports, named("base1.json", r))
		}
		for _, r := range test.new {
			reports = append(reports, named("new1.json", r))
		}
		c, err := load.CompareReports(reports, test.bound)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := change(t, c, test.metric)
		want := load.Change{Ratio: test.ratio, Low: test.low, High: test.high, WithinNoise: test.noise,
			Regression: test.worse}
		diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0), cmpopts.IgnoreUnexported(load.Change{}),
			cmpopts.IgnoreFields(load.Change{}, "Metric", "Unit", "HigherIsBetter", "Base", "New"))
		if diff != "" || (len(c.Regressions()) > 0) != test.worse {
			t.Errorf("%s: %d regressions (-want +got):\n%s", test.name, len(c.Regressions()), diff)
		}
	}
}

// TestCompareReportsUnlike: runs that were asked for different things are not judged, and the reader is told.
func TestCompareReportsUnlike(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		edit func(*load.Report)
		says string // "": they can be compared
	}{
		"the same":        {func(*load.Report) {}, ""},
		"another seed":    {func(r *load.Report) { r.Settings.Seed = 9 }, ""},
		"another address": {func(r *load.Report) { r.Target.URL = "https://example.com" }, ""},
		"other work": {func(r *load.Report) { r.Settings.Task = "echo" },
			`task is "sleep" in a.json and "echo" in b.json`},
		"harder work": {func(r *load.Report) { r.Settings.Complexity = 4 }, "complexity is 3 in a.json and 4 in b.json"},
		"more callers": {func(r *load.Report) { r.Settings.Concurrency++ },
			"concurrency is 256 in a.json and 257 in b.json"},
		"another rate": {func(r *load.Report) { r.Settings.RatePerSecond = 61 },
			"rate_per_second is 60 in a.json and 61 in b.json"},
		"another ratio": {func(r *load.Report) { r.Settings.SyncRatio = 0.2 },
			"sync_ratio is 0.5 in a.json and 0.2 in b.json"},
		"interrupted": {func(r *load.Report) { r.Interrupted = true }, "b.json was interrupted"},
		"invalid":     {func(r *load.Report) { r.Valid = false }, "b.json is invalid"},
	}
	base := func() *load.Report {
		r := small(1, 1, 0)
		r.Phases = append(r.Phases, load.Phase{Name: load.PhaseMixed})
		r.Settings = load.Settings{Task: "sleep", Complexity: 3, Concurrency: 256, RatePerSecond: 60, SyncRatio: 0.5}
		return r
	}
	for name, test := range tests {
		a, b := base(), base()
		test.edit(b)
		reports := []load.NamedReport{named("a.json", a), named("b.json", b)}
		_, err := load.CompareReports(reports, 0.1)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s, with a bound: %v, want it to say %q", name, err, test.says)
		}
		c, err := load.CompareReports(reports, -1)
		if err != nil {
			t.Errorf("%s, without a bound: %v", name, err)
			continue
		}
		var text bytes.Buffer
		if err := load.WriteComparisons(&text, c); err != nil {
			t.Fatal(err)
		}
		if unwrapped := strings.Join(strings.Fields(text.String()), " "); !strings.Contains(unwrapped, test.says) {
			t.Errorf("%s: the text does not say %q:\n%s", name, test.says, text.String())
		}
	}
}

func TestCompareReportsErrors(t *testing.T) {
	t.Parallel()
	a, b := small(1, 1, 0), &load.Report{Valid: true}
	for name, try := range map[string]func() (*load.Comparisons, error){
		"one report": func() (*load.Comparisons, error) {
			return load.CompareReports([]load.NamedReport{named("a", a)}, 0.1)
		},
		"nothing in common": func() (*load.Comparisons, error) {
			return load.CompareReports([]load.NamedReport{named("a", a), named("b", b)}, 0.1)
		},
		"not a number": func() (*load.Comparisons, error) {
			return load.CompareReports([]load.NamedReport{named("a", a), named("b", a)}, math.NaN())
		},
	} {
		if c, err := try(); err == nil {
			t.Errorf("%s: %+v, want an error", name, c)
		}
	}
}

// TestCompareReportsProperties: a run against itself changes nothing, a spread holds its ratio, and a
// looser bound never finds more.
func TestCompareReportsProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		figure := rapid.Float64Range(0.001, 1e6)
		var reports []load.NamedReport
		for _, name := range []string{"base1", "new1"} {
			for range rapid.IntRange(1, 4).Draw(t, "runs") {
				reports = append(reports, named(name,
					small(figure.Draw(t, "p99"), figure.Draw(t, "rate"), rapid.Int64Range(0, 3).Draw(t, "missing"))))
			}
		}
		bound := rapid.Float64Range(0, 1).Draw(t, "bound")
		c, err := load.CompareReports(reports, bound)
		if err != nil {
			t.Fatal(err)
		}
		looser, err := load.CompareReports(reports, bound+0.5)
		if err != nil {
			t.Fatal(err)
		}
		if len(looser.Regressions()) > len(c.Regressions()) {
			t.Fatalf("%d beyond %v, %d beyond more", len(c.Regressions()), bound, len(looser.Regressions()))
		}
		for _, change := range c.Against[0].Changes {
			if change.Low > change.Ratio || change.Ratio > change.High || math.IsNaN(change.Ratio) {
				t.Fatalf("%+v", change)
			}
			if change.WithinNoise && change.Regression {
				t.Fatalf("noise is no regression: %+v", change)
			}
		}
		itself, err := load.CompareReports([]load.NamedReport{reports[0], named("other", reports[0].Report)}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range itself.Against[0].Changes {
			if change.Ratio != 1 || change.Regression {
				t.Fatalf("against itself: %+v", change)
			}
		}
	})
}

// TestWriteComparisons: what people read, as it was looked at.
func TestWriteComparisons(t *testing.T) {
	t.Parallel()
	slower := func(r *load.Report, factor float64) *load.Report {
		r.Phases[1].Async.Response.P99MS *= factor
		r.Phases[0].Sync.CompletedPerSecond /= factor
		return r
	}
	runs := func(seed uint64, factor float64) *load.Report {
		s := sleepy
		s.seed = seed
		return slower(s.report(t), factor)
	}
	lost := busy
	lost.callbacks.Missing = 7
	for name, reports := range map[string][]load.NamedReport{
		"single": {named("before.json", busy.report(t)), named("after.json", lost.report(t))},
		"repeats": {
			named("base-1.json", runs(1, 1)), named("new-1.json", runs(4, 1.5)), named("base-2.json", runs(2, 1)),
			named("new-2.json", runs(5, 1.4)), named("base-3.json", runs(3, 1)), named("new-3.json", runs(6, 1.6)),
		},
	} {
		c, err := load.CompareReports(reports, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := load.WriteComparisons(&text, c); err != nil {
			t.Fatal(err)
		}
		fits(t, text.String())
		golden(t, filepath.Join("testdata", "compare", name+".txt"), text.Bytes())
	}
}
