package server_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
	"tandem/internal/submissions"
	"tandem/internal/telemetry"
	"tandem/internal/work"
)

var update = flag.Bool("update", false, "rewrite golden files")

const goldenDocument = "../../api/openapi.yaml"

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// service is the real thing on a free port: a database (SQLite in memory if the test names no other), an engine that
// runs and the API in front of them.
type service struct {
	*httptest.Server
	t       testing.TB
	engine  *engine.Engine
	metrics *telemetry.Metrics
	store   *faultyStore
	http    *http.Client // validates every answer; follows no redirects
}

// setup is what a test may change about a service.
type setup struct {
	engine engine.Config
	server server.Config
	store  store.Config
	egress egress.Config
	sample submissions.Config
	tune   func(*http.Server)

	deliveries int // callbacks that are dispatched at once; 0: as many as the engine asks for
}

// start runs a service until the test ends.
func start(t testing.TB, change func(*setup)) *service {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	s := setup{
		store:  store.Config{URL: ":memory:", Counted: submissions.Task, Log: quiet},
		engine: engine.Config{Workers: 2, Tasks: testTasks(), Grace: 100 * time.Millisecond, Log: quiet},
		server: server.Config{Mode: "demo", TestCallback: true, Log: quiet},
		egress: egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}, Log: quiet},
		tune:   func(*http.Server) {},
	}
	if change != nil {
		change(&s)
	}
	kept, err := app.OpenStore(t.Context(), s.store)
	if err != nil {
		t.Fatal(err)
	}
	strangers, err := egress.New(s.egress)
	if err != nil {
		t.Fatal(err)
	}
	faulty := &faultyStore{Store: kept, deliveries: s.deliveries}
	s.engine.Store, s.engine.Egress = faulty, strangers
	if s.engine.Secrets == nil {
		s.engine.Secrets = []tandem.Secret{tandem.NewSecret()}
	}
	sample, err := submissions.New(s.sample)
	if err != nil {
		t.Fatal(err)
	}
	s.engine.Tasks = append(s.engine.Tasks, sample.Task())
	s.server.Metrics = telemetry.New(telemetry.Config{Tasks: s.engine.Tasks, Log: s.engine.Log})
	s.engine.Observers = []func(engine.Event){s.server.Metrics.Observe, sample.Observe}
	s.server.Application = sample.API()
	e, err := engine.New(s.engine)
	if err != nil {
		t.Fatal(err)
	}
	s.server.Engine, s.server.Store = e, faulty
	handler, err := server.New(s.server)
	if err != nil {
		t.Fatal(err)
	}
	svc := &service{t: t, engine: e, metrics: s.server.Metrics, store: faulty, Server: httptest.NewUnstartedServer(nil)}
	svc.Config = server.HTTPServer(handler, s.server)
	s.tune(svc.Config)
	svc.Start()
	svc.http = &http.Client{
		Transport:     &checked{t: t, next: svc.Client().Transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(ctx) }()
	t.Cleanup(func() {
		svc.CloseClientConnections()
		svc.Close()
		stop()
		if err := <-stopped; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run the engine: %v", err)
		}
		strangers.Close()
		if err := kept.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	<-e.Ready()
	return svc
}

// sample is the sample application.
func sample(t testing.TB) *submissions.App {
	t.Helper()
	app, err := submissions.New(submissions.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// until waits for something that happens soon.
func (s *service) until(what string, happened func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// testTasks are tasks that end in every way a task can.
func testTasks() []work.Task {
	return []work.Task{
		{Name: "broken", Class: work.IO, Run: work.JSON(func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return nil, errors.New("the printer is on fire")
		})},
		{Name: "panicky", Class: work.IO, Run: func(context.Context, work.Input) work.Result {
			panic("the printer exploded")
		}},
		{Name: "stuck", Class: work.IO, Run: func(ctx context.Context, _ work.Input) work.Result {
			<-ctx.Done()
			return work.Failed(context.Cause(ctx).Error())
		}},
	}
}

// faultyStore is the real store until a test makes one of its methods fail.
type faultyStore struct {
	store.Store
	mu    sync.Mutex
	fault map[string]func() error // :: method → what it does instead

	deliveries int // as in setup
}

// Work dispatches no more callbacks at once than the test wants.
func (f *faultyStore) Work(ctx context.Context, capacity store.Capacity, step store.Step) error {
	if f.deliveries > 0 {
		capacity.Jobs[store.LaneDeliver] = f.deliveries
	}
	return f.Store.Work(ctx, capacity, step)
}

// sabotage makes a method fail, or panic, from now on.
func (f *faultyStore) sabotage(method string, fault func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == nil {
		f.fault = map[string]func() error{}
	}
	f.fault[method] = fault
}

func (f *faultyStore) check(method string) error {
	f.mu.Lock()
	fault := f.fault[method]
	f.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault()
}

func (f *faultyStore) Accept(ctx context.Context, lane store.Lane, requests ...*tandem.Request) error {
	if err := f.check("Accept"); err != nil {
		return err
	}
	return f.Store.Accept(ctx, lane, requests...)
}

func (f *faultyStore) Request(ctx context.Context, id string) (tandem.Request, error) {
	if err := f.check("Request"); err != nil {
		return tandem.Request{}, err
	}
	return f.Store.Request(ctx, id)
}

func (f *faultyStore) Requests(ctx context.Context, filter store.Filter) (store.Page, error) {
	if err := f.check("Requests"); err != nil {
		return store.Page{}, err
	}
	return f.Store.Requests(ctx, filter)
}

func (f *faultyStore) Stats(ctx context.Context) (store.Stats, error) {
	if err := f.check("Stats"); err != nil {
		return store.Stats{}, err
	}
	stats, err := f.Store.Stats(ctx)
	stats.Unavailable = cmp.Or(stats.Unavailable, f.check("Unavailable"))
	return stats, err
}

func (f *faultyStore) Undelivered(ctx context.Context) (store.Undelivered, error) {
	if err := f.check("Undelivered"); err != nil {
		return store.Undelivered{}, err
	}
	return f.Store.Undelivered(ctx)
}

// unavailable is the error of a store whose disk is full.
func unavailable() error {
	return &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "The database does not take writes.",
		Err: errors.New("disk I/O error: secret path")}
}

// validating is held while the validator works: it renders schemas of the shared
// document and is not safe for use from several goroutines.
var validating sync.Mutex

// document is the validator of the published document, made once.
var document = sync.OnceValues(func() (validator.Validator, error) {
	text, err := os.ReadFile(goldenDocument)
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc, config.WithStrictMode(), config.WithFormatAssertions(),
		config.WithStrictIgnorePaths("$.body.input_data.**", "$.body[*].input_data.**", "$.body.result.**",
			"$.body[*].result.**", "$.body.body.**", "$.body.errors[*].value.**",
			"$.body.headers.*", "$.body.errors.*", "$.body.queue.lanes.*", "$.body.endpoints.*",
			"$.body.callback_service.attempts.*", "$.body.callback_service.domains**"),
		config.WithStrictIgnoredHeadersExtra("x-content-type-options", "content-security-policy", "referrer-policy",
			"content-encoding",
			"x-frame-options", "cross-origin-opener-policy", "cross-origin-resource-policy", "strict-transport-security",
			"access-control-allow-origin", "access-control-expose-headers", "allow"))
	return v, errors.Join(errs...)
})

// checked is a transport that lets no answer through that the document does not describe.
type checked struct {
	t    testing.TB
	next http.RoundTripper
}

func (c *checked) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return nil, err
	}
	check(c.t, r, response, body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// wireProblem is an error as a client reads it.
type wireProblem struct {
	Type       string              `json:"type"`
	Title      string              `json:"title"`
	Status     int                 `json:"status"`
	Detail     string              `json:"detail"`
	Instance   string              `json:"instance"`
	Code       tandem.Code         `json:"code"`
	Errors     []tandem.FieldError `json:"errors"`
	RequestID  string              `json:"request_id"`
	RetryAfter int                 `json:"retry_after"`
}

// check holds one answer against what is promised of every answer, and against
// the document.
func check(t testing.TB, r *http.Request, response *http.Response, body []byte) {
	t.Helper()
	what := r.Method + " " + r.URL.Path + " " + response.Status
	if took, err := strconv.ParseFloat(response.Header.Get("X-Process-Time"), 64); err != nil || took < 0 || took > 60 {
		t.Errorf("%s: X-Process-Time %q, want seconds", what, response.Header.Get("X-Process-Time"))
	}
	if !strings.HasPrefix(response.Header.Get("Server-Timing"), "app;dur=") {
		t.Errorf("%s: Server-Timing %q", what, response.Header.Get("Server-Timing"))
	}
	if response.Header.Get("X-Request-Id") == "" || response.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: X-Request-ID or X-Content-Type-Options missing in %v", what, response.Header)
	}
	checkKeeping(t, what, r, response)
	if response.StatusCode >= 400 && r.Method != http.MethodHead {
		checkProblem(t, what, r, response, body)
	}
	asset := strings.HasPrefix(r.URL.Path, "/docs/") || strings.HasPrefix(r.URL.Path, "/.well-known/") ||
		r.URL.Path == "/openapi.json"
	known := strings.HasPrefix(r.URL.Path, "/requests/") || strings.HasPrefix(r.URL.Path, "/test-callback/") ||
		strings.HasPrefix(r.URL.Path, "/problems/")
	undocumented := response.StatusCode == http.StatusMethodNotAllowed || response.StatusCode == http.StatusNotFound &&
		!known
	if asset || undocumented || r.Method == http.MethodOptions || r.Method == http.MethodHead {
		return
	}
	v, err := document()
	if err != nil {
		t.Fatalf("read the document: %v", err)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	validating.Lock()
	_, problems := v.ValidateHttpResponse(r, response)
	validating.Unlock()
	for _, p := range problems {
		t.Errorf("%s: the answer is not as documented: %s: %s %v\n%.300s", what, p.Message, p.Reason,
			p.SchemaValidationErrors, body)
	}
}

// checkKeeping looks at what an answer says to browsers and caches: nobody keeps data, and a page
// takes nothing from elsewhere and is framed nowhere.
func checkKeeping(t testing.TB, what string, r *http.Request, response *http.Response) {
	t.Helper()
	switch keep := response.Header.Get("Cache-Control"); {
	case r.Method == http.MethodOptions, keep == "no-store", keep == "private, no-cache":
	case strings.HasPrefix(r.URL.Path, "/docs/") && keep == "public, max-age=3600":
	case keep == "no-cache" && (strings.HasPrefix(response.Header.Get("Content-Type"), mediaHTML) ||
		strings.HasPrefix(r.URL.Path, "/openapi.") || strings.HasPrefix(r.URL.Path, "/.well-known/")):
	default:
		t.Errorf("%s: Cache-Control %q", what, keep)
	}
	if !strings.HasPrefix(response.Header.Get("Content-Type"), mediaHTML) {
		return
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := response.Header.Get(name); !strings.Contains(got, want) {
			t.Errorf("%s: %s %q, want %s", what, name, got, want)
		}
	}
}

const mediaHTML = "text/html"

// checkProblem holds an error against RFC 9457 and our table of codes.
func checkProblem(t testing.TB, what string, r *http.Request, response *http.Response, body []byte) {
	t.Helper()
	var p wireProblem
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil || response.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: no problem+json (%v): %.300s", what, err, body)
		return
	}
	if p.Status != response.StatusCode || p.Type != "/problems/"+string(p.Code) || p.Instance != r.URL.EscapedPath() ||
		p.Title == "" || p.Detail == "" || server.StatusOf(p.Code) != p.Status {
		t.Errorf("%s: the problem contradicts itself or the answer: %+v", what, p)
	}
	if header := response.Header.Get("Retry-After"); (p.RetryAfter > 0 || p.Status == 503) &&
		header != strconv.Itoa(p.RetryAfter) {
		t.Errorf("%s: Retry-After %q, retry_after %d", what, header, p.RetryAfter)
	}
	if strings.Contains(string(body), "secret path") {
		t.Errorf("%s: the cause of an error is shown: %s", what, body)
	}
}

// answer is what a test looks at.
type answer struct {
	status int
	header http.Header
	body   string
}

// problem decodes an error.
func (a answer) problem(t testing.TB) wireProblem {
	t.Helper()
	var p wireProblem
	a.decode(t, &p)
	return p
}

func (a answer) decode(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("decode %.300q: %v", a.body, err)
	}
}

// do sends one request; headers are "Name: value".
func (s *service) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	if host := r.Header.Get("Host"); host != "" { // net/http sends it from this field alone
		r.Host = host
	}
	response, err := s.http.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(text)}
}

func (s *service) get(path string) answer { s.t.Helper(); return s.do(http.MethodGet, path, "") }

func (s *service) post(path, body string) answer {
	s.t.Helper()
	return s.do(http.MethodPost, path, body)
}

// submit posts to /async and returns the id.
func (s *service) submit(body string) string {
	s.t.Helper()
	a := s.post("/async", body)
	if a.status != http.StatusAccepted {
		s.t.Fatalf("POST /async: %d %s", a.status, a.body)
	}
	var reply struct {
		ID string `json:"request_id"`
	}
	a.decode(s.t, &reply)
	return reply.ID
}

// wait asks for a request until it is as wanted.
func (s *service) wait(id string, wanted func(tandem.Request) bool) (r tandem.Request) {
	s.t.Helper()
	s.until("request "+id, func() bool {
		r = tandem.Request{}
		s.get("/requests/"+id).decode(s.t, &r)
		return wanted(r)
	})
	return r
}
