package limit_test

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"tandem/internal/limit"
)

// BenchmarkRateTake measures one decision, alone and from every core at once: for a
// client far over its quota, for as many as the table holds, and for a flood of
// addresses that are all new.
func BenchmarkRateTake(b *testing.B) {
	const capacity = 65_536
	for _, bench := range []struct {
		name    string
		clients uint32
	}{{"one client", 1}, {"65,536 clients", capacity}, {"a flood", 1 << 24}} {
		b.Run(bench.name, func(b *testing.B) {
			r := limit.NewRate[netip.Addr](quota(50, time.Minute), capacity)
			start, next := time.Now(), atomic.Uint32{}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					n := next.Add(1)
					// 50,000 calls a second, whatever the speed of this machine.
					r.Take(address(n%bench.clients), start.Add(time.Duration(n)*20*time.Microsecond))
				}
			})
		})
	}
}

// BenchmarkRateMemory fills the table with clients at their quota, and every shared
// history as well: nothing can make it larger.
func BenchmarkRateMemory(b *testing.B) {
	const capacity = 65_536
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r, now := limit.NewRate[netip.Addr](quota(50, time.Minute), capacity), time.Now()
		for range 50 {
			for n := range uint32(2 * capacity) {
				r.Take(address(n), now)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		runtime.KeepAlive(r)
	}
}
