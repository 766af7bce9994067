package audit_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
)

// The keys of the twin.
const (
	callerKey = "tdm_caller0000000000000000000000000000000000000000001"
	secondKey = "tdm_second0000000000000000000000000000000000000000002"
	adminKey  = "tdm_admin00000000000000000000000000000000000000000003"
)

// twin is a deployment as the contract wants it, small enough to be read, with one switch per
// vulnerability: flaw is the id of the check that must find it, "" for none.
type twin struct {
	flaw   string
	secret tandem.Secret
	quota  int
	url    string
	guard  *egress.Client
	client *http.Client
	errors func(format string, args ...any)

	delivering  sync.WaitGroup
	mu          sync.Mutex // guards the fields below
	requests    []*twinRequest
	submissions map[string][]string // :: key → first names
	calls       map[string]int      // :: client → POSTs
	failures    [2]int              // of callbacks in a row, of each node; there is but the first unless twoNodes
	handedIn    []string            // callback URLs, refused ones too
}

// refusesAtDial is no flaw: such a twin takes every callback URL, and calls none that it should not.
const refusesAtDial = "refuses-at-dial"

// holdingBackCosts is another flaw of a breaker: what it holds back uses up attempts.
const holdingBackCosts = "holding-back-costs"

// twoNodes is no flaw: such a twin counts the failures of each of its two nodes, and what one finds both know.
const twoNodes = "two-nodes"

type twinRequest struct {
	tandem.Request

	owner string
}

// newTwin starts one that may call receiver.
func newTwin(t *testing.T, flaw string, quota int, receiver string) *twin {
	t.Helper()
	guard, err := egress.New(egress.Config{Policy: receiverOnly(t, receiver)})
	if err != nil {
		t.Fatal(err)
	}
	w := &twin{
		flaw: flaw, quota: quota, secret: tandem.NewSecret(), guard: guard, client: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second},
		submissions: map[string][]string{}, calls: map[string]int{}, errors: t.Errorf,
	}
	if flaw != "ssrf-redirect" {
		w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	server := httptest.NewUnstartedServer(w)
	server.Config.MaxHeaderBytes, server.Config.ReadHeaderTimeout, server.Config.IdleTimeout = 64<<10, 2*time.Second, time.Minute
	switch flaw {
	case "limit-header":
		server.Config.MaxHeaderBytes = 1 << 20
	case "limit-slow-client":
		server.Config.ReadHeaderTimeout = 0
	}
	server.Start()
	w.url = server.URL
	t.Cleanup(func() {
		server.Close()
		w.delivering.Wait()
		w.client.CloseIdleConnections()
		guard.Close()
	})
	return w
}

// is reports whether the twin has a flaw.
func (w *twin) is(flaws ...string) bool { return slices.Contains(flaws, w.flaw) }

// fail answers with a problem.
func (w *twin) fail(rw http.ResponseWriter, r *http.Request, status int, code, detail string) {
	if w.is("error-internals") {
		detail += " goroutine 7 [running]"
	}
	if w.is("error-problems") {
		http.Error(rw, detail, status)
		return
	}
	rw.Header().Set("Content-Type", "application/problem+json")
	rw.WriteHeader(status)
	body, _ := json.Marshal(map[string]any{"type": "/problems/" + code, "title": code, "status": status, "detail": detail, "instance": r.URL.Path, "code": code})
	rw.Write(body)
}

func (w *twin) reply(rw http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		w.errors("twin: %v", err)
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	rw.Write(body)
}

// ServeHTTP is the whole API.
func (w *twin) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.stamp(rw, r)
	if r.Method == http.MethodOptions {
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	if strings.Contains(r.URL.Path, "<script>") && w.is("error-markup") {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, "<p>no %s here", r.URL.Path)
		return
	}
	if w.serveOpen(rw, r) {
		return
	}
	if r.Method == http.MethodPost && r.Header.Get("Sec-Fetch-Site") == "cross-site" && !w.is("cors-cross-site-post") {
		w.fail(rw, r, http.StatusForbidden, "CROSS_ORIGIN", "no")
		return
	}
	key, ok := w.key(r)
	if !ok {
		w.refuseKey(rw, r)
		return
	}
	if w.overLimit(rw, r, key) {
		return
	}
	w.route(rw, r, key)
}

// stamp sets what every answer has.
func (w *twin) stamp(rw http.ResponseWriter, r *http.Request) {
	header := rw.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Request-ID", "x1")
	switch w.flaw {
	case "headers-no-store":
		header.Del("Cache-Control")
	case "headers-nosniff":
		header.Del("X-Content-Type-Options")
	case "headers-banner":
		header.Set("Server", "nginx/1.18.0")
	case "error-request-id":
		header.Set("X-Request-ID", r.Header.Get("X-Request-ID"))
	case "cors-origin", "cors-preflight":
		if origin := r.Header.Get("Origin"); origin != "" && (w.is("cors-origin") != (r.Method == http.MethodOptions)) {
			header.Set("Access-Control-Allow-Origin", origin)
			header.Set("Access-Control-Allow-Credentials", "true")
		}
	}
}

// serveOpen answers what needs no key.
func (w *twin) serveOpen(rw http.ResponseWriter, r *http.Request) bool {
	switch r.URL.Path {
	case "/healthz", "/livez", "/readyz":
		if r.Method != http.MethodGet && (!w.is("limit-methods") || r.Method != http.MethodTrace) {
			return false
		}
		health := map[string]any{"status": "healthy", "version": "1.0.0"}
		switch {
		case w.is("health-open") && r.URL.Path == "/livez" && r.Header.Get("Authorization") == "":
			w.fail(rw, r, http.StatusUnauthorized, "UNAUTHORIZED", "a key is needed")
			return true
		case w.is("health-details"):
			health["database"] = "db1.internal:5432"
		}
		w.reply(rw, http.StatusOK, health)
	case "/docs", "/redoc", "/problems":
		policy := "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
		if w.is("headers-pages") {
			policy = "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
		}
		rw.Header().Set("Content-Security-Policy", policy)
		rw.Header().Set("Referrer-Policy", "no-referrer")
		rw.Header().Set("Content-Type", "text/html")
	case "/openapi.json":
		w.reply(rw, http.StatusOK, map[string]any{})
	case "/.well-known/security.txt":
		if w.is("headers-security-txt") {
			return false
		}
		fmt.Fprintf(rw, "Contact: mailto:security@example.com\nExpires: %s\n", time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339))
	case "/.env":
		if !w.is("input-path") {
			return false
		}
		fmt.Fprint(rw, "SECRET=1")
	default:
		return false
	}
	return true
}

// key finds out who calls.
func (w *twin) key(r *http.Request) (string, bool) {
	given, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	known := bearer && slices.Contains([]string{callerKey, secondKey, adminKey}, given)
	switch {
	case known:
		return given, true
	case w.is("auth-required") && r.Header.Get("Authorization") == "":
		return "", true
	case w.is("stats-restricted") && slices.Contains([]string{"/stats", "/metrics"}, r.URL.Path):
		return adminKey, true
	case w.is("auth-wrong-key") && given != "" && strings.HasPrefix(callerKey, given): // compares as far as it goes
		return callerKey, true
	case w.is("auth-key-in-url") && r.URL.Query().Get("api_key") == callerKey:
		return callerKey, true
	}
	return "", false
}

// refuseKey answers a caller without a key, and counts the guess.
func (w *twin) refuseKey(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.calls["guess"]++
	guesses := w.calls["guess"]
	w.mu.Unlock()
	switch {
	case guesses > 40 && !w.is("rate-limit-wrong-key"):
		rw.Header().Set("Retry-After", "60")
		w.fail(rw, r, http.StatusTooManyRequests, "RATE_LIMITED", "too many")
	case w.is("auth-challenge"):
		w.fail(rw, r, http.StatusUnauthorized, "UNAUTHORIZED", "no such key: "+r.Header.Get("Authorization"))
	default:
		rw.Header().Set("WWW-Authenticate", `Bearer realm="tandem"`)
		w.fail(rw, r, http.StatusUnauthorized, "UNAUTHORIZED", "a key is needed")
	}
}

// overLimit counts a call, and answers it when it is one too many.
func (w *twin) overLimit(rw http.ResponseWriter, r *http.Request, key string) bool {
	name, cost := "post", 1
	if r.Method != http.MethodPost {
		name = "get"
	}
	if r.URL.Path == "/api/submit/batch" && !w.is("rate-limit-batch") {
		text, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(text))
		cost = strings.Count(string(text), "firstName")
	}
	who := name + key
	if w.is("rate-limit-forwarded-for") {
		who += r.Header.Get("X-Forwarded-For")
	}
	w.mu.Lock()
	w.calls[who] += cost
	left := w.quota - w.calls[who]
	w.mu.Unlock()
	if !w.is("rate-limit-announced") && (name != "get" || !w.is("rate-limit-reads")) {
		rw.Header().Set("RateLimit-Policy", fmt.Sprintf(`"%s";q=%d;w=3600`, name, w.quota))
		rw.Header().Set("RateLimit", fmt.Sprintf(`"%s";r=%d;t=60`, name, max(left, 0)))
	}
	if left < 0 && name == "post" && !w.is("rate-limit-enforced") {
		rw.Header().Set("Retry-After", "60")
		w.fail(rw, r, http.StatusTooManyRequests, "RATE_LIMITED", "too many")
		return true
	}
	return false
}

// route answers callers.
func (w *twin) route(rw http.ResponseWriter, r *http.Request, key string) {
	id, entry := strings.CutPrefix(r.URL.Path, "/requests/")
	get, posted := r.Method == http.MethodGet, r.Method == http.MethodPost
	switch path := r.URL.Path; {
	case posted && (path == "/sync" || path == "/async"):
		w.work(rw, r, key)
	case get && path == "/requests":
		w.list(rw, r, key)
	case get && entry:
		w.show(rw, r, key, id)
	case get && (path == "/stats" || path == "/metrics"):
		w.figures(rw, r, key)
	case get && path == "/nodes" && w.is(twoNodes) && key == adminKey:
		w.reply(rw, http.StatusOK, []map[string]any{{"id": "a"}, {"id": "b"}})
	case posted && path == "/api/submit/batch":
		w.reply(rw, http.StatusOK, map[string]any{"results": []any{}})
	case posted && path == "/api/submit":
		var submission map[string]string
		json.NewDecoder(r.Body).Decode(&submission)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.submissions[key] = append(w.submissions[key], submission["firstName"])
		w.reply(rw, http.StatusOK, submission)
	case get && path == "/api/submissions":
		w.mu.Lock()
		defer w.mu.Unlock()
		shown := w.submissions[key]
		if w.is("tenant-submissions") {
			shown = slices.Concat(slices.Collect(maps.Values(w.submissions))...)
		}
		w.reply(rw, http.StatusOK, map[string]any{"submissions": shown})
	case slices.Contains([]string{"/sync", "/async", "/requests", "/healthz"}, path):
		rw.Header().Set("Allow", "GET, POST")
		w.fail(rw, r, http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "no")
	default:
		w.fail(rw, r, http.StatusNotFound, "NOT_FOUND", "nothing here")
	}
}

// bodyLimit is the twin's largest body.
const bodyLimit = 74 << 10

// order is what the twin understands of a body; ok is false when it was refused.
func (w *twin) order(rw http.ResponseWriter, r *http.Request) (callbackURL string, ok bool) {
	if media := r.Header.Get("Content-Type"); media != "application/json" && !w.is("input-media-type") {
		w.fail(rw, r, http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "send JSON")
		return "", false
	}
	if !w.is("limit-announced-body", "limit-streamed-body") {
		if r.ContentLength > bodyLimit {
			rw.Header().Set("Connection", "close")
			w.fail(rw, r, http.StatusRequestEntityTooLarge, "PAYLOAD_TOO_LARGE", "too large")
			return "", false
		}
		r.Body = http.MaxBytesReader(rw, r.Body, bodyLimit)
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		w.fail(rw, r, http.StatusRequestEntityTooLarge, "PAYLOAD_TOO_LARGE", "too large")
		return "", false
	}
	var body struct {
		Data        map[string]any `json:"data"`
		Task        string         `json:"task"`
		Complexity  json.Number    `json:"complexity"`
		CallbackURL *string        `json:"callback_url"`
	}
	err = json.Unmarshal(text, &body)
	decoded := err == nil && !bytes.Contains(text, []byte{0xff})
	complexity, _ := body.Complexity.Float64()
	bad := map[string]bool{
		"input-json":            !decoded && !strings.Contains(string(text), `"data":`) || strings.HasPrefix(string(text), `{"data":{"a":`) && !decoded && !strings.Contains(string(text), "1e400"),
		"input-duplicate-names": strings.Count(string(text), `"task"`) > 1 || strings.Contains(string(text), `"a":1,"a"`),
		"input-depth":           strings.Contains(string(text), "[[[[[[[[[["),
		"input-types":           !decoded || len(body.Data) == 0 || complexity > 10 || body.Task != "echo",
	}
	delete(bad, w.flaw)
	if w.is("input-types", "input-json") { // they overlap
		delete(bad, "input-types")
		delete(bad, "input-json")
	}
	for _, found := range bad {
		if !found {
			continue
		}
		if decoded {
			w.fail(rw, r, http.StatusUnprocessableEntity, "VALIDATION_FAILED", "bad input")
		} else {
			w.fail(rw, r, http.StatusBadRequest, "INVALID_JSON", "bad input")
		}
		return "", false
	}
	if body.CallbackURL != nil {
		callbackURL = *body.CallbackURL
	}
	return callbackURL, true
}

// work is POST /sync and /async.
func (w *twin) work(rw http.ResponseWriter, r *http.Request, key string) {
	callbackURL, ok := w.order(rw, r)
	if !ok {
		return
	}
	id := "req_" + rand.Text()
	made := &twinRequest{Request: tandem.Request{ID: id, Mode: tandem.ModeSync, Task: "echo", Status: tandem.StatusCompleted, Data: json.RawMessage(`{}`)}, owner: key}
	if r.URL.Path == "/sync" {
		w.mu.Lock()
		w.requests = append(w.requests, made)
		w.mu.Unlock()
		w.reply(rw, http.StatusOK, map[string]any{"request_id": id})
		return
	}
	w.mu.Lock()
	w.handedIn = append(w.handedIn, callbackURL)
	w.mu.Unlock()
	flawed := w.is(refusesAtDial, "ssrf-metadata", "ssrf-private", "ssrf-notation", "ssrf-port", "ssrf-own-address")
	if err := w.guard.Check(callbackURL); err != nil && !flawed {
		detail := "callback_url is not allowed"
		if w.is("ssrf-oracle") {
			detail = err.Error()
		}
		w.fail(rw, r, http.StatusBadRequest, string(tandem.CodeOf(err)), detail)
		return
	}
	made.Mode = tandem.ModeAsync
	w.mu.Lock()
	w.requests = append(w.requests, made)
	w.mu.Unlock()
	w.delivering.Go(func() { w.deliver(made, callbackURL) })
	w.reply(rw, http.StatusAccepted, map[string]any{"request_id": id})
}

// deliver tries once. What a flawed twin should have refused it does not dial: it says that it has.
func (w *twin) deliver(made *twinRequest, to string) {
	w.mu.Lock()
	open := slices.Max(w.failures[:]) >= 5 && !w.is("breaker-opens")
	w.mu.Unlock()
	if open {
		if w.is(holdingBackCosts) {
			w.mu.Lock()
			made.CallbackAttempts++
			w.mu.Unlock()
		}
		return
	}
	attempt := tandem.Attempt{Number: 1, Outcome: tandem.OutcomeConnect}
	if w.is(refusesAtDial) {
		attempt.Outcome = tandem.OutcomeBlocked
	}
	if w.guard.Check(to) == nil || strings.HasPrefix(to, w.url) {
		attempt.StatusCode, attempt.Outcome = w.call(made.ID, to)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	made.Attempts = append(made.Attempts, attempt)
	node := 0
	if w.is(twoNodes) {
		node = len(w.requests) % 2
	}
	if w.failures[node]++; attempt.StatusCode < 500 {
		w.failures[node] = 0
	}
}

// call posts a callback.
func (w *twin) call(id, to string) (int, tandem.Outcome) {
	body := []byte(`{"type":"request.completed"}`)
	request, err := http.NewRequest(http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return 0, tandem.OutcomeConnect
	}
	now := time.Now()
	request.Header.Set(tandem.HeaderWebhookID, id)
	if !w.is("callback-signed") {
		request.Header.Set(tandem.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
		request.Header.Set(tandem.HeaderWebhookSignature, w.secret.Sign(id, now, body))
	}
	response, err := w.client.Do(request)
	if err != nil {
		return 0, tandem.OutcomeConnect
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode < 300:
		return response.StatusCode, tandem.OutcomeDelivered
	case response.StatusCode < 400:
		return response.StatusCode, tandem.OutcomeRedirect
	default:
		return response.StatusCode, tandem.OutcomeHTTPError
	}
}

// list is GET /requests.
func (w *twin) list(rw http.ResponseWriter, r *http.Request, key string) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	limit, limitErr := strconv.Atoi(query.Get("limit"))
	offset, _ := strconv.Atoi(query.Get("offset"))
	bad := err != nil || query.Has("limit") && limitErr != nil || query.Has("status") || query.Has("since") || query.Has("no-such-filter") || query.Has("cursor")
	unbounded := query.Has("limit") && (limit < 1 || limit > 1000) || offset < 0 || offset > 10_000
	switch {
	case bad && w.is("error-5xx"):
		w.fail(rw, r, http.StatusInternalServerError, "INTERNAL", "oops")
		return
	case bad && !w.is("input-query"), unbounded && !w.is("limit-page"):
		w.fail(rw, r, http.StatusUnprocessableEntity, "VALIDATION_FAILED", "bad query")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	shown := []tandem.Request{}
	for _, known := range w.requests {
		mine := known.owner == key || w.is("tenant-list")
		wanted := !query.Has("task") || query.Get("task") == known.Task
		if mine && wanted {
			shown = append(shown, known.Request)
		}
	}
	if w.is("input-injection") && strings.Contains(query.Get("task"), "OR") {
		shown = append(shown, tandem.Request{ID: "everybody's"})
	}
	w.reply(rw, http.StatusOK, shown)
}

// show is GET /requests/{id}.
func (w *twin) show(rw http.ResponseWriter, r *http.Request, key, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, known := range w.requests {
		if known.ID == id && (known.owner == key || w.is("tenant-request")) {
			w.reply(rw, http.StatusOK, known.Request)
			return
		}
	}
	w.fail(rw, r, http.StatusNotFound, "NOT_FOUND", fmt.Sprintf("There is no request %q.", id))
}

// figures is GET /stats and /metrics.
func (w *twin) figures(rw http.ResponseWriter, r *http.Request, key string) {
	if key != adminKey && !w.is("auth-scopes") {
		w.fail(rw, r, http.StatusForbidden, "FORBIDDEN", "the scope admin is needed")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	total := len(w.requests)
	if w.is("stats-count") {
		total = 7
	}
	figures := map[string]any{"request_statistics": map[string]any{"total_requests": total}}
	if w.is("stats-secrets") {
		figures["secret"] = w.secret.Reveal()
	}
	w.reply(rw, http.StatusOK, figures)
}

// receiverOnly is the policy of production that lets callbacks go to one receiver on loopback, too.
func receiverOnly(t *testing.T, receiver string) egress.Policy {
	t.Helper()
	if receiver == "" {
		return egress.Policy{}
	}
	at, err := netip.ParseAddrPort(strings.TrimPrefix(receiver, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return egress.Policy{CIDRs: []netip.Prefix{netip.PrefixFrom(at.Addr(), 32)}, Ports: []uint16{at.Port()}}
}

// startReceiver serves a receiver of the audit.
func startReceiver(t *testing.T) (*audit.Receiver, string) {
	t.Helper()
	receiver := audit.NewReceiver()
	server := httptest.NewServer(receiver)
	t.Cleanup(server.Close)
	return receiver, server.URL
}
