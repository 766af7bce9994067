package submissions_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/submissions"
	"tandem/internal/tandemtest"
)

// into makes an engine log into told from a level on, and keep a submission log.
func into(told *tandemtest.Log, level slog.Level, log *submissions.Log) func(*setup) {
	return func(config *setup) {
		config.engine.Log = slog.New(slog.NewTextHandler(told, &slog.HandlerOptions{Level: level}))
		config.config.Lines = log
	}
}

// read is the lines of a submission log.
func read(t *testing.T, path string) []submissions.Line {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var lines []submissions.Line
	for line := range strings.Lines(string(text)) {
		var one submissions.Line
		must(t, json.Unmarshal([]byte(line), &one))
		lines = append(lines, one)
	}
	return lines
}

// TestSubmissionLines: a submission that is called again has a line for each call, and names nobody unless it is
// debugged; nor does the log.
func TestSubmissionLines(t *testing.T) {
	t.Parallel()
	for _, debug := range []bool{false, true} {
		x := newExternal(t, func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		log, path := openLog(t, submissions.LogConfig{Names: debug})
		level := slog.LevelInfo
		if debug {
			level = slog.LevelDebug
		}
		var told tandemtest.Log
		p := start(t, calling(t, x.URL, testTimeout, into(&told, level, log)))
		id := p.submitAll(1, "batch_a")[0].Request.ID
		p.Await("the second call", func() bool { return p.Request(id).Status == tandem.StatusCompleted })
		p.Stop()
		flush(log)
		lines := read(t, path)
		if len(lines) != 2 {
			t.Fatalf("lines %+v", lines)
		}
		for i, want := range []tandem.Status{tandem.StatusPending, tandem.StatusCompleted} {
			line := lines[i]
			if line.Status != want || line.SubmissionID != id || line.BatchID != "batch_a" || line.ExternalMS <= 0 ||
				line.TotalMS < line.ExternalMS || (line.SaveMS > 0) != (i == 0) || line.Time.IsZero() {
				t.Errorf("line %d: %+v", i, line)
			}
			if named := string(line.Names) == string(ada); named != debug {
				t.Errorf("debug %v: names %s", debug, line.Names)
			}
		}
		if named := strings.Contains(told.String(), "Lovelace"); named != debug {
			t.Errorf("debug %v, the log:\n%s", debug, told.String())
		}
	}
}

// TestStepsOfASubmission: what debug mode tells, and in which order as far as there is one.
func TestStepsOfASubmission(t *testing.T) {
	t.Parallel()
	log, _ := openLog(t, submissions.LogConfig{})
	var told tandemtest.Log
	p := start(t, into(&told, slog.LevelDebug, log))
	id := p.submitAll(1, "")[0].Request.ID
	lines := p.Marks(&told, id)
	for _, want := range []struct{ step, attributes string }{
		{
			"🚀 saved and worked on at the same time",
			` task=submission in_flight=1 submitted={firstName:Ada,lastName:Lovelace}\n`,
		},
		{"💾 committed", ` task=submission rows=1 took=`},
		{"🌐 external service: delivered", ` took=\S+ status_code=200`},
		{"✅ work completed", ` task=submission work=\S+ took=\S+ one_after_the_other=`},
		{"📝 submission: its line for the log is written in the background", ``},
	} {
		if !regexp.MustCompile(`msg="` + want.step + `" request_id=` + id + want.attributes).MatchString(told.String()) {
			t.Errorf("no %s with %s in\n%s", want.step, want.attributes, told.String())
		}
	}
	if strings.Contains(told.String(), "on disk") {
		t.Errorf("the database is in memory, and the log says\n%s", told.String())
	}
	slices.Sort(lines[1:3]) // these two run at the same time
	if diff := cmp.Diff([]string{"🚀", "🌐", "💾", "✅", "📝"}, lines); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}
