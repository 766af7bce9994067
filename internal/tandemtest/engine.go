package tandemtest

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/telemetry"
)

// patience bounds every wait for an engine; none normally takes a tenth of it.
const patience = 20 * time.Second

// Engine is an engine on a real store of its own. It runs from StartEngine to Stop.
type Engine struct {
	*engine.Engine

	Store   *FaultyStore
	Metrics *telemetry.Metrics
	Cancel  context.CancelFunc // ends the context of Run
	Done    chan error         // receives what Run returned, once

	t    testing.TB
	once sync.Once
}

// EngineConfig is what StartEngine makes an engine of. It sets Store and Egress of the engine itself.
type EngineConfig struct {
	Engine engine.Config
	Egress egress.Config
	Store  store.Config
	Idle   bool // do not start Run
}

// StartEngine makes an engine and runs it until the test ends or Stop is called.
func StartEngine(t testing.TB, cfg EngineConfig) *Engine {
	t.Helper()
	kept, err := app.OpenStore(t.Context(), cfg.Store)
	if err != nil {
		t.Fatal(err)
	}
	strangers, err := egress.New(cfg.Egress)
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{t: t, Store: &FaultyStore{Store: kept}, Done: make(chan error, 1)}
	cfg.Engine.Store, cfg.Engine.Egress = e.Store, strangers
	e.Metrics = telemetry.New(telemetry.Config{Tasks: cfg.Engine.Tasks, Log: cfg.Engine.Log})
	cfg.Engine.Observers = append([]func(engine.Event){e.Metrics.Observe}, cfg.Engine.Observers...)
	cfg.Engine.Publish, cfg.Engine.Receive = e.Metrics.Publish, e.Metrics.Receive
	if e.Engine, err = engine.New(cfg.Engine); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.Cancel = cancel
	t.Cleanup(func() {
		e.Halt()
		if !cfg.Idle {
			e.Stop()
		}
		cancel()
		strangers.Close()
		if err := kept.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	if cfg.Idle {
		return e
	}
	go func() { e.Done <- e.Run(ctx) }() // Stop waits for it
	<-e.Ready()
	return e
}

// Stop ends Run and waits for it.
func (e *Engine) Stop() {
	e.t.Helper()
	e.Cancel()
	e.Wait()
}

// Wait waits for Run to return.
func (e *Engine) Wait() {
	e.t.Helper()
	e.once.Do(func() {
		select {
		case err := <-e.Done:
			if err != nil {
				e.t.Errorf("Run returned %v, want nil", err)
			}
		case <-time.After(patience):
			e.t.Fatal("Run did not return")
		}
	})
}

// Await waits until what is true.
func (e *Engine) Await(what string, is func() bool) {
	e.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-timeout.C:
			e.t.Fatalf("not in time: %s", what)
		}
	}
}

// Request reads a request from the store.
func (e *Engine) Request(id string) tandem.Request {
	e.t.Helper()
	r, err := e.Store.Request(context.Background(), id)
	if err != nil {
		e.t.Fatalf("read request %s: %v", id, err)
	}
	return r
}

// Settled waits until nothing is left to do for a request, and returns it.
func (e *Engine) Settled(id string) tandem.Request {
	e.t.Helper()
	e.Await("request settled", func() bool { r := e.Request(id); return !r.Unfinished() })
	return e.Request(id)
}

// Only returns the one request of the store.
func (e *Engine) Only() tandem.Request {
	e.t.Helper()
	page, err := e.Store.Requests(context.Background(), store.Filter{Limit: 10})
	if err != nil || len(page.Requests) != 1 {
		e.t.Fatalf("history holds %d requests (%v), want 1", len(page.Requests), err)
	}
	return page.Requests[0]
}

// Ended is how many requests have ended since the start, by the labels of their metric; those of which none has are
// left out unless zeros.
func (e *Engine) Ended(zeros bool) map[string]float64 {
	e.t.Helper()
	const name = "tandem_requests_ended_total"
	ended := Samples(e.t, e.Metrics)
	maps.DeleteFunc(ended, func(sample string, value float64) bool {
		return !strings.HasPrefix(sample, name) || value == 0 && !zeros
	})
	return ended
}

// Samples are the samples of a collector, by name and labels as a scrape shows them.
func Samples(t testing.TB, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	scrape := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(scrape, httptest.NewRequest(http.MethodGet, "/", nil))
	samples := map[string]float64{}
	for line := range strings.Lines(scrape.Body.String()) {
		name, text, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found || name == "#" {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		must(t, "read sample "+line, err)
		samples[name] = value
	}
	return samples
}

// Marks are the marks of the lines about a request in a log, at least two.
func (e *Engine) Marks(log *Log, id string) []string {
	e.t.Helper()
	var marks []string
	for _, match := range regexp.MustCompile(`msg="(\S+) .*request_id=`+id).FindAllStringSubmatch(log.String(), -1) {
		marks = append(marks, match[1])
	}
	if len(marks) < 2 {
		e.t.Fatalf("steps %q in\n%s", marks, log.String())
	}
	return marks
}

// Log remembers what is written to it, by any number of goroutines.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count is how many times a text was written.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// FaultyStore is a real store until a test sets a fault.
type FaultyStore struct {
	store.Store

	Late   bool // Accept accepts, but does not say so before its context ends; set before it is used
	Unsure bool // Accept accepts, and says that it does not know; set before it is used

	mu     sync.Mutex // guards the fields below
	finish error      // what Finish returns instead of finishing
	accept error      // what Accept returns instead of accepting
	taken  int        // so many calls of Accept find their id taken
	before func()     // called by Accept first; nil: nothing
}

// Sabotage makes Accept and Finish return these errors from now on; nil: they work.
func (f *FaultyStore) Sabotage(accept, finish error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accept, f.finish = accept, finish
}

// OnAccept has before called at the beginning of every Accept.
func (f *FaultyStore) OnAccept(before func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// Take has the next n calls of Accept find their id taken.
func (f *FaultyStore) Take(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken = n
}

// begin calls what OnAccept has set, and returns the fault of a call of Accept.
func (f *FaultyStore) begin() error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		before()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.accept != nil:
		return f.accept
	case f.taken > 0:
		f.taken--
		return store.ErrExists
	default:
		return nil
	}
}

// Accept accepts, unless a fault is set.
func (f *FaultyStore) Accept(ctx context.Context, lane store.Lane, requests ...*tandem.Request) error {
	if fault := f.begin(); fault != nil {
		return fault
	}
	if err := f.Store.Accept(ctx, lane, requests...); err != nil {
		return err
	}
	if f.Unsure {
		return &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "perhaps", Err: store.ErrUnsure}
	}
	if f.Late {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Finish finishes, unless a fault is set.
func (f *FaultyStore) Finish(ctx context.Context, job store.Job, next store.Next) error {
	f.mu.Lock()
	fault := f.finish
	f.mu.Unlock()
	if fault != nil {
		return fault
	}
	return f.Store.Finish(ctx, job, next)
}
