package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"math"
)

// Undelivered looks for callbacks that could not be delivered yet.
func (s *SQLite) Undelivered(ctx context.Context) (Undelivered, error) {
	return s.undelivered(ctx, defaultUndeliveredLimits)
}

func (s *SQLite) undelivered(ctx context.Context, limits undeliveredLimits) (Undelivered, error) {
	var u Undelivered
	now := s.clock.now()
	err := s.read(ctx, func(q querier) error {
		heads, err := undeliveredHeads(ctx, q, limits.heads)
		if err != nil {
			return err
		}
		waitingHeads, waiting := s.queue.awaited()
		heads = append(heads, waitingHeads...)
		var names []string
		u.Sites, names = sitesOf(heads, limits.sites)
		most := limits.share(len(names))
		counts, err := undeliveredCounts(ctx, q, names, most)
		if err != nil {
			return err
		}
		countSites(u.Sites, counts, most)
		countSites(u.Sites, waiting, math.MaxInt)
		if len(u.Sites) > 0 {
			u.Oldest = u.Sites[0].Oldest
		}
		owners, err := dueHeads(ctx, q, LaneDeliver, now)
		for _, owner := range owners {
			u.Oldest = sooner(u.Oldest, owner.oldest)
		}
		return err
	})
	return u, err
}

// undeliveredHeads goes from destination to destination in the index, so it costs the same however many callbacks
// are parked for each.
func undeliveredHeads(ctx context.Context, q querier, limit int) (heads []undeliveredHead, err error) {
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
		var head undeliveredHead
		var oldest sql.NullInt64
		if err := rows.Scan(&head.destination, &oldest); err != nil {
			return nil, err
		}
		head.oldest = fromMicros(oldest)
		heads = append(heads, head)
	}
	return heads, rows.Err()
}

// undeliveredCounts counts the callbacks parked for destinations, of each at most a number.
func undeliveredCounts(
	ctx context.Context, q querier, names []string, most int,
) (counts []undeliveredCount, err error) {
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
		var c undeliveredCount
		if err := rows.Scan(&c.destination, &c.count); err != nil {
			return nil, err
		}
		counts = append(counts, c)
	}
	return counts, rows.Err()
}
