package store

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Undelivered looks for callbacks that could not be delivered yet, of all nodes.
func (s *Postgres) Undelivered(ctx context.Context) (Undelivered, error) {
	return s.undelivered(ctx, defaultUndeliveredLimits)
}

func (s *Postgres) undelivered(ctx context.Context, limits undeliveredLimits) (u Undelivered, err error) {
	err = s.reading(ctx, func(ctx context.Context) error {
		u = Undelivered{}
		heads, err := s.undeliveredHeads(ctx, limits.heads)
		if err != nil {
			return err
		}
		var names []string
		u.Sites, names = sitesOf(heads, limits.sites)
		most := limits.share(len(names))
		counts, err := s.undeliveredCounts(ctx, names, most)
		if err != nil {
			return err
		}
		countSites(u.Sites, counts, most)
		if len(u.Sites) > 0 {
			u.Oldest = u.Sites[0].Oldest
		}
		due, err := s.oldestDue(ctx, LaneDeliver)
		u.Oldest = sooner(u.Oldest, due)
		return err
	})
	return u, err
}

// undeliveredHeads goes from group to group in the index, so it costs the same however many callbacks each has. A
// group is what one owner has parked for a destination.
func (s *Postgres) undeliveredHeads(ctx context.Context, limit int) (heads []undeliveredHead, err error) {
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
	var head undeliveredHead
	var oldest pgtype.Timestamptz
	_, err = pgx.ForEachRow(rows, []any{&head.destination, &oldest}, func() error {
		head.oldest = oldest.Time
		heads = append(heads, head)
		return nil
	})
	return heads, err
}

// undeliveredCounts counts the callbacks parked for destinations, of each at most a number.
func (s *Postgres) undeliveredCounts(
	ctx context.Context, names []string, most int,
) (counts []undeliveredCount, err error) {
	rows, err := s.reads.Query(ctx, `
		SELECT name, (SELECT count(*) FROM (SELECT FROM requests WHERE waits_for = name LIMIT $2) AS counted)
		FROM unnest($1::text[]) AS name`, names, most)
	if err != nil {
		return nil, err
	}
	var c undeliveredCount
	_, err = pgx.ForEachRow(rows, []any{&c.destination, &c.count}, func() error {
		counts = append(counts, c)
		return nil
	})
	return counts, err
}
