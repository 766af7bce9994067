package store

import (
	"context"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tandem"
)

// MaxNodes is how many other nodes one listens to.
const MaxNodes = 256

// maxState is the most that a node may tell the others, in bytes.
const maxState = 256 << 10

// Node is one tandem of those that share a database.
type Node struct {
	ID      string
	Name    string    // of its machine
	Version string    // of tandem
	Address string    // where it listens, for people
	Since   time.Time // it joined, by the clock of the database
	Seen    time.Time // it last said that it lives, by the clock of the database
	This    bool      // it is the one that is asked
}

// State is what another node has told, and how long ago.
type State struct {
	Node string // its id
	Told []byte
	Age  time.Duration
}

// Nodes are the tandems that share a database, as one of them knows them: which there are, and what they tell
// each other with every heartbeat, some seconds old at most. On SQLite there is one. The store that is
// opened with them looks after them; a nil *Nodes knows nobody and tells nothing.
type Nodes struct {
	address string
	skew    atomic.Int64 // nanoseconds

	mu   sync.Mutex // guards the fields below; held while tell and hear run
	list func(context.Context) ([]Node, error)
	tell func() []byte
	hear func([]State)
	live int // nodes alive as of the last heartbeat, this one included
}

// NewNodes is for one Config. The address is where this node listens.
func NewNodes(address string) *Nodes { return &Nodes{address: address, live: 1} }

// Address is where this node listens.
func (n *Nodes) Address() string {
	if n == nil {
		return ""
	}
	return n.address
}

// Exchange has the others told what tell returns, and hear called with what all the others last told, which
// replaces what it was called with before. Neither must block. It returns what ends that: once end has returned, neither runs.
func (n *Nodes) Exchange(tell func() []byte, hear func([]State)) (end func()) {
	n.set(tell, hear)
	return func() { n.set(nil, nil) }
}

func (n *Nodes) set(tell func() []byte, hear func([]State)) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tell, n.hear = tell, hear
}

// minSkew is how far a clock has to be off to be corrected; less is what any two clocks differ by.
const minSkew = time.Second

// Skew is what has to be added to this machine's time for what others read of it or compare with theirs: the nodes go
// by the clock of the database. It is 0 unless the two differed by a second or more at the last heartbeat.
func (n *Nodes) Skew() time.Duration {
	if n == nil {
		return 0
	}
	return time.Duration(n.skew.Load())
}

// ReadClock notes what the clock of the database says, which was asked between two moments. It reports whether our own is
// found right, or wrong, for the first time.
func (n *Nodes) ReadClock(before, after, said time.Time) (news bool) {
	took := after.Sub(before)
	if n == nil || took > minSkew/2 { // what it said is too old
		return false
	}
	skew := said.Sub(before.Add(took / 2))
	if skew.Abs() < minSkew {
		skew = 0
	}
	return (n.skew.Swap(int64(skew)) == 0) != (skew == 0)
}

// Count is how many nodes were alive at the last heartbeat of this one.
func (n *Nodes) Count() int {
	if n == nil {
		return 1
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live
}

// List returns the nodes that are not known to be dead, those first that have been there longest.
func (n *Nodes) List(ctx context.Context) ([]Node, error) {
	if n == nil {
		return nil, nil
	}
	n.mu.Lock()
	list := n.list
	n.mu.Unlock()
	if list == nil {
		return nil, nil
	}
	return list(ctx)
}

// SetList says who knows which nodes there are.
func (n *Nodes) SetList(list func(context.Context) ([]Node, error)) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = list
}

// Published is what is to be told now; nil: nothing.
func (n *Nodes) Published() []byte {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tell == nil {
		return nil
	}
	state := n.tell()
	if len(state) > maxState {
		return nil
	}
	return state
}

// Receive passes on what the others have told. Of some there is nothing.
func (n *Nodes) Receive(states []State) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live = len(states) + 1
	if n.hear != nil {
		n.hear(slices.DeleteFunc(states, func(s State) bool { return s.Told == nil }))
	}
}

// ListAlone is the list of a node whose database is its own.
func ListAlone(id string, n *Nodes) func(context.Context) ([]Node, error) {
	since, name := time.Now().UTC(), Machine()
	return func(context.Context) ([]Node, error) {
		return []Node{{ID: id, Name: name, Version: tandem.Version, Address: n.address, Since: since, Seen: time.Now().UTC(), This: true}}, nil
	}
}

// Machine is the name of this one.
func Machine() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
