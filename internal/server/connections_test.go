package server_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tandem/internal/server"
)

// web serves a handler as `tandem serve` does, until the test ends. Connections seem to come from
// the addresses that from gives out; nil: from where they do come.
func web(t *testing.T, handler http.Handler, cfg server.Config, from func() string) (address string) {
	t.Helper()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := plain
	if from != nil {
		listener = &elsewhere{plain, from}
	}
	served := server.HTTPServer(handler, cfg)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(served, listener, cfg) }()
	t.Cleanup(func() {
		if err := served.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return plain.Addr().String()
}

// elsewhere is a listener whose connections say that they come from other addresses.
type elsewhere struct {
	net.Listener
	from func() string
}

func (e *elsewhere) Accept() (net.Conn, error) {
	conn, err := e.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &foreign{conn, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(e.from()), 4711))}, nil
}

type foreign struct {
	net.Conn
	address net.Addr
}

func (f *foreign) RemoteAddr() net.Addr { return f.address }

// caller is one connection of a client.
type caller struct {
	net.Conn
	answers *bufio.Reader
}

func dialTo(t *testing.T, address string) *caller {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &caller{conn, bufio.NewReader(conn)}
}

// ask sends a request on the connection; it returns false when that is closed.
func (c *caller) ask(path string) bool {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
		return false
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return err == nil
}

// open reports whether the connection still is, once the server has had time to close it.
func (c *caller) open() bool {
	_, err := c.answers.Peek(1)
	var slow net.Error
	return errors.As(err, &slow) && slow.Timeout()
}

// Those that wait make room for those that come, the longest first. Those that are being served do not.
func TestConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	const most = 20
	release, entered := make(chan struct{}), make(chan struct{}, most)
	open := sync.OnceFunc(func() { close(release) })
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			entered <- struct{}{}
			<-release
		}
	})
	address := web(t, handler, server.Config{Connections: server.NewConnections(most, nil)}, nil)
	t.Cleanup(open)

	busy := dialTo(t, address) // the oldest, but it is being served
	var served sync.WaitGroup
	served.Go(func() {
		if !busy.ask("/long") {
			t.Error("a connection was closed in the middle of its request")
		}
	})
	<-entered
	idle := dialTo(t, address)
	if !idle.ask("/") {
		t.Fatal("no answer")
	}
	var slow []*caller
	for range most - 2 {
		conn := dialTo(t, address)
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
		slow = append(slow, conn)
	}
	for i := range 3 * most { // each takes the place of one that waits
		if !dialTo(t, address).ask("/") {
			t.Fatalf("newcomer %d was not served", i)
		}
	}
	for i, conn := range append(slow, idle) {
		if conn.open() {
			t.Errorf("waiting connection %d was not closed", i)
		}
	}
	open()
	served.Wait()
}

// When every connection is being served a newcomer is refused at once, and not kept.
func TestConnectionsAtTheCap(t *testing.T) {
	t.Parallel()
	const most = 4
	release, entered := make(chan struct{}), make(chan struct{}, most)
	open := sync.OnceFunc(func() { close(release) })
	table := server.NewConnections(most, nil)
	address := web(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			entered <- struct{}{}
			<-release
		}
	}), server.Config{Connections: table}, nil)
	t.Cleanup(open)
	var served sync.WaitGroup
	for range most {
		conn := dialTo(t, address)
		served.Go(func() {
			if !conn.ask("/long") {
				t.Error("no answer")
			}
		})
		<-entered
	}
	if dialTo(t, address).ask("/") {
		t.Error("one more was served")
	}
	if got, want := server.Figures(table), [4]int64{most, most, 0, 1}; got != want {
		t.Errorf("open, capacity, closed, refused: %v, want %v", got, want)
	}
	open()
	served.Wait()
	if !dialTo(t, address).ask("/") { // they are idle now
		t.Error("there is room, and a newcomer was not served")
	}
}

// A client has a quarter of the connections, an IPv6 network is one client, and proxies and this machine may have all.
func TestConnectionsOfOneClient(t *testing.T) {
	t.Parallel()
	const most = 100
	for _, tt := range []struct {
		name string
		from func(n int) string
		want int
	}{
		{"one address", func(int) string { return "192.0.2.1" }, most / 4},
		{"one address, mapped", func(n int) string { return []string{"192.0.2.1", "::ffff:192.0.2.1"}[n%2] }, most / 4},
		{"one IPv6 network", func(n int) string { return fmt.Sprintf("2001:db8::%x", n) }, most / 4},
		{"two IPv6 networks", func(n int) string { return fmt.Sprintf("2001:db8:0:%x::1", n%2) }, most / 2},
		{"many addresses", func(n int) string { return fmt.Sprintf("192.0.2.%d", n) }, most},
		{"a trusted proxy", func(int) string { return "10.0.0.1" }, most},
		{"its neighbour", func(int) string { return "10.0.1.0" }, most / 4},
		{"this machine", func(int) string { return "127.0.0.9" }, most},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := 0
			table := server.NewConnections(most, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
			address := web(t, http.NotFoundHandler(), server.Config{Connections: table},
				func() string { n++; return tt.from(n) })
			kept := 0
			for range most {
				if dialTo(t, address).ask("/") {
					kept++
				}
			}
			if kept != tt.want {
				t.Errorf("%d connections, want %d", kept, tt.want)
			}
			if got := server.Figures(table); got[0] != int64(tt.want) || got[3] != int64(most-tt.want) {
				t.Errorf("open, capacity, closed, refused: %v", got)
			}
		})
	}
}

// What is closed is forgotten, whoever closes it.
func TestConnectionsAreForgotten(t *testing.T) {
	t.Parallel()
	table := server.NewConnections(100, nil)
	address := web(t, http.NotFoundHandler(), server.Config{Connections: table}, nil)
	for i := range 50 {
		conn := dialTo(t, address)
		if i%2 == 0 && !conn.ask("/") {
			t.Fatal("no answer")
		}
		conn.Close()
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for server.Figures(table)[0] != 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("open, capacity, closed, refused: %v", server.Figures(table))
		}
	}
}
