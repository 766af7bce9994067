package server_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/limit"
	"tandem/internal/server"
)

func TestRequestID(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	tests := []struct {
		given string
		kept  bool
	}{
		{"abc-DEF_1.2", true},
		{strings.Repeat("x", 64), true},
		{strings.Repeat("x", 65), false},
		{"a b", false},
		{"a\tb", false},
		{"<script>", false},
		{"é", false},
	}
	for _, tt := range tests {
		got := svc.do(http.MethodGet, "/livez", "", "X-Request-ID: "+tt.given).header.Get("X-Request-ID")
		if (got == tt.given) != tt.kept || got == "" {
			t.Errorf("%q became %q", tt.given, got)
		}
	}
	if a, b := svc.get("/livez"), svc.get("/livez"); a.header.Get("X-Request-ID") == b.header.Get("X-Request-ID") {
		t.Error("two requests got the same id")
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	tests := []struct {
		method, path string
		status       int
		allow        string
	}{
		{http.MethodGet, "/sync", 405, "POST, OPTIONS"},
		{http.MethodDelete, "/async", 405, "POST, OPTIONS"},
		{http.MethodPost, "/requests", 405, "GET, HEAD, OPTIONS"},
		{http.MethodPut, "/requests/x", 405, "GET, HEAD, OPTIONS"},
		{http.MethodPost, "/stats", 405, "GET, HEAD, OPTIONS"},
		{http.MethodDelete, "/test-callback", 405, "POST, OPTIONS"},
		{"BREW", "/healthz", 405, "GET, HEAD, OPTIONS"},
		{http.MethodOptions, "/sync", 204, "POST, OPTIONS"},
		{http.MethodOptions, "/requests", 204, "GET, HEAD, OPTIONS"},
		{http.MethodHead, "/healthz", 200, ""},
		{http.MethodHead, "/requests", 200, ""},
		{http.MethodHead, "/requests/x", 404, ""},
		{http.MethodHead, "/sync", 405, "POST, OPTIONS"},
		{http.MethodGet, "/nothing", 404, ""},
		{http.MethodPost, "/", 405, "GET, HEAD, OPTIONS"},
		{http.MethodGet, "/nothing/x", 404, ""},
		{http.MethodGet, "/docs/nothing.js", 404, ""},
		{http.MethodGet, "/problems/NOTHING", 404, ""},
	}
	for _, tt := range tests {
		a := svc.do(tt.method, tt.path, "")
		if a.status != tt.status || a.header.Get("Allow") != tt.allow {
			t.Errorf("%s %s: %d Allow %q, want %d %q", tt.method, tt.path, a.status, a.header.Get("Allow"), tt.status, tt.allow)
		}
		if tt.method == http.MethodHead && a.body != "" {
			t.Errorf("HEAD %s has a body", tt.path)
		}
	}
}

func TestTestCallbackIsForDemoOnly(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.TestCallback = false; s.server.Mode = "production" })
	for _, a := range []answer{svc.post("/test-callback", `{}`), svc.get("/test-callback/x")} {
		if a.status != http.StatusNotFound {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if strings.Contains(svc.get("/openapi.yaml").body, "test-callback") {
		t.Error("the document describes what is not there")
	}
}

func TestPanicIsAProblem(t *testing.T) {
	t.Parallel()
	var log safeBuffer
	svc := start(t, func(s *setup) { s.server.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	svc.store.sabotage("Requests", func() error { panic("secret path") })
	a := svc.do(http.MethodGet, "/requests", "", "X-Request-ID: find-me")
	if a.status != http.StatusInternalServerError || a.problem(t).Code != tandem.CodeInternal {
		t.Errorf("%d %s", a.status, a.body)
	}
	text := log.String()
	if !strings.Contains(text, "secret path") || !strings.Contains(text, "list.go") ||
		!strings.Contains(text, "find-me") {
		t.Errorf("the log lacks the cause, the stack or the id: %s", text)
	}
	if a := svc.get("/livez"); a.status != http.StatusOK {
		t.Errorf("after a panic: %d", a.status)
	}
}

func TestUnknownErrorIsAProblem(t *testing.T) {
	t.Parallel()
	var log safeBuffer
	svc := start(t, func(s *setup) { s.server.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	svc.store.sabotage("Request", func() error { return errors.New("secret path") })
	a := svc.get("/requests/req_00000000000000000000000000000000")
	if a.status != http.StatusInternalServerError || a.problem(t).Code != tandem.CodeInternal {
		t.Errorf("%d %s", a.status, a.body)
	}
	if !strings.Contains(log.String(), "secret path") {
		t.Errorf("the log lacks the cause: %s", log.String())
	}
}

func TestHalfAnAnswerBreaksOff(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]any{"panic": "too late", "abort": http.ErrAbortHandler} {
		var log safeBuffer
		target := httptest.NewUnstartedServer(server.Instrument(http.HandlerFunc(func(w http.ResponseWriter,
			_ *http.Request) {
			_, _ = io.WriteString(w, "half an answer")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Errorf("flush: %v", err)
			}
			panic(cause)
		}), slog.New(slog.NewTextHandler(&log, nil))))
		target.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		target.Start()
		defer target.Close()
		response, err := http.Get(target.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); err == nil {
			t.Errorf("%s: the answer looks whole: %q", name, body)
		}
		if logged := strings.Contains(log.String(), "too late"); logged != (name == "panic") {
			t.Errorf("%s: the log says %q", name, log.String())
		}
	}
}

func TestRequestsAreLoggedAtDebugLevel(t *testing.T) {
	t.Parallel()
	for level, want := range map[slog.Level]bool{slog.LevelDebug: true, slog.LevelInfo: false} {
		var log safeBuffer
		svc := start(t, func(s *setup) {
			s.server.Log = slog.New(slog.NewTextHandler(&log,
				&slog.HandlerOptions{Level: level}))
		})
		svc.get("/problems/NOTHING")
		svc.until("the handler has logged",
			func() bool { return strings.Contains(log.String(), "path=/problems/NOTHING status=404") || !want })
		if got := log.String() != ""; got != want {
			t.Errorf("at %s: %q", level, log.String())
		}
		if want && !strings.Contains(log.String(), "in_flight=1") {
			t.Errorf("who else is being answered is missing: %q", log.String())
		}
	}
}

// safeBuffer is a log that a test reads while handlers write.
type safeBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestCORS(t *testing.T) {
	t.Parallel()
	off := start(t, nil)
	if a := off.do(http.MethodGet, "/livez", "",
		"Origin: https://app.example.com"); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("CORS is on: %v", a.header)
	}
	svc := start(t, func(s *setup) { s.server.CORSOrigins = []string{"http://localhost:3000", "https://app.example.com"} })
	a := svc.do(http.MethodGet, "/livez", "", "Origin: https://app.example.com")
	if a.header.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
		a.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("%v", a.header)
	}
	exposed := strings.ToLower(a.header.Get("Access-Control-Expose-Headers"))
	for _, name := range []string{"location", "link", "retry-after", "x-request-id", "x-process-time", "etag",
		"ratelimit", "ratelimit-policy"} {
		if !strings.Contains(exposed, name) {
			t.Errorf("%s is not exposed: %s", name, exposed)
		}
	}
	if a := svc.do(http.MethodGet, "/livez", "",
		"Origin: https://evil.example.com"); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a stranger is let in: %v", a.header)
	}
	for _, tt := range []struct{ method, path, origin, vary string }{
		{http.MethodGet, "/livez", "", "Origin"}, // caches must not give it to a page
		{http.MethodGet, "/livez", "Origin: https://app.example.com", "Origin"},
		{http.MethodPost, "/sync", "Origin: https://app.example.com", "Origin"},
		{http.MethodPost, "/sync", "", ""},
	} {
		var lines []string
		if tt.origin != "" {
			lines = append(lines, tt.origin)
		}
		a := svc.do(tt.method, tt.path, `{"data":{"n":1},"task":"echo"}`, lines...)
		allowed := a.header.Get("Access-Control-Allow-Origin")
		if a.status != http.StatusOK || a.header.Get("Vary") != tt.vary || (allowed != "") != (tt.origin != "") {
			t.Errorf("%s %s with %q: %d, Vary %q, allowed %q", tt.method, tt.path, tt.origin, a.status, a.header.Get("Vary"),
				allowed)
		}
	}
	preflight := svc.do(http.MethodOptions, "/async", "",
		"Origin: http://localhost:3000", "Access-Control-Request-Method: POST",
		"Access-Control-Request-Headers: content-type,idempotency-key,if-none-match,prefer,traceparent,tracestate")
	if preflight.status/100 != 2 || preflight.header.Get("Access-Control-Allow-Origin") != "http://localhost:3000" ||
		!strings.Contains(preflight.header.Get("Access-Control-Allow-Headers"), "content-type") {
		t.Errorf("%d %v", preflight.status, preflight.header)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	good := server.Config{Engine: svc.engine, Store: svc.store, Metrics: svc.metrics}
	tests := []struct {
		name   string
		change func(*server.Config)
		ok     bool
	}{
		{"good", func(*server.Config) {}, true},
		{"no engine", func(c *server.Config) { c.Engine = nil }, false},
		{"no store", func(c *server.Config) { c.Store = nil }, false},
		{"no metrics", func(c *server.Config) { c.Metrics = nil }, false},
		{"16 MiB", func(c *server.Config) { c.MaxData = 16 << 20 }, true},
		{"more", func(c *server.Config) { c.MaxData = 16<<20 + 1 }, false},
		{"negative", func(c *server.Config) { c.MaxData = -1 }, false},
		{"1,000 levels", func(c *server.Config) { c.MaxDepth = 1000 }, true},
		{"1,001 levels", func(c *server.Config) { c.MaxDepth = 1001 }, false},
		{"timeout", func(c *server.Config) { c.TaskTimeout = -1 }, false},
		{"origin without scheme", func(c *server.Config) { c.CORSOrigins = []string{"example.com"} }, false},
		{"origin with path", func(c *server.Config) { c.CORSOrigins = []string{"https://example.com/x"} }, false},
		{"rate limit", func(c *server.Config) { c.RateLimit = limit.Quota{Calls: 1, Window: time.Second} }, true},
		{"rate limit of half a second",
			func(c *server.Config) { c.RateLimit = limit.Quota{Calls: 1, Window: time.Second / 2} }, false},
		{"rate limit without calls", func(c *server.Config) { c.RateLimit = limit.Quota{Window: time.Second} }, false},
		{"proxies", func(c *server.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1")} }, true},
		{"everybody is a proxy", func(c *server.Config) {
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("::/0")}
		}, false},
		{"mapped proxies", func(c *server.Config) {
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}
		}, false},
		{"no range of proxies", func(c *server.Config) { c.TrustedProxies = []netip.Prefix{{}} }, false},
	}
	for _, tt := range tests {
		cfg := good
		tt.change(&cfg)
		if _, err := server.New(cfg); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestHTTPServerHasEveryTimeout(t *testing.T) {
	t.Parallel()
	s := server.HTTPServer(http.NotFoundHandler(), server.Config{TaskTimeout: time.Minute})
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.IdleTimeout <= 0 || s.WriteTimeout <= time.Minute ||
		s.MaxHeaderBytes != 64<<10 {
		t.Errorf("%+v", s)
	}
}

// raw sends bytes as they are and returns what comes back; then it closes.
func (s *service) raw(text string) (*http.Response, error) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, err
}

func TestSlowBodyEndsIn408(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.tune = func(h *http.Server) { h.ReadTimeout = 100 * time.Millisecond } })
	response, err := svc.raw(postHead + "Content-Length: 1000\r\n\r\n{\"data\":")
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusRequestTimeout || !response.Close {
		t.Errorf("%s, close %v", response.Status, response.Close)
	}
}

func TestLargeBodyIsNotRead(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	// 100 MB are promised and none are sent: only a server that does not read can answer.
	response, err := svc.raw(postHead + "Content-Length: 100000000\r\n\r\n")
	if err != nil || response.StatusCode != http.StatusRequestEntityTooLarge || !response.Close {
		t.Errorf("%v, %v", response, err)
	}
	// Chunked, so that the length is not known: it ends at the limit.
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 32<<10, strings.Repeat(" ", 32<<10))
	response, err = svc.raw(postHead + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat(chunk, 4))
	if err != nil || response.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%v, %v", response, err)
	}
}

func TestBodyThatBreaksOff(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	conn, err := net.Dial("tcp", svc.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begun := "POST /sync HTTP/1.1\r\nHost: localhost\r\n" +
		"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"data\":"
	if _, err := io.WriteString(conn, begun); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil { // half-closed: the answer can still come
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("%v, %v", response, err)
	}
}
