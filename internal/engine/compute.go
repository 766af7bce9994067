package engine

import (
	"log/slog"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// threads run the tasks that compute. Go code that computes on every core starves
// the HTTP server of the same process. On Linux the threads are therefore operating-system
// threads of the lowest priority, with one more processor for the Go scheduler
// than they can occupy: the server runs at once when it has something to do, and every core
// is used all the same. Where that cannot be had (other systems; a CPU quota,
// which low priority does not spare) one core is left to the server by default.
type threads struct {
	count int         // how many; also the number of CPU slots, so do never waits long
	nice  bool        // give way to everything else by priority
	jobs  chan func() // closed by stop
}

// newThreads plans count threads; 0 means as many as suit the machine.
func newThreads(count int) *threads {
	nice := canYieldByPriority()
	if count == 0 {
		count = defaultThreads(procs.cores(), nice)
	}
	return &threads{count: count, nice: nice, jobs: make(chan func())}
}

// defaultThreads is the number of threads for a machine with so many cores.
func defaultThreads(cores int, nice bool) int {
	if nice {
		return cores
	}
	return max(1, cores-1)
}

// start runs the threads in group until stop.
func (t *threads) start(group *errgroup.Group, log *slog.Logger) {
	if t.nice {
		procs.raise(t.count)
	}
	log.Debug("compute threads", "count", t.count, "lowest_priority", t.nice)
	for range t.count {
		group.Go(func() error {
			t.run(log)
			return nil
		})
	}
}

// run is one thread. A thread of low priority is never unlocked: it ends with its
// goroutine instead of carrying its priority into the rest of the program.
func (t *threads) run(log *slog.Logger) {
	if t.nice {
		runtime.LockOSThread()
		if err := lowerPriority(); err != nil {
			log.Warn("compute at normal priority", "err", err)
		}
	}
	for job := range t.jobs {
		job()
	}
}

// do runs job, which must not panic, on a thread and waits for its end.
func (t *threads) do(job func()) {
	done := make(chan struct{}) // closed when job has ended
	t.jobs <- func() {
		defer close(done)
		job()
	}
	<-done
}

// stop ends the threads. No do may be under way or follow.
func (t *threads) stop() {
	close(t.jobs)
	if t.nice {
		procs.lower(t.count)
	}
}

// procs is the one variable of this package: GOMAXPROCS belongs to the process,
// and so does the number of compute threads that it has been raised for.
var procs processors

// processors keeps GOMAXPROCS one above what compute threads can occupy, for any
// number of engines in the process, and puts it back when the last has stopped.
type processors struct {
	mu   sync.Mutex // guards the fields below
	busy int        // compute threads now
	base int        // GOMAXPROCS while there are none
}

// cores is the number of cores that Go would use by itself (it knows CPU quotas).
func (p *processors) cores() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy > 0 {
		return p.base
	}
	return runtime.GOMAXPROCS(0)
}

func (p *processors) raise(threads int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy == 0 {
		p.base = runtime.GOMAXPROCS(0)
	}
	p.busy += threads
	runtime.GOMAXPROCS(max(p.base, p.busy) + 1)
}

func (p *processors) lower(threads int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy -= threads
	if p.busy == 0 {
		runtime.GOMAXPROCS(p.base)
		return
	}
	runtime.GOMAXPROCS(max(p.base, p.busy) + 1)
}
