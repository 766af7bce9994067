package engine_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/engine"
)

// steps is a log that remembers its lines.
type steps struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *steps) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *steps) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// at makes an engine log into s from a level on, and keep a submission log.
func (s *steps) at(level slog.Level, log *engine.SubmissionLog) func(*setup) {
	return func(config *setup) {
		config.engine.Log = slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: level}))
		config.engine.SubmissionLog = log
	}
}

// read is the lines of a submission log.
func read(t *testing.T, path string) []engine.SubmissionLine {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var lines []engine.SubmissionLine
	for line := range strings.Lines(string(text)) {
		var one engine.SubmissionLine
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
		log, path := openLog(t, engine.SubmissionLogConfig{Names: debug})
		level := slog.LevelInfo
		if debug {
			level = slog.LevelDebug
		}
		var told steps
		p := start(t, calling(t, x.URL, patience, told.at(level, log)))
		id := p.submitAll(1, "batch_a")[0].Request.ID
		p.await("the second call", func() bool { return p.request(id).Status == tandem.StatusCompleted })
		p.stop()
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
	log, _ := openLog(t, engine.SubmissionLogConfig{})
	var told steps
	p := start(t, told.at(slog.LevelDebug, log))
	id := p.submitAll(1, "")[0].Request.ID
	lines := p.steps(&told, id)
	for _, want := range []struct{ step, attributes string }{
		{"🚀 submission: saved and passed on at the same time", ` in_flight=1 submitted={firstName:Ada,lastName:Lovelace}\n`},
		{"💾 submission: committed", ` rows=1 took=`},
		{"🌐 external service: delivered", ` took=\S+ status_code=200`},
		{"✅ submission: completed", ` took=\S+ one_after_the_other=`},
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

// TestStepsOfWork: sync and async work, and callbacks that are tried again.
func TestStepsOfWork(t *testing.T) {
	t.Parallel()
	x := newExternal(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	var told steps
	p := start(t, told.at(slog.LevelDebug, nil))
	data := json.RawMessage(`{"n":1}`)
	done, err := p.Do(t.Context(), engine.Order{Task: "echo", Data: data, Complexity: 1})
	must(t, err)
	if diff := cmp.Diff([]string{"🚀", "✅"}, p.steps(&told, done.ID)); diff != "" {
		t.Errorf("sync (-want +got):\n%s", diff)
	}
	_, err = p.Do(t.Context(), engine.Order{Task: "broken", Data: data, Complexity: 1})
	var failed *tandem.Error
	if !errors.As(err, &failed) {
		t.Fatalf("broken work: %v", err)
	}
	if diff := cmp.Diff([]string{"🚀", "❌"}, p.steps(&told, failed.RequestID)); diff != "" {
		t.Errorf("sync that fails (-want +got):\n%s", diff)
	}
	sent, err := p.Submit(t.Context(), engine.Order{Task: "echo", Data: data, Complexity: 1, CallbackURL: x.URL})
	must(t, err)
	p.await("the callback", func() bool { return p.request(sent.ID).Status == tandem.StatusCallbackSent })
	got := p.steps(&told, sent.ID)
	accepted := slices.Index(got, "📝") // the background may be faster than the caller's goroutine
	if accepted < 0 {
		t.Fatalf("steps %q", got)
	}
	if diff := cmp.Diff([]string{"🚀", "✅", "🌐", "⏳", "🌐"}, slices.Delete(got, accepted, accepted+1)); diff != "" {
		t.Errorf("async (-want +got):\n%s\n%s", diff, told.String())
	}
}

// steps are the marks of the lines about a request.
func (p *plant) steps(told *steps, id string) []string {
	p.t.Helper()
	var marks []string
	for _, match := range regexp.MustCompile(`msg="(\S+) .*request_id=`+id).FindAllStringSubmatch(told.String(), -1) {
		marks = append(marks, match[1])
	}
	if len(marks) < 2 {
		p.t.Fatalf("steps %q in\n%s", marks, told.String())
	}
	return marks
}
