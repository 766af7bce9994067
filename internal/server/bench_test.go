package server_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"tandem/internal/engine"
)

// The figures of docs/decisions/0001-http-framework.md come from these. Each runs
// over loopback, with 64 connections per core whose clients share the cores,
// and without a connection, where the handler's own cost shows.

// benchBody names a task that never ends in a lane of one slot, so that nothing
// but the acceptance is measured.
const benchBody = `{"data":{"user":12345,"items":[{"sku":"a-1","count":2},{"sku":"b-2","count":1}],"note":"hello"},` +
	`"complexity":2,"task":"stuck","callback_url":"http://127.0.0.1:9/hook"}`

func benchService(b *testing.B) *service {
	return start(b, func(s *setup) { s.engine.IOWorkers, s.engine.TaskTimeout = 1, time.Hour })
}

// BenchmarkEcho is the floor: net/http, one JSON decode, one encode.
func BenchmarkEcho(b *testing.B) {
	post(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(body)
	}))
}

// BenchmarkAsyncPlain is POST /async as it is.
func BenchmarkAsyncPlain(b *testing.B) {
	svc := benchService(b)
	post(b, svc.Config.Handler)
}

// BenchmarkAsyncHuma is the same call to the engine from a handler that huma
// adapts, with its validation (which parses the body a second time), and without our headers.
func BenchmarkAsyncHuma(b *testing.B) { benchHuma(b, false) }

// BenchmarkAsyncHumaUnchecked leaves validation out: the body is parsed once, and
// nothing about it is checked.
func BenchmarkAsyncHumaUnchecked(b *testing.B) { benchHuma(b, true) }

func benchHuma(b *testing.B, unchecked bool) {
	svc := benchService(b)
	type input struct {
		Body struct {
			Data        json.RawMessage `json:"data"`
			Complexity  int             `json:"complexity,omitempty" minimum:"1" maximum:"10"`
			Task        string          `json:"task,omitempty"`
			CallbackURL string          `json:"callback_url"`
		}
	}
	type output struct {
		Location   string `header:"Location"`
		RetryAfter string `header:"Retry-After"`
		Body       struct {
			RequestID string `json:"request_id"`
			Status    string `json:"status"`
			Message   string `json:"message"`
		}
	}
	mux := http.NewServeMux()
	config := huma.DefaultConfig("bench", "1")
	config.DocsPath, config.CreateHooks = "", nil
	operation := huma.Operation{Method: http.MethodPost, Path: "/async", DefaultStatus: http.StatusAccepted,
		SkipValidateBody: unchecked}
	huma.Register(humago.New(mux, config), operation, func(ctx context.Context, in *input) (*output, error) {
		accepted, err := svc.engine.Submit(ctx,
			engine.Order{Task: in.Body.Task, Data: in.Body.Data, Complexity: in.Body.Complexity,
				CallbackURL: in.Body.CallbackURL})
		if err != nil {
			return nil, err
		}
		out := &output{Location: "/requests/" + accepted.ID, RetryAfter: "1"}
		out.Body.RequestID, out.Body.Status = accepted.ID, "accepted"
		out.Body.Message = "Request accepted for processing. Callback will be sent when complete."
		return out, nil
	})
	post(b, mux)
}

// post measures POST /async of a handler, with and without a connection.
func post(b *testing.B, handler http.Handler) {
	b.Run("loopback", func(b *testing.B) { postLoopback(b, handler) })
	b.Run("handler", func(b *testing.B) { postDirect(b, handler) })
}

func postLoopback(b *testing.B, handler http.Handler) {
	target := httptest.NewServer(handler)
	defer target.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}
	defer client.CloseIdleConnections()
	parallel(b, func() int {
		response, err := client.Post(target.URL+"/async", "application/json", strings.NewReader(benchBody))
		if err != nil {
			return 0
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return response.StatusCode
	})
}

func postDirect(b *testing.B, handler http.Handler) {
	target, err := url.Parse("http://127.0.0.1/async")
	if err != nil {
		b.Fatal(err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	parallel(b, func() int {
		w := &discard{header: make(http.Header, 8)}
		handler.ServeHTTP(w, &http.Request{
			Method: http.MethodPost, URL: target, Header: header, ContentLength: int64(len(benchBody)),
			Body: io.NopCloser(strings.NewReader(benchBody)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "127.0.0.1",
		})
		return w.status
	})
}

// parallel repeats a call that has to return 202.
func parallel(b *testing.B, call func() int) {
	b.SetParallelism(64)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if status := call(); status != http.StatusAccepted {
				b.Errorf("answered with %d", status)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// discard is an answer that nobody reads.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
