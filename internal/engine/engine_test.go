package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/store"
)

func TestMain(m *testing.M) {
	if slices.Contains(os.Args, computeArgument) {
		if err := engine.ServeComputeTasks(os.Stdin, os.Stdout, computeTasks()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) //nolint:forbidigo // what main does
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of these tests; none of them normally takes a tenth of it.
const patience = 20 * time.Second

// plant is an engine on a real store. It runs from start to stop.
type plant struct {
	*engine.Engine
	t      testing.TB
	store  *faultyStore
	cancel context.CancelFunc
	done   chan error // receives what Run returned, once
	once   sync.Once
}

// setup is what a test may change.
type setup struct {
	engine engine.Config
	egress egress.Config
	url    string // of the store
	idle   bool   // do not start Run
}

var (
	quiet   = slog.New(slog.DiscardHandler)
	secretA = tandem.NewSecret()
	secretB = tandem.NewSecret()
)

// start builds a plant and runs it until the test ends or stop is called.
func start(t testing.TB, change func(*setup)) *plant {
	t.Helper()
	s := setup{
		url:    ":memory:",
		egress: egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}, Log: quiet},
		engine: engine.Config{
			Secrets: []tandem.Secret{secretA, secretB},
			Tasks:   testTasks(),
			Workers: 1, IOWorkers: 4,
			Retry: engine.Schedule{Backoff: 5 * time.Millisecond},
			Log:   quiet,
		},
	}
	if change != nil {
		change(&s)
	}
	kept, err := store.Open(t.Context(), store.Config{URL: s.url, Log: quiet, Nodes: s.engine.Nodes})
	if err != nil {
		t.Fatal(err)
	}
	strangers, err := egress.New(s.egress)
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{t: t, store: &faultyStore{Store: kept}, done: make(chan error, 1)}
	s.engine.Store, s.engine.Egress = p.store, strangers
	if p.Engine, err = engine.New(s.engine); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	t.Cleanup(func() {
		p.Halt()
		if !s.idle {
			p.stop()
		}
		cancel()
		strangers.Close()
		if err := kept.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	if s.idle {
		return p
	}
	go func() { p.done <- p.Run(ctx) }() // stop waits for it
	p.await("open for orders", func() bool { return !p.Draining() })
	return p
}

// stop ends Run and waits for it.
func (p *plant) stop() {
	p.t.Helper()
	p.cancel()
	p.wait()
}

// wait waits for Run to return.
func (p *plant) wait() {
	p.t.Helper()
	p.once.Do(func() {
		select {
		case err := <-p.done:
			if err != nil {
				p.t.Errorf("Run returned %v, want nil", err)
			}
		case <-time.After(patience):
			p.t.Fatal("Run did not return")
		}
	})
}

// await waits until what is true.
func (p *plant) await(what string, is func() bool) {
	p.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-timeout.C:
			p.t.Fatalf("not in time: %s", what)
		}
	}
}

// request reads a request from the store.
func (p *plant) request(id string) tandem.Request {
	p.t.Helper()
	r, err := p.store.Request(context.Background(), id)
	if err != nil {
		p.t.Fatalf("read request %s: %v", id, err)
	}
	return r
}

// settled waits until nothing is left to do for a request, and returns it.
func (p *plant) settled(id string) tandem.Request {
	p.t.Helper()
	p.await("request settled", func() bool { r := p.request(id); return !r.Unfinished() })
	return p.request(id)
}

// submit accepts an order for a task with its callback to url.
func (p *plant) submit(task, url string) tandem.Request {
	p.t.Helper()
	r, err := p.Submit(p.t.Context(), engine.Order{Task: task, Data: json.RawMessage(`{"a":1}`), Complexity: 1, CallbackURL: url})
	if err != nil {
		p.t.Fatalf("Submit(%s): %v", task, err)
	}
	return r
}

// only returns the one request of the store.
func (p *plant) only() tandem.Request {
	p.t.Helper()
	page, err := p.store.Requests(context.Background(), store.Filter{Limit: 10})
	if err != nil || len(page.Requests) != 1 {
		p.t.Fatalf("history holds %d requests (%v), want 1", len(page.Requests), err)
	}
	return page.Requests[0]
}

// faultyStore is the real store until a test sets a fault.
type faultyStore struct {
	store.Store
	mu     sync.Mutex
	finish error  // what Finish returns instead of finishing
	accept error  // what Accept returns instead of accepting
	taken  int    // so many calls of Accept find their id taken
	before func() // called by Accept first, if set
	late   bool   // Accept accepts, but does not say so before its context ends
	unsure bool   // Accept accepts, and says that it does not know
}

func (f *faultyStore) sabotage(accept, finish error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accept, f.finish = accept, finish
}

// onAccept has f called at the beginning of every Accept.
func (f *faultyStore) onAccept(before func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

func (f *faultyStore) isTaken() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken--
	return f.taken >= 0
}

func (f *faultyStore) faults() (accept, finish error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accept, f.finish
}

func (f *faultyStore) Accept(ctx context.Context, lane store.Lane, requests ...*tandem.Request) error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		before()
	}
	if fault, _ := f.faults(); fault != nil {
		return fault
	}
	if f.isTaken() {
		return store.ErrExists
	}
	if err := f.Store.Accept(ctx, lane, requests...); err != nil {
		return err
	}
	if f.unsure {
		return &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "perhaps", Err: store.ErrUnsure}
	}
	if f.late {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (f *faultyStore) Finish(ctx context.Context, job store.Job, next store.Next) error {
	if _, fault := f.faults(); fault != nil {
		return fault
	}
	return f.Store.Finish(ctx, job, next)
}

// task makes a task in the io lane.
func task(name string, run func(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error)) engine.Task {
	return engine.Task{Name: name, Lane: store.LaneIO, Run: run}
}

// testTasks are tasks that end in every way a task can.
func testTasks() []engine.Task {
	return []engine.Task{
		task("broken", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return nil, errors.New("the printer is on fire")
		}),
		task("panicky", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			panic("the printer exploded")
		}),
		{Name: "panicky-cpu", Lane: store.LaneCPU, Run: func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			panic("the calculator exploded")
		}},
		task("garbled", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return json.RawMessage(`{"half":`), nil
		}),
		task("void", func(context.Context, json.RawMessage, int) (json.RawMessage, error) { return nil, nil }),
		task("stuck", func(ctx context.Context, _ json.RawMessage, _ int) (json.RawMessage, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
	}
}

// gated is a task that tells when it has started and then waits for its release;
// it gives up when its context ends if obeys is set.
type gated struct {
	started chan struct{} // one token for each start
	release chan struct{} // closed by the test
	obeys   bool
}

func newGated(obeys bool) *gated {
	return &gated{started: make(chan struct{}, 100), release: make(chan struct{}), obeys: obeys}
}

func (g *gated) task(name string) engine.Task {
	return task(name, func(ctx context.Context, _ json.RawMessage, _ int) (json.RawMessage, error) {
		g.started <- struct{}{}
		if !g.obeys {
			<-g.release
			return json.RawMessage(`"released"`), nil
		}
		select {
		case <-g.release:
			return json.RawMessage(`"released"`), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
}

// receiver is a real HTTP receiver of callbacks.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	got []delivery
}

// delivery is one callback as it arrived.
type delivery struct {
	header http.Header
	raw    []byte
	at     time.Time
	tandem.Callback
}

// newReceiver answers the n-th callback (from 1) with answer; nil means 200.
func newReceiver(t testing.TB, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	rc := &receiver{}
	rc.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		d := delivery{header: r.Header, raw: raw, at: time.Now()}
		if err == nil {
			err = json.Unmarshal(raw, &d.Callback)
		}
		if err != nil {
			t.Errorf("callback body: %v", err)
		}
		rc.mu.Lock()
		rc.got = append(rc.got, d)
		n := len(rc.got)
		rc.mu.Unlock()
		if answer != nil {
			answer(n, w, r)
		}
	}))
	t.Cleanup(rc.Close)
	return rc
}

// deliveries returns what has arrived so far.
func (rc *receiver) deliveries() []delivery {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]delivery(nil), rc.got...)
}

// status answers every callback with one status code.
func status(code int) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// wantCode checks the code of an error and returns it for a closer look.
func wantCode(t testing.TB, err error, code tandem.Code) *tandem.Error {
	t.Helper()
	var e *tandem.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v (%T), want a *tandem.Error with %s", err, err, code)
	}
	if e.Code != code {
		t.Fatalf("code %s (%v), want %s", e.Code, err, code)
	}
	return e
}

// databaseFile is a database that outlives its store.
func databaseFile(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "tandem.db")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := func() engine.Config {
		strangers, err := egress.New(egress.Config{Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		return engine.Config{Store: &faultyStore{}, Egress: strangers, Secrets: []tandem.Secret{secretA}}
	}
	run := testTasks()[0].Run
	for _, tt := range []struct {
		name   string
		change func(*engine.Config)
		want   string // part of the error; "" means there is none
	}{
		{"nothing", func(*engine.Config) {}, ""},
		{"no store", func(c *engine.Config) { c.Store = nil }, "Store"},
		{"no egress", func(c *engine.Config) { c.Egress = nil }, "Egress"},
		{"no secret", func(c *engine.Config) { c.Secrets = nil }, "Secrets"},
		{"an empty secret", func(c *engine.Config) { c.Secrets = []tandem.Secret{secretA, {}} }, "Secrets"},
		{"negative workers", func(c *engine.Config) { c.Workers = -1 }, "Workers"},
		{"as many workers as may be", func(c *engine.Config) { c.IOWorkers = 10_000 }, ""},
		{"too many workers", func(c *engine.Config) { c.IOWorkers = 10_001 }, "Workers"},
		{"negative timeout", func(c *engine.Config) { c.TaskTimeout = -1 }, "TaskTimeout"},
		{"bad schedule", func(c *engine.Config) { c.Retry.Attempts = -1 }, "attempts"},
		{"task without a name", func(c *engine.Config) { c.Tasks = []engine.Task{{Lane: store.LaneIO, Run: run}} }, "name"},
		{"task in capitals", func(c *engine.Config) { c.Tasks = []engine.Task{{Name: "Do", Lane: store.LaneIO, Run: run}} }, "lower case"},
		{"built-in name", func(c *engine.Config) { c.Tasks = []engine.Task{{Name: "echo", Lane: store.LaneIO, Run: run}} }, "two tasks"},
		{"task to deliver", func(c *engine.Config) { c.Tasks = []engine.Task{{Name: "x", Lane: store.LaneDeliver, Run: run}} }, "lane"},
		{"task without Run", func(c *engine.Config) { c.Tasks = []engine.Task{{Name: "x", Lane: store.LaneIO}} }, "Run"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := good()
			tt.change(&cfg)
			_, err := engine.New(cfg)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("New: %v, want no error", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("New: %v, want an error about %q", err, tt.want)
			}
		})
	}
}

func TestRunOnce(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	if err := p.Run(t.Context()); err == nil {
		t.Error("a second Run returned nil, want an error")
	}
	p.submit("echo", newReceiver(t, nil).URL) // the first one goes on
}

func TestClosedBeforeRunAndAfterDrain(t *testing.T) {
	t.Parallel()
	order := engine.Order{Task: "echo", Data: json.RawMessage(`{"a":1}`), Complexity: 1, CallbackURL: "http://127.0.0.1:9"}
	refuses := func(t *testing.T, p *plant) {
		t.Helper()
		if !p.Draining() {
			t.Error("Draining() is false")
		}
		_, err := p.Do(t.Context(), order)
		if e := wantCode(t, err, tandem.CodeDraining); e.RetryAfter <= 0 || e.RequestID != "" {
			t.Errorf("Do: RetryAfter %v, RequestID %q; want some and none", e.RetryAfter, e.RequestID)
		}
		_, err = p.Submit(t.Context(), order)
		wantCode(t, err, tandem.CodeDraining)
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		refuses(t, start(t, func(s *setup) { s.idle = true }))
	})
	t.Run("after", func(t *testing.T) {
		t.Parallel()
		p := start(t, nil)
		p.Drain()
		p.Drain()
		refuses(t, p)
		p.stop()
		refuses(t, p)
	})
}

func TestRetention(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.engine.Retention = time.Millisecond })
	r, err := p.Do(t.Context(), engine.Order{Task: "echo", Data: json.RawMessage(`{"a":1}`), Complexity: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.await("the old request deleted", func() bool {
		_, err := p.store.Request(context.Background(), r.ID)
		return tandem.CodeOf(err) == tandem.CodeNotFound
	})
}
