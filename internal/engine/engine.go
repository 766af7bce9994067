// Package engine leads requests through their life: accepted, processed,
// delivered.
//
// There is one path for the work itself ([Engine.Do] and the store's jobs share
// process), so that a comparison of sync and async compares the ways of asking and
// nothing else. The package hides slots and their sharing, deadlines, the callback's body,
// signature and retries, and the drain. What can be done is in package work.
//
// It promises that every order has a row before its work starts, that a result is
// returned only when it is on disk, and that work cut off by a shutdown is handed
// back to the store rather than lost. What happens to a job next is returned to the
// store (see [store.Next]), which commits it; the engine never writes while it
// works. The HTTP server calls Do and Submit; app calls Run.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/work"
)

const (
	// maxSyncWaiters bounds sync orders that wait for a slot of one kind, at most half of them one
	// owner's; more are refused at once.
	maxSyncWaiters = 8192

	// deliverJobs bounds callbacks dispatched by the store at once, at most half of them one owner's;
	// most wait for their destination.
	deliverJobs = 8192

	storeTimeout     = 10 * time.Second // for one commit that a caller waits for
	finishPause      = time.Second      // between two tries to commit the end of a sync request that was not taken
	maxDestinations  = 1000             // that Destinations returns
	maxRetentionWait = time.Hour        // between two runs of retention
	minRetentionWait = time.Minute      // the same, when Retention is short
	retentionDelay   = time.Second      // from the start to the first run: the start itself comes first
	retryAfter       = 5 * time.Second  // suggested to callers while we drain or the database is away
)

// Why a piece of work was cut off: causes of its context.
var (
	errTaskTimeout = errors.New("the task ran past its deadline")
	errInterrupted = errors.New("the server is shutting down")
)

// Config of an [Engine]. Zero fields take the defaults named.
type Config struct {
	Store   store.Store     // required; the engine does not close it
	Egress  *egress.Client  // required; how callbacks leave
	Secrets []tandem.Secret // sign the callbacks of requests that no key asked for, one signature each; at least one
	// whose secrets sign the others; nil: there are none, and Secrets do. The engine neither runs nor closes them
	Keys        *keys.Keys
	Nodes       *store.Nodes  // who shares the database of Store; nil: nobody
	Tasks       []work.Task   // more tasks, beside the built-in ones
	Workers     int           // slots for tasks that compute; the number of cores, or one less (see [work.NewPool])
	IOWorkers   int           // slots for tasks that wait; DefaultIOWorkers
	TaskTimeout time.Duration // sync: from the order's arrival; async: from the start of its task; DefaultTaskTimeout
	Retry       work.Retry    // when failed callbacks are tried again; zero fields: those of DefaultRetry

	// Compute is the command line of a program that calls [work.ServeCompute], for built-in tasks that
	// compute. Empty: they run in this process.
	Compute []string

	Retention time.Duration // finished requests older than this are deleted; 0: kept for ever
	Grace     time.Duration // how long Run lets running work finish once its ctx has ended; 20 s
	Log       *slog.Logger  // slog.Default

	// Observers are told each step of each request. They are called by many goroutines, while these work, and must
	// not block.
	Observers []func(Event)

	// Publish returns JSON members that this node publishes to the others that share its database, beside those of
	// the engine, and Receive gets what the others published last; nil: nothing.
	Publish func() map[string]any
	Receive func([]store.State)
}

// withDefaults returns cfg with its zero fields filled in, or says what is wrong with it.
func (cfg Config) withDefaults() (Config, error) {
	switch {
	case cfg.Store == nil:
		return cfg, errors.New("engine: Store is required")
	case cfg.Egress == nil:
		return cfg, errors.New("engine: Egress is required")
	case len(cfg.Secrets) == 0 || slices.ContainsFunc(cfg.Secrets, tandem.Secret.IsZero):
		return cfg, errors.New("engine: Secrets needs at least one secret, none of them empty")
	case cfg.Workers < 0 || cfg.IOWorkers < 0 || cfg.Workers > MaxWorkers || cfg.IOWorkers > MaxWorkers:
		return cfg, fmt.Errorf("engine: Workers and IOWorkers must be between 1 and %d", MaxWorkers)
	case cfg.TaskTimeout < 0 || cfg.Retention < 0 || cfg.Grace < 0:
		return cfg, errors.New("engine: TaskTimeout, Retention and Grace must not be negative")
	}
	cfg.Retry.Attempts = cmp.Or(cfg.Retry.Attempts, DefaultRetry.Attempts)
	cfg.Retry.Backoff = cmp.Or(cfg.Retry.Backoff, DefaultRetry.Backoff)
	cfg.Retry.MaxAge = cmp.Or(cfg.Retry.MaxAge, DefaultRetry.MaxAge)
	if err := cfg.Retry.Validate(); err != nil {
		return cfg, fmt.Errorf("engine: callback %w", err)
	}
	cfg.IOWorkers = cmp.Or(cfg.IOWorkers, DefaultIOWorkers)
	cfg.TaskTimeout = cmp.Or(cfg.TaskTimeout, DefaultTaskTimeout)
	cfg.Grace = cmp.Or(cfg.Grace, 20*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	return cfg, nil
}

// Defaults of [Config].
const (
	DefaultIOWorkers   = 256
	DefaultTaskTimeout = 30 * time.Second
)

// DefaultRetry is when failed callbacks are tried again.
var DefaultRetry = work.Retry{Attempts: 3, Backoff: time.Second, MaxAge: 24 * time.Hour}

// MaxWorkers bounds both kinds of slot: every slot may hold a process or a goroutine.
const MaxWorkers = 10_000

// Engine leads requests through their life. Its methods may be called from any
// number of goroutines.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	tasks   map[string]work.Task  // :: name → task
	slots   map[store.Lane]*slots // :: cpu, io → their slots
	compute *work.Pool
	gate    gate

	accepting timeout // of the commit of a sync order's row
	storing   timeout // of every other commit that a caller waits for

	// working ends, with errInterrupted, when running work must stop: at the end
	// of the grace period or in Halt. It is a field because work outlives every call
	// that starts it, and both Do and the store's jobs obey it.
	working   context.Context //nolint:containedctx // see above
	interrupt context.CancelCauseFunc
}

// New makes an engine; [Engine.Run] starts it. It starts no goroutine.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	compute := work.NewPool(cfg.Compute, cfg.Workers, cfg.Log)
	tasks, err := tasksByName(compute, cfg.Tasks)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:     cfg,
		log:     cfg.Log,
		tasks:   tasks,
		compute: compute,
		slots: map[store.Lane]*slots{
			store.LaneCPU: newSlots(compute.Count(), maxSyncWaiters),
			store.LaneIO:  newSlots(cfg.IOWorkers, maxSyncWaiters),
		},
		gate: gate{open: make(chan struct{}), empty: make(chan struct{})},

		accepting: timeout{length: min(storeTimeout, cfg.TaskTimeout)},
		storing:   timeout{length: storeTimeout},
	}
	e.working, e.interrupt = context.WithCancelCause(context.Background())
	return e, nil
}

// Run dispatches work until ctx ends, then drains: nothing new is accepted or
// started, what runs may finish within Grace, the rest is released to the store
// (async) or failed as interrupted (sync). It returns when every Do and Submit has
// returned and all it started has stopped; nil after a drain. It is called once.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.working, cancel)() // Halt ends Run as well
	if err := e.gate.unlock(); err != nil {
		return fmt.Errorf("run engine: %w", err)
	}
	defer e.interrupt(errInterrupted)
	defer e.accepting.release()
	defer e.storing.release()
	defer e.cfg.Nodes.Exchange(e.publish, e.receive)()
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return e.work(running) })
	group.Go(func() error { return e.retain(running) })
	group.Go(func() error {
		<-running.Done()
		e.Drain()
		<-e.gate.empty
		return nil
	})
	stopped := make(chan struct{}) // closed when the group has stopped
	var grace errgroup.Group
	grace.Go(func() error { return e.endGrace(running, stopped) })

	err := group.Wait()
	close(stopped)
	e.compute.Close() // no computation is left
	return errors.Join(err, grace.Wait())
}

// work dispatches the store's jobs until ctx ends and the last step has returned.
func (e *Engine) work(ctx context.Context) error {
	capacity := store.Capacity{
		Jobs: map[store.Lane]int{
			// Of each owner's half one set runs and one stands ready.
			store.LaneCPU:     4 * e.slots[store.LaneCPU].count,
			store.LaneIO:      4 * e.slots[store.LaneIO].count,
			store.LaneDeliver: deliverJobs,
		},
		Room:   e.cfg.Egress.Room,
		MaxAge: e.cfg.Retry.MaxAge,
	}
	// A step obeys the engine's contexts instead of the store's: ctx while it has
	// not started its work, e.working afterwards.
	step := func(_ context.Context, job store.Job) store.Next { return e.step(ctx, job) }
	err := e.cfg.Store.Work(ctx, capacity, step)
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
		return nil
	}
	if err == nil {
		err = errors.New("the store stopped handing out work")
	}
	return fmt.Errorf("hand out work: %w", err)
}

// endGrace waits for the drain to begin and cuts off what still runs Grace later.
func (e *Engine) endGrace(running context.Context, stopped <-chan struct{}) error {
	<-running.Done()
	timer := time.NewTimer(e.cfg.Grace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		e.log.Warn("grace period over: interrupting what still runs", "grace", e.cfg.Grace)
		e.interrupt(errInterrupted)
	}
	return nil
}

// retain deletes old requests, soon after the start and then every so often.
func (e *Engine) retain(ctx context.Context) error {
	if e.cfg.Retention == 0 {
		return nil
	}
	every := min(max(e.cfg.Retention/100, minRetentionWait), maxRetentionWait)
	timer := time.NewTimer(retentionDelay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-timer.C:
			e.retainOnce(ctx, now)
			timer.Reset(every)
		}
	}
}

// retainOnce logs what goes wrong instead of returning it: the next run tries again.
func (e *Engine) retainOnce(ctx context.Context, now time.Time) {
	n, err := e.cfg.Store.Retain(ctx, now.Add(e.cfg.Nodes.Skew()-e.cfg.Retention))
	switch {
	case errors.Is(err, store.ErrMoved): // which the store has logged
	case err != nil:
		e.log.Error("delete old requests", "error", err)
	case n > 0:
		e.log.Info("deleted old requests", "count", n, "older_than", e.cfg.Retention)
	}
}

// Drain makes Do and Submit refuse new orders with CodeDraining from now on, while
// running work goes on. Run calls it too; calling it again changes nothing.
func (e *Engine) Drain() { e.gate.lock() }

// Halt drains and ends the grace period at once: running work is cut off and Run
// returns as soon as it has stopped. It is what a second signal asks for.
func (e *Engine) Halt() {
	e.Drain()
	e.interrupt(errInterrupted)
}

// Ready is closed when Run has begun and new orders are taken.
func (e *Engine) Ready() <-chan struct{} { return e.gate.open }

// Draining reports whether new orders are refused: before Run, and from Drain on.
func (e *Engine) Draining() bool { return !e.gate.isOpen() }

// TaskNames lists the tasks an order may name, sorted.
func (e *Engine) TaskNames() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(e.tasks)), func(name string) bool { return e.tasks[name].Internal })
}

// Destination is what is known of one callback host.
type Destination = egress.Destination

// Destinations are the callback hosts that this node knows, at most 1,000.
func (e *Engine) Destinations() []Destination { return e.cfg.Egress.Destinations(maxDestinations) }

// Breakers counts the destinations that this node remembers by the state of their circuit breaker.
func (e *Engine) Breakers() map[string]int { return e.cfg.Egress.Breakers() }

// tasksByName adds more to the built-in tasks, of which compute runs those that compute. The error
// names the task that cannot be added.
func tasksByName(compute *work.Pool, more []work.Task) (map[string]work.Task, error) {
	tasks := make(map[string]work.Task)
	for _, task := range work.Builtin() {
		if task.Class == work.CPU {
			task = compute.Task(task)
		}
		tasks[task.Name] = task
	}
	for _, task := range more {
		if err := task.Validate(); err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
		if _, taken := tasks[task.Name]; taken {
			return nil, fmt.Errorf("engine: two tasks named %q", task.Name)
		}
		tasks[task.Name] = task
	}
	return tasks, nil
}

// laneOf is the lane that work of a class waits in.
func laneOf(class work.Class) store.Lane {
	if class == work.CPU {
		return store.LaneCPU
	}
	return store.LaneIO
}

// timeout bounds one run of a task.
func (e *Engine) timeout(task *work.Task) time.Duration {
	return cmp.Or(task.Timeout, e.cfg.TaskTimeout)
}

// gate lets orders in while it is open, and tells when the last one has left
// after it was locked. It is opened once and locked for good.
type gate struct {
	mu     sync.Mutex // guards the fields below
	opened bool
	locked bool
	inside int           // calls of Do and Submit under way, and what they left to be done
	open   chan struct{} // closed when the gate is opened
	empty  chan struct{} // closed when the gate is locked and nobody is inside
}

// unlock opens the gate. A gate locked before stays locked.
func (g *gate) unlock() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened {
		return errors.New("it has run before")
	}
	g.opened = true
	close(g.open)
	return nil
}

func (g *gate) lock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.locked && g.inside == 0 {
		close(g.empty)
	}
	g.locked = true
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened && !g.locked
}

// enter lets one call in and returns how many are inside now; it returns false, and leave must not be called, unless
// the gate is open.
func (g *gate) enter() (inside int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.opened || g.locked {
		return 0, false
	}
	g.inside++
	return g.inside, true
}

// stay is enter for what outlasts the call that is inside, locked or not.
func (g *gate) stay() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.locked && g.inside == 0 {
		close(g.empty)
	}
}
