package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"tandem"
	"tandem/internal/store"
)

// fetchTimeout bounds one fetch. River's own has no bound, and a node whose database does not answer could never stop.
const fetchTimeout = 5 * time.Second

// fewFetched is how many jobs a node fetches for a lane at a time while pressing callers wait: 2,000 to 6,000 a second, by how long a fetch takes.
const fewFetched = 32

// fetchDriver is River's driver for PostgreSQL, which fetches and completes jobs our way.
type fetchDriver struct {
	riverdriver.Driver[pgx.Tx]

	executor *fetchExecutor
}

func newFetchDriver(s *Store, g *gate) *fetchDriver {
	plain := riverpgxv5.New(s.pool.Pool)
	return &fetchDriver{Driver: plain, executor: &fetchExecutor{Executor: plain.GetExecutor(), store: s, gate: g}}
}

// GetExecutor returns what River runs its statements with, outside transactions.
func (d *fetchDriver) GetExecutor() riverdriver.Executor { return d.executor }

// fetchExecutor runs River's statements, all but a few.
type fetchExecutor struct {
	riverdriver.Executor

	store *Store
	gate  *gate
}

// JobGetAvailable fetches jobs for this node, unless the others took it for dead: then its row is not
// there, until its next sign of life. So a node whose heartbeats do not get through is not handed again what the
// sweep took from it, however late it notices, and by no clock at all.
//
// The same statement reads their requests, which saves reading them one by one: of data and result only the one that the job needs,
// and that only if it is small. A job that no request names stays behind, and is deleted when it is reclaimed.
func (e *fetchExecutor) JobGetAvailable(ctx context.Context, p *riverdriver.JobGetAvailableParams) (*riverdriver.JobGetAvailableResult, error) {
	if e.store.away.Load() { // said once already, by the heartbeat
		return &riverdriver.JobGetAvailableResult{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	lane, most := store.Lane(p.Queue), e.most(p)
	result, err := e.fetch(ctx, lane, most)
	if err != nil {
		return nil, err
	}
	// Somebody else may have begun a queue; and of a list that is old the heads are.
	stale := e.store.queues.old(listFresh) || len(result.Jobs) < most && e.store.queues.old(listStale)
	if !stale {
		return result, nil
	}
	err = e.store.list(ctx, e.store.pool)
	switch {
	case len(result.Jobs) > 0: // they are this node's, whatever became of the list; it is read again soon
		return result, nil
	case err != nil:
		return nil, err
	default:
		return e.fetch(ctx, lane, most)
	}
}

// fetch fetches at most so many jobs of a lane, shared out among its owners.
func (e *fetchExecutor) fetch(ctx context.Context, lane store.Lane, most int) (*riverdriver.JobGetAvailableResult, error) {
	ask := e.store.asks(lane, workersOf(e.store.capacity.Load().Jobs[lane]), most)
	rows, err := e.store.pool.Query(ctx, `
		WITH due AS MATERIALIZED (
			SELECT id
			FROM unnest($2::text[], $3::int[], $6::timestamptz[]) AS ask (name, most, since)
			CROSS JOIN LATERAL (
				SELECT id
				FROM river_job
				WHERE state = 'available' AND queue = ask.name AND priority = 1
				      AND scheduled_at >= ask.since AND scheduled_at <= now()
				      AND EXISTS (SELECT FROM nodes WHERE nodes.id = $1)
				ORDER BY scheduled_at, id
				LIMIT ask.most
				FOR UPDATE SKIP LOCKED
			) AS first
			LIMIT $5
		), taken AS (
			UPDATE river_job
			SET state = 'running', attempt = attempt + 1, attempted_at = now(), attempted_by = ARRAY[$1]
			WHERE id = ANY (ARRAY(SELECT id FROM due))
			RETURNING id AS job, attempt, max_attempts, kind, scheduled_at, queue
		)
		SELECT now(), job, attempt, max_attempts, kind, scheduled_at, queue,
		       coalesce(size, 0), coalesce(size, 0) <= $4, `+requestColumns+`,
		       CASE WHEN lane = 'deliver' OR size > $4 THEN ''::bytea ELSE data END,
		       CASE WHEN lane = 'deliver' AND size <= $4 THEN result END
		FROM taken
		JOIN requests ON job_id = job
		CROSS JOIN LATERAL (SELECT octet_length(CASE lane WHEN 'deliver' THEN result ELSE data END) AS size) AS s
		WHERE job_id = ANY (ARRAY(SELECT job FROM taken))
		ORDER BY scheduled_at, job`, e.store.node, ask.names, ask.most, store.SmallJob, most, ask.since)
	if err == nil {
		var jobs []*rivertype.JobRow
		var items []*item
		var at time.Time
		for rows.Next() {
			job := &rivertype.JobRow{EncodedArgs: []byte(`{}`), Queue: string(lane), State: rivertype.JobStateRunning}
			it := &item{}
			var queue string
			it.request, err = scan(rows, &at, &job.ID, &job.Attempt, &job.MaxAttempts, &job.Kind,
				&job.ScheduledAt, &queue, &it.size, &it.loaded)
			if err != nil {
				break
			}
			it.due = job.ScheduledAt
			it.queue, _ = parseQueue(queue)
			jobs, items = append(jobs, job), append(items, it)
		}
		rows.Close()
		if err = errors.Join(err, rows.Err()); err == nil {
			for _, it := range items { // the oldest first
				it.permit = e.gate.enter(lane, it.request.Owner, it.size)
			}
			e.store.held.add(jobs, items)
			if len(items) > 0 {
				e.store.queues.fetched(ask, items, at, len(items) == most)
			}
			e.again(lane, ask, items)
			return &riverdriver.JobGetAvailableResult{Jobs: jobs}, nil
		}
	}
	e.store.held.doubt() // it may have been done, and only its answer lost
	return nil, fmt.Errorf("fetch jobs: %w", err)
}

// again has a lane fetched again soon if a queue had all that was asked of it and may have more: River takes it that
// there are no more when it gets fewer than it asked for.
func (e *fetchExecutor) again(lane store.Lane, asked ask, items []*item) {
	got := map[string]int32{}
	for _, it := range items {
		got[it.queue.name()]++
	}
	for i, name := range asked.names {
		if got[name] == asked.most[i] {
			e.store.wakes.add(lane, fetchCooldown)
			return
		}
	}
}

// JobSetStateIfRunningMany says of jobs that have ended that none is there: they were deleted with their results. Of
// those that were not, because the database is away, the row says running; they are reclaimed or taken over.
func (e *fetchExecutor) JobSetStateIfRunningMany(context.Context, *riverdriver.JobSetStateIfRunningManyParams) ([]*rivertype.JobRow, error) {
	return nil, nil
}

// LeaderResign gives up the leadership of River's own chores, which ends by itself when there is no database to tell.
func (e *fetchExecutor) LeaderResign(ctx context.Context, p *riverdriver.LeaderResignParams) (bool, error) {
	if e.store.away.Load() {
		return false, nil
	}
	return e.Executor.LeaderResign(ctx, p)
}

// most is how many jobs to fetch: as many as River asks for, or few while many callers wait for their requests to be accepted
// and half of MaxQueue is free, because those who ask are waiting, and who is called back is not.
func (e *fetchExecutor) most(p *riverdriver.JobGetAvailableParams) int {
	s := e.store
	if s.accepting.Load() < store.Pressing || s.unfinished() > s.cfg.MaxQueue/2 || p.MaxToLock <= fewFetched {
		return p.MaxToLock
	}
	s.wakes.add(store.Lane(p.Queue), fetchCooldown) // River takes it that there are no more, and would wait to be told
	return fewFetched
}

// heldJobs are the jobs that this node knows it was handed and has not ended.
type heldJobs struct {
	mu       sync.Mutex         // guards the fields below
	items    map[int64]*item    // by the job
	lanes    map[store.Lane]int // :: lane → how many of its jobs
	owners   map[queue]int      // :: lane and owner → how many
	parked   map[string]int     // :: destination → how many that were parked for it
	doubtful time.Time          // until then there may be jobs that the node was handed and does not know of
}

func newHeldJobs() *heldJobs {
	return &heldJobs{
		items: map[int64]*item{}, lanes: map[store.Lane]int{}, owners: map[queue]int{}, parked: map[string]int{},
	}
}

// of returns how many jobs of a lane are held, and how many by each owner.
func (h *heldJobs) of(lane store.Lane) (all int, owners map[string]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	owners = map[string]int{}
	for q, n := range h.owners {
		if q.lane == lane {
			owners[q.owner] = n
		}
	}
	return h.lanes[lane], owners
}

// at returns how many callbacks are held that were parked for a destination.
func (h *heldJobs) at(destination string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.parked[destination]
}

func (h *heldJobs) countLocked(it *item, n int) {
	add := func(counter map[queue]int, key queue) {
		if counter[key] += n; counter[key] == 0 {
			delete(counter, key)
		}
	}
	add(h.owners, queue{lane: it.queue.lane, owner: it.request.Owner})
	h.lanes[it.queue.lane] += n
	if it.queue.destination == "" {
		return
	}
	if h.parked[it.queue.destination] += n; h.parked[it.queue.destination] == 0 {
		delete(h.parked, it.queue.destination)
	}
}

func (h *heldJobs) add(jobs []*rivertype.JobRow, items []*item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, job := range jobs {
		h.items[job.ID] = items[i]
		h.countLocked(items[i], 1)
	}
}

func (h *heldJobs) item(job int64) *item {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.items[job]
}

// drop forgets a job and returns it.
func (h *heldJobs) drop(job int64) *item {
	h.mu.Lock()
	defer h.mu.Unlock()
	it := h.items[job]
	if it != nil {
		h.countLocked(it, -1)
		delete(h.items, job)
	}
	return it
}

// dropped forgets a job that has ended, and has its lane fetched if that makes room: for another job of its
// owner, or, if it was parked, for another callback to its destination.
func (s *Store) dropped(job int64) {
	it := s.held.drop(job)
	if it == nil {
		return
	}
	if s.queues.ended(it.queue.lane) ||
		it.queue.destination != "" && s.room(it.queue.destination, it.request.Owner) > 0 {
		s.wakes.add(it.queue.lane, 0)
	}
}

// doubt says that a fetch ended without an answer. The database may still be at it for as long as a statement may take.
func (h *heldJobs) doubt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.doubtful = time.Now().Add(readTimeout + fetchTimeout + 2*sweepInterval)
}

// inDoubt reports whether there was a fetch without an answer a short while ago.
func (h *heldJobs) inDoubt() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.doubtful)
}

func (h *heldJobs) list() []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]int64, 0, len(h.items))
	for id := range h.items {
		ids = append(ids, id)
	}
	return ids
}

// reclaim hands those jobs out again that the database believes this node runs, and that it does not know of: the
// answer to their fetch was lost. Those fetched a moment ago may be on their way.
func (s *Store) reclaim(ctx context.Context) error {
	held := s.held.list() // first: what is fetched from here on is too young to be taken
	var again int64
	err := s.do(ctx, func(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error {
		const strays = `
			SELECT id
			FROM river_job
			WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1 AND id <> ALL ($2)
			      AND attempted_at < now() - $3::bigint * interval '1 microsecond'`
		var err error
		again, err = handOutAgain(ctx, tx, deltas, strays, s.node, held, (2 * fetchTimeout).Microseconds())
		return err
	})
	if err != nil {
		return fmt.Errorf("hand out again what this node was handed without knowing: %w", err)
	}
	if again > 0 {
		s.cfg.Log.Info("jobs whose fetch was cut off are dispatched again", "count", again)
		s.wakeAll()
	}
	return nil
}

// handOutAgain deletes the jobs that a query names and inserts them anew, under other ids: a node that still works on
// one finds that its result comes too late. Requests that a transaction holds are left to the next time: it may be
// that of a node which has stopped in the middle of it.
func handOutAgain(ctx context.Context, tx pgx.Tx, deltas store.Deltas, which string, args ...any) (again int64, err error) {
	rows, err := tx.Query(ctx, `
		WITH lost_jobs AS MATERIALIZED (`+which+`
		), lost AS MATERIALIZED (
			SELECT id, status, lane, owner, waits_for, job_id AS old_job, nextval('river_job_id_seq') AS new_job
			FROM requests
			WHERE job_id = ANY (ARRAY(SELECT id FROM lost_jobs))
			FOR UPDATE SKIP LOCKED
		), named AS (
			SELECT job_id FROM requests WHERE job_id = ANY (ARRAY(SELECT id FROM lost_jobs))
		), old_jobs AS (
			DELETE FROM river_job
			WHERE id = ANY (ARRAY(SELECT old_job FROM lost UNION (SELECT id FROM lost_jobs EXCEPT SELECT job_id FROM named)))
		), new_jobs AS (
			INSERT INTO river_job (id, args, kind, max_attempts, queue, state)
			SELECT new_job, '{}', 'request', 25, `+queueOf+`, 'available'
			FROM lost
		)
		UPDATE requests
		SET job_id = new_job, status = CASE requests.status WHEN 'processing' THEN 'pending' ELSE requests.status END
		FROM lost
		WHERE requests.id = lost.id AND requests.id = ANY (ARRAY(SELECT id FROM lost))
		RETURNING lost.status`, args...)
	if err != nil {
		return 0, err
	}
	var before string
	_, err = pgx.ForEachRow(rows, []any{&before}, func() error {
		again++
		if tandem.Status(before) == tandem.StatusProcessing {
			deltas.Resume(1)
		}
		return nil
	})
	return again, err
}
