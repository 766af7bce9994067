package load_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/load"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares with a file, which -update rewrites.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is out of date; look, then run the test with -update (-want +got):\n%s", path, diff)
	}
}

// TestWriteTable: what people read, as it was looked at.
func TestWriteTable(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T) *load.Report{
		"sleep": func(t *testing.T) *load.Report {
			t.Helper()
			r := sleepy.report(t)
			for _, text := range []string{"async.accept.p99<10ms", "sync.response.p50<100ms", "async.missing==0"} {
				r.Thresholds = append(r.Thresholds, evaluate(t, text, r))
			}
			return r
		},
		"compute": func(t *testing.T) *load.Report { t.Helper(); return busy.report(t) },
		"misbehaving": func(t *testing.T) *load.Report {
			t.Helper()
			s := busy
			s.callbacks = load.Callbacks{Missing: 105, Duplicate: 45, BadSignature: 1,
				MissingByStatus: map[string]int64{"callback_failed": 90, "unknown": 10}, MissingSampled: 100}
			r := s.report(t)
			r.Phases[0].Sync.Errors = map[string]int64{"timeout": 3, "http_429": 40}
			r.Insights = load.Insights(r)
			return r
		},
		"interrupted": func(t *testing.T) *load.Report {
			t.Helper()
			r := busy.report(t)
			r.Interrupted, r.Phases, r.Comparison = true, r.Phases[:1], nil
			r.Insights = load.Insights(r)
			return r
		},
		"invalid": func(t *testing.T) *load.Report {
			t.Helper()
			r := sleepy.report(t)
			r.Valid, r.InvalidReasons = false,
				[]string{"requests left 31 ms late (p99): the generator could not keep the schedule"}
			r.Phases = r.Phases[1:2]
			r.Insights = load.Insights(r)
			return r
		},
		"empty": func(*testing.T) *load.Report { return &load.Report{Tool: "tandem 1.2.3"} },
	}
	for name, report := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text bytes.Buffer
			if err := load.WriteText(&text, report(t)); err != nil {
				t.Fatal(err)
			}
			fits(t, text.String())
			golden(t, filepath.Join("testdata", "table", name+".txt"), text.Bytes())
		})
	}
}

// fits checks that a text can be shown on any terminal and in any log.
func fits(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 78 {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("blanks at the end of %q", line)
		}
		if regexp.MustCompile(`[\x00-\x1f\x7f]`).MatchString(line) {
			t.Errorf("control characters in %q", line)
		}
	}
}

// TestWriteTableOfAStranger: texts of the service cannot steer the terminal or break the width.
func TestWriteTableOfAStranger(t *testing.T) {
	t.Parallel()
	evil := "\x1b[2J\x1b]0;owned\a\r\n\u202e" + strings.Repeat("long", 100)
	r := busy.report(t)
	r.Target.URL, r.Target.Version, r.Target.Mode, r.Settings.Task, r.Settings.CallbackURL, r.Tool = evil, evil, evil,
		evil, evil, evil
	r.Warnings, r.Valid, r.InvalidReasons = []string{evil}, false, []string{evil}
	r.Phases[0].Sync.Errors = map[string]int64{evil: 1}
	r.Phases[1].Callbacks.MissingByStatus = map[string]int64{evil: 1}
	r.Thresholds = []load.ThresholdResult{{Expression: evil, Metric: evil, Unit: evil, Measured: true}}
	r.Insights = []load.Insight{{Topic: evil, Text: evil}}
	r.Phases[0].Name = evil
	var text bytes.Buffer
	if err := load.WriteText(&text, r); err != nil {
		t.Fatal(err)
	}
	fits(t, text.String())
	if strings.ContainsAny(text.String(), "\x1b\a\r\u202e") {
		t.Error("what steers a terminal came through")
	}
}

// full is a disk without room.
type full struct{}

var errFull = errors.New("no space")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestWritersTellFailures: a report that could not be written is not taken for one that was.
func TestWritersTellFailures(t *testing.T) {
	t.Parallel()
	r := busy.report(t)
	changes, err := load.CompareReports([]load.NamedReport{{Name: "a", Report: r}, {Name: "b", Report: r}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(io.Writer) error{
		"table":      func(w io.Writer) error { return load.WriteText(w, r) },
		"html":       func(w io.Writer) error { return load.WriteHTML(w, r) },
		"json":       r.Encode,
		"comparison": func(w io.Writer) error { return load.WriteComparisons(w, changes) },
	} {
		if err := write(full{}); !errors.Is(err, errFull) {
			t.Errorf("%s: %v, want %v", name, err, errFull)
		}
	}
}

func evaluate(t *testing.T, text string, r *load.Report) load.ThresholdResult {
	t.Helper()
	threshold, err := load.ParseThreshold(text)
	if err != nil {
		t.Fatal(err)
	}
	result, err := threshold.Evaluate(r)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// TestGuideShowsTheTable: the lines of the guide's table are those of the program.
func TestGuideShowsTheTable(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile(filepath.FromSlash("../../docs/LOAD_TESTING_GUIDE.md"))
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := load.WriteText(&table, sleepy.report(t)); err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`(?m)^ *\S+(?: \S+)*`)
	shown := map[string]bool{}
	for _, line := range label.FindAllString(table.String(), -1) {
		shown[line] = true
	}
	_, excerpt, _ := strings.Cut(string(guide), "```\n      ")
	excerpt, _, found := strings.Cut("      "+excerpt, "```")
	if !found || strings.Count(excerpt, "\n") < 10 {
		t.Fatalf("no table in the guide:\n%s", excerpt)
	}
	for _, line := range label.FindAllString(excerpt, -1) {
		if !shown[line] {
			t.Errorf("the program has no line %q", line)
		}
	}
}
