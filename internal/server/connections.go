package server

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"tandem/internal/limit"
)

// leastShare is how many connections one client may have, however few there may be in all.
const leastShare = 16

// Connections bounds how many connections are open. When all are taken, the one that has waited
// longest without a request being answered on it makes room for a new one: so those that only hold
// a connection, idle or slow with their header, cannot keep others out. One client has at most a
// quarter of them, so that it cannot take all with requests that go on; trusted proxies, which speak for
// many, and this machine itself may have all.
type Connections struct {
	most, share int
	proxies     []netip.Prefix

	mu      sync.Mutex // guards the fields below
	open    map[net.Conn]*seat
	waiting list.List          // of net.Conn that no request is being answered on, longest first
	clients map[netip.Addr]int // :: client → its connections
	closed  int64
	refused int64
}

// seat is one open connection.
type seat struct {
	client  netip.Addr
	element *list.Element // in waiting; nil while a request is being answered
}

// NewConnections makes a table for at most so many; less than 1 counts as 1.
func NewConnections(most int, proxies []netip.Prefix) *Connections {
	most = max(most, 1)
	return &Connections{
		most: most, share: max(most/4, leastShare), proxies: proxies,
		open: make(map[net.Conn]*seat), clients: make(map[netip.Addr]int),
	}
}

// door is a listener that lets in whom Connections has room for.
type door struct {
	net.Listener
	connections *Connections
}

// listen puts the table before a listener.
func (c *Connections) listen(listener net.Listener) net.Listener { return &door{listener, c} }

// Accept returns the next connection that may stay.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil || d.connections.admit(conn) {
			return conn, err
		}
		_ = conn.Close() // refused at once: who waits in vain would try no other node
	}
}

// admit finds room for a connection, or reports that there is none.
func (c *Connections) admit(conn net.Conn) bool {
	address, _ := parseHop(conn.RemoteAddr().String())
	client := limit.Network(address)
	many := address.IsLoopback() ||
		slices.ContainsFunc(c.proxies, func(p netip.Prefix) bool { return p.Contains(address) })
	c.mu.Lock()
	defer c.mu.Unlock()
	longest := c.waiting.Front()
	if c.clients[client] >= c.share && !many || len(c.open) >= c.most && longest == nil {
		c.refused++
		return false
	}
	if len(c.open) >= c.most {
		victim := longest.Value.(net.Conn)
		c.forget(victim)
		c.closed++
		_ = victim.Close() // does not wait; its goroutine sees it and ends
	}
	c.open[conn] = &seat{client, c.waiting.PushBack(conn)}
	c.clients[client]++
	return true
}

// state is told by net/http what becomes of a connection. Under TLS it names the secure one.
func (c *Connections) state(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	held, known := c.open[conn]
	switch {
	case !known: // it made room for another
	case state == http.StateClosed || state == http.StateHijacked:
		c.forget(conn)
	case state == http.StateActive && held.element != nil:
		c.waiting.Remove(held.element)
		held.element = nil
	case state == http.StateIdle && held.element == nil:
		held.element = c.waiting.PushBack(conn)
	}
}

// forget takes a connection out of the table.
func (c *Connections) forget(conn net.Conn) {
	held := c.open[conn]
	delete(c.open, conn)
	if held.element != nil {
		c.waiting.Remove(held.element)
	}
	if c.clients[held.client]--; c.clients[held.client] == 0 {
		delete(c.clients, held.client)
	}
}

// connectionFigures is what /stats says about connections; all zero while nothing bounds them.
type connectionFigures struct {
	Open     int   `json:"open" minimum:"0" doc:"Now"`
	Capacity int   `json:"capacity" minimum:"0" doc:"--max-connections"`
	Closed   int64 `json:"closed" minimum:"0" doc:"Waiting ones that made room for others, since the process started"`
	Refused  int64 `json:"refused" minimum:"0" doc:"New ones refused since the process started: their client had its share, or none was waiting"`
}

func (c *Connections) figures() connectionFigures {
	if c == nil {
		return connectionFigures{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return connectionFigures{len(c.open), c.most, c.closed, c.refused}
}
