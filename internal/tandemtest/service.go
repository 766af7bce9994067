// Package tandemtest gives tests the real thing: a whole tandem on a free port, the one that
// `tandem serve` opens, and receivers that misbehave the way
// receivers do. Nothing is simulated; only tests import it.
package tandemtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
)

// Patience is how long the package waits for anything before the test fails.
const Patience = 20 * time.Second

// Service is a running tandem.
type Service struct {
	*app.Service

	client *http.Client
	stop   func()
}

// Start boots a service on a free port of the loopback interface, whatever cfg says of that, and waits until
// it is ready. It is stopped when the test ends, or by Stop before that.
func Start(t testing.TB, cfg app.Config) *Service {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	opened, err := app.Open(t.Context(), cfg)
	must(t, "open service", err)
	s := &Service{Service: opened, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{RootCAs: trusted(t, cfg.TLSCert)},
	}}}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- opened.Run(ctx, nil) }() // stop waits for it
	s.stop = sync.OnceFunc(func() {
		s.client.CloseIdleConnections()
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("stop service: %v", err)
		}
	})
	t.Cleanup(s.stop)
	select {
	case <-opened.Ready():
	case <-time.After(Patience):
		t.Fatal("the service is not ready")
	}
	return s
}

// trusted is whom a client trusts: the certificate in a file, if one is named.
func trusted(t testing.TB, certFile string) *x509.CertPool {
	t.Helper()
	if certFile == "" {
		return nil
	}
	pem, err := os.ReadFile(certFile)
	must(t, "read certificate", err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}

// Stop drains the service and closes it, as SIGTERM does.
func (s *Service) Stop() { s.stop() }

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
