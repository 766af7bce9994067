package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

func TestAsync(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		task    string
		timeout time.Duration
		event   string
		result  string
		reason  string // in the history and in the callback
	}{
		{task: "echo", event: tandem.EventCompleted, result: `{"a":1}`},
		{task: "sleep", event: tandem.EventCompleted, result: `{"slept_ms":50}`},
		{task: "void", event: tandem.EventCompleted, result: `null`},
		{task: "html", event: tandem.EventCompleted, result: `"<b>&</b>"`},
		{task: "broken", event: tandem.EventFailed, reason: tandem.FailedTask},
		{task: "garbled", event: tandem.EventFailed, reason: tandem.FailedTask},
		{task: "panicky", event: tandem.EventFailed, reason: tandem.FailedPanic},
		{task: "panicky-cpu", event: tandem.EventFailed, reason: tandem.FailedPanic},
		{task: "stuck", timeout: 20 * time.Millisecond, event: tandem.EventFailed, reason: tandem.FailedTimeout},
	} {
		t.Run(tt.task, func(t *testing.T) {
			t.Parallel()
			p := start(t, func(s *setup) {
				s.engine.TaskTimeout = tt.timeout
				s.engine.Tasks = append(s.engine.Tasks,
					task("html", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
						return json.RawMessage(`"<b>&</b>"`), nil
					}))
			})
			rc := newReceiver(t, nil)
			accepted := p.submit(tt.task, rc.URL)
			if accepted.Status != tandem.StatusPending || accepted.CallbackStatus != tandem.CallbackPending ||
				accepted.Mode != tandem.ModeAsync {
				t.Errorf("accepted as %s %s, callback %s", accepted.Mode, accepted.Status, accepted.CallbackStatus)
			}
			r := p.Settled(accepted.ID)
			want, workEnded := tandem.StatusCallbackSent, tandem.StatusCompleted
			if tt.event == tandem.EventFailed {
				want, workEnded = tandem.StatusFailed, tandem.StatusFailed
			}
			if r.Status != want || r.CallbackStatus != tandem.CallbackSent || r.ErrorCode != tt.reason ||
				string(r.Result) != tt.result || r.CallbackAttempts != 1 {
				t.Errorf("stored %s, callback %s, %q, %s after %d attempts", r.Status, r.CallbackStatus, r.ErrorCode, r.Result,
					r.CallbackAttempts)
			}
			got := rc.deliveries()
			if len(got) != 1 {
				t.Fatalf("%d callbacks, want 1", len(got))
			}
			callback := got[0].Callback
			sent := callback.Metadata.SentAt
			expected := tandem.Callback{
				Type: tt.event, RequestID: r.ID, Status: workEnded, Result: r.Result,
				ProcessingTimeMS: r.ProcessingTimeMS, Timestamp: r.CompletedAt,
				Metadata: tandem.CallbackMetadata{Attempt: 1, MaxAttempts: 3, SentAt: sent},
			}
			if tt.reason != "" {
				expected.Result, expected.Error = nil, &tandem.CallbackError{Code: tt.reason, Message: r.ErrorMessage}
			}
			if diff := cmp.Diff(expected, callback); diff != "" {
				t.Errorf("callback (-want +got):\n%s", diff)
			}
			if tt.result != "" && !strings.Contains(string(got[0].raw), tt.result) {
				t.Errorf("body %s does not hold the result as the task wrote it: %s", got[0].raw, tt.result)
			}
		})
	}
}

func TestCallbackHeaders(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	rc := newReceiver(t, nil)
	r := p.Settled(p.submit("echo", rc.URL).ID)
	got := rc.deliveries()[0]
	for key, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "tandem/" + tandem.Version, tandem.HeaderWebhookID: r.ID,
	} {
		if got.header.Get(key) != want {
			t.Errorf("%s: %q, want %q", key, got.header.Get(key), want)
		}
	}
	for _, secret := range []tandem.Secret{secretA, secretB} {
		if err := secret.Verify(got.header, got.raw, got.at); err != nil {
			t.Errorf("one of our secrets does not verify: %v", err)
		}
		if err := secret.Verify(got.header, append(got.raw, ' '), got.at); !errors.Is(err, tandem.ErrSignatureMismatch) {
			t.Errorf("a changed body: %v, want a mismatch", err)
		}
	}
	if n := len(strings.Fields(got.header.Get(tandem.HeaderWebhookSignature))); n != 2 {
		t.Errorf("%d signatures, want 2", n)
	}
}

func TestRetriesUntilDelivered(t *testing.T) {
	t.Parallel()
	const backoff = 20 * time.Millisecond
	ran := make(chan struct{}, 10)
	p := start(t, func(s *setup) {
		s.engine.Retry.Backoff = backoff
		s.engine.Tasks = []work.Task{task("counted", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			ran <- struct{}{}
			return nil, nil
		})}
	})
	rc := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	r := p.Settled(p.submit("counted", rc.URL).ID)
	if r.Status != tandem.StatusCallbackSent || r.CallbackAttempts != 3 || len(r.Attempts) != 3 {
		t.Fatalf("%s after %d attempts, %d logged; want callback_sent, 3, 3", r.Status, r.CallbackAttempts, len(r.Attempts))
	}
	if len(ran) != 1 {
		t.Errorf("the work was done %d times: a callback that fails must not repeat it", len(ran))
	}
	got := rc.deliveries()
	for i, attempt := range r.Attempts {
		if attempt.Number != i+1 || got[i].Metadata.Attempt != i+1 || got[i].header.Get(tandem.HeaderWebhookID) != r.ID {
			t.Errorf("attempt %d: logged as %d, told as %d, id %q", i+1, attempt.Number, got[i].Metadata.Attempt,
				got[i].header.Get(tandem.HeaderWebhookID))
		}
		if i == len(r.Attempts)-1 {
			if attempt.Outcome != tandem.OutcomeDelivered || attempt.StatusCode != http.StatusOK ||
				!attempt.NextAt.IsZero() || attempt.Error != "" {
				t.Errorf("the last attempt: %+v", attempt)
			}
			continue
		}
		if attempt.Outcome != tandem.OutcomeHTTPError || attempt.StatusCode != http.StatusInternalServerError ||
			attempt.Error == "" {
			t.Errorf("attempt %d: %+v, want an http_error with 500", i+1, attempt)
		}
		least := backoff << i
		if wait := attempt.NextAt.Sub(attempt.StartedAt); wait < least || wait > least*3/2+time.Second {
			t.Errorf("attempt %d: the next is due after %v, want %v to half as much again", i+1, wait, least)
		}
		if r.Attempts[i+1].StartedAt.Before(attempt.NextAt) {
			t.Errorf("attempt %d started at %v, was due at %v", i+2, r.Attempts[i+1].StartedAt, attempt.NextAt)
		}
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		status  int
		outcome tandem.Outcome
		tries   int
	}{
		{"gone", http.StatusGone, tandem.OutcomeGone, 1},
		{"not found", http.StatusNotFound, tandem.OutcomeHTTPError, 3},
		{"broken", http.StatusInternalServerError, tandem.OutcomeHTTPError, 3},
		{"redirect", http.StatusFound, tandem.OutcomeRedirect, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil)
			rc := newReceiver(t, status(tt.status))
			r := p.Settled(p.submit("echo", rc.URL).ID)
			if r.Status != tandem.StatusCallbackFailed || r.CallbackStatus != tandem.CallbackFailed ||
				r.CallbackAttempts != tt.tries {
				t.Errorf("%s, callback %s after %d; want callback_failed, failed, %d", r.Status, r.CallbackStatus,
					r.CallbackAttempts, tt.tries)
			}
			last := r.Attempts[len(r.Attempts)-1]
			if len(rc.deliveries()) != tt.tries || last.Outcome != tt.outcome || last.StatusCode != tt.status ||
				!last.NextAt.IsZero() {
				t.Errorf("%d callbacks, the last %+v; want %d, %s, none to follow", len(rc.deliveries()), last, tt.tries,
					tt.outcome)
			}
		})
	}
}

func TestExpires(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) {
		s.egress.BreakerFailures = 1000
		s.engine.Retry = work.Retry{Attempts: 1000, Backoff: 5 * time.Millisecond, MaxAge: time.Second}
	})
	rc := newReceiver(t, status(http.StatusInternalServerError))
	r := p.Settled(p.submit("echo", rc.URL).ID)
	last := r.Attempts[len(r.Attempts)-1]
	if r.Status != tandem.StatusCallbackFailed || last.Outcome != tandem.OutcomeExpired ||
		last.Number != r.CallbackAttempts || last.Error == "" {
		t.Errorf("%s after %d attempts, the last logged %+v; want callback_failed, expired with the same number",
			r.Status, r.CallbackAttempts, last)
	}
	if len(rc.deliveries()) != r.CallbackAttempts || r.CallbackAttempts == 0 {
		t.Errorf("%d callbacks, %d attempts: an expiry sends nothing and counts as none", len(rc.deliveries()),
			r.CallbackAttempts)
	}
	deadline := r.CompletedAt.Add(time.Second)
	for _, attempt := range r.Attempts {
		if attempt.NextAt.After(deadline) {
			t.Errorf("attempt %d: the next one due at %v, past the expiry at %v", attempt.Number, attempt.NextAt, deadline)
		}
	}
}

// completed is an async request whose work has ended, as a deliver job carries it.
func completed(url string, attempts int) store.Job {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Job{Lane: store.LaneDeliver, Answered: func() {}, Request: tandem.Request{
		ID: "req_0190163d8694739b8a1e1b6c3a2f1d0e", Mode: tandem.ModeAsync, Task: "echo", Status: tandem.StatusCompleted,
		CallbackStatus: tandem.CallbackPending, Result: json.RawMessage(`1`), Complexity: 1, CallbackURL: url,
		CallbackAttempts: attempts, CreatedAt: now, CompletedAt: now,
	}}
}

func TestDeliverLoweredAttempts(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle, s.engine.Retry.Attempts = true, 2 })
	rc := newReceiver(t, status(http.StatusInternalServerError))
	for attempts, want := range []tandem.CallbackStatus{
		tandem.CallbackPending, tandem.CallbackFailed, tandem.CallbackFailed, tandem.CallbackFailed,
	} {
		next := p.Step(t.Context(), completed(rc.URL, attempts))
		got := next.Request.CallbackStatus
		if got != want || next.Attempt == nil || next.Attempt.Number != attempts+1 {
			t.Errorf("after %d of 2 attempts: callback %s, attempt %+v; want %s, number %d",
				attempts, got, next.Attempt, want, attempts+1)
		}
		if sent := rc.deliveries()[attempts].Metadata; sent.MaxAttempts < sent.Attempt {
			t.Errorf("told attempt %d of %d", sent.Attempt, sent.MaxAttempts)
		}
	}
}

func TestDeliverParksWhileTheBreakerIsOpen(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) {
		s.idle = true
		s.egress.BreakerFailures = 1
	})
	rc := newReceiver(t, status(http.StatusInternalServerError))
	job := completed(rc.URL, 0)
	p.Step(t.Context(), job) // opens the breaker
	next := p.Step(t.Context(), job)
	if next.Lane != store.LaneDeliver || next.Attempt != nil || next.Outcome != nil {
		t.Errorf("%+v, want Again without an attempt", next)
	}
	if next.Parked == "" || !strings.HasSuffix(rc.URL, next.Parked) || !next.At.IsZero() {
		t.Errorf("parked for %q until %v, want it parked for its destination until that can take it", next.Parked, next.At)
	}
	if n := len(rc.deliveries()); n != 1 {
		t.Errorf("%d callbacks, want 1: an open breaker sends nothing", n)
	}
}

// Answers 5xx to one client's callbacks hold back no other client's, on a server without API keys too.
func TestBreakerIsOfTheOwner(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) {
		s.idle = true
		s.egress.BreakerFailures = 1
	})
	rc := newReceiver(t, status(http.StatusInternalServerError))
	for _, step := range []struct {
		owner string
		sent  bool
	}{{"net-1", true}, {"net-1", false}, {"net-2", true}, {"net-2", false}} {
		job := completed(rc.URL, 0)
		job.Request.Owner = step.owner
		if next := p.Step(t.Context(), job); (next.Attempt != nil) != step.sent {
			t.Errorf("%s: attempt %+v; want one is %v", step.owner, next.Attempt, step.sent)
		}
	}
}

// A failed probe keeps the breaker open and uses up no attempt; nor does trouble of our own.
func TestNoAttemptIsUsedUp(t *testing.T) {
	t.Parallel()
	dead := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "udp", Err: syscall.ECONNREFUSED}
	}}
	p := start(t, func(s *setup) {
		s.idle = true
		s.egress.BreakerFailures, s.egress.BreakerOpen, s.egress.Resolver = 1, 10*time.Millisecond, dead
	})
	refusing := completed(tandemtest.Refusing(t), 1)
	if next := p.Step(t.Context(), refusing); next.Attempt == nil || next.Attempt.Number != 2 {
		t.Errorf("%+v, want an attempt, which opens the breaker", next)
	}
	broken := completed(newReceiver(t, status(http.StatusInternalServerError)).URL, 1)
	if next := p.Step(t.Context(), broken); next.Attempt == nil {
		t.Errorf("%+v, want an attempt, which opens the breaker", next)
	}
	for _, job := range []store.Job{refusing, broken} {
		for range 5 { // more than there are attempts
			next := p.Step(t.Context(), job) // a probe, or rescheduled because it comes too early
			if next.Lane != store.LaneDeliver || next.Attempt != nil || next.Parked == "" {
				t.Fatalf("%+v, want it parked without an attempt", next)
			}
			p.Await("the breaker to be half-open", func() bool {
				return !slices.ContainsFunc(p.Destinations(), func(d engine.Destination) bool {
					return d.State == "open"
				})
			})
		}
	}
	next := p.Step(t.Context(), completed("http://hooks.example/", 1))
	if next.Lane != store.LaneDeliver || next.Attempt != nil {
		t.Errorf("the name server is dead: %+v, want Again without an attempt", next)
	}
}

func TestDeliverRetryAfter(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":     10 * time.Second, // the backoff, up to half as long again
		"5":    10 * time.Second, // clamped
		"60":   time.Minute,
		"3600": time.Hour,
		"3601": time.Hour,
	} {
		p := start(t, func(s *setup) { s.idle, s.engine.Retry.Backoff = true, 10*time.Second })
		rc := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			w.WriteHeader(http.StatusTooManyRequests)
		})
		before := time.Now()
		next := p.Step(t.Context(), completed(rc.URL, 0))
		if wait := next.At.Sub(before); next.Lane != store.LaneDeliver || wait < want || wait > want*3/2+patience {
			t.Errorf("Retry-After %q: lane %q, next in %v, want %v", header, next.Lane, wait, want)
		}
		if !next.Attempt.NextAt.Equal(next.At) || next.Attempt.Outcome != tandem.OutcomeThrottled {
			t.Errorf("Retry-After %q: logged %+v, want throttled and the same time %v", header, next.Attempt, next.At)
		}
	}
}

// An attempt that would come too late is made shortly before the callback expires, and no attempt after it.
func TestLastAttemptBeforeTheExpiry(t *testing.T) {
	t.Parallel()
	const maxAge = time.Hour
	p := start(t, func(s *setup) {
		s.idle = true
		s.engine.Retry = work.Retry{Attempts: 10, Backoff: time.Minute, MaxAge: maxAge}
	})
	for _, tt := range []struct {
		name   string
		age    time.Duration // of the result
		before time.Duration // the expiry, when the next step is due
	}{
		{"a last attempt", 50 * time.Minute, 10 * time.Second},
		{"no time for one", maxAge - time.Minute, 0},
	} {
		rc := newReceiver(t, status(http.StatusInternalServerError))
		job := completed(rc.URL, 5) // the next delay would be at least 32 minutes
		job.Request.CompletedAt = job.Request.CompletedAt.Add(-tt.age)
		expiry := job.Request.CompletedAt.Add(maxAge)
		next := p.Step(t.Context(), job)
		if got := expiry.Sub(next.At).Round(time.Second); next.Lane != store.LaneDeliver || got != tt.before {
			t.Errorf("%s: lane %q, %v before the expiry; want %v", tt.name, next.Lane, got, tt.before)
		}
	}
}

func TestDeliverBlocked(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle, s.egress.Policy.AllowPrivate = true, false })
	next := p.Step(t.Context(), completed("http://127.0.0.1:9/", 1))
	if next.Request.CallbackStatus != tandem.CallbackFailed || next.Attempt == nil ||
		next.Attempt.Outcome != tandem.OutcomeBlocked || next.Attempt.Number != 2 {
		t.Errorf("%+v, want Dead with a blocked attempt: policy became stricter after the acceptance", next)
	}
}

func TestStepUnknownTask(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle = true })
	job := completed("http://127.0.0.1:9/", 0)
	job.Lane, job.Request.Status, job.Request.Task = store.LaneIO, tandem.StatusPending, "retired"
	next := p.Step(t.Context(), job)
	if next.Lane != store.LaneDeliver || next.Outcome == nil || next.Outcome.ErrorCode != tandem.FailedTask {
		t.Errorf("%+v, want failed work whose caller is told", next)
	}
}

func TestHangingReceiverDelaysNobody(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	release := make(chan struct{})
	hanging := newReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	well := newReceiver(t, nil)
	var stuck []string
	for range 30 { // more than the destination has places, and than there are slots
		stuck = append(stuck, p.submit("echo", hanging.URL).ID)
	}
	for range 30 {
		if r := p.Settled(p.submit("echo", well.URL).ID); r.Status != tandem.StatusCallbackSent {
			t.Fatalf("%s, want callback_sent", r.Status)
		}
	}
	if slices.ContainsFunc(stuck, func(id string) bool { return p.Request(id).Status != tandem.StatusCompleted }) {
		t.Error("a callback to the hanging receiver is not waiting")
	}
}
