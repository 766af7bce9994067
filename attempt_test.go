package tandem_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
)

func TestOutcomePermanent(t *testing.T) {
	t.Parallel()
	for outcome, want := range map[tandem.Outcome]bool{
		tandem.OutcomeDelivered: false,
		tandem.OutcomeHTTPError: false,
		tandem.OutcomeRedirect:  false,
		tandem.OutcomeGone:      true,
		tandem.OutcomeThrottled: false,
		tandem.OutcomeTimeout:   false,
		tandem.OutcomeConnect:   false,
		tandem.OutcomeTLS:       false,
		tandem.OutcomeBlocked:   true,
		tandem.OutcomeExpired:   true,
	} {
		if got := outcome.Permanent(); got != want {
			t.Errorf("%s: permanent %v, want %v", outcome, got, want)
		}
	}
}

// TestCallbackJSON fixes the body that receivers parse, of work that ended well and of work that did not.
func TestCallbackJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		callback tandem.Callback
		want     string
	}{
		{
			tandem.Callback{
				Type: tandem.EventCompleted, RequestID: "req_1", Status: tandem.StatusCompleted,
				Result: json.RawMessage(`{"sum":1.5}`), ProcessingTimeMS: 12.25, Timestamp: at,
				Metadata: tandem.CallbackMetadata{Attempt: 1, MaxAttempts: 3, SentAt: at.Add(time.Second)},
			},
			`{"type":"request.completed","request_id":"req_1","status":"completed","result":{"sum":1.5},` +
				`"processing_time_ms":12.25,"timestamp":"2026-11-21T12:00:00Z",` +
				`"callback_metadata":{"attempt":1,"max_attempts":3,"sent_at":"2026-11-21T12:00:01Z"}}`,
		},
		{
			tandem.Callback{
				Type: tandem.EventFailed, RequestID: "req_2", Status: tandem.StatusFailed,
				Error:     &tandem.CallbackError{Code: tandem.FailedTimeout, Message: "ran past 30s"},
				Timestamp: at, Metadata: tandem.CallbackMetadata{Attempt: 3, MaxAttempts: 3, SentAt: at},
			},
			`{"type":"request.failed","request_id":"req_2","status":"failed",` +
				`"error":{"code":"task_timeout","message":"ran past 30s"},` +
				`"processing_time_ms":0,"timestamp":"2026-11-21T12:00:00Z",` +
				`"callback_metadata":{"attempt":3,"max_attempts":3,"sent_at":"2026-11-21T12:00:00Z"}}`,
		},
	} {
		got, err := json.Marshal(test.callback)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.callback.Type, diff)
		}
	}
}

// TestAttemptJSON checks that what is not known is left out of the log of attempts.
func TestAttemptJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	got, err := json.Marshal([]tandem.Attempt{
		{Number: 1, StartedAt: at, DurationMS: 0.5, Outcome: tandem.OutcomeConnect, Error: "connection refused",
			NextAt: at.Add(time.Second)},
		{Number: 2, StartedAt: at, DurationMS: 3, StatusCode: 200, Outcome: tandem.OutcomeDelivered},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"number":1,"started_at":"2026-11-21T12:00:00Z","duration_ms":0.5,"outcome":"connect_error",` +
		`"error":"connection refused","next_at":"2026-11-21T12:00:01Z"},` +
		`{"number":2,"started_at":"2026-11-21T12:00:00Z","duration_ms":3,"status_code":200,"outcome":"delivered"}]`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
