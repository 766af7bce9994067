package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tandem/internal/store"
)

// Undelivered looks for callbacks that could not be delivered yet, of all nodes.
func (s *Store) Undelivered(ctx context.Context) (store.Undelivered, error) {
	return s.undelivered(ctx, store.DefaultUndeliveredLimits)
}

func (s *Store) undelivered(ctx context.Context, limits store.UndeliveredLimits) (u store.Undelivered, err error) {
	err = s.reading(ctx, func(ctx context.Context) error {
		u = store.Undelivered{}
		heads, err := s.undeliveredHeads(ctx, limits.Heads)
		if err != nil {
			return err
		}
		var names []string
		u.Sites, names = store.SitesOf(heads, limits.Sites)
		most := limits.Share(len(names))
		counts, err := s.undeliveredCounts(ctx, names, most)
		if err != nil {
			return err
		}
		store.CountSites(u.Sites, counts, most)
		if len(u.Sites) > 0 {
			u.Oldest = u.Sites[0].Oldest
		}
		due, err := s.oldestDue(ctx, store.LaneDeliver)
		u.Oldest = store.Sooner(u.Oldest, due)
		return err
	})
	return u, err
}

// undeliveredHeads goes from group to group in the index, so it costs the same however many callbacks each has. A
// group is what one owner has parked for a destination.
func (s *Store) undeliveredHeads(ctx context.Context, limit int) (heads []store.UndeliveredHead, err error) {
	rows, err := s.reads.Query(ctx, `
		WITH RECURSIVE heads (waits_for, owner, completed_at) AS (
			(
				SELECT waits_for, owner, completed_at
				FROM requests
				WHERE waits_for > ''
				ORDER BY waits_for, owner, completed_at
				LIMIT 1
			)
			UNION ALL
			SELECT next.waits_for, next.owner, next.completed_at
			FROM heads CROSS JOIN LATERAL (
				SELECT waits_for, owner, completed_at
				FROM requests
				WHERE waits_for IS NOT NULL AND (waits_for, owner) > (heads.waits_for, heads.owner)
				ORDER BY waits_for, owner, completed_at
				LIMIT 1
			) AS next
		)
		SELECT waits_for, completed_at FROM heads LIMIT $1`, limit)
	if err != nil {
		return nil, err
	}
	var head store.UndeliveredHead
	var oldest pgtype.Timestamptz
	_, err = pgx.ForEachRow(rows, []any{&head.Destination, &oldest}, func() error {
		head.Oldest = oldest.Time
		heads = append(heads, head)
		return nil
	})
	return heads, err
}

// undeliveredCounts counts the callbacks parked for destinations, of each at most a number.
func (s *Store) undeliveredCounts(
	ctx context.Context, names []string, most int,
) (counts []store.UndeliveredCount, err error) {
	rows, err := s.reads.Query(ctx, `
		SELECT name, (SELECT count(*) FROM (SELECT FROM requests WHERE waits_for = name LIMIT $2) AS counted)
		FROM unnest($1::text[]) AS name`, names, most)
	if err != nil {
		return nil, err
	}
	var c store.UndeliveredCount
	_, err = pgx.ForEachRow(rows, []any{&c.Destination, &c.Count}, func() error {
		counts = append(counts, c)
		return nil
	})
	return counts, err
}
