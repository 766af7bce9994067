package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"math"

	"tandem/internal/store"
)

// Undelivered looks for callbacks that could not be delivered yet.
func (s *Store) Undelivered(ctx context.Context) (store.Undelivered, error) {
	return s.undelivered(ctx, store.DefaultUndeliveredLimits)
}

func (s *Store) undelivered(ctx context.Context, limits store.UndeliveredLimits) (store.Undelivered, error) {
	var u store.Undelivered
	now := s.clock.now()
	err := s.read(ctx, func(q store.Querier) error {
		heads, err := undeliveredHeads(ctx, q, limits.Heads)
		if err != nil {
			return err
		}
		waitingHeads, waiting := s.queue.awaited()
		heads = append(heads, waitingHeads...)
		var names []string
		u.Sites, names = store.SitesOf(heads, limits.Sites)
		most := limits.Share(len(names))
		counts, err := undeliveredCounts(ctx, q, names, most)
		if err != nil {
			return err
		}
		store.CountSites(u.Sites, counts, most)
		store.CountSites(u.Sites, waiting, math.MaxInt)
		if len(u.Sites) > 0 {
			u.Oldest = u.Sites[0].Oldest
		}
		owners, err := dueHeads(ctx, q, store.LaneDeliver, now)
		for _, owner := range owners {
			u.Oldest = store.Sooner(u.Oldest, owner.oldest)
		}
		return err
	})
	return u, err
}

// undeliveredHeads goes from destination to destination in the index, so it costs the same however many callbacks
// are parked for each.
func undeliveredHeads(ctx context.Context, q store.Querier, limit int) (heads []store.UndeliveredHead, err error) {
	rows, err := q.QueryContext(ctx, `
		WITH RECURSIVE destinations (name) AS (
			SELECT min(waits_for)
			FROM requests INDEXED BY requests_undelivered
			WHERE waits_for IS NOT NULL
			UNION ALL
			SELECT (
				SELECT min(waits_for)
				FROM requests INDEXED BY requests_undelivered
				WHERE waits_for > name
			)
			FROM destinations
			WHERE name IS NOT NULL
		)
		SELECT name, (SELECT min(completed_at) FROM requests INDEXED BY requests_undelivered WHERE waits_for = name)
		FROM destinations
		WHERE name IS NOT NULL
		LIMIT ?`, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var head store.UndeliveredHead
		var oldest sql.NullInt64
		if err := rows.Scan(&head.Destination, &oldest); err != nil {
			return nil, err
		}
		head.Oldest = fromMicros(oldest)
		heads = append(heads, head)
	}
	return heads, rows.Err()
}

// undeliveredCounts counts the callbacks parked for destinations, of each at most a number.
func undeliveredCounts(
	ctx context.Context, q store.Querier, names []string, most int,
) (counts []store.UndeliveredCount, err error) {
	wanted, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	rows, err := q.QueryContext(ctx, `
		SELECT wanted.value, (
			SELECT count(*)
			FROM (SELECT 1 FROM requests INDEXED BY requests_undelivered WHERE waits_for = wanted.value LIMIT ?)
		)
		FROM json_each(?) AS wanted`, most, string(wanted))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c store.UndeliveredCount
		if err := rows.Scan(&c.Destination, &c.Count); err != nil {
			return nil, err
		}
		counts = append(counts, c)
	}
	return counts, rows.Err()
}
