package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
)

// total returns all counters of all nodes, as of one moment of the database: what one node has taken on and
// another has ended is in neither or in both. While they cannot be read it returns what this node knows.
func (s *Store) total(ctx context.Context) *store.Counters {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var values map[string]int64
	err := errAway
	if !s.failing() {
		err = s.reading(ctx, func(ctx context.Context) (err error) {
			values, err = counted(ctx, s.reads, "?")
			return err
		})
	}
	if err != nil {
		values = s.known(ctx)
	}
	sum := &store.Counters{}
	sum.Set(values)
	for _, w := range s.writers {
		sum.AddCommits(&w.counters)
	}
	return sum
}

// A writer has two rows of counters. One stays: its column writer is the number of the writer. The other
// moves: its column writer rises by one with each change. So its last version is the last entry of a range
// of the index, however many versions cannot be removed because somebody keeps a transaction open. The sum
// is of all rows that can be seen.

// movingBits is how many bits of a moving row's writer count its changes; those above are the writer's number, plus 1.
const movingBits = 48

// movingFrom is where the moving rows of a writer begin; those of the next one end them.
func movingFrom(number int) int64 { return int64(number+1) << movingBits }

// lastCounters reads all rows of counters but those of one node, and steps over no version of them that is of the past.
const lastCounters = `
	SELECT kept.counts, coalesce(moving.counts, '{}')
	FROM counters AS kept
	LEFT JOIN LATERAL (
		SELECT counts
		FROM counters
		WHERE node = kept.node AND writer >= (kept.writer + 1) << 48 AND writer < (kept.writer + 2) << 48
		ORDER BY writer DESC
		LIMIT 1
	) AS moving ON true
	WHERE kept.writer < 32768 AND kept.node <> $1`

// counted reads the counters of all nodes but one; "?" is none.
func counted(ctx context.Context, pool *pool, but string) (map[string]int64, error) {
	rows, err := pool.Query(ctx, lastCounters, but)
	if err != nil {
		return nil, err
	}
	sum, kept, moving := map[string]int64{}, "", ""
	_, err = pgx.ForEachRow(rows, []any{&kept, &moving}, func() error {
		return errors.Join(addCounts(sum, kept), addCounts(sum, moving))
	})
	return sum, err
}

// addCounts adds what a row of counters says.
func addCounts(sum map[string]int64, text string) error {
	counts := map[string]int64{}
	if err := json.Unmarshal([]byte(text), &counts); err != nil {
		return err
	}
	for name, value := range counts {
		sum[name] += value
	}
	return nil
}

// known is what this node knows of all counters: its own, after commits that are under way, but not if the database does not
// answer; and the others' as of the last look around, so it may know of an end without the beginning.
func (s *Store) known(ctx context.Context) map[string]int64 {
	sum := map[string]int64{}
	maps.Copy(sum, s.others.Values())
	for _, w := range s.writers {
		select {
		case w.busy <- struct{}{}:
			<-w.busy
		case <-ctx.Done():
		}
		for name, value := range w.counters.Values() {
			sum[name] += value
		}
	}
	for name, value := range sum {
		sum[name] = max(value, 0)
	}
	return sum
}
