package postgres_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// For as long as somebody keeps a transaction open, as pg_dump does, PostgreSQL removes no version of a row.
// No statement of the store steps over old versions, but for the list of queues, which is made less often then:
// each reads as many blocks after thousands of requests as before.
func TestHeldSnapshotSlowsNothingDown(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Measured)
	storetest.ExecPostgres(t, url, `CREATE EXTENSION pg_stat_statements`)
	s := joinPostgres(t, url)
	work(t, s, delivered)
	looked := func() map[string]float64 { // :: statement → blocks per call
		began := costs(t, url)
		for range 20 {
			accept(t, s, newAsync(), store.LaneIO)
			r := newSync()
			accept(t, s, r, store.LaneNone)
			if err := s.Finish(t.Context(), store.Job{Request: *r}, called("")); err != nil {
				t.Fatal(err)
			}
			tandemtest.WaitFor(t, "the queue to be empty", func() bool { return mustStats(t, s).Unfinished == 0 })
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		perCall := map[string]float64{}
		for query, now := range costs(t, url) {
			if calls := now.calls - began[query].calls; calls > 0 {
				perCall[query] = (now.blocks - began[query].blocks) / calls
			}
		}
		return perCall
	}
	steady := func() map[string]float64 { // a fetch looks at all that became available in the last second
		for began := time.Now(); time.Since(began) < 1500*time.Millisecond; {
			looked()
		}
		return looked()
	}
	looked() // plans are made
	storetest.ExecPostgres(t, url, `VACUUM ANALYZE`)
	open := beginPostgres(t, url)
	defer open.Conn().Close(context.Background())
	for _, statement := range []string{
		`SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`, `SELECT FROM requests LIMIT 1`,
	} {
		if _, err := open.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	before := steady()
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 400 {
				accept(t, s, newAsync(), store.LaneIO)
			}
		})
	}
	callers.Wait()
	tandemtest.WaitFor(t, "all to end", func() bool { return mustStats(t, s).Unfinished == 0 })
	after := steady()
	compared := 0
	for query, blocks := range after {
		few, ok := before[query]
		switch {
		case !ok, strings.HasPrefix(query, "-- name: "): // River's own, which come once in 5 s or less
			continue
		case strings.HasPrefix(query, "WITH RECURSIVE queues"): // which rests by what it costs
			continue
		}
		compared++
		most := 2*few + 20
		if strings.Contains(query, "ask.since") { // there may have been more of it in that second
			most += 100
		}
		if blocks > most {
			t.Errorf("%.1f blocks a call, and %.1f after %d more requests:\n%s", few, blocks, 8*400, query)
		}
	}
	if compared < 8 {
		t.Errorf("only %d statements were compared: %v", compared, after)
	}
}

// cost is what PostgreSQL reports of a statement: how often it ran, and how many blocks it read.
type cost struct{ calls, blocks float64 }

func costs(t *testing.T, url string) map[string]cost {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `
		SELECT query, sum(calls)::float8, sum(shared_blks_hit + shared_blks_read)::float8
		FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = dbid AND datname = current_database()
		GROUP BY query`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]cost{}
	var query string
	var one cost
	if _, err := pgx.ForEachRow(rows, []any{&query, &one.calls, &one.blocks}, func() error {
		all[strings.Join(strings.Fields(query), " ")] = one
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
