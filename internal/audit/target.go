package audit

import (
	"cmp"
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

	"tandem"
	"tandem/internal/receiver"
	"tandem/internal/term"
)

const (
	maxAnswer   = 1 << 20          // bytes read of an answer
	answerTime  = 15 * time.Second // for one whole exchange
	longestWait = 65 * time.Second // for a Retry-After; a longer one leaves the check undecided
	shownText   = 80               // characters of a text in the evidence
	pollEvery   = 250 * time.Millisecond
)

// errBudget ends a check beyond the audit's budget.
var errBudget = errors.New("the audit has sent as many requests as it may")

// target is the deployment, as the checks reach it. One goroutine uses it.
type target struct {
	cfg       Config
	base      *url.URL
	client    *http.Client
	sent      int
	next      time.Time // when the pace allows the next request
	version   string
	open      bool // GET /requests is answered without a key
	statsOpen bool // so is GET /stats
	single    bool // there is no second key with permission to send work
	second    bool // probes of either caller go out with the second key now: it has more calls left

	operations []operation // of the document and of every tandem
	hidden     []operation // missing in the document
	unread     string      // why operations is not what the deployment's own document lists; "": it is
	swept      []seen      // see sweep
	mine       string      // see ownID
	owned      *property   // see property

	// Texts revealed by the answers of the whole audit.
	leaks     []string // words from the inside
	crashes   []string // status 500 and the like
	secrets   []string // keys, signing secrets, passwords
	addresses []string // addresses in the texts of errors
}

func newTarget(cfg Config) (*target, error) {
	base, err := parseBase(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &target{
		cfg: cfg, base: base, second: cfg.SecondKey != "", single: cfg.SecondKey == "",
		client: &http.Client{
			Timeout:       answerTime,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil, // the audit is of the deployment, not of the way to it
				DisableCompression:     true,
				ForceAttemptHTTP2:      true,
				MaxResponseHeaderBytes: 256 << 10,
				ExpectContinueTimeout:  answerTime, // never send an unrequested body
				DialContext:            cfg.Dial,
				TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
			},
		},
	}, nil
}

func (t *target) close() { t.client.CloseIdleConnections() }

// identify finds out whether there is a tandem, and whether it is open to strangers.
func (t *target) identify(ctx context.Context) error {
	a := t.send(ctx, probe{Path: "/healthz", NoKey: true})
	if a.Err != nil {
		return fmt.Errorf("reach %s: %w", t.base, a.Err)
	}
	var health struct {
		Status  string `json:"status"`
		Version string `json:"version"`
	}
	if !a.decode(&health) || health.Status == "" || health.Version == "" {
		return fmt.Errorf("%s is no tandem: %s", t.base, t.redact(a.String()))
	}
	t.version = oneLine(health.Version)
	t.open = t.send(ctx, probe{Path: "/requests?limit=1", NoKey: true}).Status == http.StatusOK
	t.statsOpen = t.send(ctx, probe{Path: "/stats", NoKey: true}).Status == http.StatusOK
	for _, key := range []struct{ name, value, path string }{
		{"--api-key", t.cfg.APIKey, "/requests?limit=1"}, {"--second-api-key", t.cfg.SecondKey, "/requests?limit=1"},
		{"--admin-key", t.cfg.AdminKey, "/stats"},
	} {
		if key.value == "" {
			continue
		}
		if a := t.send(ctx, probe{Path: key.path, Key: key.value}); a.unauthorized() {
			return fmt.Errorf("the deployment refuses %s: %s", key.name, t.redact(a.String()))
		}
	}
	t.readDocument(ctx)
	return nil
}

// send asks, at the pace of the audit. It waits as long as Retry-After says, twice at most, unless the probe is hasty.
func (t *target) send(ctx context.Context, p probe) answer {
	switched := false // to the other key, since the last wait
	for waits := 0; ; {
		if p.Either {
			p.Key = ""
			if t.second {
				p.Key = t.cfg.SecondKey
			}
		}
		a := t.exchange(ctx, p)
		limited := a.Status == http.StatusTooManyRequests
		switch {
		case p.Either && t.second && a.Status == http.StatusForbidden:
			t.second, t.single = false, true // the second key may not send work
			continue
		case p.Hasty || !limited && a.Status != http.StatusServiceUnavailable:
			return a
		case p.Either && !t.single && !switched && limited:
			switched, t.second = true, !t.second
			continue
		}
		seconds, err := strconv.Atoi(a.Header.Get("Retry-After"))
		wait := time.Duration(seconds) * time.Second
		if err != nil || wait <= 0 || wait > longestWait || waits == 2 || p.Stream != nil {
			a.Err = fmt.Errorf("postponed with %d, Retry-After %q", a.Status, oneLine(a.Header.Get("Retry-After")))
			return a
		}
		t.cfg.Progress(fmt.Sprintf("waiting %d s, as the deployment asks (%d)", seconds, a.Status))
		if err := pause(ctx, wait); err != nil {
			return answer{Sent: a.Sent, Err: err}
		}
		waits++
		switched = false
	}
}

// exchange sends one request and reads the answer.
func (t *target) exchange(ctx context.Context, p probe) answer {
	p.Method = cmp.Or(p.Method, http.MethodGet)
	a := answer{Sent: t.describe(p), probe: p}
	if a.Err = t.spend(ctx); a.Err != nil {
		return a
	}
	request, err := t.request(ctx, p)
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

// request makes the HTTP request of a probe. The path goes out as it is written.
func (t *target) request(ctx context.Context, p probe) (*http.Request, error) {
	body := p.Stream
	if body == nil {
		body = strings.NewReader(p.Body)
	}
	request, err := http.NewRequestWithContext(ctx, p.Method, t.base.String()+"/", body)
	if err != nil {
		return nil, err
	}
	if p.Stream != nil {
		request.ContentLength = p.Length
	}
	path, query, _ := strings.Cut(p.Path, "?")
	path = t.base.EscapedPath() + path
	// Opaque goes out as it is; a Path would be tidied up first. But two slashes at the beginning would mean a host.
	if plain, err := url.PathUnescape(path); err == nil && strings.HasPrefix(path, "//") {
		request.URL.Path, request.URL.RawPath = plain, path
	} else {
		request.URL.Opaque = path
	}
	request.URL.RawQuery = query
	request.Host = cmp.Or(p.Host, request.Host)
	request.Header.Set("User-Agent", t.cfg.Tool)
	if p.Method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
	}
	if key := cmp.Or(p.Key, t.cfg.APIKey); key != "" && !p.NoKey {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	for name, value := range p.Header {
		request.Header.Set(name, value)
	}
	return request, nil
}

// spend counts a request and waits until the pace allows it.
func (t *target) spend(ctx context.Context) error {
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

// describe is the request, as evidence shows it.
func (t *target) describe(p probe) string {
	if p.Shown != "" {
		return p.Shown
	}
	var text strings.Builder
	text.WriteString(p.Method + " " + oneLine(p.Path))
	switch {
	case p.Stream != nil && p.Length > 0:
		fmt.Fprintf(&text, " (%d bytes announced)", p.Length)
	case p.Stream != nil:
		text.WriteString(" (chunked)")
	case p.Body != "":
		text.WriteString(" " + oneLine(p.Body))
	}
	if p.Host != "" {
		text.WriteString(" [Host: " + oneLine(p.Host) + "]")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Header)) {
		text.WriteString(" [" + name + ": " + oneLine(p.Header[name]) + "]")
	}
	switch {
	case p.NoKey && t.cfg.APIKey != "":
		text.WriteString(" without a key")
	case p.NoKey || p.Key == "" || p.Key == t.cfg.APIKey:
	case p.Key == t.cfg.SecondKey:
		text.WriteString(" with --second-api-key")
	case p.Key == t.cfg.AdminKey:
		text.WriteString(" with --admin-key")
	default:
		text.WriteString(" with an unknown key")
	}
	return text.String()
}

// inside are words forbidden in an answer to a stranger.
var inside = regexp.MustCompile(`goroutine \d+ \[|\.go:\d+|runtime error|panic:|\bSQLITE_|\bsqlite3?\b|\bSQLSTATE\b|` +
	`\bsyntax error at or near\b|/home/|/usr/|/var/lib/|[A-Z]:\\\\`)

// secrets are the patterns of signing secrets, keys and passwords in URLs. Each begins with plain text, for a fast
// search in long answers.
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

// addresses are internal addresses, and texts of dialers.
var addresses = regexp.MustCompile(`\b(?:10|127)(?:\.\d{1,3}){3}\b|` +
	`\b(?:192\.168|169\.254|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b|` +
	`\[(?:::1|f[cde][0-9a-f]{2}:[0-9a-f:]*)\]|\bdial (?:tcp|udp)\b|\blookup \S+ on \S+|\bno such host\b`)

// watch remembers forbidden answers.
func (t *target) watch(a answer) {
	if a.probe.Path != documentPath { // it has examples
		var header strings.Builder
		_ = a.Header.Write(&header) // to memory: it cannot fail
		if found := secretIn(string(a.Body) + header.String()); found != "" {
			t.secrets = append(t.secrets, fmt.Sprintf("%s, with something that begins with %s", a, found))
		}
	}
	if a.Status < http.StatusBadRequest {
		return
	}
	written := a.probe.Path + " " + a.probe.Body + " " + t.base.Host // errors may repeat it
	for _, words := range []struct {
		pattern *regexp.Regexp
		found   *[]string
	}{{inside, &t.leaks}, {addresses, &t.addresses}} {
		if found := foundIn(words.pattern, string(a.Body), written); found != "" {
			*words.found = append(*words.found, fmt.Sprintf("%s, with %q in the body", a, found))
		}
	}
	if a.Status >= http.StatusInternalServerError && !slices.Contains([]int{
		http.StatusNotImplemented, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}, a.Status) {
		t.crashes = append(t.crashes, a.String())
	}
}

// foundIn returns the first match in a text, except echoes of the caller's own words; "" if there is none.
func foundIn(what *regexp.Regexp, text, written string) string {
	for _, found := range what.FindAllString(text, -1) {
		if !strings.Contains(written, strings.Trim(found, "[]")) {
			return found
		}
	}
	return ""
}

// async asks for work with its callback to callbackURL; members name the work.
func async(callbackURL, members string) probe {
	address, err := json.Marshal(callbackURL)
	if err != nil {
		panic(err) // strings have JSON
	}
	return post("/async", `{"data":{"audit":1},`+members+`,"callback_url":`+string(address)+`}`)
}

// submit asks for an `echo` with its callback to callbackURL.
func (t *target) submit(ctx context.Context, callbackURL string) answer {
	p := async(callbackURL, `"task":"echo"`)
	p.Shown = "POST /async callback_url " + oneLine(callbackURL)
	// Callbacks to our receiver are signed for the first key.
	p.Either = t.cfg.CallbackURL == "" || !strings.HasPrefix(callbackURL, t.cfg.CallbackURL)
	return t.send(ctx, p)
}

// callback is the public address of a hook.
func (t *target) callback(h *receiver.Hook) string {
	return strings.TrimSuffix(t.cfg.CallbackURL, "/") + "/" + h.Path
}

// deliver asks for a callback to a new hook with a status, and a Location if there is one. It reports whether the
// deployment has accepted.
func (t *target) deliver(ctx context.Context, v *verdict, status int, location string) (*receiver.Hook, answer, bool) {
	h := t.cfg.Receiver.New(status, location)
	a := t.submit(ctx, t.callback(h))
	return h, a, v.accepted(a)
}

// accepted reports whether a callback to our receiver was accepted; after a refusal the check is undecided.
func (v *verdict) accepted(a answer) bool {
	switch {
	case a.Err == nil && a.Status == http.StatusAccepted:
		return true
	case a.Err != nil:
		v.doubtf("%s", a)
	case a.refused():
		v.doubtf("%s: the deployment may not call the receiver (--allow-callback-host, --allow-callback-port)", a)
	case a.Status == http.StatusTooManyRequests:
		v.doubtf("%s: its rate limit leaves no room for what the check has to send", a)
	default:
		v.doubtf("%s: want 202", a)
	}
	return false
}

// await polls the request behind an answer until ok says so, or the time is up; the last answer distinguishes the two.
func (t *target) await(ctx context.Context, made answer, ok func(tandem.Request) bool) (tandem.Request, answer) {
	deadline := time.Now().Add(t.cfg.Timeout)
	for {
		var request tandem.Request
		a := t.send(ctx, probe{Path: "/requests/" + url.PathEscape(made.requestID()), Key: made.probe.Key})
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

// firstAttempt awaits the first attempt to deliver a callback; nil where none is known.
func (t *target) firstAttempt(ctx context.Context, made answer) (*tandem.Attempt, answer) {
	request, last := t.await(ctx, made, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
	if last.Err != nil || last.Status != http.StatusOK || len(request.Attempts) == 0 {
		return nil, last
	}
	return &request.Attempts[0], last
}

// operator asks for an operator's route, with the admin key.
func (t *target) operator(ctx context.Context, path string) answer {
	return t.send(ctx, probe{Path: path, NoKey: t.cfg.AdminKey == "", Key: t.cfg.AdminKey})
}

// nodes returns how many nodes share the work; 1 if /nodes cannot be read.
func (t *target) nodes(ctx context.Context) int {
	var known []json.RawMessage
	if !t.operator(ctx, "/nodes").decode(&known) {
		return 1
	}
	return max(len(known), 1)
}

// redact takes the keys out of a text.
func (t *target) redact(text string) string {
	for _, key := range []string{t.cfg.APIKey, t.cfg.SecondKey, t.cfg.AdminKey} {
		if key != "" {
			text = strings.ReplaceAll(text, key, "[key]")
		}
	}
	return text
}

// oneLine makes a stranger's text safe to show, in the evidence.
func oneLine(text string) string { return term.Clean(text, shownText) }

// nested is a JSON object with so many levels.
func nested(levels int) string {
	return `{"a":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + "}"
}
