package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"tandem"
)

const (
	maxAnswer   = 1 << 20          // bytes of an answer that are read
	answerTime  = 15 * time.Second // for one whole exchange
	longestWait = 65 * time.Second // for a Retry-After; a longer one leaves the check undecided
	shownText   = 80               // characters of a text in the evidence
	pollEvery   = 250 * time.Millisecond
)

// errBudget ends a check that would ask more than the audit may.
var errBudget = errors.New("the audit has sent as many requests as it may")

// Target is the deployment, as the checks reach it. One goroutine uses it.
type Target struct {
	cfg       Config
	base      *url.URL
	client    *http.Client
	sent      int
	next      time.Time // when the pace allows the next request
	version   string
	open      bool     // GET /requests is answered without a key
	statsOpen bool     // so is GET /stats
	leaks     []string // answers that tell of the inside
	crashes   []string // answers of status 500 and the like
}

func newTarget(cfg Config) (*Target, error) {
	base, err := parseBase(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Target{
		cfg: cfg, base: base,
		client: &http.Client{
			Timeout:       answerTime,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil, // what is audited is the deployment, not the way to it
				DisableCompression:     true,
				ForceAttemptHTTP2:      true,
				MaxResponseHeaderBytes: 256 << 10,
				ExpectContinueTimeout:  answerTime, // never send a body that nobody asked for
				DialContext:            cfg.Dial,
				TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
			},
		},
	}, nil
}

func (t *Target) close() { t.client.CloseIdleConnections() }

// probe finds out whether there is a tandem, and what it lets a stranger do.
func (t *Target) probe(ctx context.Context) error {
	a := t.send(ctx, Order{Path: "/healthz", NoKey: true})
	if a.Err != nil {
		return fmt.Errorf("reach %s: %w", t.base, a.Err)
	}
	var health struct {
		Status  string `json:"status"`
		Version string `json:"version"`
	}
	if a.Status != http.StatusOK || json.Unmarshal(a.Body, &health) != nil || health.Status == "" || health.Version == "" {
		return fmt.Errorf("%s is no tandem: %s", t.base, t.redact(a.String()))
	}
	t.version = oneLine(health.Version)
	list := t.send(ctx, Order{Path: "/requests?limit=1", NoKey: true})
	t.open = list.Status == http.StatusOK
	t.statsOpen = t.send(ctx, Order{Path: "/stats", NoKey: true}).Status == http.StatusOK
	for _, key := range []struct{ name, value, path string }{
		{"--api-key", t.cfg.APIKey, "/requests?limit=1"}, {"--second-api-key", t.cfg.SecondKey, "/requests?limit=1"}, {"--admin-key", t.cfg.AdminKey, "/stats"},
	} {
		if key.value == "" {
			continue
		}
		if a := t.send(ctx, Order{Path: key.path, Key: key.value}); a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
			return fmt.Errorf("the deployment refuses %s: %s", key.name, t.redact(a.String()))
		}
	}
	return nil
}

// Order is one request to send.
type Order struct {
	Method string // GET
	Path   string // with the query; as it goes on the wire
	Body   string // JSON unless Header says otherwise
	Stream io.Reader
	Length int64 // of Stream; -1: not told
	Header map[string]string
	Key    string // another one than Config.APIKey
	NoKey  bool   // none at all
	Hasty  bool   // take a 429 or 503 for an answer instead of waiting
}

// Answer is what came back, or why nothing did.
type Answer struct {
	Sent   string // method, path and what else matters, for the evidence
	Status int    // 0: none
	Header http.Header
	Body   []byte // at most 1 MiB of it
	Err    error
}

// String is the exchange as a line of evidence.
func (a Answer) String() string {
	switch {
	case a.Err != nil:
		return a.Sent + " → no answer: " + oneLine(a.Err.Error())
	default:
		text := fmt.Sprintf("%s → %d", a.Sent, a.Status)
		if code := a.Code(); code != "" {
			text += " " + oneLine(string(code))
		}
		return text
	}
}

// Code is that of a problem, "" if it is none.
func (a Answer) Code() tandem.Code {
	var problem struct {
		Code tandem.Code `json:"code"`
	}
	if a.Status < http.StatusBadRequest || json.Unmarshal(a.Body, &problem) != nil {
		return ""
	}
	return problem.Code
}

// refused reports whether the answer says that the input is bad.
func (a Answer) refused() bool {
	switch a.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	default:
		return false
	}
}

// denied reports whether the answer says that the caller may not.
func (a Answer) denied() bool {
	return a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden || a.Status == http.StatusNotFound
}

// post orders work that costs nothing: the task `echo`.
func post(path, body string) Order { return Order{Method: http.MethodPost, Path: path, Body: body} }

// send asks, at the pace of the audit. It waits for what Retry-After says, twice at
// most, unless the order is hasty.
func (t *Target) send(ctx context.Context, o Order) Answer {
	for tries := 0; ; tries++ {
		a := t.exchange(ctx, o)
		if o.Hasty || a.Status != http.StatusTooManyRequests && a.Status != http.StatusServiceUnavailable {
			return a
		}
		seconds, err := strconv.Atoi(a.Header.Get("Retry-After"))
		wait := time.Duration(seconds) * time.Second
		if err != nil || wait <= 0 || wait > longestWait || tries == 2 || o.Stream != nil {
			a.Err = fmt.Errorf("put off with %d, Retry-After %q", a.Status, oneLine(a.Header.Get("Retry-After")))
			return a
		}
		t.cfg.Progress(fmt.Sprintf("waiting %d s, as the deployment asks (%d)", seconds, a.Status))
		if err := pause(ctx, wait); err != nil {
			return Answer{Sent: a.Sent, Err: err}
		}
	}
}

// exchange sends one request and reads the answer.
func (t *Target) exchange(ctx context.Context, o Order) Answer {
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	a := Answer{Sent: t.describe(o)}
	if a.Err = t.spend(ctx); a.Err != nil {
		return a
	}
	request, err := t.request(ctx, o)
	if err != nil {
		a.Err = err
		return a
	}
	response, err := t.client.Do(request)
	if err != nil {
		if whole, ok := errors.AsType[*url.Error](err); ok {
			err = whole.Err // the rest repeats the address
		}
		a.Err = err
		return a
	}
	defer response.Body.Close()
	a.Body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	a.Status, a.Header = response.StatusCode, response.Header
	if err != nil && a.Status < http.StatusBadRequest { // a refusal may end its connection before all is read
		a.Status, a.Err = 0, fmt.Errorf("read answer: %w", err)
		return a
	}
	t.watch(a)
	return a
}

// request makes the HTTP request of an order. The path goes out as it is written.
func (t *Target) request(ctx context.Context, o Order) (*http.Request, error) {
	stream := o.Stream
	if stream == nil {
		stream = strings.NewReader(o.Body)
	}
	request, err := http.NewRequestWithContext(ctx, o.Method, t.base.String()+"/", stream)
	if err != nil {
		return nil, err
	}
	if o.Stream != nil {
		request.ContentLength = o.Length
	}
	path, query, _ := strings.Cut(o.Path, "?")
	request.URL.Opaque = t.base.EscapedPath() + path // as it is: with a URL, net/http would tidy it up
	request.URL.RawQuery = query
	request.Header.Set("User-Agent", t.cfg.Tool)
	if o.Method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
	}
	key := t.cfg.APIKey
	if o.Key != "" {
		key = o.Key
	}
	if key != "" && !o.NoKey {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	for name, value := range o.Header {
		request.Header.Set(name, value)
	}
	return request, nil
}

// spend counts a request and waits until the pace allows it.
func (t *Target) spend(ctx context.Context) error {
	if t.sent >= t.cfg.MaxRequests {
		return errBudget
	}
	t.sent++
	now := time.Now()
	if wait := t.next.Sub(now); wait > 0 {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		now = time.Now()
	}
	t.next = now.Add(time.Second / time.Duration(t.cfg.Rate))
	return nil
}

// pause returns when d has passed, or with the reason why ctx ended before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// describe is what is sent, as evidence shows it.
func (t *Target) describe(o Order) string {
	var text strings.Builder
	text.WriteString(o.Method + " " + oneLine(o.Path))
	switch {
	case o.Stream != nil && o.Length > 0:
		fmt.Fprintf(&text, " (%d bytes announced)", o.Length)
	case o.Stream != nil:
		text.WriteString(" (chunked)")
	case o.Body != "":
		text.WriteString(" " + oneLine(o.Body))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Header)) {
		text.WriteString(" [" + name + ": " + oneLine(o.Header[name]) + "]")
	}
	return text.String()
}

// inside are words that an answer to a stranger must not contain.
var inside = regexp.MustCompile(`goroutine \d+ \[|\.go:\d+|runtime error|panic:|\bSQLITE_|\bsqlite3?\b|\bSQLSTATE\b|\bsyntax error at or near\b|/home/|/usr/|/var/lib/|[A-Z]:\\\\`)

// watch remembers answers that no deployment should give to anything.
func (t *Target) watch(a Answer) {
	if a.Status < http.StatusBadRequest {
		return
	}
	if found := inside.Find(a.Body); found != nil {
		t.leaks = append(t.leaks, fmt.Sprintf("%s, with %q in the body", a, found))
	}
	switch a.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		if a.Status >= http.StatusInternalServerError {
			t.crashes = append(t.crashes, a.String())
		}
	}
}

// submit asks for an `echo` whose callback goes to callbackURL.
func (t *Target) submit(ctx context.Context, callbackURL string) Answer {
	body, err := json.Marshal(map[string]any{"data": map[string]int{"audit": 1}, "task": "echo", "callback_url": callbackURL})
	if err != nil {
		return Answer{Sent: "POST /async", Err: err}
	}
	a := t.send(ctx, post("/async", string(body)))
	a.Sent = "POST /async callback_url " + oneLine(callbackURL)
	return a
}

// requestID is that of an answer to /sync or /async.
func (a Answer) requestID() string {
	var body struct {
		RequestID string `json:"request_id"`
	}
	if json.Unmarshal(a.Body, &body) != nil {
		return ""
	}
	return body.RequestID
}

// await polls a request until ok says so, or the time is up; the last answer tells which.
func (t *Target) await(ctx context.Context, id string, patience time.Duration, ok func(tandem.Request) bool) (tandem.Request, Answer) {
	deadline := time.Now().Add(patience)
	for {
		var request tandem.Request
		a := t.send(ctx, Order{Path: "/requests/" + url.PathEscape(id)})
		if a.Err == nil && a.Status == http.StatusOK {
			if a.Err = json.Unmarshal(a.Body, &request); a.Err == nil && ok(request) {
				return request, a
			}
		}
		if a.Err != nil || time.Now().After(deadline) {
			return request, a
		}
		if a.Err = pause(ctx, pollEvery); a.Err != nil {
			return request, a
		}
	}
}

// stats reads /stats with the key that may.
func (t *Target) stats(ctx context.Context) (Answer, map[string]any) {
	o := Order{Path: "/stats", NoKey: t.cfg.AdminKey == "", Key: t.cfg.AdminKey}
	a := t.send(ctx, o)
	var figures map[string]any
	if a.Err == nil && a.Status == http.StatusOK {
		if err := json.Unmarshal(a.Body, &figures); err != nil {
			a.Err = fmt.Errorf("read /stats: %w", err)
		}
	}
	return a, figures
}

// nodes is how many share the work, as far as the deployment tells whoever may read /stats.
func (t *Target) nodes(ctx context.Context) int {
	var known []json.RawMessage
	a := t.send(ctx, Order{Path: "/nodes", NoKey: t.cfg.AdminKey == "", Key: t.cfg.AdminKey})
	if a.Err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &known) != nil {
		return 1
	}
	return max(len(known), 1)
}

// redact takes the keys out of a text.
func (t *Target) redact(text string) string {
	for _, key := range []string{t.cfg.APIKey, t.cfg.SecondKey, t.cfg.AdminKey} {
		if key != "" {
			text = strings.ReplaceAll(text, key, "[key]")
		}
	}
	return text
}

// redactURL shows an address without password and query.
func redactURL(text string) string {
	address, err := url.Parse(text)
	if err != nil {
		return "[unreadable]"
	}
	if address.RawQuery != "" {
		address.RawQuery = "redacted"
	}
	return oneLine(address.Redacted())
}

// oneLine makes a stranger's text safe for a terminal: printable, on one line, bounded.
func oneLine(text string) string {
	runes := []rune(strings.ToValidUTF8(text, "\uFFFD"))
	if len(runes) > shownText {
		runes = append(runes[:shownText:shownText], '…')
	}
	for i, r := range runes {
		if !unicode.IsPrint(r) {
			runes[i] = '\uFFFD'
		}
	}
	return string(runes)
}

// nested is a JSON object that many levels deep.
func nested(levels int) string {
	var b bytes.Buffer
	b.WriteString(`{"a":`)
	b.WriteString(strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1))
	b.WriteString("}")
	return b.String()
}
