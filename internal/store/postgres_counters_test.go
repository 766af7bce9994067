package store_test

import (
	"context"
	"sync/atomic"
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// Each node knows at once what the others have taken on, and nothing is ever below zero that one of them has
// taken on and another has ended.
func TestCountersOfAllNodes(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	first, second := joinPostgres(t, url), joinPostgres(t, url)
	var done atomic.Int64
	work(t, second, func(ctx context.Context, job store.Job) store.Next {
		done.Add(1)
		return delivered(ctx, job)
	})
	for n := range int64(40) {
		accept(t, first, newAsync(), store.LaneIO)
		for _, s := range []store.Store{first, second} {
			stats := mustStats(t, s)
			if got := stats.Requests[tandem.ModeAsync]; got != n+1 {
				t.Fatalf("%d requests are known, want %d", got, n+1)
			}
			for what, got := range map[string]int64{
				"pending": stats.Now[tandem.StatusPending], "unfinished": stats.Unfinished,
				"in lane io": stats.Queue[store.LaneIO], "in lane deliver": stats.Queue[store.LaneDeliver],
			} {
				if got < 0 {
					t.Fatalf("%s: %d", what, got)
				}
			}
		}
	}
	waitFor(t, "all of it to end", func() bool { return mustStats(t, first).Unfinished == 0 })
	if done.Load() == 0 {
		t.Error("the second node did nothing")
	}
}
