package server_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/limit"
)

// limitedTo starts a service with a quota so long that no test sees it come back.
func limitedTo(t *testing.T, calls int, change func(*setup)) *service {
	t.Helper()
	return start(t, func(s *setup) {
		s.server.RateLimit = limit.Quota{Calls: calls, Window: time.Hour}
		if change != nil {
			change(s)
		}
	})
}

// left reads the RateLimit header of an answer.
func left(t *testing.T, a answer) (remaining, reset int) {
	t.Helper()
	if n, err := fmt.Sscanf(a.header.Get("RateLimit"), `"post";r=%d;t=%d`, &remaining, &reset); n != 2 || err != nil {
		t.Fatalf("RateLimit: %q", a.header.Get("RateLimit"))
	}
	return remaining, reset
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 5, nil)
	for i, step := range []struct {
		path, body string
		status     int
	}{
		{"/sync", `{"data":{"a":1},"task":"echo"}`, http.StatusOK},
		{"/async", `{"data":{"a":1},"task":"echo","callback_url":"` + svc.URL + `/test-callback"}`, http.StatusAccepted},
		{"/sync", `{"data":`, http.StatusBadRequest}, // bad input counts too: it costs as much
		{"/sync", `{"data":{"a":1},"task":"broken"}`, http.StatusBadGateway},
		{"/async", `{"data":{}}`, http.StatusBadRequest},
		{"/async", `{"data":{}}`, http.StatusTooManyRequests}, // the limit comes first
		{"/sync", `{"data":{"a":1},"task":"echo"}`, http.StatusTooManyRequests},
	} {
		a := svc.post(step.path, step.body)
		remaining, reset := left(t, a)
		if a.status != step.status || remaining != max(4-i, 0) || reset < 1 || reset > 3600 {
			t.Errorf("%d: POST %s: %d %s %v", i, step.path, a.status, a.body, a.header)
		}
		if policy := a.header.Get("RateLimit-Policy"); policy != `"post";q=5;w=3600` {
			t.Errorf("RateLimit-Policy: %s", policy)
		}
		if a.status != http.StatusTooManyRequests {
			continue
		}
		p := a.problem(t)
		if p.Code != tandem.CodeRateLimited || p.RetryAfter != reset || a.header.Get("Retry-After") != strconv.Itoa(reset) ||
			!strings.Contains(p.Detail, "5 POSTs in any 3600 s") {
			t.Errorf("%s %v", a.body, a.header)
		}
	}
	for _, path := range []string{"/livez", "/requests", "/stats"} { // reading has a limit of its own, and here none
		if a := svc.get(path); a.status != http.StatusOK || a.header.Get("RateLimit") != "" {
			t.Errorf("GET %s: %d %v", path, a.status, a.header)
		}
	}
	if a := svc.do(http.MethodPost, "/test-callback", `{}`, "webhook-id: x"); a.status != http.StatusOK ||
		a.header.Get("RateLimit") != "" {
		t.Errorf("a callback is limited: %d %v", a.status, a.header)
	}
	if a := svc.get("/sync"); a.status != http.StatusMethodNotAllowed || a.header.Get("RateLimit") != "" {
		t.Errorf("GET /sync: %d %v", a.status, a.header)
	}
	want := map[string]any{
		"enabled": true, "limit": 5.0, "window_seconds": 3600.0, "clients_tracked": 1.0, "capacity": 65_536.0,
		"allowed": 5.0, "limited": 2.0,
	}
	got := stats(t, svc)
	for name, value := range want {
		if got["rate_limiting"][name] != value {
			t.Errorf("rate_limiting.%s is %v, want %v", name, got["rate_limiting"][name], value)
		}
	}
	if got["errors"]["RATE_LIMITED"] != 2.0 || got["request_statistics"]["total_requests"] != 3.0 {
		t.Errorf("%v %v", got["errors"], got["request_statistics"])
	}
}

func TestNoRateLimit(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for range 100 {
		if a := svc.post("/sync", `{"data":{"a":1},"task":"echo"}`); a.status != http.StatusOK ||
			a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" {
			t.Fatalf("%d %v", a.status, a.header)
		}
	}
	for name, value := range stats(t, svc)["rate_limiting"] {
		if _, reads := value.(map[string]any); !reads && value != false && value != 0.0 {
			t.Errorf("rate_limiting.%s is %v", name, value)
		}
	}
}

// Reading has an allowance of its own, which writing does not use up, nor the other way round.
// What is asked again and again by those who watch a service, and what is not about data, is free.
func TestReadLimit(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 2, func(s *setup) { s.server.ReadLimit = limit.Quota{Calls: 7, Window: time.Hour} })
	for range 2 {
		if a := svc.post("/sync", `{"data":{"a":1},"task":"echo"}`); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	for i, step := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/requests", http.StatusOK},
		{http.MethodHead, "/requests", http.StatusOK},
		{http.MethodGet, "/stats", http.StatusOK},
		{http.MethodGet, "/requests/req_00000000000000000000000000000000", http.StatusNotFound},
		{http.MethodGet, "/requests?limit=0", http.StatusUnprocessableEntity},
		{http.MethodGet, "/api/submissions", http.StatusOK},
		{http.MethodGet, "/api/stats", http.StatusOK},
		{http.MethodGet, "/stats", http.StatusTooManyRequests},
		{http.MethodGet, "/metrics", http.StatusTooManyRequests},
	} {
		a := svc.do(step.method, step.path, "")
		var remaining, reset int
		if _, err := fmt.Sscanf(a.header.Get("RateLimit"), `"get";r=%d;t=%d`, &remaining, &reset); err != nil ||
			a.header.Get("RateLimit-Policy") != `"get";q=7;w=3600` {
			t.Errorf("%s %s: %v", step.method, step.path, a.header)
		}
		if a.status != step.status || remaining != max(6-i, 0) || reset < 1 || reset > 3600 {
			t.Errorf("%d: %s %s: %d %v", i, step.method, step.path, a.status, a.header)
		}
		if a.status == http.StatusTooManyRequests {
			if p := a.problem(t); p.Code != tandem.CodeRateLimited || p.RetryAfter != reset ||
				!strings.Contains(p.Detail, "7 GETs in any 3600 s") {
				t.Errorf("%s", a.body)
			}
		}
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/health", "/docs", "/openapi.json", "/problems", "/"} {
		if a := svc.get(path); a.status != http.StatusOK || a.header.Get("RateLimit") != "" {
			t.Errorf("GET %s: %d %v", path, a.status, a.header)
		}
	}
	if a := svc.post("/sync", `{"data":{"a":1},"task":"echo"}`); a.status != http.StatusTooManyRequests ||
		!strings.HasPrefix(a.header.Get("RateLimit"), `"post"`) {
		t.Errorf("POST /sync: %d %v", a.status, a.header)
	}
}

// A key is one client wherever it calls from, two keys at one address are two, and addresses do not
// push keys out of the table, however many there are.
func TestRateLimitByKey(t *testing.T) {
	t.Parallel()
	svc, keys := withKeys(t, func(s *setup) {
		s.server.RateLimit = limit.Quota{Calls: 2, Window: time.Hour}
		s.server.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	first, second := newKey(t, keys, "first", tandem.ScopeSubmit), newKey(t, keys, "second", tandem.ScopeSubmit)
	for i, step := range []struct {
		header, from string
		status       int
	}{
		{bearer(first), "192.0.2.1", http.StatusOK},
		{bearer(first), "192.0.2.2", http.StatusOK},
		{bearer(first), "192.0.2.3", http.StatusTooManyRequests},
		{bearer(second), "192.0.2.1", http.StatusOK},
		{bearer(second), "192.0.2.1", http.StatusOK},
		{bearer(second), "192.0.2.1", http.StatusTooManyRequests},
	} {
		if a := svc.do(http.MethodPost, "/sync", `{"data":{"a":1},"task":"echo"}`, step.header,
			"X-Forwarded-For: "+step.from); a.status != step.status {
			t.Errorf("%d: %d %s", i, a.status, a.body)
		}
	}
	admin := newKey(t, keys, "admin", tandem.ScopeAdmin)
	var figures map[string]map[string]any
	svc.do(http.MethodGet, "/stats", "", bearer(admin)).decode(t, &figures)
	for name, want := range map[string]any{"keys_tracked": 2.0, "clients_tracked": 0.0, "allowed": 4.0, "limited": 2.0} {
		if got := figures["rate_limiting"][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// To look costs something, and yet changes nothing of what the tag of /stats covers.
func TestStatsTagUnderAReadLimit(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.ReadLimit = limit.Quota{Calls: 100, Window: time.Hour} })
	tag := svc.get("/stats").header.Get("ETag")
	for range 3 {
		if a := svc.do(http.MethodGet, "/stats", "", "If-None-Match: "+tag); a.status != http.StatusNotModified ||
			a.header.Get("RateLimit") == "" {
			t.Errorf("%d %v", a.status, a.header)
		}
	}
}

// A caller at its limit is answered before its body is read: here none comes, and
// the server would wait for it longer than the test. (Up to 256 KB net/http drops
// itself before it sends an answer.)
func TestRateLimitComesBeforeTheBody(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 1, func(s *setup) { s.tune = func(h *http.Server) { h.ReadTimeout = time.Hour } })
	svc.post("/sync", `{"data":{"a":1},"task":"echo"}`)
	for _, path := range []string{"/sync", "/async"} {
		response, err := svc.raw("POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
		if err != nil || response.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: %v, %v", path, response, err)
		}
	}
}

// A refusal does not cost the connection: what follows the body is a request of its own.
func TestRateLimitKeepsTheConnection(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 1, nil)
	order := `{"data":{"a":1},"task":"echo"}`
	call := "POST /sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 30\r\n"
	conn, err := net.Dial("tcp", svc.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	for i, want := range []int{http.StatusOK, http.StatusTooManyRequests, http.StatusTooManyRequests} {
		if _, err := io.WriteString(conn, call+"\r\n"+order); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != want || response.Close {
			t.Errorf("call %d: %s, close %v, %v", i+1, response.Status, response.Close, err)
		}
	}
}

// Who is counted: the caller of this test is 127.0.0.1.
func TestRateLimitClients(t *testing.T) {
	t.Parallel()
	trust := func(prefixes ...string) []netip.Prefix {
		var list []netip.Prefix
		for _, p := range prefixes {
			list = append(list, netip.MustParsePrefix(p))
		}
		return list
	}
	local := trust("127.0.0.0/8", "10.0.0.0/8", "2001:db8:ffff::/48")
	for _, tt := range []struct {
		name    string
		trusted []netip.Prefix
		a, b    []string // X-Forwarded-For of two calls, one element per line of the header
		same    bool     // one client
	}{
		{"no proxy is trusted", nil, []string{"192.0.2.1"}, []string{"192.0.2.2"}, true},
		{"another proxy is trusted", trust("127.0.0.2/32"), []string{"192.0.2.1"}, []string{"192.0.2.2"}, true},
		{"the proxy is trusted", local, []string{"192.0.2.1"}, []string{"192.0.2.2"}, false},
		{"the same client twice", local, []string{"192.0.2.1"}, []string{"192.0.2.1"}, true},
		{"no header: the proxy itself", local, nil, []string{"127.0.0.1"}, true},
		{"what the client says of itself", local, []string{"198.51.100.1, 192.0.2.1"},
			[]string{"198.51.100.2, 192.0.2.1"}, true},
		{"what it says in a line of its own", local, []string{"198.51.100.1", "192.0.2.1"},
			[]string{"198.51.100.2", "192.0.2.1"}, true},
		{"a trusted address that it claims", local, []string{"10.0.0.1, 192.0.2.1"}, []string{"10.0.0.2, 192.0.2.1"}, true},
		{"a chain of proxies", local, []string{"192.0.2.1, 10.1.1.1"}, []string{"192.0.2.2, 10.1.1.1"}, false},
		{"a chain in lines", local, []string{"192.0.2.1", "10.1.1.1"}, []string{"192.0.2.2", "10.1.1.1"}, false},
		{"proxies only", local, []string{"10.0.0.1, 10.1.1.1"}, []string{"10.0.0.2, 10.1.1.1"}, false},
		{"the neighbour of a trusted range", trust("127.0.0.0/8", "10.0.0.0/9"), []string{"192.0.2.1, 10.128.0.0"},
			[]string{"192.0.2.2, 10.128.0.0"}, true},
		{"ports", local, []string{"192.0.2.1:1000"}, []string{"192.0.2.1:2000"}, true},
		{"IPv6 with a port", local, []string{"[2001:db8::1]:1000"}, []string{"2001:db8::1"}, true},
		{"IPv6 in brackets", local, []string{"[2001:db8::1]"}, []string{"2001:db8::1"}, true},
		{"one IPv6 network", local, []string{"2001:db8::1"}, []string{"2001:db8::2"}, true},
		{"two IPv6 networks", local, []string{"2001:db8::1"}, []string{"2001:db8:0:1::1"}, false},
		{"an IPv6 proxy with a zone", local, []string{"192.0.2.1, 2001:db8:ffff::1%eth0"},
			[]string{"192.0.2.2, 2001:db8:ffff::1"}, false},
		{"mapped", local, []string{"::ffff:192.0.2.1"}, []string{"192.0.2.1"}, true},
		{"a mapped proxy", local, []string{"192.0.2.1, ::ffff:10.0.0.1"}, []string{"192.0.2.2, 10.0.0.1"}, false},
		{"empty elements", local, []string{", 192.0.2.1 ,,"}, []string{"192.0.2.1"}, true},
		{"an unknown client", local, []string{"unknown"}, []string{"_hidden"}, true},
		{"an unknown client behind two proxies", local, []string{"192.0.2.1, unknown, 10.1.1.1"}, []string{"10.1.1.1"}, true},
		{"nothing but commas", local, []string{strings.Repeat(",", 10_000)}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			svc := limitedTo(t, 1, func(s *setup) { s.server.TrustedProxies = tt.trusted })
			for i, lines := range [][]string{tt.a, tt.b} {
				text := "POST /sync HTTP/1.1\r\nHost: localhost\r\n" +
					"Content-Type: application/json\r\nContent-Length: 30\r\nConnection: close\r\n"
				for _, line := range lines {
					text += "X-Forwarded-For: " + line + "\r\n"
				}
				response, err := svc.raw(text + "\r\n" + `{"data":{"a":1},"task":"echo"}`)
				if err != nil {
					t.Fatal(err)
				}
				want := http.StatusOK
				if i == 1 && tt.same {
					want = http.StatusTooManyRequests
				}
				if response.StatusCode != want {
					t.Errorf("call %d with %q: %s, want %d", i+1, lines, response.Status, want)
				}
			}
		})
	}
}

// BenchmarkAsyncLimited is POST /async with a quota that is never reached, beside BenchmarkAsyncPlain.
func BenchmarkAsyncLimited(b *testing.B) {
	svc := start(b, func(s *setup) {
		s.engine.IOWorkers, s.engine.TaskTimeout = 1, time.Hour
		s.server.RateLimit = limit.Quota{Calls: 1_000_000, Window: time.Second}
	})
	post(b, svc.Config.Handler)
}

// BenchmarkAsyncRefused is POST /async of a client far over its quota.
func BenchmarkAsyncRefused(b *testing.B) {
	svc := start(b, func(s *setup) { s.server.RateLimit = limit.Quota{Calls: 1, Window: 24 * time.Hour} })
	svc.post("/async", benchBody)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			w := &discard{header: make(http.Header, 8)}
			r := httptest.NewRequest(http.MethodPost, "/async", strings.NewReader(benchBody))
			r.RemoteAddr = "127.0.0.1:1"
			svc.Config.Handler.ServeHTTP(w, r)
			if w.status != http.StatusTooManyRequests {
				b.Errorf("answered with %d", w.status)
				return
			}
		}
	})
}
