package engine_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

// BenchmarkHalfHang reports how long callbacks to a healthy host take, from the
// order to their arrival, at 100 per second: alone, and while as many go to hosts that
// hang. Run it with -benchtime=3000x (30 s each), so that breakers open meanwhile; fewer
// are the time before any has.
func BenchmarkHalfHang(b *testing.B) {
	quiet := healthyCallbacks(b, nil)
	hanging := make([]string, 20)
	for i := range hanging {
		hanging[i] = tandemtest.Receive(b, receiver.Hang)
	}
	half := healthyCallbacks(b, hanging)
	p99 := func(times []time.Duration) time.Duration { return times[len(times)*99/100] }
	b.ReportMetric(0, "ns/op") // the pace is ours
	b.ReportMetric(milliseconds(p99(quiet)), "p99-quiet-ms")
	b.ReportMetric(milliseconds(p99(half)), "p99-half-hang-ms")
	b.ReportMetric(float64(p99(half))/float64(p99(quiet)), "ratio")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// healthyCallbacks sends b.N orders for callbacks to a healthy host, each together
// with one to a host that hangs if there are any, and returns how long the healthy
// ones took, sorted.
func healthyCallbacks(b *testing.B, hanging []string) []time.Duration {
	p := start(b, func(s *setup) {
		s.url = databaseFile(b)
		s.engine.IOWorkers = 256
		s.engine.Retry = work.Retry{}
	})
	var mu sync.Mutex
	sent := make([]time.Time, b.N)
	times := make([]time.Duration, 0, b.N)
	well := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		at := time.Now()
		n, err := strconv.Atoi(path.Base(r.URL.Path))
		if err != nil {
			b.Errorf("a callback to %s", r.URL.Path)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		times = append(times, at.Sub(sent[n]))
	}))
	defer well.Close()
	submit := func(url string) {
		o := order("echo")
		o.CallbackURL = url
		if _, err := p.Submit(context.Background(), o); err != nil {
			b.Error(err)
		}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := range b.N {
		<-tick.C
		if len(hanging) > 0 {
			submit(hanging[n%len(hanging)])
		}
		mu.Lock()
		sent[n] = time.Now()
		mu.Unlock()
		submit(well.URL + "/" + strconv.Itoa(n))
	}
	p.Await("the healthy callbacks", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(times) >= b.N
	})
	slices.Sort(times)
	return times
}
