package sqlite_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
)

// BenchmarkAccept is the price of a durable 202 without HTTP: 128 callers, one
// database file, synchronous=FULL.
func BenchmarkAccept(b *testing.B) {
	s := openFile(b, filepath.Join(b.TempDir(), "tandem.db"))
	b.SetParallelism(64)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Accept(context.Background(), store.LaneIO, newAsync()); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkCycle is accept, work and delivery of one request in the store alone:
// three commits, shared with 127 others.
func BenchmarkCycle(b *testing.B) { cycle(b, "") }

// BenchmarkCycleOfKey is the same for requests that an API key has asked for: there is another index to keep.
func BenchmarkCycleOfKey(b *testing.B) { cycle(b, "key_abcdefghijkl") }

func cycle(b *testing.B, key string) {
	b.Helper()
	s := openFile(b, filepath.Join(b.TempDir(), "tandem.db"))
	var delivered atomic.Int64
	all := make(chan struct{})
	work(b, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			if delivered.Add(1) == int64(b.N) {
				close(all)
			}
			return store.Delivered(tandem.Attempt{Number: 1, StartedAt: time.Now(), Outcome: tandem.OutcomeDelivered, StatusCode: 200})
		}
		now := time.Now()
		return store.Finished(store.Outcome{Result: job.Request.Data, StartedAt: now, CompletedAt: now}, "")
	})
	b.SetParallelism(64)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := newAsync()
			r.KeyID = key
			if err := s.Accept(context.Background(), store.LaneIO, r); err != nil {
				b.Error(err)
			}
		}
	})
	<-all
}

// BenchmarkPage is a page of 100 requests from a history of 20,000, of which a key has one in ten.
func BenchmarkPage(b *testing.B) {
	s := openFile(b, filepath.Join(b.TempDir(), "tandem.db"))
	all := make([]*tandem.Request, 2000)
	for range 10 {
		for i := range all {
			all[i] = newAsync()
			if i%10 == 0 {
				all[i].KeyID = "key_a"
			}
		}
		if err := s.Accept(b.Context(), store.LaneIO, all...); err != nil {
			b.Fatal(err)
		}
	}
	for name, filter := range map[string]store.Filter{
		"all": {}, "mode": {Mode: tandem.ModeAsync}, "key": {Key: "key_a"}, "key and mode": {Key: "key_a", Mode: tandem.ModeAsync},
	} {
		filter.Limit = 100
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if page, err := s.Requests(b.Context(), filter); err != nil || len(page.Requests) != 100 {
					b.Fatal(len(page.Requests), err)
				}
			}
		})
	}
}
