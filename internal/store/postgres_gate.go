package store

import (
	"maps"
	"slices"
	"sync"
)

// gate lets those jobs go that slots and memory allow, of each lane in the order in which they came. River
// has handed them to this node already, a few more than may run.
type gate struct {
	budget int64

	mu      sync.Mutex // guards the fields below
	free    map[Lane]int
	held    int64 // bytes of jobs that were let go and have not ended
	waiting map[Lane][]*ticket
	next    Lane // its first job found too few bytes left and is the next to get some, or small ones would always be quicker; LaneNone: none
}

// ticket is a job at the gate.
type ticket struct {
	lane Lane
	size int64
	open chan struct{} // closed when the job may go
}

func newGate(capacity Capacity) *gate {
	g := &gate{budget: capacity.Bytes, free: map[Lane]int{}, waiting: map[Lane][]*ticket{}}
	if g.budget == 0 {
		g.budget = defaultBytes
	}
	maps.Copy(g.free, capacity.Jobs)
	return g
}

// enter queues a job.
func (g *gate) enter(lane Lane, size int) *ticket {
	t := &ticket{lane: lane, size: int64(size), open: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting[lane] = append(g.waiting[lane], t)
	g.admitLocked(lane)
	return t
}

// withdraw takes a job back that was not let go; false: it was.
func (g *gate) withdraw(t *ticket) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting[t.lane], t)
	if i < 0 {
		return false
	}
	g.waiting[t.lane] = slices.Delete(g.waiting[t.lane], i, i+1)
	if g.next == t.lane {
		g.next = LaneNone
	}
	g.admitAllLocked()
	return true
}

// stepped gives back the slot of a job whose step has returned.
func (g *gate) stepped(t *ticket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free[t.lane]++
	g.admitLocked(t.lane)
}

// ended gives back the bytes of a job whose result is committed.
func (g *gate) ended(t *ticket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held -= t.size
	g.admitAllLocked()
}

func (g *gate) admitAllLocked() {
	if g.next != LaneNone {
		g.admitLocked(g.next)
	}
	for _, lane := range Lanes {
		g.admitLocked(lane)
	}
}

func (g *gate) admitLocked(lane Lane) {
	for len(g.waiting[lane]) > 0 && g.free[lane] > 0 {
		t := g.waiting[lane][0]
		if g.next != LaneNone && g.next != lane {
			return
		}
		if g.held > 0 && g.held+t.size > g.budget {
			g.next = lane
			return
		}
		g.next = LaneNone
		g.waiting[lane] = g.waiting[lane][1:]
		g.free[lane]--
		g.held += t.size
		close(t.open)
	}
}
