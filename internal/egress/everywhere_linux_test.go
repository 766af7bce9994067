package egress_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem/internal/audit"
)

// everywhere is a canary that listens on every address, on each port that a vector names.
type everywhere struct {
	answer   atomic.Pointer[string] // what it answers; empty: 204
	arrivals chan arrival           // one for each connection, before it is answered
}

// arrival is one connection to the canary.
type arrival struct {
	to      netip.AddrPort // the address that was called
	request *http.Request  // nil: not HTTP, or nothing came
	body    string
	more    int // bytes behind the request
}

func newEverywhere(t *testing.T, vectors []audit.Vector) *everywhere {
	t.Helper()
	e := &everywhere{arrivals: make(chan arrival, 64)}
	ports := map[string]bool{"80": true, "443": true}
	_, proxyPort, _ := net.SplitHostPort(proxyAddress)
	ports[proxyPort] = true
	for _, v := range vectors {
		u, err := url.Parse(v.URL)
		if err != nil {
			continue
		}
		if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil && port != 0 {
			ports[strconv.FormatUint(port, 10)] = true
		}
	}
	for port := range ports {
		e.listen(t, port)
	}
	return e
}

// listen takes connections on a port of every address until the test ends.
func (e *everywhere) listen(t *testing.T, port string) {
	t.Helper()
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { e.serve(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
}

func (e *everywhere) serve(conn net.Conn) {
	defer conn.Close()
	to := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	a := arrival{to: netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())}
	reader := bufio.NewReader(conn)
	request, err := http.ReadRequest(reader)
	if err == nil {
		body, _ := io.ReadAll(io.LimitReader(request.Body, 1024))
		a.request, a.body, a.more = request, string(body), reader.Buffered()
	}
	e.arrivals <- a
	if answer := e.answer.Load(); answer != nil && *answer != "" {
		_, _ = io.WriteString(conn, *answer)
		return
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
}

// await returns the next n connections. The kernel counts a connection before the canary sees
// it, so one that has been counted will come.
func (e *everywhere) await(t *testing.T, n int) []arrival {
	t.Helper()
	var all []arrival
	for range n {
		select {
		case a := <-e.arrivals:
			all = append(all, a)
		case <-time.After(30 * time.Second):
			t.Fatalf("%d connections were begun, but the canary has seen %d: %+v", n, len(all), all)
		}
	}
	return all
}
