package engine_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/tandemtest"
)

// Receivers that do what they should not, as the history tells of them: what came
// of the try, and when the next one is due.
func TestHistoryOfHostileReceivers(t *testing.T) {
	t.Parallel()
	const backoff = time.Hour / 2
	fault := func(f tandemtest.Fault) func(*testing.T) string {
		return func(t *testing.T) string { t.Helper(); return tandemtest.NewReceiver(t, f).URL }
	}
	atADate := func(ctx context.Context, conn *net.TCPConn) { // counted from the answer: the receiver may wait for its turn
		at := time.Now().Add(45 * time.Minute).UTC().Format(http.TimeFormat)
		tandemtest.Answer(http.StatusServiceUnavailable, "Retry-After: "+at)(ctx, conn)
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
		{"refuses", func(t *testing.T) string { t.Helper(); return tandemtest.Refusing(t) }, tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"bad certificate", func(t *testing.T) string { t.Helper(); return tandemtest.BadCertificate(t) }, tandem.OutcomeTLS, 0, backoff, backoff * 3 / 2},
		{"resets", fault(tandemtest.Reset), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"hangs", fault(tandemtest.Hang), tandem.OutcomeTimeout, 0, backoff, backoff * 3 / 2},
		{"closes early", fault(tandemtest.CloseEarly), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"drips its header", fault(tandemtest.DripHead), tandem.OutcomeTimeout, 0, backoff, backoff * 3 / 2},
		{"headers without end", fault(tandemtest.Flood), tandem.OutcomeConnect, 0, backoff, backoff * 3 / 2},
		{"redirects", fault(tandemtest.Redirect("http://127.0.0.1:1/")), tandem.OutcomeRedirect, 302, backoff, backoff * 3 / 2},
		{"is broken", fault(tandemtest.Answer(500)), tandem.OutcomeHTTPError, 500, backoff, backoff * 3 / 2},
		{"is not there", fault(tandemtest.Answer(404)), tandem.OutcomeHTTPError, 404, backoff, backoff * 3 / 2},
		{"429", fault(tandemtest.Answer(429)), tandem.OutcomeThrottled, 429, backoff, backoff * 3 / 2},
		{"429 with Retry-After", fault(tandemtest.Answer(429, "Retry-After: 2700")),
			tandem.OutcomeThrottled, 429, 45 * time.Minute, 45 * time.Minute * 3 / 2},
		{"503 with Retry-After", fault(tandemtest.RetryAfter(2400)),
			tandem.OutcomeThrottled, 503, 40 * time.Minute, time.Hour},
		{"503 with a date", fault(atADate), tandem.OutcomeThrottled, 503, 44 * time.Minute, 45 * time.Minute * 3 / 2},
		{"Retry-After in the past", fault(tandemtest.Answer(503, "Retry-After: Sat, 31 Jan 2026 12:00:00 GMT")), tandem.OutcomeThrottled, 503, backoff, backoff * 3 / 2},
		{"Retry-After too soon", fault(tandemtest.RetryAfter(1)),
			tandem.OutcomeThrottled, 503, backoff, backoff * 3 / 2},
		{"Retry-After of a year", fault(tandemtest.RetryAfter(31_536_000)),
			tandem.OutcomeThrottled, 503, time.Hour, time.Hour * 3 / 2},
		{"410", fault(tandemtest.Answer(410, "Retry-After: 60")), tandem.OutcomeGone, 410, never, never},
		{"200, then a drip", fault(tandemtest.Drip), tandem.OutcomeDelivered, 200, never, never},
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
				s.engine.Retry = engine.Schedule{Attempts: 3, Backoff: backoff}
			})
			id := p.submit("echo", tt.url(t)).ID
			p.await("the first attempt", func() bool { return len(p.request(id).Attempts) > 0 })
			r := p.request(id)
			got := r.Attempts[0]
			if len(r.Attempts) != 1 || got.Number != 1 || got.Outcome != tt.outcome || got.StatusCode != tt.status || (got.Error == "") != (tt.outcome == tandem.OutcomeDelivered) {
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
	return tandemtest.NewReceiver(t, func(_ context.Context, conn *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, err := conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		block := bytes.Repeat([]byte("x"), 64<<10)
		for err == nil {
			_, err = conn.Write(block)
		}
	}).URL
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
	const hosts, hung, healthy = 20, 6000, 200 // 4096 callbacks are handed out at once
	p := start(t, func(s *setup) {
		s.engine.IOWorkers = 64
		s.egress.Timeout = time.Hour // nobody is freed by a timeout, and no breaker opens
	})
	urls := make([]string, hosts)
	for i := range urls {
		urls[i] = tandemtest.NewReceiver(t, tandemtest.Hang).URL
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
		if r := p.settled(id); r.Status != tandem.StatusCallbackSent || r.CallbackAttempts != 1 {
			t.Fatalf("%s after %d attempts, want callback_sent at the first", r.Status, r.CallbackAttempts)
		}
	}
	stats, err := p.store.Stats(t.Context())
	if err != nil || stats.Unfinished != hung {
		t.Errorf("%d callbacks hang (%v), want all %d", stats.Unfinished, err, hung)
	}
	if n := len(well.deliveries()); n != healthy {
		t.Errorf("%d callbacks for %d requests", n, healthy)
	}
	for _, d := range p.Vitals().Destinations {
		if d.InFlight > 10 {
			t.Errorf("%d exchanges at once with %s", d.InFlight, d.Host)
		}
	}
}
