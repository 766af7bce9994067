package load_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"tandem/internal/load"
)

// TestControlCharactersOfAServiceAreInNoReport: whatever a service says of itself, of errors and of requests.
func TestControlCharactersOfAServiceAreInNoReport(t *testing.T) {
	t.Parallel()
	const hostile = "evil\x1b]0;owned\a\x1b[2J\u009b31m\u202e\x7f\r\nforged: line"
	say := func(w http.ResponseWriter, status int, members map[string]any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(members)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusOK, map[string]any{"timestamp": time.Now().UTC(), "version": hostile})
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusOK, map[string]any{"system": map[string]any{"mode": hostile}})
	})
	mux.HandleFunc("GET /requests/{id}", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusOK, map[string]any{"status": hostile})
	})
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusInternalServerError, map[string]any{"code": hostile, "detail": hostile})
	})
	mux.HandleFunc("POST /async", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusAccepted, map[string]any{"request_id": hostile})
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	report, err := load.Run(t.Context(), load.Config{
		URL: server.URL, Phases: []string{load.PhaseSync, load.PhaseAsync},
		Requests: 2, Concurrency: 1, Drain: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(io.Writer) error{
		"table": func(w io.Writer) error { return load.WriteText(w, report) },
		"HTML":  func(w io.Writer) error { return load.WriteHTML(w, report) },
		"JSON":  report.Encode,
	} {
		var text bytes.Buffer
		if err := write(&text); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text.String(), "evil") {
			t.Errorf("%s: nothing of the service is in it, so this shows nothing", name)
		}
		for _, escaped := range []string{"\\u001b", "\\u0007", "\\r"} {
			if strings.Contains(text.String(), escaped) && name == "JSON" {
				t.Errorf("JSON: %s", escaped)
			}
		}
		hidden := func(r rune) bool { return r != '\n' && r != '\t' && r != '\u00a0' && !unicode.IsPrint(r) }
		if i := strings.IndexFunc(text.String(), hidden); i >= 0 {
			t.Errorf("%s: %q", name, text.String()[max(0, i-20):min(text.Len(), i+20)])
		}
	}
}

// TestServiceThatIsNotTandem measures a small FastAPI service: it accepts with 200, writes times without
// a zone, and signs nothing. Its callbacks repeat the data, escaped as Python does it, and so they are
// larger than what a receiver takes by default.
func TestServiceThatIsNotTandem(t *testing.T) {
	t.Parallel()
	naive := func() string { return time.Now().UTC().Format("2006-01-02T15:04:05.000000") }
	var sending sync.WaitGroup
	defer sending.Wait()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"status":"healthy","timestamp":%q,"version":"1.0.0"}`, naive())
	})
	mux.HandleFunc("POST /async", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			CallbackURL string          `json:"callback_url"`
			Data        json.RawMessage `json:"data"`
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		escaped := strings.ReplaceAll(string(asked.Data), "<", `\u003c`)
		const form = `{"request_id":"abc","status":"completed","result":%s,"processing_time_ms":1,"timestamp":%q}`
		body := fmt.Sprintf(form, escaped, naive())
		sending.Go(func() {
			response, err := http.Post(asked.CallbackURL, "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				t.Errorf("the receiver answered %s to %d bytes", response.Status, len(body))
			}
		})
		_, _ = io.WriteString(w, `{"request_id":"abc","status":"accepted"}`)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	report, err := load.Run(t.Context(), load.Config{
		URL: server.URL, Phases: []string{load.PhaseAsync}, Requests: 4, Concurrency: 2, Drain: time.Minute,
		Data: json.RawMessage(`{"text":"` + strings.Repeat("<", 1<<20) + `"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	side, callbacks := report.Phases[0].Async, report.Phases[0].Callbacks
	if side.Accepted != 4 || side.Completed != 4 || side.WorkFailed != 0 ||
		callbacks.Delivered != 4 || callbacks.Malformed != 0 {
		t.Errorf("%+v\n%+v", side, callbacks)
	}
	if offset := report.Target.ClockOffsetMS; offset > 60_000 || offset < -60_000 {
		t.Errorf("clock offset %v ms: a time without a zone is UTC", offset)
	}
}

// TestSyncRunNamesNoCallback: nobody waits for one.
func TestSyncRunNamesNoCallback(t *testing.T) {
	t.Parallel()
	f := (&fake{}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseSync}, Requests: 3})
	var table, page bytes.Buffer
	if err := load.WriteText(&table, report); err != nil {
		t.Fatal(err)
	}
	if err := load.WriteHTML(&page, report); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{table.String(), page.String()} {
		for _, callback := range []string{"by callback to", "Results by", "Callback address"} {
			if strings.Contains(text, callback) {
				t.Errorf("%q in a run without async:\n%.3000s", callback, text)
			}
		}
	}
}
