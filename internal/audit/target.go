package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem"
	"tandem/internal/term"
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
	open      bool // GET /requests is answered without a key
	statsOpen bool // so is GET /stats
	single    bool // there is no second key that may send work
	second    bool // what either caller may send goes out with the second key now: the first has more to do

	operations []operation // what there is to ask for
	hidden     []operation // what the document ought to list and does not
	unread     string      // why that is not what the deployment's own document lists; "": it is
	swept      []seen      // see sweep
	mine       string      // see ownID
	owned      *property   // see property

	// What answers of the whole audit gave away.
	leaks     []string // words of the inside
	crashes   []string // status 500 and the like
	secrets   []string // keys, signing secrets, passwords
	addresses []string // addresses in the texts of errors
}

func newTarget(cfg Config) (*Target, error) {
	base, err := parseBase(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Target{
		cfg: cfg, base: base, second: cfg.SecondKey != "", single: cfg.SecondKey == "",
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
	t.readDocument(ctx)
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
	Host   string // another one than that of Config.URL
	Hasty  bool   // take a 429 or 503 for an answer instead of waiting

	// Either goes out with the second key as well, if there is one, so that a limit makes nobody wait who need not.
	Either bool
}

// Answer is what came back, or why nothing did.
type Answer struct {
	Sent   string // method, path and what else matters, for the evidence
	Status int    // 0: none
	Header http.Header
	Body   []byte // at most 1 MiB of it
	Err    error
	Key    string // the one that it was sent with
	order  Order
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
	switched := false // to the other key, since the last wait
	for tries := 0; ; {
		if o.Either && t.second {
			o.Key = t.cfg.SecondKey
		}
		a := t.exchange(ctx, o)
		if o.Either && t.second && a.Status == http.StatusForbidden {
			t.second, t.single, o.Key = false, true, "" // it may not send work
			continue
		}
		if o.Hasty || a.Status != http.StatusTooManyRequests && a.Status != http.StatusServiceUnavailable {
			return a
		}
		if o.Either && !t.single && !switched && a.Status == http.StatusTooManyRequests {
			switched, t.second, o.Key = true, !t.second, ""
			continue
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
		tries++
		switched = false
	}
}

// exchange sends one request and reads the answer.
func (t *Target) exchange(ctx context.Context, o Order) Answer {
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	a := Answer{Sent: t.describe(o), Key: o.Key, order: o}
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
	path = t.base.EscapedPath() + path
	// As it is: of a path net/http would make one that is tidy. But what begins with two slashes it takes for a host.
	if plain, err := url.PathUnescape(path); err == nil && strings.HasPrefix(path, "//") {
		request.URL.Path, request.URL.RawPath = plain, path
	} else {
		request.URL.Opaque = path
	}
	request.URL.RawQuery = query
	if o.Host != "" {
		request.Host = o.Host
	}
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
	if o.Host != "" {
		text.WriteString(" [Host: " + oneLine(o.Host) + "]")
	}
	for _, name := range slices.Sorted(maps.Keys(o.Header)) {
		text.WriteString(" [" + name + ": " + oneLine(o.Header[name]) + "]")
	}
	return text.String()
}

// inside are words that an answer to a stranger must not contain.
var inside = regexp.MustCompile(`goroutine \d+ \[|\.go:\d+|runtime error|panic:|\bSQLITE_|\bsqlite3?\b|\bSQLSTATE\b|\bsyntax error at or near\b|/home/|/usr/|/var/lib/|[A-Z]:\\\\`)

// secrets are what signing secrets, keys and passwords in URLs look like. Each begins with plain text, which
// is found quickly in long answers.
var secrets = []*regexp.Regexp{
	regexp.MustCompile(`whsec_[A-Za-z0-9+/]{8,}`),
	regexp.MustCompile(`tdm_[A-Za-z0-9_-]{8,}`),
	regexp.MustCompile(`://[^/\s"@<>]+:[^/\s"@<>]+@`),
}

// secretIn returns the beginning of a secret in a text; "" if there is none.
func secretIn(text string) string {
	for _, secret := range secrets {
		if found := secret.FindString(text); found != "" {
			return found[:6] // the shortest match is no shorter
		}
	}
	return ""
}

// addresses are what only the inside of a network knows, and what dialers say.
var addresses = regexp.MustCompile(`\b(?:10|127)(?:\.\d{1,3}){3}\b|` +
	`\b(?:192\.168|169\.254|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b|` +
	`\[(?:::1|f[cde][0-9a-f]{2}:[0-9a-f:]*)\]|\bdial (?:tcp|udp)\b|\blookup \S+ on \S+|\bno such host\b`)

// watch remembers answers that no deployment should give to anything.
func (t *Target) watch(a Answer) {
	if a.order.Path != documentPath { // which has examples
		whole := string(a.Body) + strings.Join(slices.Collect(flatten(a.Header)), "\n")
		if found := secretIn(whole); found != "" {
			t.secrets = append(t.secrets, fmt.Sprintf("%s, with something that begins with %s", a, found))
		}
	}
	if a.Status < http.StatusBadRequest {
		return
	}
	written := a.order.Path + " " + a.order.Body + " " + t.base.Host // errors may repeat it
	if found := foundIn(inside, string(a.Body), written); found != "" {
		t.leaks = append(t.leaks, fmt.Sprintf("%s, with %q in the body", a, found))
	}
	if found := foundIn(addresses, string(a.Body), written); found != "" {
		t.addresses = append(t.addresses, fmt.Sprintf("%s, with %q in the body", a, found))
	}
	switch a.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		if a.Status >= http.StatusInternalServerError && a.Status != http.StatusNotImplemented {
			t.crashes = append(t.crashes, a.String())
		}
	}
}

// flatten yields every value of a header.
func flatten(header http.Header) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, values := range header {
			for _, value := range values {
				if !yield(value) {
					return
				}
			}
		}
	}
}

// foundIn returns the first match in a text that the one who reads it had not written; "" if there is none.
func foundIn(what *regexp.Regexp, text, written string) string {
	for _, found := range what.FindAllString(text, -1) {
		if !strings.Contains(written, strings.Trim(found, "[]")) {
			return found
		}
	}
	return ""
}

// submit asks for an `echo` whose callback goes to callbackURL.
func (t *Target) submit(ctx context.Context, callbackURL string) Answer {
	body, err := json.Marshal(map[string]any{"data": map[string]int{"audit": 1}, "task": "echo", "callback_url": callbackURL})
	if err != nil {
		return Answer{Sent: "POST /async", Err: err}
	}
	o := post("/async", string(body))
	// What comes to our receiver is signed for the first key.
	o.Either = t.cfg.CallbackURL == "" || !strings.HasPrefix(callbackURL, t.cfg.CallbackURL)
	a := t.send(ctx, o)
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

// await polls the request that made accepted until ok says so, or the time is up; the last answer shows which.
func (t *Target) await(
	ctx context.Context, made Answer, patience time.Duration, ok func(tandem.Request) bool,
) (tandem.Request, Answer) {
	deadline := time.Now().Add(patience)
	for {
		var request tandem.Request
		a := t.send(ctx, Order{Path: "/requests/" + url.PathEscape(made.requestID()), Key: made.Key})
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

// nodes returns how many nodes share the work; 1 if /nodes cannot be read.
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

// oneLine makes a stranger's text safe to show, in the evidence.
func oneLine(text string) string { return term.Clean(text, shownText) }

// nested is a JSON object that many levels deep.
func nested(levels int) string {
	var b bytes.Buffer
	b.WriteString(`{"a":`)
	b.WriteString(strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1))
	b.WriteString("}")
	return b.String()
}
