// Package tandemtest gives tests the real thing: a whole tandem on a free port,
// wired as `tandem serve` wires it, and receivers that misbehave the way
// receivers do. Nothing is simulated; only tests import it.
package tandemtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
)

// Patience is how long the package waits for anything before the test fails.
const Patience = 20 * time.Second

// Config says what differs from demo mode in memory. What one part needs of
// another (Store, Egress, Engine, Secrets, Log) is filled in.
type Config struct {
	Store  store.Config  // URL "": :memory:
	Egress egress.Config // Policy counts only when Strict
	Engine engine.Config
	Server server.Config // Mode "": demo; TestCallback is on unless Strict
	Strict bool          // take Egress.Policy as it is, instead of allowing private addresses and any port
	Secret tandem.Secret // zero: a new one

	// RootCAs trust Server.Certificate, if there is one; then the URL is https.
	RootCAs *x509.CertPool
}

// Service is a running tandem.
type Service struct {
	URL    string // base, without a slash at the end
	Secret tandem.Secret
	Store  *store.SQLite
	Egress *egress.Client
	Engine *engine.Engine

	client *http.Client
	stop   func()
}

// Start boots a service on a free port of the loopback interface and waits until
// it is ready. It is stopped when the test ends, or by Stop before that.
func Start(t testing.TB, cfg Config) *Service {
	t.Helper()
	if cfg.Store.URL == "" {
		cfg.Store.URL = ":memory:"
	}
	if !cfg.Strict {
		cfg.Egress.Policy = egress.Policy{AllowPrivate: true, AnyPort: true}
		cfg.Server.TestCallback = true
	}
	if cfg.Server.Mode == "" {
		cfg.Server.Mode = "demo"
	}
	if cfg.Server.Connections == nil {
		cfg.Server.Connections = server.NewConnections(10_000, cfg.Server.TrustedProxies)
	}
	if cfg.Secret.IsZero() {
		cfg.Secret = tandem.NewSecret()
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg.Store.Log, cfg.Egress.Log, cfg.Engine.Log, cfg.Server.Log = log, log, log, log

	s := &Service{Secret: cfg.Secret, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{RootCAs: cfg.RootCAs}}}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	nodes := store.NewNodes(listener.Addr().String())
	cfg.Store.Nodes, cfg.Engine.Nodes, cfg.Server.Nodes = nodes, nodes, nodes
	s.Store, err = store.OpenSQLite(t.Context(), cfg.Store)
	must(t, "open store", err)
	s.Egress, err = egress.New(cfg.Egress)
	must(t, "set up egress", err)
	cfg.Engine.Store, cfg.Engine.Egress, cfg.Engine.Secrets = s.Store, s.Egress, []tandem.Secret{cfg.Secret}
	s.Engine, err = engine.New(cfg.Engine)
	must(t, "set up engine", err)
	cfg.Server.Engine, cfg.Server.Store = s.Engine, s.Store
	handler, err := server.New(cfg.Server)
	must(t, "set up server", err)
	s.URL = "http://" + listener.Addr().String()
	if cfg.Server.Certificate != nil {
		s.URL = "https://" + listener.Addr().String()
	}
	s.serve(t, server.HTTPServer(handler, cfg.Server), listener, cfg.Server)
	s.awaitReady(t)
	return s
}

// serve starts everything and arranges for its end.
func (s *Service) serve(t testing.TB, web *http.Server, listener net.Listener, cfg server.Config) {
	ctx, cancel := context.WithCancel(context.Background())
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Engine.Run(running) })
	g.Go(func() error {
		if err := server.Serve(web, listener, cfg); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-running.Done()
		s.Engine.Drain()
		bound, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		return web.Shutdown(bound)
	})
	s.stop = sync.OnceFunc(func() {
		s.client.CloseIdleConnections()
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("stop service: %v", err)
		}
		s.Egress.Close()
		if err := s.Store.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	t.Cleanup(s.stop)
}

// Stop drains the service and closes it, as SIGTERM does.
func (s *Service) Stop() { s.stop() }

// awaitReady returns when /readyz answers 200.
func (s *Service) awaitReady(t testing.TB) {
	t.Helper()
	Eventually(t, "the service is ready", func() bool {
		answer, err := s.client.Get(s.URL + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// Response is an HTTP response, read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// RequestID is the request_id in the body, "" when there is none.
func (r Response) RequestID() string {
	var body struct {
		RequestID string `json:"request_id"`
	}
	if json.Unmarshal(r.Body, &body) != nil {
		return ""
	}
	return body.RequestID
}

// Post sends a JSON text.
func (s *Service) Post(t testing.TB, path, body string) Response {
	t.Helper()
	return s.send(t, http.MethodPost, path, body)
}

// Fetch gets a path.
func (s *Service) Fetch(t testing.TB, path string) Response {
	t.Helper()
	return s.send(t, http.MethodGet, path, "")
}

func (s *Service) send(t testing.TB, method, path, body string) Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader([]byte(body)))
	must(t, "make request", err)
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := s.client.Do(request)
	must(t, "send request", err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, "read answer", err)
	return Response{Status: response.StatusCode, Header: response.Header, Body: text}
}

// Await returns the request once ok says so, with its attempts.
func (s *Service) Await(t testing.TB, id string, ok func(tandem.Request) bool) tandem.Request {
	t.Helper()
	var request tandem.Request
	Eventually(t, fmt.Sprintf("request %s is as expected", id), func() bool {
		var err error
		request, err = s.Store.Request(t.Context(), id)
		must(t, "read request", err)
		return ok(request)
	})
	return request
}

// Eventually polls until ok, and fails the test when that takes longer than [Patience].
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v in vain until %s", Patience, what)
		}
	}
}

// must ends the test when setting it up does not work.
func must(t testing.TB, doing string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", doing, err)
	}
}
