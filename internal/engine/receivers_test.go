package engine_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"tandem"
	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

// Receivers that do what they should not, as the history tells of them: what came
// of the try, and when the next one is due.
func TestHistoryOfHostileReceivers(t *testing.T) {
	t.Parallel()
	const backoff = time.Hour / 2
	fault := func(f http.HandlerFunc) func(*testing.T) string {
		return func(t *testing.T) string { t.Helper(); return tandemtest.Receive(t, f) }
	}
	// counted from the answer: the receiver may wait for its turn
	atADate := func(w http.ResponseWriter, r *http.Request) {
		at := time.Now().Add(45 * time.Minute).UTC().Format(http.TimeFormat)
		receiver.Answer(http.StatusServiceUnavailable, "Retry-After: "+at)(w, r)
	}
	never := time.Duration(0)
	for _, tt := range []struct {
		name    string
		url     func(*testing.T) string
		outcome tandem.Outcome
		status  int           // of the answer; 0: there was none
		least   time.Duration // until the next try; never: there is none
		most    time.Duration
	}{
		{"refuses", func(t *testing.T) string { t.Helper(); return tandemtest.Refusing(t) }, tandem.OutcomeConnect, 0,
			backoff, backoff * 3 / 2},
		{"bad certificate", func(t *testing.T) string { t.Helper(); return tandemtest.BadCertificate(t) },
			tandem.OutcomeTLS, 0, backoff, backoff * 3 / 2},
		{"resets", fault(receiver.Reset), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"hangs", fault(receiver.Hang), tandem.OutcomeTimeout, 0, backoff, backoff * 3 / 2},
		{"closes early", fault(receiver.CloseEarly), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"drips its header", fault(receiver.DripHead), tandem.OutcomeTimeout, 0, backoff, backoff * 3 / 2},
		{"headers without end", fault(receiver.Flood), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"redirects", fault(receiver.Answer(302, "Location: http://127.0.0.1:1/")), tandem.OutcomeRedirect, 302, backoff,
			backoff * 3 / 2},
		{"is broken", fault(receiver.Answer(500)), tandem.OutcomeHTTPError, 500, backoff, backoff * 3 / 2},
		{"is not there", fault(receiver.Answer(404)), tandem.OutcomeHTTPError, 404, backoff, backoff * 3 / 2},
		{"429", fault(receiver.Answer(429)), tandem.OutcomeThrottled, 429, backoff, backoff * 3 / 2},
		{"429 with Retry-After", fault(receiver.Answer(429, "Retry-After: 2700")),
			tandem.OutcomeThrottled, 429, 45 * time.Minute, 45 * time.Minute * 3 / 2},
		{"503 with Retry-After", fault(receiver.RetryAfter(2400)),
			tandem.OutcomeThrottled, 503, 40 * time.Minute, time.Hour},
		{"503 with a date", fault(atADate), tandem.OutcomeThrottled, 503, 44 * time.Minute, 45 * time.Minute * 3 / 2},
		{"Retry-After in the past", fault(receiver.Answer(503, "Retry-After: Sat, 31 Jan 2026 12:00:00 GMT")),
			tandem.OutcomeThrottled, 503, backoff, backoff * 3 / 2},
		{"Retry-After too soon", fault(receiver.RetryAfter(1)),
			tandem.OutcomeThrottled, 503, backoff, backoff * 3 / 2},
		{"Retry-After of a year", fault(receiver.RetryAfter(31_536_000)),
			tandem.OutcomeThrottled, 503, time.Hour, time.Hour * 3 / 2},
		{"410", fault(receiver.Answer(410, "Retry-After: 60")), tandem.OutcomeGone, 410, never, never},
		{"200, then a drip", fault(receiver.Drip), tandem.OutcomeDelivered, 200, never, never},
		{"200, then a body without end", endlessBody, tandem.OutcomeDelivered, 200, never, never},
		{"200 with a bomb", compressedBomb, tandem.OutcomeDelivered, 200, never, never},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, func(s *setup) {
				// Only what the receiver does counts, however late.
				s.egress.Timeout, s.egress.ConnectTimeout = patience, patience
				if tt.outcome == tandem.OutcomeTimeout {
					s.egress.Timeout = 3 * time.Second // most of it for the connection
				}
				s.engine.Retry = work.Retry{Attempts: 3, Backoff: backoff}
			})
			id := p.submit("echo", tt.url(t)).ID
			p.Await("the first attempt", func() bool { return len(p.Request(id).Attempts) > 0 })
			r := p.Request(id)
			got := r.Attempts[0]
			if len(r.Attempts) != 1 || got.Number != 1 || got.Outcome != tt.outcome || got.StatusCode != tt.status ||
				(got.Error == "") != (tt.outcome == tandem.OutcomeDelivered) {
				t.Errorf("%d attempts, the first %+v; want one, %s with %d", len(r.Attempts), got, tt.outcome, tt.status)
			}
			if tt.least == never {
				if !got.NextAt.IsZero() || r.Unfinished() {
					t.Errorf("%s, callback %s, next at %v; want nothing to follow", r.Status, r.CallbackStatus, got.NextAt)
				}
				return
			}
			ended := got.StartedAt.Add(time.Duration(got.DurationMS * float64(time.Millisecond)))
			const rounding = 2 * time.Millisecond // the history keeps microseconds of one and milliseconds of the other
			if wait := got.NextAt.Sub(ended); wait < tt.least-rounding || wait > tt.most+rounding {
				t.Errorf("next in %v, want %v to %v", wait, tt.least, tt.most)
			}
			if r.Status != tandem.StatusCompleted || r.CallbackStatus != tandem.CallbackPending {
				t.Errorf("%s, callback %s; want completed, pending", r.Status, r.CallbackStatus)
			}
		})
	}
}

// endlessBody answers 200 and a body that goes on until the sender hangs up.
func endlessBody(t *testing.T) string {
	t.Helper()
	return tandemtest.Receive(t, func(w http.ResponseWriter, _ *http.Request) {
		block := bytes.Repeat([]byte("x"), 64<<10)
		_, err := w.Write(block)
		for err == nil {
			_, err = w.Write(block)
		}
	})
}

// compressedBomb answers 200 and ten megabytes that unpack to ten gigabytes.
func compressedBomb(t *testing.T) string {
	t.Helper()
	var member bytes.Buffer // a gzip stream may have any number of members
	packed := gzip.NewWriter(&member)
	if _, err := packed.Write(make([]byte, 10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		for range 1000 {
			if _, err := w.Write(member.Bytes()); err != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// More callbacks than the engine has in hand at once, all to hosts that hang:
// those to a host that is well are delivered meanwhile, every one of them.
func TestManyHangingReceiversDelayNobody(t *testing.T) {
	t.Parallel()
	const hosts, hung, healthy = 20, 6000, 200 // 4096 callbacks are dispatched at once
	p := start(t, func(s *setup) {
		s.engine.IOWorkers = 64
		s.egress.Timeout = time.Hour // nobody is freed by a timeout, and no breaker opens
	})
	urls := make([]string, hosts)
	for i := range urls {
		urls[i] = tandemtest.Receive(t, receiver.Hang)
	}
	well := newReceiver(t, nil)
	for i := range hung {
		p.submit("echo", urls[i%hosts])
	}
	ids := make([]string, healthy)
	for i := range ids {
		ids[i] = p.submit("echo", well.URL).ID
	}
	for _, id := range ids {
		if r := p.Settled(id); r.Status != tandem.StatusCallbackSent || r.CallbackAttempts != 1 {
			t.Fatalf("%s after %d attempts, want callback_sent at the first", r.Status, r.CallbackAttempts)
		}
	}
	stats, err := p.Store.Stats(t.Context())
	if err != nil || stats.Unfinished != hung {
		t.Errorf("%d callbacks hang (%v), want all %d", stats.Unfinished, err, hung)
	}
	if n := len(well.deliveries()); n != healthy {
		t.Errorf("%d callbacks for %d requests", n, healthy)
	}
	for _, d := range p.Destinations() {
		if d.InFlight > 10 {
			t.Errorf("%d exchanges at once with %s", d.InFlight, d.Host)
		}
	}
}
