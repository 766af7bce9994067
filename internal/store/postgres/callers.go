package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tandem"
	"tandem/internal/store"
)

// doubtAfterAccept is for how long rows that nobody waits for may appear after a caller has left: its write may
// have been in a transaction, and tried once more. What is later still the deep sweeps find.
const doubtAfterAccept = 2*writeTimeout + 2*sweepInterval

// strayMessage is what is on record of them.
const strayMessage = "The database took this request only after its caller had been told that it did not."

// callers are the requests whose work is done by those who asked this node to accept them. A row in
// processing that names this node and is not among them is a stray: nobody waits for it.
type callers struct {
	mu       sync.Mutex           // guards the fields below
	held     map[string]time.Time // :: request id → when its lease is over; zero: it has none
	doubtful time.Time            // until then rows may appear that nobody waits for; zero once none is left
}

func newCallers() *callers { return &callers{held: map[string]time.Time{}} }

// hold is called before a row can be there. It returns the ids that nobody held. A caller that asks for an
// id that is held is refused, and must not release it when it leaves: another caller works on it.
func (c *callers) hold(lane store.Lane, ids []string) (fresh []string) {
	if len(ids) == 0 {
		return nil
	}
	var over time.Time
	if lane != store.LaneNone {
		over = time.Now().Add(2 * store.CallerLease) // certainly: it begins with the commit
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if _, held := c.held[id]; !held {
			c.held[id] = over
			fresh = append(fresh, id)
		}
	}
	return fresh
}

// leave is called when a row has been ended, or when nobody will end it. unsure: it may be there all the same, or come.
func (c *callers) leave(ids []string, unsure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.held, id)
	}
	if unsure && len(ids) > 0 {
		c.doubtful = time.Now().Add(doubtAfterAccept)
	}
}

// holds reports whether a caller works on a request.
func (c *callers) holds(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	over, held := c.held[id]
	return held && (over.IsZero() || time.Now().Before(over))
}

// inDoubt reports whether there may be rows that nobody waits for.
func (c *callers) inDoubt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.doubtful.IsZero()
}

// looked is called when all such rows that were there at a moment have been ended. It forgets those in a lane that
// their callers could not finish and that were dispatched since.
func (c *callers) looked(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.held, func(_ string, over time.Time) bool { return !over.IsZero() && at.After(over) })
	if at.After(c.doubtful) {
		c.doubtful = time.Time{}
	}
}

// endStrays ends the requests that the database believes a caller on this node works on, and that no caller does:
// they were committed after their callers had left. A caller holds its request from before the row can be there, so
// this is certain however late the database answers. One in a lane whose lease is over is left alone: it is dispatched.
func (s *Store) endStrays(ctx context.Context) error {
	began := time.Now()
	strays, err := s.strays(ctx)
	if err != nil {
		return fmt.Errorf("look for requests that nobody waits for: %w", err)
	}
	now := s.now().UTC().Truncate(time.Microsecond)
	ops := make([]*op, 0, len(strays))
	results := make(chan error, len(strays))
	for i := range strays {
		job := &strays[i]
		ended := store.Finished(store.Outcome{
			ErrorCode: tandem.FailedInterrupted, ErrorMessage: strayMessage, CompletedAt: now,
		}, "")
		t, err := ended.Apply(job)
		if err != nil {
			return fmt.Errorf("end %s, which nobody waits for: %w", job.Request.ID, err)
		}
		o := &op{
			settle: &settlement{Transition: t},
			done:   func(err error) { results <- err },
		}
		if err := s.submit(ctx, s.results, o); err != nil {
			return err
		}
		ops = append(ops, o)
	}
	for range ops {
		if err := store.Await(ctx, results); err != nil {
			return fmt.Errorf("end requests that nobody waits for: %w", err)
		}
	}
	if len(strays) < maxStrays {
		s.callers.looked(began)
	}
	n := 0
	for _, o := range ops {
		if o.settle.found {
			n++
		}
	}
	if n > 0 {
		s.cfg.Log.Warn("the database accepted requests after their callers had left; they ended as interrupted",
			"count", n)
	}
	return nil
}

// maxStrays is how many are ended at a time.
const maxStrays = store.MaxBatch / 2

// strays are the requests that name this node and that no caller holds.
func (s *Store) strays(ctx context.Context) ([]store.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, `
		SELECT id, mode, task, coalesce(lane, ''), coalesce(job_id, 0)
		FROM requests
		WHERE node = $1 AND status = 'processing' AND mode = 'sync'`, s.node)
	if err != nil {
		return nil, err
	}
	var found []store.Job
	var leases []int64 // :: index in found → its job; 0: none
	var id pgtype.UUID
	var job store.Job
	var lease int64
	_, err = pgx.ForEachRow(rows, []any{&id, &job.Request.Mode, &job.Request.Task, &job.Lane, &lease}, func() error {
		job.Request.ID, job.Request.Status = tandem.ID(id.Bytes), tandem.StatusProcessing
		if len(found) < maxStrays && !s.callers.holds(job.Request.ID) {
			found, leases = append(found, job), append(leases, lease)
		}
		return nil
	})
	if err != nil || !slices.ContainsFunc(leases, func(lease int64) bool { return lease != 0 }) {
		return found, err
	}
	// A row with a job is in a lane: its caller's lease is what the job waits for.
	rows, err = s.pool.Query(ctx, `
		SELECT id
		FROM river_job
		WHERE id = ANY ($1) AND state = 'available' AND scheduled_at > now()`, leases)
	if err != nil {
		return nil, err
	}
	leased, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	kept := found[:0]
	for i, lease := range leases {
		if lease == 0 || slices.Contains(leased, lease) {
			kept = append(kept, found[i])
		}
	}
	return kept, err
}
