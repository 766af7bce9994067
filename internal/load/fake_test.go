package load_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/load"
)

// fake is a service that keeps the contract as far as a run can see, with faults by plan.
type fake struct {
	url    string
	secret tandem.Secret
	asked  atomic.Int64 // POSTs so far

	// What POST does; nil: at once, 200 or 202. n counts from 1.
	post func(w http.ResponseWriter, r *http.Request, n int64) (handled bool)
	// How often the callback of the n-th request is sent; nil: once.
	callbacks func(n int64) int
	// Damages the n-th request's callback; nil: no one's.
	damage func(n int64, header http.Header)
	early  bool            // callbacks are sent before the 202 is written
	polled func(id string) // told of every GET /requests/{id}; nil: nobody

	skew    time.Duration // of its clock
	metrics func() string // GET /metrics; nil: 404
	breaker string        // state of the circuit breaker for every receiver in GET /stats; "": 404

	mu       sync.Mutex
	urls     []string // callback URLs
	statuses map[string]string

	sending sync.WaitGroup
	client  http.Client
}

func (f *fake) start(t *testing.T) *fake {
	t.Helper()
	f.secret = tandem.NewSecret()
	f.statuses = make(map[string]string)
	f.client.Transport = &http.Transport{MaxIdleConnsPerHost: 16}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"status":"healthy","timestamp":%q,"version":"fake"}`,
			time.Now().Add(f.skew).UTC().Format(time.RFC3339Nano))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if f.metrics == nil {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, f.metrics())
	})
	mux.HandleFunc("GET /stats", f.stats)
	mux.HandleFunc("GET /requests/{id}", f.show)
	mux.HandleFunc("POST /{mode}", f.handle)
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		f.client.CloseIdleConnections()
		f.sending.Wait()
		server.Close()
	})
	f.url = server.URL
	return f
}

func (f *fake) stats(w http.ResponseWriter, r *http.Request) {
	if f.breaker == "" {
		http.NotFound(w, r)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	domains := map[string]map[string]string{}
	for _, to := range f.urls {
		domains[strings.Split(to, "/")[2]] = map[string]string{"state": f.breaker}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"callback_service": map[string]any{"domains": domains}})
}

func (f *fake) show(w http.ResponseWriter, r *http.Request) {
	if f.polled != nil {
		f.polled(r.PathValue("id"))
	}
	f.mu.Lock()
	status, ok := f.statuses[r.PathValue("id")]
	f.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	fmt.Fprintf(w, `{"request_id":%q,"status":%q,"processing_time_ms":3}`, r.PathValue("id"), status)
}

func (f *fake) handle(w http.ResponseWriter, r *http.Request) {
	n := f.asked.Add(1)
	var order struct {
		CallbackURL string `json:"callback_url"`
	}
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if f.post != nil && f.post(w, r, n) {
		return
	}
	id := fmt.Sprint("req_", n)
	if r.PathValue("mode") == "sync" {
		fmt.Fprintf(w, `{"request_id":%q,"result":{},"processing_time_ms":2}`, id)
		return
	}
	f.mu.Lock()
	f.urls = append(f.urls, order.CallbackURL)
	f.statuses[id] = string(tandem.StatusPending)
	f.mu.Unlock()
	times := 1
	if f.callbacks != nil {
		times = f.callbacks(n)
	}
	send := func() {
		for i := range times {
			f.send(order.CallbackURL, id, n, i+1)
		}
	}
	if f.early {
		send()
	} else {
		f.sending.Go(send)
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"request_id":%q,"status":"accepted"}`, id)
}

// send posts a callback of the n-th request.
func (f *fake) send(url, id string, n int64, attempt int) {
	now := time.Now()
	callback := tandem.Callback{Type: tandem.EventCompleted, RequestID: id, ProcessingTimeMS: 4,
		Timestamp: now.Add(f.skew).UTC()}
	callback.Metadata.Attempt = attempt
	body, err := json.Marshal(callback)
	if err != nil {
		panic(err)
	}
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	request.Header.Set(tandem.HeaderWebhookID, id)
	request.Header.Set(tandem.HeaderWebhookTimestamp, fmt.Sprint(now.Unix()))
	request.Header.Set(tandem.HeaderWebhookSignature, f.secret.Sign(id, now, body))
	if f.damage != nil {
		f.damage(n, request.Header)
	}
	if response, err := f.client.Do(request); err == nil { // the run may be over
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

// run runs against the fake.
func (f *fake) run(t *testing.T, cfg load.Config) *load.Report {
	t.Helper()
	cfg.URL, cfg.Secret = f.url, f.secret
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 8
	}
	report, err := load.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}
