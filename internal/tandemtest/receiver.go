package tandemtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault treats one connection. It must return when ctx ends; the connection is
// closed after it.
type Fault func(ctx context.Context, conn *net.TCPConn)

// Receiver is a destination that misbehaves below HTTP, where an http.Handler
// cannot reach. For slow, failing or redirecting answers of a well-formed kind see load.Receiver.
type Receiver struct {
	URL         string       // for callback_url
	connections atomic.Int64 // accepted so far
}

// Connections is how many connections were accepted so far.
func (r *Receiver) Connections() int64 { return r.connections.Load() }

// NewReceiver listens on a free port of the loopback interface and gives every
// connection to fault, until the test ends.
func NewReceiver(t testing.TB, fault Fault) *Receiver {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, "listen", err)
	r := &Receiver{URL: fmt.Sprintf("http://%s/callback", listener.Addr())}
	ctx, cancel := context.WithCancel(context.Background())
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return // closed
			}
			r.connections.Add(1)
			connections.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
				defer stop()
				fault(ctx, conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		connections.Wait()
	})
	return r
}

// Refusing returns the URL of a port on which nobody listens.
func Refusing(t testing.TB) string {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, "listen", err)
	must(t, "close listener", listener.Close())
	return fmt.Sprintf("http://%s/callback", listener.Addr())
}

// BadCertificate returns the https URL of a receiver whose certificate nobody signed.
func BadCertificate(t testing.TB) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes are refused: that is the point
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL + "/callback"
}

// Hang reads everything and never answers.
func Hang(_ context.Context, conn *net.TCPConn) {
	io.Copy(io.Discard, conn) // until the sender gives up
}

// Reset reads the request's head and resets the connection.
func Reset(_ context.Context, conn *net.TCPConn) {
	readHead(conn)
	conn.SetLinger(0) // close sends RST
}

// CloseEarly answers half a status line and closes.
func CloseEarly(_ context.Context, conn *net.TCPConn) {
	readRequest(conn)
	io.WriteString(conn, "HTTP/1.1 2")
}

// Drip answers 200 at once and then a body, byte by byte, that never ends.
func Drip(ctx context.Context, conn *net.TCPConn) {
	readRequest(conn)
	io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
	drip(ctx, conn)
}

// DripHead answers its head byte by byte, without ever ending it.
func DripHead(ctx context.Context, conn *net.TCPConn) {
	readRequest(conn)
	io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Slow: ")
	drip(ctx, conn)
}

func drip(ctx context.Context, conn *net.TCPConn) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := conn.Write([]byte{'x'}); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Flood answers 200 with headers that never end.
func Flood(_ context.Context, conn *net.TCPConn) {
	readRequest(conn)
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
	line := "X-Flood: " + strings.Repeat("x", 4<<10) + "\r\n"
	for {
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}

// Answer gives every request the same answer: a status and header lines such
// as "Retry-After: 2".
func Answer(status int, header ...string) Fault {
	text := fmt.Sprintf("HTTP/1.1 %d %s\r\n%s\r\n", status, http.StatusText(status),
		strings.Join(append(header, "Content-Length: 0", "Connection: close", ""), "\r\n"))
	return func(_ context.Context, conn *net.TCPConn) {
		readRequest(conn)
		io.WriteString(conn, text)
	}
}

// RetryAfter answers 503 and asks for a pause of so many seconds.
func RetryAfter(seconds int) Fault {
	return Answer(http.StatusServiceUnavailable, "Retry-After: "+strconv.Itoa(seconds))
}

// Redirect answers 302 with a Location.
func Redirect(location string) Fault { return Answer(http.StatusFound, "Location: "+location) }

// readHead reads a request up to the blank line.
func readHead(conn net.Conn) {
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadString('\n')
		if err != nil || line == "\r\n" {
			return
		}
	}
}

// readRequest reads a whole request.
func readRequest(conn net.Conn) {
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	io.Copy(io.Discard, request.Body)
}
