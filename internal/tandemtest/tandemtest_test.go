package tandemtest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
)

// submit sends an echo to be reported to a URL and waits until nothing is left to do for it.
func submit(t *testing.T, s *tandemtest.Service, callback string) tandem.Request {
	t.Helper()
	answer := s.Post(t, "/async", fmt.Sprintf(`{"data":{"n":1},"task":"echo","callback_url":%q}`, callback))
	if answer.Status != http.StatusAccepted {
		t.Fatalf("POST /async answered %d: %s", answer.Status, answer.Body)
	}
	return s.Await(t, answer.RequestID(), func(r tandem.Request) bool { return !r.Unfinished() })
}

// TestService checks that what Start boots is a whole tandem: work in, history
// kept, signed callback out.
func TestService(t *testing.T) {
	t.Parallel()
	s := tandemtest.Start(t, app.Preset(app.Demo))
	callbacks, err := receiver.New(receiver.Config{Secret: s.Secret})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(callbacks)
	defer server.Close()
	request := submit(t, s, server.URL+"/one")
	if request.Status != tandem.StatusCallbackSent {
		t.Errorf("status %s, want callback_sent", request.Status)
	}
	if got := callbacks.Counts(); got.Delivered != 1 || got.Received != 1 {
		t.Errorf("receiver counts %+v", got)
	}
	if answer := s.Post(t, "/sync", `{"data":{"n":1},"task":"echo"}`); answer.Status != http.StatusOK {
		t.Errorf("POST /sync answered %d: %s", answer.Status, answer.Body)
	}
	var history []tandem.Request
	if answer := s.Fetch(t, "/requests"); json.Unmarshal(answer.Body, &history) != nil || len(history) != 2 {
		t.Errorf("history: %s", answer.Body)
	}
}

// TestServiceKeepsItsFile stops a service and starts another on its file.
func TestServiceKeepsItsFile(t *testing.T) {
	t.Parallel()
	cfg := app.Preset(app.Demo)
	cfg.DB = filepath.Join(t.TempDir(), "kept.db")
	first := tandemtest.Start(t, cfg)
	id := first.Post(t, "/sync", `{"data":{"n":1},"task":"echo"}`).RequestID()
	first.Stop()
	second := tandemtest.Start(t, cfg)
	if answer := second.Fetch(t, "/requests/"+id); answer.Status != http.StatusOK {
		t.Errorf("request %s after a restart: %d", id, answer.Status)
	}
}

// TestFaults sends a callback to every kind of bad receiver and checks what
// the history calls it. The timeout is one that a busy machine keeps while it connects.
func TestFaults(t *testing.T) {
	t.Parallel()
	cfg := app.Preset(app.Demo)
	cfg.CallbackTimeout, cfg.CallbackAttempts = 3*time.Second, 1
	s := tandemtest.Start(t, cfg)
	fault := func(f http.HandlerFunc) func(*testing.T) string {
		return func(t *testing.T) string { return tandemtest.Receive(t, f) }
	}
	for _, test := range []struct {
		name   string
		url    func(*testing.T) string
		want   tandem.Outcome
		status int
	}{
		{"refuse", func(t *testing.T) string { return tandemtest.Refusing(t) }, tandem.OutcomeConnect, 0},
		{"certificate", func(t *testing.T) string { return tandemtest.BadCertificate(t) }, tandem.OutcomeTLS, 0},
		{"hang", fault(receiver.Hang), tandem.OutcomeTimeout, 0},
		{"reset", fault(receiver.Reset), tandem.OutcomeConnect, 0},
		{"close early", fault(receiver.CloseEarly), tandem.OutcomeConnect, 0},
		{"head without end", fault(receiver.DripHead), tandem.OutcomeTimeout, 0},
		{"headers without end", fault(receiver.Flood), tandem.OutcomeConnect, 0},
		{"redirect", fault(receiver.Answer(302, "Location: http://127.0.0.1:1/")), tandem.OutcomeRedirect, 302},
		{"gone", fault(receiver.Answer(410)), tandem.OutcomeGone, 410},
		{"server error", fault(receiver.Answer(500)), tandem.OutcomeHTTPError, 500},
		{"throttle", fault(receiver.RetryAfter(1)), tandem.OutcomeThrottled, 503},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			request := submit(t, s, test.url(t))
			if request.Status != tandem.StatusCallbackFailed || len(request.Attempts) != 1 {
				t.Fatalf("status %s with %d attempts, want callback_failed with 1", request.Status, len(request.Attempts))
			}
			if got := request.Attempts[0]; got.Outcome != test.want || got.StatusCode != test.status {
				t.Errorf("outcome %s, status code %d; want %s, %d (%s)", got.Outcome, got.StatusCode, test.want, test.status,
					got.Error)
			}
		})
	}
}

// TestDrip checks the one fault that is a success: a body that never ends,
// after a 2xx, does not hold the callback up until its timeout.
func TestDrip(t *testing.T) {
	t.Parallel()
	s := tandemtest.Start(t, app.Preset(app.Demo))
	var calls atomic.Int64
	request := submit(t, s, tandemtest.Receive(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		receiver.Drip(w, r)
	}))
	if got := request.Attempts[0]; got.Outcome != tandem.OutcomeDelivered || got.DurationMS > 5000 {
		t.Errorf("outcome %s after %v ms, want delivered soon after the header", got.Outcome, got.DurationMS)
	}
	if got := calls.Load(); got != 1 {
		t.Errorf("%d calls, want 1", got)
	}
}
