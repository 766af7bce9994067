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
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

func TestMain(m *testing.M) {
	if slices.Contains(os.Args, computeArgument) {
		if err := work.ServeCompute(os.Stdin, os.Stdout, computeTasks()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) //nolint:forbidigo // what main does
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of these tests; none of them normally takes a tenth of it.
const patience = 20 * time.Second

// plant is an engine on a real store. It runs from start to Stop.
type plant struct {
	*tandemtest.Engine

	t testing.TB
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
			Retry: work.Retry{Backoff: 5 * time.Millisecond},
			Log:   quiet,
		},
	}
	if change != nil {
		change(&s)
	}
	return &plant{t: t, Engine: tandemtest.StartEngine(t, tandemtest.EngineConfig{
		Engine: s.engine, Egress: s.egress, Idle: s.idle,
		Store: store.Config{URL: s.url, Log: quiet, Nodes: s.engine.Nodes},
	})}
}

// submit accepts an order for a task with its callback to url.
func (p *plant) submit(task, url string) tandem.Request {
	p.t.Helper()
	r, err := p.Submit(p.t.Context(),
		engine.Order{Task: task, Data: json.RawMessage(`{"a":1}`), Complexity: 1, CallbackURL: url})
	if err != nil {
		p.t.Fatalf("Submit(%s): %v", task, err)
	}
	return r
}

// task makes a task in the io lane.
func task(
	name string, run func(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error),
) work.Task {
	return work.Task{Name: name, Class: work.IO, Run: work.JSON(run)}
}

// testTasks are tasks that end in every way a task can.
func testTasks() []work.Task {
	return []work.Task{
		task("broken", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			return nil, errors.New("the printer is on fire")
		}),
		task("panicky", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			panic("the printer exploded")
		}),
		{Name: "panicky-cpu", Class: work.CPU, Run: func(context.Context, work.Input) work.Result {
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

func (g *gated) task(name string) work.Task {
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

// destination is a real HTTP receiver of callbacks.
type destination struct {
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
func newReceiver(t testing.TB, answer func(n int, w http.ResponseWriter, r *http.Request)) *destination {
	t.Helper()
	rc := &destination{}
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
func (rc *destination) deliveries() []delivery {
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
		return engine.Config{Store: &tandemtest.FaultyStore{}, Egress: strangers, Secrets: []tandem.Secret{secretA}}
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
		{"task without a name", func(c *engine.Config) { c.Tasks = []work.Task{{Class: work.IO, Run: run}} }, "name"},
		{"task in capitals", func(c *engine.Config) { c.Tasks = []work.Task{{Name: "Do", Class: work.IO, Run: run}} },
			"lower case"},
		{"built-in name", func(c *engine.Config) { c.Tasks = []work.Task{{Name: "echo", Class: work.IO, Run: run}} },
			"two tasks"},
		{"task of no class", func(c *engine.Config) { c.Tasks = []work.Task{{Name: "x", Class: "deliver", Run: run}} },
			"class"},
		{"task without Run", func(c *engine.Config) { c.Tasks = []work.Task{{Name: "x", Class: work.IO}} }, "Run"},
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
		p.Stop()
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
	p.Await("the old request deleted", func() bool {
		_, err := p.Store.Request(context.Background(), r.ID)
		return tandem.CodeOf(err) == tandem.CodeNotFound
	})
}
