package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
)

// Database is an empty database. Its stores are compared with the model.
type Database struct {
	Name string

	// Open opens a store on it, as one node of those that share it. limits are those of the setting.
	Open func(limits store.Config) (store.Store, error)

	// Crash leaves of the database what a crash of its only process would have left: Open opens
	// that from then on. The store of before is still open, and is not asked anything. nil: a crash
	// cannot be had this way.
	Crash func() error

	// Cut cuts a node, the nth that was opened (from 0), off from the database, or reconnects it. nil: it
	// cannot be had.
	Cut func(node int, cut bool)

	Nodes    int  // how many share it; 0: one
	Volatile bool // it does not survive its process: after a restart it is compared no more
	Shared   bool // what a node leaves behind is taken over by those that remain, in a while
}

// settleTimeout is how long a store may take for what it does by itself. It is long, because the machine may
// be busy; but what is dispatched only when a lease ends comes too late.
const settleTimeout = store.CallerLease * 3 / 4

// subject is a database under test.
type subject struct {
	Database

	nodes  []*node
	opened int  // nodes so far
	gone   bool // it is compared no more
}

// node is an open store, and those of its jobs that wait for the oracle to say what comes of them.
type node struct {
	number int // in the order of opening
	store  store.Store
	end    func() error // ends Work, for which all jobs are released, and closes the store; once

	arrived chan struct{} // one token: a job was dispatched

	mu      sync.Mutex // guards the fields below
	held    map[string]*heldJob
	ending  bool // every job is released at once
	mistake error
}

// heldJob is a job that a store has dispatched.
type heldJob struct {
	store.Job

	node *node
	at   time.Time
	next chan store.Next // what its step is to return
}

// allLanes lets every job be dispatched when it is due, so that it is known which are.
func allLanes(rooms *rooms) store.Capacity {
	jobs := map[store.Lane]int{}
	for _, lane := range store.Lanes {
		jobs[lane] = 1000
	}
	return store.Capacity{Jobs: jobs, Room: rooms.room}
}

// open opens a store and has it dispatch jobs.
func (s *subject) open(limits store.Config, rooms *rooms) (*node, error) {
	opened, err := s.Open(limits)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Name, err)
	}
	n := &node{
		number: s.opened, store: opened,
		arrived: make(chan struct{}, 1), held: map[string]*heldJob{},
	}
	s.opened++
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)                                       // what Work returned
	go func() { stopped <- opened.Work(ctx, allLanes(rooms), n.step) }() // end waits for it
	n.end = sync.OnceValue(func() error {
		stop()
		n.releaseAll()
		return errors.Join(<-stopped, opened.Close())
	})
	return n, nil
}

// step holds a job until the oracle says what comes of it.
func (n *node) step(_ context.Context, job store.Job) store.Next {
	h := &heldJob{Job: job, node: n, at: time.Now(), next: make(chan store.Next, 1)}
	n.mu.Lock()
	switch {
	case n.ending:
		n.mu.Unlock()
		return store.Release()
	case n.held[job.Request.ID] != nil:
		n.mistake = fmt.Errorf("%s was dispatched twice at a time", job.Request.ID)
		n.mu.Unlock()
		return store.Release()
	}
	n.held[job.Request.ID] = h
	n.mu.Unlock()
	select {
	case n.arrived <- struct{}{}:
	default:
	}
	return <-h.next
}

// release has a step return.
func (n *node) release(h *heldJob, next store.Next) {
	n.mu.Lock()
	delete(n.held, h.Request.ID)
	n.mu.Unlock()
	h.next <- next
}

// forget drops the jobs that a node holds, and returns them.
func (n *node) forget() map[string]*heldJob {
	n.mu.Lock()
	defer n.mu.Unlock()
	held := n.held
	n.held = map[string]*heldJob{}
	return held
}

// releaseAll has all steps return, those to come as well.
func (n *node) releaseAll() {
	n.mu.Lock()
	n.ending = true
	n.mu.Unlock()
	for _, h := range n.forget() {
		h.next <- store.Release()
	}
}

// jobs are those that the nodes of a subject hold, by the request.
func (s *subject) jobs() (map[string]*heldJob, error) {
	all := map[string]*heldJob{}
	for _, n := range s.nodes {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.mistake != nil {
			return nil, n.mistake
		}
		for id, h := range n.held {
			if all[id] != nil {
				return nil, fmt.Errorf("two nodes hold %s at a time", id)
			}
			all[id] = h
		}
	}
	return all, nil
}

// await returns the job of a request when it has been dispatched.
func (s *subject) await(id string) (*heldJob, error) {
	var found *heldJob
	err := eventually(func() error {
		jobs, err := s.jobs()
		if found = jobs[id]; err == nil && found == nil {
			err = fmt.Errorf("%s is due and not dispatched", id)
		}
		return err
	}, s.nodes[0].arrived)
	return found, err
}

// eventually tries until there is no error, or returns the last one. A token in wake has it look again. It looks less
// and less often, because looking takes from the machine what the store needs.
func eventually(try func() error, wake <-chan struct{}) error {
	const first, longest = 500 * time.Microsecond, 10 * time.Millisecond
	deadline := time.Now().Add(settleTimeout)
	for pause := first; ; pause = min(2*pause, longest) {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-wake:
		}
	}
}

// answer is what became of an operation: the code of a tandem.Error, or one of these.
type answer string

const (
	done    answer = ""
	exists  answer = "ErrExists"
	anError answer = "an error"
)

func answerOf(err error) answer {
	switch code := tandem.CodeOf(err); {
	case err == nil:
		return done
	case errors.Is(err, store.ErrExists):
		return exists
	case code == tandem.CodeNotFound, code == tandem.CodeInvalidCursor,
		code == tandem.CodeQueueFull, code == tandem.CodeQuotaExceeded, code == tandem.CodeStoreUnavailable:
		return answer(code)
	default:
		return anError
	}
}

// Scope is a test that cleans up before its end.
type Scope struct {
	testing.TB

	clean []func()
}

// Cleanup is called in the reverse order by End.
func (s *Scope) Cleanup(f func()) { s.clean = append(s.clean, f) }

// End cleans up.
func (s *Scope) End() {
	for len(s.clean) > 0 {
		last := s.clean[len(s.clean)-1]
		s.clean = s.clean[:len(s.clean)-1]
		last()
	}
}
