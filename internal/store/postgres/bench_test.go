package postgres_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// BenchmarkPostgres measures accepts alone, whole cycles, and how long a cycle takes when there is little to do.
func BenchmarkPostgres(b *testing.B) {
	for _, works := range []bool{false, true} {
		b.Run(map[bool]string{false: "accept", true: "cycle"}[works], func(b *testing.B) {
			url := emptyPostgres(b, tandemtest.Durable)
			s := joinPostgres(b, url)
			if works {
				work(b, s, delivered)
			}
			before := transactions(b, url)
			b.ResetTimer()
			acceptMany(b, s, b.N, store.LaneIO)
			if works {
				tandemtest.WaitFor(b, "all to be delivered", func() bool {
					return mustStats(b, s).Ended[tandem.StatusCallbackSent] == int64(b.N)
				})
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(transactions(b, url)-before)/float64(b.N), "transactions/request")
		})
	}
	b.Run("lag", func(b *testing.B) {
		s := joinPostgres(b, emptyPostgres(b, tandemtest.Durable))
		var mu sync.Mutex
		var lags []time.Duration
		var asked sync.Map // :: id → when
		var left atomic.Int64
		left.Store(int64(b.N))
		all := make(chan struct{})
		work(b, s, func(ctx context.Context, job store.Job) store.Next {
			if begun, ok := asked.Load(job.Request.ID); ok && job.Lane == store.LaneDeliver {
				mu.Lock()
				lags = append(lags, time.Since(begun.(time.Time)))
				mu.Unlock()
				if left.Add(-1) == 0 {
					close(all)
				}
			}
			return delivered(ctx, job)
		})
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var asking sync.WaitGroup
		for range b.N {
			<-tick.C
			asking.Go(func() {
				r := newAsync()
				asked.Store(r.ID, time.Now())
				accept(b, s, r, store.LaneIO)
			})
		}
		asking.Wait()
		<-all
		slices.Sort(lags)
		b.ReportMetric(float64(lags[len(lags)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(lags[len(lags)*99/100].Microseconds())/1000, "p99-ms")
	})
}

// transactions is how many a database has committed.
func transactions(b testing.TB, url string) (n int64) {
	b.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), `SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}
