package egress_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/egress"
)

func TestPostSendsWhatItIsGiven(t *testing.T) {
	t.Parallel()
	type seen struct {
		Method, Path, Host, Body, Proto string
		Length                          int64
		Header                          http.Header
	}
	var got seen
	target := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = seen{r.Method, r.URL.String(), r.Host, string(body), r.Proto, r.ContentLength, r.Header}
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
		w.WriteHeader(http.StatusAccepted)
	})
	client := newClient(t, demo())
	header := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"tandem/test"}, "Webhook-Id": {"req_1"}}
	for range 2 { // the second would bring the cookie back
		permit := reserve(t, client, target+"?a=b%20c#fragment")
		result := permit.Post(t.Context(), header, []byte(`{"x":1}`))
		if result.Outcome != tandem.OutcomeDelivered || result.StatusCode != http.StatusAccepted || result.Message != "" ||
			result.Interrupted {
			t.Fatalf("Post = %+v, want it delivered", result)
		}
		if result.Duration <= 0 || time.Since(result.StartedAt) < result.Duration || result.StartedAt.Location() != time.UTC {
			t.Errorf("Post started %v, took %v", result.StartedAt, result.Duration)
		}
	}
	host := strings.Split(target, "/")[2]
	want := seen{"POST", "/callback?a=b%20c", host, `{"x":1}`, "HTTP/1.1", 7, http.Header{
		"Content-Type": {"application/json"}, "User-Agent": {"tandem/test"}, "Webhook-Id": {"req_1"}, "Content-Length": {"7"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the receiver saw (-want +got):\n%s", diff)
	}
	if len(header) != 3 {
		t.Errorf("Post changed the caller's header: %v", header)
	}
}

// What RFC 3986 does not allow in a path or a query is sent percent-encoded, and nothing else is changed.
func TestRequestLineIsPercentEncoded(t *testing.T) {
	t.Parallel()
	lines := make(chan string, 1)
	target := receiver(t, func(_ http.ResponseWriter, r *http.Request) { lines <- r.RequestURI })
	client := newClient(t, demo())
	for _, tt := range []struct{ written, want string }{
		{"", "/callback"},
		{"/hooks/{id}", "/callback/hooks/%7Bid%7D"},
		{"/münchen?q=münchen", "/callback/m%C3%BCnchen?q=m%C3%BCnchen"},
		{"/{a}/b%2fc/%41%7e", "/callback/%7Ba%7D/b%2fc/%41%7e"},
		{"/a[1]|^`<>\"?b[]=|^`<>\"{}", "/callback/a%5B1%5D%7C%5E%60%3C%3E%22?b%5B%5D=%7C%5E%60%3C%3E%22%7B%7D"},
		{"/-._~!$&'()*+,;=:@//?-._~!$&'()*+,;=:@/?%20", "/callback/-._~!$&'()*+,;=:@//?-._~!$&'()*+,;=:@/?%20"},
		{"?100%&%2&%zz&%c3", "/callback?100%25&%252&%25zz&%c3"},
		{"?", "/callback?"},
		{"/ö#{fragment}", "/callback/%C3%B6"},
	} {
		if got := post(t, client, target+tt.written); got.Outcome != tandem.OutcomeDelivered {
			t.Fatalf("%s: %+v", tt.written, got)
		}
		if got := <-lines; got != tt.want {
			t.Errorf("%s goes out as %s, want %s", tt.written, got, tt.want)
		}
	}
}

func TestPostKeepsConnections(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 20_000)) // more than net/http reads by itself when a body is closed early
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	client := newClient(t, demo())
	for range 5 {
		if got := post(t, client, server.URL); got.Outcome != tandem.OutcomeDelivered {
			t.Fatalf("Post = %+v", got)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 5 exchanges, want 1", n)
	}
	// The receiver closes the kept connection; the next exchange must not suffer.
	server.CloseClientConnections()
	if got := post(t, client, server.URL); got.Outcome != tandem.OutcomeDelivered {
		t.Errorf("after the receiver closed a kept connection: Post = %+v", got)
	}
}

func TestPostClassifiesAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		retryAfter string
		want       tandem.Outcome
		wantAfter  time.Duration
		failure    bool // for the breaker
	}{
		{200, "", tandem.OutcomeDelivered, 0, false},
		{204, "", tandem.OutcomeDelivered, 0, false},
		{299, "", tandem.OutcomeDelivered, 0, false},
		{300, "", tandem.OutcomeRedirect, 0, false},
		{304, "", tandem.OutcomeRedirect, 0, false},
		{399, "", tandem.OutcomeRedirect, 0, false},
		{400, "", tandem.OutcomeHTTPError, 0, false},
		{404, "120", tandem.OutcomeHTTPError, 0, false},
		{409, "", tandem.OutcomeHTTPError, 0, false},
		{410, "", tandem.OutcomeGone, 0, false},
		{411, "", tandem.OutcomeHTTPError, 0, false},
		{428, "", tandem.OutcomeHTTPError, 0, false},
		{429, "", tandem.OutcomeThrottled, 0, false},
		{429, "120", tandem.OutcomeThrottled, 2 * time.Minute, false},
		{429, "0", tandem.OutcomeThrottled, 0, false},
		{429, "-5", tandem.OutcomeThrottled, 0, false},
		{429, "1.5", tandem.OutcomeThrottled, 0, false},
		{429, "soon", tandem.OutcomeThrottled, 0, false},
		{429, "99999999999", tandem.OutcomeThrottled, 365 * 24 * time.Hour, false},
		{429, "99999999999999999999999", tandem.OutcomeThrottled, 365 * 24 * time.Hour, false},
		{429, "Fri, 31 Dec 1999 23:59:59 GMT", tandem.OutcomeThrottled, 0, false},
		{429, "Fri, 31 Dec 9999 23:59:59 GMT", tandem.OutcomeThrottled, 365 * 24 * time.Hour, false},
		{430, "", tandem.OutcomeHTTPError, 0, false},
		{499, "", tandem.OutcomeHTTPError, 0, false},
		{500, "", tandem.OutcomeHTTPError, 0, true},
		{502, "60", tandem.OutcomeHTTPError, 0, true},
		{503, "60", tandem.OutcomeThrottled, time.Minute, true},
		{504, "", tandem.OutcomeHTTPError, 0, true},
		{599, "", tandem.OutcomeHTTPError, 0, true},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.retryAfter), func(t *testing.T) {
			t.Parallel()
			target := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.WriteHeader(c.status)
			})
			client := newClient(t, demo())
			got := post(t, client, target)
			if got.Outcome != c.want || got.StatusCode != c.status || got.RetryAfter != c.wantAfter {
				t.Errorf("Post = %+v, want %s and %v", got, c.want, c.wantAfter)
			}
			if (got.Message == "") != (c.want == tandem.OutcomeDelivered) ||
				c.want != tandem.OutcomeDelivered && !strings.Contains(got.Message, fmt.Sprint(c.status)) {
				t.Errorf("Message = %q", got.Message)
			}
			if failures := only(t, client).FailureCount; (failures == 1) != c.failure {
				t.Errorf("%d failures for the breaker, want one: %t", failures, c.failure)
			}
		})
	}
}

func TestRetryAfterAsDate(t *testing.T) {
	t.Parallel()
	target := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	got := post(t, newClient(t, demo()), target)
	if got.RetryAfter < 59*time.Minute || got.RetryAfter > time.Hour {
		t.Errorf("RetryAfter = %v, want an hour", got.RetryAfter)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	trap := newCanary(t, "127.0.0.1", 0)
	for _, status := range []int{300, 301, 302, 303, 305, 307, 308} {
		target := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://"+trap.listener.Addr().String()+"/")
			w.WriteHeader(status)
		})
		got := post(t, newClient(t, demo()), target)
		if got.Outcome != tandem.OutcomeRedirect || got.StatusCode != status ||
			strings.Contains(got.Message, trap.listener.Addr().String()) {
			t.Errorf("%d: Post = %+v", status, got)
		}
	}
	trap.mustBeQuiet(t)
}

// Receivers that do what they should not. Every one of them must be over soon after
// the timeout, and says what it is.
func TestPostToHostileReceivers(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	write := func(text string) func(context.Context, net.Conn) {
		return func(_ context.Context, conn net.Conn) { _, _ = io.WriteString(conn, text) }
	}
	// endless repeats a text until the client hangs up.
	endless := func(first, text string) func(context.Context, net.Conn) {
		return func(_ context.Context, conn net.Conn) {
			_, err := io.WriteString(conn, first)
			for err == nil {
				_, err = io.WriteString(conn, text)
			}
		}
	}
	// drip sends a byte every now and then.
	drip := func(first, text string) func(context.Context, net.Conn) {
		return func(ctx context.Context, conn net.Conn) {
			_, err := io.WriteString(conn, first)
			ticks := time.NewTicker(20 * time.Millisecond)
			defer ticks.Stop()
			for i := 0; err == nil; i++ {
				select {
				case <-ctx.Done():
					return
				case <-ticks.C:
				}
				_, err = conn.Write([]byte{text[i%len(text)]})
			}
		}
	}
	for _, c := range []struct {
		name    string
		serve   func(context.Context, net.Conn)
		want    tandem.Outcome
		status  int
		failure bool
	}{
		{"no answer", func(ctx context.Context, _ net.Conn) { <-ctx.Done() }, tandem.OutcomeTimeout, 0, true},
		{"closes at once", write(""), tandem.OutcomeConnect, 0, true},
		{"resets", func(_ context.Context, conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }, tandem.OutcomeConnect,
			0, true},
		{"closes within the status line", write("HTTP/1.1 20"), tandem.OutcomeConnect, 0, true},
		{"closes within the header", write("HTTP/1.1 200 OK\r\nContent-Le"), tandem.OutcomeConnect, 0, true},
		{"is not HTTP", write("SSH-2.0-OpenSSH_9.9\r\n"), tandem.OutcomeConnect, 0, true},
		{"drips its header", drip("HTTP/1.1 200 OK\r\nX: ", "x"), tandem.OutcomeTimeout, 0, true},
		{"header of 100 MB", endless("HTTP/1.1 200 OK\r\n", "X-Filler: "+strings.Repeat("x", 10_000)+"\r\n"),
			tandem.OutcomeConnect, 0, true},
		{"header of 60 KiB", write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Filler: " + strings.Repeat("x", 60<<10) +
			"\r\n\r\n"), tandem.OutcomeDelivered, 200, false},
		{"header of 70 KiB", write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Filler: " + strings.Repeat("x", 70<<10) +
			"\r\n\r\n"), tandem.OutcomeConnect, 0, true},
		{"one endless header", endless("HTTP/1.1 200 OK\r\nX-Filler: ", strings.Repeat("x", 10_000)),
			tandem.OutcomeConnect, 0, true},
		{"endless early hints", endless("", "HTTP/1.1 103 Early Hints\r\nX-Filler: "+
			strings.Repeat("x", 1_000)+"\r\n\r\n"), tandem.OutcomeConnect, 0, true},
		{"2xx, then drips its body", drip("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "x"),
			tandem.OutcomeDelivered, 200, false},
		{"2xx, then an endless body", endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 10_000)),
			tandem.OutcomeDelivered, 200, false},
		{"2xx, then endless chunks", endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
			tandem.OutcomeDelivered, 200, false},
		{"2xx, then closes within its body", write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nxx"),
			tandem.OutcomeDelivered, 200, false},
		{"2xx, then hangs", func(ctx context.Context, conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n")
			<-ctx.Done()
		}, tandem.OutcomeDelivered, 204, false},
		{"5xx, then drips its body", drip("HTTP/1.1 500 Oops\r\nContent-Length: 1000000\r\n\r\n", "x"),
			tandem.OutcomeHTTPError, 500, true},
		{"switches protocols", func(ctx context.Context, conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			<-ctx.Done()
		}, tandem.OutcomeHTTPError, 101, false},
		{"a status of three zeros", write("HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n"), tandem.OutcomeHTTPError,
			0, true},
		{"a status beyond 599", write("HTTP/1.1 999 Denied\r\nContent-Length: 0\r\n\r\n"), tandem.OutcomeHTTPError, 999,
			true},
		{"HTTP/1.0", write("HTTP/1.0 200 OK\r\n\r\n"), tandem.OutcomeDelivered, 200, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target, connections := rawReceiver(t, c.serve)
			cfg := demo()
			cfg.Timeout = timeout
			client := newClient(t, cfg)
			got := post(t, client, target)
			if got.Outcome != c.want || got.StatusCode != c.status || got.Interrupted {
				t.Errorf("Post = %+v, want %s with %d", got, c.want, c.status)
			}
			if (got.Message == "") != (c.want == tandem.OutcomeDelivered) || strings.Contains(got.Message, "127.0.0.1") {
				t.Errorf("Message = %q", got.Message)
			}
			if got.Duration > 10*timeout {
				t.Errorf("Post took %v with a timeout of %v", got.Duration, timeout)
			}
			seen := only(t, client)
			if (seen.FailureCount == 1) != c.failure || seen.InFlight != 0 {
				t.Errorf("destination = %+v, want a failure: %t", seen, c.failure)
			}
			if n := connections.Load(); n != 1 {
				t.Errorf("%d connections for one exchange", n)
			}
		})
	}
}

// An answer is known after its header: its body, which may never end, holds the permit for a moment only.
func TestEndlessAnswerHoldsItsPlaceForAMoment(t *testing.T) {
	t.Parallel()
	target, _ := rawReceiver(t, func(ctx context.Context, conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
		<-ctx.Done()
	})
	cfg := demo()
	cfg.Timeout = time.Minute
	if got := post(t, newClient(t, cfg), target); got.Outcome != tandem.OutcomeDelivered ||
		got.Duration > cfg.Timeout/2 {
		t.Errorf("Post = %+v, want it delivered long before the timeout", got)
	}
}

// A megabyte of zeros that unpacks to a gigabyte is neither unpacked nor read to its end.
func TestCompressedBomb(t *testing.T) {
	t.Parallel()
	var asked atomic.Value
	var sent atomic.Int64
	var member bytes.Buffer // 10 MiB of zeros; a gzip stream may have any number of members
	packed := gzip.NewWriter(&member)
	_, _ = packed.Write(make([]byte, 10<<20))
	_ = packed.Close()
	over := make(chan struct{})
	target := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(over)
		asked.Store(r.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "gzip")
		for range 10_000 { // 100 GiB, should anybody read them
			n, err := w.Write(member.Bytes())
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	client := newClient(t, demo())
	if got := post(t, client, target); got.Outcome != tandem.OutcomeDelivered || got.Duration > 5*time.Second {
		t.Errorf("Post = %+v, want it delivered at once", got)
	}
	<-over
	if asked.Load() != "" {
		t.Errorf("Accept-Encoding = %q, want none", asked.Load())
	}
	if n := sent.Load(); n > 32<<20 { // what the kernel's buffers hold, and not 100 MB
		t.Errorf("%d bytes were taken", n)
	}
}

func TestNoConnection(t *testing.T) {
	t.Parallel()
	names := newNameServer(t)
	cfg := demo()
	cfg.Resolver = names.resolver()
	client := newClient(t, cfg)
	for target, want := range map[string]string{
		closedPort(t):                "connection refused",
		"http://nowhere.example:80/": "the name could not be resolved",
	} {
		got := post(t, client, target)
		if got.Outcome != tandem.OutcomeConnect || got.StatusCode != 0 || got.Message != want {
			t.Errorf("Post(%s) = %+v, want %q", target, got, want)
		}
	}
	for _, seen := range client.Destinations(10) {
		if seen.FailureCount != 1 || time.Since(seen.LastFailure) > time.Minute {
			t.Errorf("%+v, want one failure just now", seen)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Proto != "HTTP/1.1" {
			panic("HTTP/1.1 only, got " + r.Proto)
		}
		if strings.Contains(r.Host, ".:") || strings.HasSuffix(r.TLS.ServerName, ".") {
			panic("no final dot, got " + r.Host + " and " + r.TLS.ServerName)
		}
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	old.StartTLS()
	t.Cleanup(old.Close)
	plain := receiver(t, func(http.ResponseWriter, *http.Request) {})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody reads
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })

	trusted := x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	names := newNameServer(t)
	names.has("example.com.", "127.0.0.1") // in httptest's certificate
	names.has("example.org.", "127.0.0.1") // not in it
	port := strconv.Itoa(server.Listener.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		name, target string
		roots        *x509.CertPool
		want         tandem.Outcome
		message      string
	}{
		{"good", "https://example.com:" + port, trusted, tandem.OutcomeDelivered, ""},
		{"good, with a final dot", "https://example.com.:" + port, trusted, tandem.OutcomeDelivered, ""},
		{"good, by address", server.URL, trusted, tandem.OutcomeDelivered, ""},
		{"unknown authority", "https://example.com:" + port, x509.NewCertPool(), tandem.OutcomeTLS, "unknown authority"},
		{"another name", "https://example.org:" + port, trusted, tandem.OutcomeTLS, "another name"},
		{"too old a version", old.URL, trusted, tandem.OutcomeTLS, "handshake"},
		{"no TLS there", strings.Replace(plain, "http:", "https:", 1), trusted, tandem.OutcomeTLS, "handshake"},
		{"no handshake", "https://" + silent.Addr().String(), trusted, tandem.OutcomeTimeout, "no answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := demo()
			cfg.RootCAs, cfg.Resolver, cfg.Timeout = c.roots, names.resolver(), 3*time.Second
			client := newClient(t, cfg)
			got := post(t, client, c.target)
			if got.Outcome != c.want || !strings.Contains(got.Message, c.message) {
				t.Errorf("Post = %+v, want %s with %q", got, c.want, c.message)
			}
			if failures := only(t, client).FailureCount; (failures == 1) != (c.want != tandem.OutcomeDelivered) {
				t.Errorf("%d failures", failures)
			}
		})
	}
}

// The end of the caller's ctx is no failure of the receiver. After the status line
// it changes nothing any more.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	stop := errors.New("shutting down")

	t.Run("before an answer", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		target, _ := rawReceiver(t, func(ctx context.Context, _ net.Conn) {
			cancel(stop)
			<-ctx.Done()
		})
		client := newClient(t, demo())
		got := reserve(t, client, target).Post(ctx, nil, nil)
		if !got.Interrupted || got.Outcome != "" || got.Outcome.Permanent() {
			t.Errorf("Post = %+v, want it interrupted", got)
		}
		if seen := only(t, client); seen.FailureCount != 0 || seen.InFlight != 0 {
			t.Errorf("the breaker has heard of it: %+v", seen)
		}
	})
	t.Run("after the status line", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		target, _ := rawReceiver(t, func(ctx context.Context, conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
			<-time.After(time.Second) // the client has seen the status line by now
			cancel(stop)
			<-ctx.Done()
		})
		client := newClient(t, demo())
		got := reserve(t, client, target).Post(ctx, nil, nil)
		if got.Interrupted || got.Outcome != tandem.OutcomeDelivered {
			t.Errorf("Post = %+v, want it delivered", got)
		}
	})
	t.Run("while waiting", func(t *testing.T) {
		t.Parallel()
		cfg := demo()
		cfg.HostConcurrency = 1
		client := newClient(t, cfg)
		permit := reserve(t, client, "http://127.0.0.1:1/")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stop)
		if _, err := client.Reserve(ctx, "http://127.0.0.1:1/", ""); !errors.Is(err, stop) {
			t.Errorf("Reserve = %v, want the cause", err)
		}
		permit.Release()
	})
}

func TestConfigThatContradictsItself(t *testing.T) {
	t.Parallel()
	for _, cfg := range []egress.Config{
		{Timeout: -1}, {ConnectTimeout: -1}, {HostConcurrency: -1}, {BreakerFailures: -1}, {BreakerOpen: -1},
		{MaxDestinations: -1}, {MaxWaiting: -1},
	} {
		if _, err := egress.New(cfg); err == nil {
			t.Errorf("New(%+v) went through", cfg)
		}
	}
}
