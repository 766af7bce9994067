package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"tandem"
)

const (
	// fetchCooldown is the least time between two fetches of a lane by a node.
	fetchCooldown = 10 * time.Millisecond
	// pollInterval is how soon work is found of which nobody was told.
	pollInterval = 2 * time.Second
	// minAhead is how many jobs of a lane a node fetches beyond those that may run: it
	// fetches once in fetchCooldown, and work may be shorter than that.
	minAhead = 16
	// keepCompleted is how long River keeps a job that it has completed. There are
	// none but those that ended against the rules; the others are deleted with their result.
	keepCompleted = time.Minute
	// rescueAfter is when River hands out a job again that has not ended. It does not know of nodes and
	// goes by the leader's clock; the sweep is quicker and does know, so River's never comes to it.
	rescueAfter = 365 * 24 * time.Hour
	// loadWindow is how long the first of several jobs that were fetched together waits for the others, which
	// come in any order: they are read with one statement, and the oldest goes first.
	loadWindow = time.Millisecond
	// loadTimeout bounds the reading of rows for jobs.
	loadTimeout = 10 * time.Second
	// maxLoad is how many rows are read at a time for jobs.
	maxLoad = 512
)

// jobArgs are the arguments of a job of River's: none, because the row of the request names the job.
type jobArgs struct{}

// Kind is the same for all jobs; what is to be done follows from the queue, which is the lane.
func (jobArgs) Kind() string { return "request" }

// handout is what Work needs to hand out jobs.
type handout struct {
	river.WorkerDefaults[jobArgs]

	store    *Postgres
	step     Step
	gate     *gate
	stopping chan struct{}   // closed when nothing more is to be begun
	loads    chan *pgLoad    // jobs whose rows are to be read
	loading  sync.WaitGroup  // the loader
	done     context.Context //nolint:containedctx // ends with Work; the loader's
}

// Work hands out due jobs until ctx ends.
func (s *Postgres) Work(ctx context.Context, capacity Capacity, step Step) error {
	if s.working.Swap(true) {
		return errors.New("hand out work: already done by another call")
	}
	h := &handout{
		store: s, step: step, gate: newGate(capacity),
		stopping: make(chan struct{}), loads: make(chan *pgLoad, maxLoad),
	}
	queues := map[string]river.QueueConfig{}
	for _, lane := range Lanes {
		if n := capacity.Jobs[lane]; n > 0 {
			queues[string(lane)] = river.QueueConfig{MaxWorkers: min(n+max(n, minAhead), river.QueueNumWorkersMax)}
		}
	}
	if len(queues) == 0 {
		<-ctx.Done()
		return nil
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, h)
	client, err := river.NewClient(newFetchDriver(s), &river.Config{
		ID:                          s.node,
		Queues:                      queues,
		Workers:                     workers,
		Logger:                      s.cfg.Log.With("part", "river"),
		FetchCooldown:               fetchCooldown,
		FetchPollInterval:           pollInterval,
		JobTimeout:                  -1, // a step knows its own
		RescueStuckJobsAfter:        rescueAfter,
		CompletedJobRetentionPeriod: keepCompleted,
	})
	if err != nil {
		return fmt.Errorf("set up River: %w", err)
	}
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	h.done = running
	h.loading.Go(func() { h.load(running) })
	defer h.loading.Wait()
	defer end()
	if !s.startRiver(ctx, client) {
		return nil
	}
	<-ctx.Done()
	close(h.stopping)
	if err := client.Stop(context.Background()); err != nil { // waits for the steps that run
		return fmt.Errorf("stop River: %w", err)
	}
	return nil
}

// startRiver starts the client, and tries again for as long as the database does not let it. False: ctx ended first.
func (s *Postgres) startRiver(ctx context.Context, client *river.Client[pgx.Tx]) bool {
	for {
		err := client.Start(context.WithoutCancel(ctx))
		if err == nil {
			return true
		}
		s.cfg.Log.Error("start handing out work; trying again in a second", "error", err)
		pause := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			pause.Stop()
			return false
		case <-pause.C:
		}
	}
}

// Work does one job of River's and commits what came of it, which includes deleting the
// job. What is to be done again is a new job; River is told of an error only if the result could not be kept.
func (h *handout) Work(_ context.Context, job *river.Job[jobArgs]) error {
	defer h.store.held.drop(job.ID)
	lane := Lane(job.Queue)
	it, err := h.read(&pgLoad{job: job.ID, lane: lane})
	if err != nil || it == nil {
		return h.skip(job.ID, lane, err)
	}
	select {
	case <-it.ticket.open:
	case <-h.stopping:
		if h.gate.withdraw(it.ticket) {
			return h.handBack(job.ID, lane, it, 0)
		}
	}
	return h.run(job.ID, lane, it)
}

// run does a job that the gate has let go.
func (h *handout) run(job int64, lane Lane, it *pgItem) error {
	ticket := it.ticket
	defer h.gate.ended(ticket)
	stepped := sync.OnceFunc(func() { h.gate.stepped(ticket) })
	defer stepped()
	select {
	case <-h.stopping:
		return h.handBack(job, lane, it, 0)
	default:
	}
	if !it.loaded {
		var err error
		if it, err = h.read(&pgLoad{job: job, lane: lane, whole: true}); err != nil || it == nil {
			return h.skip(job, lane, err)
		}
	}
	handed := Job{Lane: lane, Request: it.request, Started: func() {}}
	var mark *time.Timer
	if lane != LaneDeliver {
		handed.Started = func() {
			started := time.Now()
			mark = time.AfterFunc(markDelay, func() {
				_ = h.store.submit(context.Background(), h.store.results, &pgOp{mark: &pgMark{job: job, at: started}}) // refused at the very end only, when nobody looks
			})
		}
	}
	next := h.step(context.Background(), handed)
	if mark != nil {
		mark.Stop() // a mark that comes late finds no row of this job
	}
	stepped()
	after, err := next.apply(&handed)
	if err != nil {
		h.store.cfg.Log.Error("a job ended against the rules; it stays in the queue", "error", err)
		return h.handBack(job, lane, it, lookInterval)
	}
	return h.settle(&pgOp{settle: &pgSettle{job: job, lane: lane, after: &after, next: &next}})
}

// skip lets go of a job of which there is no row, or whose row cannot be read now: the job then
// stays in the queue.
func (h *handout) skip(job int64, lane Lane, err error) error {
	if err == nil {
		return nil // the request has another job, or is gone
	}
	h.store.cfg.Log.Error("read a request to work on; it stays in the queue", "error", err)
	delay := lookInterval
	if errors.Is(err, errStopping) {
		delay = 0
	}
	return h.settle(&pgOp{
		apply: func(ctx context.Context, tx pgx.Tx, _ map[string]int64) error { return anew(ctx, tx, job, delay) },
		after: func() { h.store.wakes.add(lane, delay) },
	})
}

// anew replaces a job by one that is due after a while, in its request's row as well.
func anew(ctx context.Context, tx pgx.Tx, job int64, delay time.Duration) error {
	_, err := tx.Exec(ctx, `
		WITH old AS (
			DELETE FROM river_job WHERE id = $1 RETURNING queue
		), fresh AS (
			INSERT INTO river_job (args, kind, max_attempts, queue, scheduled_at, state)
			SELECT '{}', 'request', 25, queue, now() + $2::bigint * interval '1 microsecond', 'available' FROM old
			RETURNING id
		)
		UPDATE requests SET job_id = fresh.id FROM fresh WHERE job_id = $1`, job, delay.Microseconds())
	return err
}

// handBack puts a job that was not done back into its lane.
func (h *handout) handBack(job int64, lane Lane, it *pgItem, delay time.Duration) error {
	next := Next{Verdict: Again, Lane: lane}
	if delay > 0 {
		next.At = time.Now().Add(delay)
	}
	handed := Job{Lane: lane, Request: it.request}
	after, err := next.apply(&handed)
	if err != nil { // never: a job may always be put off
		return err
	}
	return h.settle(&pgOp{settle: &pgSettle{job: job, lane: lane, after: &after, next: &next}})
}

// settle commits a result, and tries again for as long as the database does not take it: giving
// up would do the work twice. When Work is to end it gives up after a few tries; then River keeps
// the job, or other nodes take it over once this one is gone.
func (h *handout) settle(o *pgOp) error {
	s := h.store
	if o.settle != nil {
		o.after = func() { s.wakes.add(o.settle.next.wakes()) }
	}
	for tries := 0; ; tries++ {
		err := s.await(context.Background(), s.results, o)
		if err == nil {
			if o.settle != nil && !o.settle.found && !o.unsure {
				s.cfg.Log.Warn("a result came too late: the request is another's by now", "request_id", o.settle.after.ID)
			}
			return nil
		}
		select {
		case <-h.stopping:
			if tries >= 3 || errors.Is(err, errAway) {
				return fmt.Errorf("keep a result, whose request will run again: %w", err)
			}
		default:
		}
		pause := time.NewTimer(retrySettle)
		<-pause.C
	}
}

// pgItem is a request whose job was handed out.
type pgItem struct {
	request tandem.Request
	size    int  // bytes of data or result that the job will hold
	loaded  bool // request has them
	ticket  *ticket
}

// pgLoad is a row to be read for a job. The answer is nil when no row names the job.
type pgLoad struct {
	job    int64
	lane   Lane
	whole  bool // with its data or result however large
	item   *pgItem
	err    error
	answer chan struct{} // closed when item and err are set
}

// errStopping says that Work ended before a row was read.
var errStopping = errors.New("the store is stopping")

// read reads the row of a job, together with those of other jobs that were handed out meanwhile.
func (h *handout) read(l *pgLoad) (*pgItem, error) {
	l.answer = make(chan struct{})
	select {
	case h.loads <- l:
	case <-h.done.Done():
		return nil, errStopping
	}
	select {
	case <-l.answer:
		return l.item, l.err
	case <-h.done.Done(): // never while a job of River's runs
		return nil, errStopping
	}
}

// load answers what read asks, all that wait at a time with one statement.
func (h *handout) load(ctx context.Context) {
	window := time.NewTimer(loadWindow)
	defer window.Stop()
	for {
		var batch []*pgLoad
		select {
		case <-ctx.Done():
			return
		case first := <-h.loads:
			batch = append(batch, first)
		}
		window.Reset(loadWindow)
	fill:
		for len(batch) < maxLoad {
			select {
			case next := <-h.loads:
				batch = append(batch, next)
			case <-window.C:
				break fill
			}
		}
		slices.SortFunc(batch, func(a, b *pgLoad) int { return cmp.Compare(a.job, b.job) }) // oldest first
		h.store.loadAll(ctx, batch)
		for _, l := range batch {
			if l.item != nil && !l.whole {
				l.item.ticket = h.gate.enter(l.lane, l.item.size)
			}
			close(l.answer)
		}
	}
}

// loadAll reads the rows of jobs: of data and result only the one that the job
// needs, and that only if it is small or asked for.
func (s *Postgres) loadAll(ctx context.Context, batch []*pgLoad) {
	ids, most := make([]int64, len(batch)), make([]int64, len(batch))
	waiting := map[int64]*pgLoad{}
	for i, l := range batch {
		ids[i], most[i], waiting[l.job] = l.job, smallJob, l
		if l.whole {
			most[i] = 1 << 40
		}
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	err := s.reading(ctx, func(ctx context.Context) error {
		rows, err := s.reads.Query(ctx, `
			SELECT u.job, coalesce(size, 0), coalesce(size, 0) <= u.most, `+pgColumns+`,
			       CASE WHEN lane = 'deliver' OR size > u.most THEN ''::bytea ELSE data END,
			       CASE WHEN lane = 'deliver' AND size <= u.most THEN result END
			FROM unnest($1::bigint[], $2::bigint[]) AS u(job, most)
			JOIN requests ON job_id = u.job
			CROSS JOIN LATERAL (SELECT octet_length(CASE lane WHEN 'deliver' THEN result ELSE data END) AS size) AS s`, ids, most)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var job int64
			it := &pgItem{}
			if it.request, err = scanPostgres(rows, &job, &it.size, &it.loaded); err != nil {
				return err
			}
			waiting[job].item = it
		}
		return rows.Err()
	})
	for _, l := range batch {
		if l.err = err; err != nil {
			l.item = nil
		}
	}
}
