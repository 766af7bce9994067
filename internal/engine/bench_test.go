package engine_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"tandem/internal/engine"
)

// BenchmarkComputeBesideHTTP reports the latency of a trivial handler at 500
// requests per second, on the idle engine and while "compute" saturates every core.
// Run it with -benchtime=5000x (10 s each).
func BenchmarkComputeBesideHTTP(b *testing.B) {
	for _, orders := range []int{0, 8} {
		b.Run("orders="+strconv.Itoa(orders), func(b *testing.B) {
			p := start(b, func(s *setup) { s.engine.Workers = 0 })
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusNoContent)
			}))
			defer server.Close()
			ctx, cancel := context.WithCancel(b.Context())
			var computing sync.WaitGroup
			for range orders {
				computing.Go(func() {
					for ctx.Err() == nil {
						_, _ = p.Do(ctx, engine.Order{Task: "compute", Data: json.RawMessage(`{"a":1}`), Complexity: 1})
					}
				})
			}
			times := make([]time.Duration, 0, b.N)
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for b.Loop() {
				<-tick.C
				sent := time.Now()
				answer, err := server.Client().Get(server.URL)
				if err != nil {
					b.Fatal(err)
				}
				answer.Body.Close()
				times = append(times, time.Since(sent))
			}
			cancel()
			computing.Wait()
			slices.Sort(times)
			b.ReportMetric(times[len(times)/2].Seconds()*1000, "p50-ms")
			b.ReportMetric(times[len(times)*99/100].Seconds()*1000, "p99-ms")
		})
	}
}

// BenchmarkDo is the overhead of a sync order: two commits and no work.
func BenchmarkDo(b *testing.B) {
	p := start(b, func(s *setup) { s.url = databaseFile(b) })
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Do(b.Context(), order("echo")); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkSubmit is the overhead of accepting an async order, the work and its
// delivery going on beside it: all of them have been delivered at the end.
func BenchmarkSubmit(b *testing.B) {
	p := start(b, func(s *setup) {
		s.url = databaseFile(b)
		s.egress.HostConcurrency = 64
		s.engine.IOWorkers = 256
	})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	b.Cleanup(server.Close)
	o := order("echo")
	o.CallbackURL = server.URL
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Submit(b.Context(), o); err != nil {
				b.Error(err)
			}
		}
	})
	accepted := b.Elapsed()
	p.Await("everything delivered", func() bool {
		stats, err := p.Store.Stats(context.Background())
		return err == nil && stats.Unfinished == 0
	})
	b.ReportMetric(float64(b.N)/accepted.Seconds(), "accepts/s")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cycles/s")
}
