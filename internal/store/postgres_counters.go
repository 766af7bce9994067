package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// total returns all counters of all nodes, as of one moment of the database: what one node has taken on and
// another has ended is in neither or in both. While they cannot be read it returns what this node knows.
func (s *Postgres) total(ctx context.Context) *counters {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	sum := &counters{}
	err := errAway
	if !s.failing() {
		err = s.reading(ctx, func(ctx context.Context) (err error) {
			sum.values, err = s.counted(ctx)
			return err
		})
	}
	if err != nil {
		sum.values = s.known(ctx)
	}
	for _, w := range s.writers {
		w.counters.mu.Lock()
		c := w.counters.commits
		w.counters.mu.Unlock()
		sum.commits.Count += c.Count
		sum.commits.Failed += c.Failed
		sum.commits.Writes += c.Writes
		sum.commits.Time += c.Time
	}
	return sum
}

// counted reads the counters of all nodes.
func (s *Postgres) counted(ctx context.Context) (map[string]int64, error) {
	rows, err := s.reads.Query(ctx, `SELECT counts FROM counters`)
	if err != nil {
		return nil, err
	}
	sum, text := map[string]int64{}, ""
	_, err = pgx.ForEachRow(rows, []any{&text}, func() error { return addCounts(sum, text) })
	return sum, err
}

// known is what this node knows of all counters: its own, after commits that are under way, but not if the database does not
// answer; and the others' as of the last look around, so it may know of an end without the beginning.
func (s *Postgres) known(ctx context.Context) map[string]int64 {
	sum := map[string]int64{}
	for name, value := range *s.others.Load() {
		sum[name] += value
	}
	for _, w := range s.writers {
		select {
		case w.busy <- struct{}{}:
			<-w.busy
		case <-ctx.Done():
		}
		w.counters.mu.Lock()
		for name, value := range w.counters.values {
			sum[name] += value
		}
		w.counters.mu.Unlock()
	}
	for name, value := range sum {
		sum[name] = max(value, 0)
	}
	return sum
}
