//go:build unix

package main_test

import (
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
)

// wear is what is wrong with a cable.
type wear int

const (
	whole   wear = iota
	refused      // nobody listens, and what was connected is closed
	reset        // what is connected, and what connects, is reset
	stalled      // nothing comes through, and nobody is told
)

// cable is the network between a node and its database: a TCP proxy that can be cut.
type cable struct {
	t        *testing.T
	upstream string // a socket of PostgreSQL
	address  string

	running sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	mended   sync.Cond  // state has changed, or the cable is gone
	state    wear
	gone     bool
	listener *net.TCPListener // nil: refused
	open     map[*net.TCPConn]bool
}

func newCable(t *testing.T, upstream string) *cable {
	t.Helper()
	c := &cable{t: t, upstream: upstream, open: map[*net.TCPConn]bool{}}
	c.mended.L = &c.mu
	c.listenLocked("127.0.0.1:0") // nobody else knows of it yet
	c.address = c.listener.Addr().String()
	t.Cleanup(func() {
		c.mu.Lock()
		c.gone = true
		c.cutLocked()
		c.mended.Broadcast()
		c.mu.Unlock()
		c.running.Wait()
	})
	return c
}

// cabled returns a cable to a database, and the URL that leads over it.
func cabled(t *testing.T, database string) (*cable, string) {
	t.Helper()
	parsed, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	network := newCable(t, filepath.Join(parsed.Query().Get("host"), ".s.PGSQL.5432"))
	parsed.User, parsed.Host = url.User("postgres"), network.address
	parsed.RawQuery = "sslmode=disable"
	return network, parsed.String()
}

// set breaks or repairs it.
func (c *cable) set(state wear) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	switch state {
	case refused:
		c.cutLocked()
	case reset:
		c.resetLocked()
	default:
		if c.listener == nil {
			c.listenLocked(c.address)
		}
	}
	c.mended.Broadcast()
}

func (c *cable) listenLocked(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Errorf("mend the cable: %v", err)
		return
	}
	c.listener = listener.(*net.TCPListener)
	c.running.Go(func() { c.accept(listener.(*net.TCPListener)) })
}

func (c *cable) cutLocked() {
	if c.listener != nil {
		c.listener.Close()
		c.listener = nil
	}
	c.resetLocked()
}

func (c *cable) resetLocked() {
	for conn := range c.open {
		conn.SetLinger(0) // close sends RST
		conn.Close()
	}
	clear(c.open)
}

func (c *cable) accept(listener *net.TCPListener) {
	for {
		near, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.open[near] = true
		if c.state == reset || c.gone {
			c.resetLocked()
		}
		c.mu.Unlock()
		c.running.Go(func() { c.carry(near) })
	}
}

// carry passes on what comes from either side until one of them closes.
func (c *cable) carry(near *net.TCPConn) {
	defer func() {
		c.mu.Lock()
		delete(c.open, near)
		c.mu.Unlock()
		near.Close()
	}()
	far, err := net.Dial("unix", c.upstream)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		c.pass(near, far)
		near.Close()
	})
	c.pass(far, near)
	far.Close()
	back.Wait()
}

func (c *cable) pass(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		c.mu.Lock()
		for c.state == stalled && !c.gone {
			c.mended.Wait()
		}
		c.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
