package receiver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/receiver"
)

// sender makes callbacks as tandem does.
type sender struct {
	secret tandem.Secret
	url    string
}

// send posts a callback for an id to a path and returns the status answered; 0: none.
func (s sender) send(ctx context.Context, t *testing.T, path, id string, damage func(*http.Request)) int {
	t.Helper()
	body, err := json.Marshal(tandem.Callback{Type: tandem.EventCompleted, RequestID: id})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	request.Header.Set(tandem.HeaderWebhookID, id)
	request.Header.Set(tandem.HeaderWebhookTimestamp, fmt.Sprint(now.Unix()))
	request.Header.Set(tandem.HeaderWebhookSignature, s.secret.Sign(id, now, body))
	if damage != nil {
		damage(request)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

func start(t *testing.T, cfg receiver.Config) (*receiver.Receiver, sender) {
	t.Helper()
	r, err := receiver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	secret := cfg.Secret
	if secret.IsZero() {
		secret = tandem.NewSecret()
	}
	return r, sender{secret, server.URL}
}

func TestReceiverCounts(t *testing.T) {
	t.Parallel()
	r, s := start(t, receiver.Config{Secret: tandem.NewSecret(), MaxBody: 1000})
	for _, step := range []struct {
		name   string
		id     string
		damage func(*http.Request)
		want   int
		counts receiver.Counts
	}{
		{"good", "req_1", nil, 200, receiver.Counts{Received: 1, Delivered: 1}},
		{"again", "req_1", nil, 200, receiver.Counts{Received: 2, Delivered: 1, Duplicates: 1}},
		{"forged", "req_3", func(r *http.Request) { r.Header.Set(tandem.HeaderWebhookSignature, "v1,AAAA") }, 401,
			receiver.Counts{Received: 3, Delivered: 1, Duplicates: 1, BadSignature: 1}},
		{"id of another", "req_3", func(r *http.Request) { resign(r, s.secret, "req_4", `{"request_id":"req_3"}`) }, 400,
			receiver.Counts{Received: 4, Delivered: 1, Duplicates: 1, BadSignature: 1, Malformed: 1}},
		{"no JSON", "req_3", func(r *http.Request) { resign(r, s.secret, "req_3", `nonsense`) }, 400,
			receiver.Counts{Received: 5, Delivered: 1, Duplicates: 1, BadSignature: 1, Malformed: 2}},
		{"too large", "req_3", func(r *http.Request) { resign(r, s.secret, "req_3", strings.Repeat("x", 1001)) }, 413,
			receiver.Counts{Received: 6, Delivered: 1, Duplicates: 1, BadSignature: 1, Malformed: 3}},
		{"not a POST", "req_3", func(r *http.Request) { r.Method = http.MethodPut }, 405,
			receiver.Counts{Received: 6, Delivered: 1, Duplicates: 1, BadSignature: 1, Malformed: 3}},
		{"the second one", "req_3", nil, 200,
			receiver.Counts{Received: 7, Delivered: 2, Duplicates: 1, BadSignature: 1, Malformed: 3}},
	} {
		if got := s.send(t.Context(), t, "/x", step.id, step.damage); got != step.want {
			t.Errorf("%s: answered %d, want %d", step.name, got, step.want)
		}
		if diff := cmp.Diff(step.counts, r.Counts()); diff != "" {
			t.Errorf("%s: counts (-want +got)\n%s", step.name, diff)
		}
	}
}

// resign replaces the body of a callback and signs it.
func resign(r *http.Request, secret tandem.Secret, id, body string) {
	now := time.Now()
	r.Header.Set(tandem.HeaderWebhookID, id)
	r.Header.Set(tandem.HeaderWebhookTimestamp, fmt.Sprint(now.Unix()))
	r.Header.Set(tandem.HeaderWebhookSignature, secret.Sign(id, now, []byte(body)))
	replacement, err := http.NewRequest(http.MethodPost, r.URL.String(), strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Body, r.ContentLength, r.GetBody = replacement.Body, replacement.ContentLength, replacement.GetBody
}

// TestReceiverForgets checks that a receiver knows repeats of its last MaxKeys callbacks, and of no more.
func TestReceiverForgets(t *testing.T) {
	t.Parallel()
	repeats := make(chan bool, 1)
	_, s := start(t, receiver.Config{MaxKeys: 2, OnArrival: func(a receiver.Arrival) { repeats <- a.Duplicate }})
	for i, step := range []struct {
		id     string
		repeat bool
	}{
		{"a", false}, {"a", true}, {"b", false}, {"a", true},
		{"c", false}, // the oldest, a, is forgotten
		{"b", true}, {"a", false}, {"c", true}, {"b", false},
	} {
		if got := s.send(t.Context(), t, "/any/where", step.id, nil); got != http.StatusOK {
			t.Errorf("step %d: answered %d", i, got)
		}
		if got := <-repeats; got != step.repeat {
			t.Errorf("step %d: %s is a repeat: %t, want %t", i, step.id, got, step.repeat)
		}
	}
}

func TestReceiverMisbehaves(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		behaviour receiver.Behaviour
		want      int
		counts    receiver.Counts
	}{
		{"good", receiver.Behaviour{}, 200, receiver.Counts{Received: 1, Delivered: 1}},
		{"status", receiver.Behaviour{Status: 410}, 410, receiver.Counts{Received: 1, Misbehaved: 1}},
		{"another success", receiver.Behaviour{Status: 204}, 204, receiver.Counts{Received: 1, Delivered: 1}},
		{"always fails", receiver.Behaviour{FailRate: 1}, 500, receiver.Counts{Received: 1, Misbehaved: 1}},
		{"always fails with a status", receiver.Behaviour{FailRate: 1, Status: 429}, 429,
			receiver.Counts{Received: 1, Misbehaved: 1}},
		{"redirect", receiver.Behaviour{Redirect: "http://127.0.0.1:1/"}, 307, receiver.Counts{Received: 1, Misbehaved: 1}},
		{"hang", receiver.Behaviour{Hang: true}, 0, receiver.Counts{Received: 1, Misbehaved: 1}},
		{"late", receiver.Behaviour{Delay: time.Hour}, 0, receiver.Counts{Received: 1, Delivered: 1}},
		{"a little late", receiver.Behaviour{Delay: time.Millisecond}, 200, receiver.Counts{Received: 1, Delivered: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, s := start(t, receiver.Config{Behaviour: test.behaviour, OnArrival: func(receiver.Arrival) {
				if test.want == 0 {
					cancel() // the sender gives up: otherwise it would wait for ever
				}
			}})
			if got := s.send(ctx, t, "/key", "req_1", nil); got != test.want {
				t.Errorf("answered %d, want %d", got, test.want)
			}
			if diff := cmp.Diff(test.counts, r.Counts()); diff != "" {
				t.Errorf("counts (-want +got)\n%s", diff)
			}
		})
	}
}

// TestFailRate sends enough callbacks for the share to show: 400 at one half
// fall outside 100 to 300 once in 10^23 runs.
func TestFailRate(t *testing.T) {
	t.Parallel()
	r, s := start(t, receiver.Config{Behaviour: receiver.Behaviour{FailRate: 0.5}})
	for i := range 400 {
		s.send(t.Context(), t, "/", fmt.Sprint("req_", i), nil)
	}
	if got := r.Counts().Misbehaved; got < 100 || got > 300 {
		t.Errorf("%d of 400 failed, want about 200", got)
	}
}

func TestBehaviourValidate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		behaviour receiver.Behaviour
		ok        bool
	}{
		{receiver.Behaviour{}, true},
		{receiver.Behaviour{FailRate: 1, Hang: true}, true},
		{receiver.Behaviour{FailRate: -0.001}, false},
		{receiver.Behaviour{FailRate: 1.001}, false},
		{receiver.Behaviour{FailRate: math.NaN()}, false},
		{receiver.Behaviour{Status: 199}, false},
		{receiver.Behaviour{Status: 200}, true},
		{receiver.Behaviour{Status: 599}, true},
		{receiver.Behaviour{Status: 600}, false},
		{receiver.Behaviour{Delay: -1}, false},
		{receiver.Behaviour{Hang: true, Status: 500}, false},
		{receiver.Behaviour{Hang: true, Redirect: "http://x/"}, false},
		{receiver.Behaviour{Redirect: "http://x/", Status: 302}, false},
	} {
		if err := test.behaviour.Validate(); (err == nil) != test.ok {
			t.Errorf("%+v: %v, want ok %t", test.behaviour, err, test.ok)
		}
		if _, err := receiver.New(receiver.Config{Behaviour: test.behaviour}); (err == nil) != test.ok {
			t.Errorf("NewReceiver with %+v: %v, want ok %t", test.behaviour, err, test.ok)
		}
	}
}
