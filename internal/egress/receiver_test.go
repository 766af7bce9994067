package egress_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem/internal/egress"
)

// canary listens where nothing may ever connect, and counts what does.
type canary struct {
	listener net.Listener
	accepted atomic.Int64
}

// newCanary listens on host at the given port; 0 picks one.
func newCanary(t *testing.T, host string, port int) *canary {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	c := &canary{listener: listener}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			c.accepted.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-stopped
	})
	return c
}

func (c *canary) port() int { return c.listener.Addr().(*net.TCPAddr).Port }

// mustBeQuiet proves that the canary works, and that nobody came before. What has
// connected before is in the listener's queue before the connection of this call.
func (c *canary) mustBeQuiet(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", c.listener.Addr().String())
	if err != nil {
		t.Fatalf("the canary is dead: %v", err)
	}
	defer conn.Close()
	_, _ = conn.Read(make([]byte, 1)) // ends when the canary has accepted and closed
	if n := c.accepted.Load() - 1; n != 0 {
		t.Errorf("%d connections left for a forbidden address", n)
	}
}

// rawReceiver hands every connection, with its request read, to serve, and counts
// connections. It is stopped by the end of ctx, which serve must obey.
func rawReceiver(t *testing.T, serve func(ctx context.Context, conn net.Conn)) (url string, connections *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections = new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			running.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				request, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, request.Body)
				serve(ctx, conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		running.Wait()
	})
	return "http://" + listener.Addr().String() + "/", connections
}

// receiver is an HTTP server on loopback.
func receiver(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL + "/callback"
}

// hang keeps the exchange open until the client has gone or the test has ended.
func hang(t *testing.T) http.HandlerFunc {
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	return func(_ http.ResponseWriter, r *http.Request) {
		// The body has to be read for the server to see that the client has gone.
		_, _ = r.Body.Read(make([]byte, 1024))
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	}
}

// demo is the configuration of most tests: any loopback port.
func demo() egress.Config {
	return egress.Config{Policy: demoPolicy(), Log: slog.New(slog.DiscardHandler)}
}

// post makes one exchange that must find a permit at once.
func post(t *testing.T, client *egress.Client, url string) egress.Result {
	t.Helper()
	return reserve(t, client, url).Post(t.Context(), http.Header{"Content-Type": {"application/json"}}, []byte(`{"x":1}`))
}

func reserve(t *testing.T, client *egress.Client, url string) *egress.Permit {
	t.Helper()
	permit, err := client.Reserve(t.Context(), url, "")
	if err != nil {
		t.Fatalf("Reserve(%s): %v", url, err)
	}
	return permit
}

// closedPort is a URL where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return "http://" + listener.Addr().String() + "/"
}

// only returns what the client knows of its one destination.
func only(t *testing.T, client *egress.Client) egress.Destination {
	t.Helper()
	all := client.Destinations(10)
	if len(all) != 1 {
		t.Fatalf("%d destinations, want 1: %+v", len(all), all)
	}
	return all[0]
}

// until waits for a moment of the wall clock.
func until(t *testing.T, at time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(at)):
	case <-t.Context().Done():
	}
}
