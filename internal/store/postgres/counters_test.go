package postgres_test

import (
	"context"
	"sync/atomic"
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/storetest"
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
	tandemtest.WaitFor(t, "all of it to end", func() bool { return mustStats(t, first).Unfinished == 0 })
	if done.Load() == 0 {
		t.Error("the second node did nothing")
	}
}

// A node of the release before, whose rows of counters do not move, reads, counts and folds beside those whose rows do.
func TestCountersBesideTheReleaseBefore(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	accept(t, s, newSync(), store.LaneNone)
	storetest.ExecPostgres(t, url, `
		INSERT INTO counters (node, writer, counts) VALUES ('before', 0, '{}'), ('before', 1, '{"accepted/sync":40}')
		ON CONFLICT (node, writer) DO UPDATE SET counts = counters.counts`)
	storetest.ExecPostgres(t, url, `UPDATE counters SET counts = '{"accepted/sync":2}' WHERE node = 'before' AND writer = 0`)
	const sum = `SELECT sum((counts::jsonb ->> 'accepted/sync')::bigint)::text FROM counters`
	if known, read := mustStats(t, s).Requests[tandem.ModeSync], storetest.AskPostgres(t, url, sum); known != 43 || read != "43" {
		t.Errorf("%d are known here and %s there, want 43", known, read)
	}
	storetest.ExecPostgres(t, url, `
		WITH folded AS (DELETE FROM counters WHERE node <> '' RETURNING counts)
		UPDATE counters
		SET counts = json_build_object(
			'accepted/sync', (SELECT sum((counts::jsonb ->> 'accepted/sync')::bigint) FROM folded)
		)::text
		WHERE node = ''`)
	accept(t, s, newSync(), store.LaneNone) // it finds its row gone
	if known, read := mustStats(t, s).Requests[tandem.ModeSync], storetest.AskPostgres(t, url, sum); known != 44 || read != "44" {
		t.Errorf("%d are known here and %s there, want 44", known, read)
	}
}
