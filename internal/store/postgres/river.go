package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"tandem"
	"tandem/internal/store"
)

const (
	// fetchCooldown is the least time between two fetches of a lane by a node.
	fetchCooldown = 5 * time.Millisecond
	// pollInterval is how soon work is found of which nobody was told.
	pollInterval = 4 * time.Second
	// minAhead is how many jobs of a lane a node fetches beyond those that may run: it
	// fetches once in fetchCooldown, and work may be shorter than that.
	minAhead = 16
	// maxAhead is the most of them: enough for 50,000 jobs/s, and few to hand back at a shutdown.
	maxAhead = 256
	// keepForever is for how long River keeps jobs that have ended: there are none, they are deleted with their results.
	keepForever = -1
	// rescueAfter is when River dispatches a job again that has not ended. It does not know of nodes and
	// goes by the leader's clock; the sweep is quicker and does know, so River's never comes to it.
	rescueAfter = 365 * 24 * time.Hour
)

// jobArgs are the arguments of a job of River's: none, because the row of the request names the job.
type jobArgs struct{}

// Kind is the same for all jobs; what is to be done follows from the queue, which is the lane.
func (jobArgs) Kind() string { return "request" }

// handout is what Work needs to dispatch jobs.
type handout struct {
	river.WorkerDefaults[jobArgs]

	store    *Store
	step     store.Step
	gate     *gate
	stopping chan struct{} // closed when nothing more is to be begun
}

// Work dispatches due jobs until ctx ends.
func (s *Store) Work(ctx context.Context, capacity store.Capacity, step store.Step) error {
	if s.working.Swap(true) {
		return errors.New("hand out work: already done by another call")
	}
	h := &handout{store: s, step: step, gate: newGate(capacity), stopping: make(chan struct{})}
	queues := map[string]river.QueueConfig{}
	for _, lane := range store.Lanes {
		if n := capacity.Jobs[lane]; n > 0 {
			queues[string(lane)] = river.QueueConfig{MaxWorkers: workersOf(n)}
		}
	}
	if len(queues) == 0 {
		<-ctx.Done()
		return nil
	}
	s.capacity.Store(&capacity)
	workers := river.NewWorkers()
	river.AddWorker(workers, h)
	client, err := river.NewClient(newFetchDriver(s, h.gate), &river.Config{
		ID:                          s.node,
		Queues:                      queues,
		Workers:                     workers,
		Logger:                      slog.New(riverLog{s.cfg.Log.With("part", "river").Handler(), s.failing}),
		FetchCooldown:               fetchCooldown,
		FetchPollInterval:           pollInterval,
		JobTimeout:                  -1, // a step knows its own
		RescueStuckJobsAfter:        rescueAfter,
		CompletedJobRetentionPeriod: keepForever,
		CancelledJobRetentionPeriod: keepForever,
		DiscardedJobRetentionPeriod: keepForever,
		ReindexerIndexNames:         []string{"river_job_pkey", "river_job_prioritized_fetching_index"}, // those that are used
	})
	if err != nil {
		return fmt.Errorf("set up River: %w", err)
	}
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

// workersOf is how many jobs a node holds at a time of a lane of which so many may run.
func workersOf(capacity int) int {
	return min(capacity+min(max(capacity, minAhead), maxAhead), river.QueueNumWorkersMax)
}

// startRiver starts the client, and tries again for as long as the database does not let it. False: ctx ended first.
func (s *Store) startRiver(ctx context.Context, client *river.Client[pgx.Tx]) bool {
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
	defer h.store.dropped(job.ID)
	lane := store.Lane(job.Queue)
	it := h.store.held.item(job.ID)
	select {
	case <-it.permit.open:
	case <-h.stopping:
		if h.gate.withdraw(it.permit) {
			return h.handBack(job.ID, lane, it, 0)
		}
	}
	return h.run(job.ID, lane, it)
}

// run does a job that the gate has let go.
func (h *handout) run(job int64, lane store.Lane, it *item) error {
	permit := it.permit
	defer h.gate.ended(permit)
	stepped := sync.OnceFunc(func() { h.gate.stepped(permit) })
	defer stepped()
	select {
	case <-h.stopping:
		return h.handBack(job, lane, it, 0)
	default:
	}
	if !it.loaded {
		whole, err := h.store.requestOf(job, lane)
		if err != nil || whole == nil {
			return h.skip(err)
		}
		it.request = *whole
	}
	handed := it.handed(lane)
	handed.Started, handed.Answered = func() {}, func() {}
	var mark *time.Timer
	if lane != store.LaneDeliver {
		handed.Started = func() {
			started := time.Now().Add(h.store.cfg.Nodes.Skew())
			mark = time.AfterFunc(store.MarkDelay, func() {
				_ = h.store.submit(context.Background(), h.store.results, &op{mark: &workMark{job: job, at: started}}) // refused at the very end only, when nobody looks
			})
		}
	}
	next := h.step(context.Background(), handed)
	if mark != nil {
		mark.Stop() // a mark that comes late finds no row of this job
	}
	stepped()
	t, err := next.Apply(&handed)
	if err != nil {
		h.store.cfg.Log.Error("a job ended against the rules; it stays in the queue", "error", err)
		return h.handBack(job, lane, it, store.LookInterval)
	}
	return h.settle(&op{settle: &settlement{Transition: t, job: job}})
}

// skip drops a job whose request has another job by now or cannot be read. In the second case this node no
// longer knows of the job, so it is reclaimed.
func (h *handout) skip(err error) error {
	if err == nil {
		return nil // the request has another job, or is gone
	}
	h.store.cfg.Log.Error("read a request to work on; it is dispatched again", "error", err)
	h.store.held.doubt()
	return nil
}

// handBack puts a job that was not done back into its lane. A callback that was parked stays so.
func (h *handout) handBack(job int64, lane store.Lane, it *item, delay time.Duration) error {
	handed := it.handed(lane)
	t, err := store.Release().Apply(&handed)
	if err != nil { // never: every job may be released
		return err
	}
	if delay > 0 {
		t.At = time.Now().Add(delay)
	}
	return h.settle(&op{settle: &settlement{Transition: t, job: job}})
}

// settle commits a result, and tries again for as long as the database does not take it: giving
// up would do the work twice. When Work is to end it gives up after a few tries; then River keeps
// the job, or other nodes take it over once this one is gone.
func (h *handout) settle(o *op) error {
	s := h.store
	if o.settle != nil {
		o.after = func() { s.queued(&o.settle.Transition) }
	}
	for tries := 0; ; tries++ {
		err := s.await(context.Background(), s.results, o)
		if err == nil {
			if o.settle != nil && !o.settle.found && (!o.unsure || !s.kept(context.Background(), o.settle)) {
				s.cfg.Log.Warn("a result came too late: the request is another's by now", "request_id", o.settle.Request.ID)
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
		pause := time.NewTimer(store.RetrySettle)
		<-pause.C
	}
}

// item is a request whose job was dispatched.
type item struct {
	request tandem.Request
	queue   queue
	due     time.Time // by the clock of the database
	size    int       // bytes of data or result that the job will hold
	loaded  bool      // request has them
	permit  *permit
}

// handed is its job, as a step is given it.
func (it *item) handed(lane store.Lane) store.Job {
	return store.Job{Lane: lane, Request: it.request, Parked: it.queue.destination}
}

// requestOf reads the request of a job with what the job needs, however large; nil: it has another job by now, or is gone.
func (s *Store) requestOf(job int64, lane store.Lane) (whole *tandem.Request, err error) {
	err = s.reading(context.Background(), func(ctx context.Context) error {
		r, err := scan(s.reads.QueryRow(ctx, `
			SELECT `+requestColumns+`, CASE $2 WHEN 'deliver' THEN ''::bytea ELSE data END, CASE $2 WHEN 'deliver' THEN result END
			FROM requests
			WHERE job_id = $1`, job, string(lane)))
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		whole = &r
		return err
	})
	return whole, err
}
