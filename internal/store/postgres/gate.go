package postgres

import (
	"sync"

	"tandem/internal/limit"
	"tandem/internal/store"
)

// gate lets those jobs go that slots and memory allow, owners in turns and those of one owner in the order
// in which they came. River has dispatched them to this node already, a few more than may run.
type gate struct {
	budget int64

	mu    sync.Mutex // guards the fields below
	lanes map[store.Lane]*gateLane
	bytes int64            // of jobs that were let go and have not ended
	held  map[string]int64 // :: owner → its part of bytes; owners without any are forgotten
	// next is the lane whose first job found too few bytes left. That job gets the next ones, or small jobs
	// would always be quicker. nil: none.
	next *gateLane
}

// gateLane is the part of a gate for one kind of slot.
type gateLane struct {
	capacity int
	running  int
	owners   map[string]int // :: owner → its part of running; owners without any are forgotten
	waiting  limit.Turns[*permit]
}

// permit is a job at the gate.
type permit struct {
	lane  store.Lane
	owner string
	size  int64
	open  chan struct{} // closed when the job may go
}

func newGate(capacity store.Capacity) *gate {
	g := &gate{budget: capacity.Budget(), lanes: map[store.Lane]*gateLane{}, held: map[string]int64{}}
	for _, lane := range store.Lanes {
		g.lanes[lane] = &gateLane{capacity: capacity.Jobs[lane], owners: map[string]int{}}
	}
	return g
}

// enter queues a job of an owner.
func (g *gate) enter(lane store.Lane, owner string, size int) *permit {
	t := &permit{lane: lane, owner: owner, size: int64(size), open: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lanes[lane].waiting.Push(owner, 1+size/store.JobBytes, t)
	g.admitLocked(g.lanes[lane])
	return t
}

// withdraw takes a job back that was not let go; false: it was.
func (g *gate) withdraw(t *permit) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[t.lane]
	if !l.waiting.Remove(t.owner, func(other *permit) bool { return other == t }) {
		return false
	}
	if g.next == l {
		g.next = nil
	}
	g.admitAllLocked()
	return true
}

// stepped gives back the slot of a job whose step has returned.
func (g *gate) stepped(t *permit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[t.lane]
	l.running--
	less(l.owners, t.owner, 1)
	g.admitLocked(l)
}

// ended gives back the bytes of a job whose result is committed.
func (g *gate) ended(t *permit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes -= t.size
	less(g.held, t.owner, t.size)
	g.admitAllLocked()
}

// less takes n from what an owner has.
func less[N int | int64](of map[string]N, owner string, n N) {
	if of[owner] -= n; of[owner] == 0 {
		delete(of, owner)
	}
}

func (g *gate) admitAllLocked() {
	if g.next != nil {
		g.admitLocked(g.next)
	}
	for _, lane := range store.Lanes {
		g.admitLocked(g.lanes[lane])
	}
}

func (g *gate) admitLocked(l *gateLane) {
	for l.running < l.capacity {
		t, ok := l.waiting.Peek(func(owner string, t *permit) bool {
			return store.MayRun(l.capacity, l.running, l.owners[owner]) && store.MayHold(g.budget, g.bytes, g.held[owner], t.size)
		})
		if !ok || g.next != nil && g.next != l {
			return
		}
		if g.bytes > 0 && g.bytes+t.size > g.budget {
			g.next = l
			return
		}
		g.next = nil
		l.waiting.Take()
		l.running++
		l.owners[t.owner]++
		g.bytes += t.size
		g.held[t.owner] += t.size
		close(t.open)
	}
}
