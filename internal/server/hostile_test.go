package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/work"
)

// dial opens a connection on which nothing waits longer than patience.
func (s *service) dial() *net.TCPConn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// statuses reads answers until the server closes the connection, and returns
// their status codes. That it does not close is an error.
func statuses(conn net.Conn) (codes []int, err error) {
	reader := bufio.NewReader(conn)
	for {
		response, err := http.ReadResponse(reader, nil)
		if err == nil {
			codes = append(codes, response.StatusCode)
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		var slow net.Error
		switch {
		case errors.As(err, &slow) && slow.Timeout():
			return codes, fmt.Errorf("the connection stays open after %v: %w", codes, err)
		case err != nil:
			return codes, nil //nolint:nilerr // closed or reset: the server has ended it
		}
	}
}

// well checks that the service still does what it is for.
func (s *service) well() {
	s.t.Helper()
	if a := s.post("/sync", `{"data":{"a":1},"task":"echo"}`); a.status != http.StatusOK {
		s.t.Errorf("afterwards POST /sync answers %d %s", a.status, a.body)
	}
	var stats struct {
		Errors map[tandem.Code]int `json:"errors"`
	}
	s.get("/stats").decode(s.t, &stats)
	if n := stats.Errors[tandem.CodeInternal]; n != 0 {
		s.t.Errorf("%d answers were a defect of ours", n)
	}
}

// rawPost is a POST of JSON as it goes over the wire.
func rawPost(path, body string) string {
	return fmt.Sprintf(
		"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, len(body), body)
}

const (
	postHead = "POST /async HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	closing  = "Connection: close\r\n"
)

// What no client library would send. Nobody gets a 5xx for it but where HTTP
// itself asks for one (RFC 9110, 15.6.2 and 15.6.6).
func TestBadHTTP(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	megabyte := strings.Repeat("x", 1<<20)
	for _, tt := range []struct {
		name, text string
		want       int // the only status, after which the connection is closed
	}{
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
		{"half a line", "POST /asy", 400},
		{"half a header", postHead + "X-Half: ", 400},
		{"no host", "POST /async HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "POST /async HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", 400},
		{"a space before the colon", postHead + "Content-Length : 2\r\n\r\n{}", 400},
		{"a NUL in a header", postHead + "X: \x00\r\n\r\n", 400},
		{"a method that is none", "PO(ST /async HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		{"an unknown method", "BREW /async HTTP/1.1\r\nHost: localhost\r\n" + closing + "\r\n", 405},
		{"a target that is none", "GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		{"an expectation of its own", postHead + "Expect: a miracle\r\nContent-Length: 2\r\n\r\n{}", 417},
		{"HTTP/9.9", "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505},
		{"HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},

		{"one header of 1 MB", postHead + "X-Large: " + megabyte + "\r\n\r\n", 431},
		{"1 MB of headers", postHead + strings.Repeat("X-Many: "+megabyte[:1000]+"\r\n", 1000) + "\r\n", 431},
		{"a path of 1 MB", "GET /" + megabyte + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 431},
		{
			"a query of 60 KB",
			"GET /requests?task=" + megabyte[:60_000] + " HTTP/1.1\r\nHost: localhost\r\n" + closing + "\r\n", 422,
		},

		{"a negative length", postHead + "Content-Length: -1\r\n\r\n", 400},
		{"a length that is no number", postHead + "Content-Length: many\r\n\r\n", 400},
		{"a length beyond 64 bits", postHead + "Content-Length: 99999999999999999999\r\n\r\n", 400},
		{"two lengths", postHead + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		{"a chunk size that is none", postHead + closing + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"a chunk size beyond 64 bits", postHead + closing + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400},
		{"a chunk that is longer than it says", postHead + closing +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n", 400},
		{"1 MB of trailers", postHead + closing + "Transfer-Encoding: chunked\r\n\r\n0\r\n" +
			strings.Repeat("X: "+megabyte[:1000]+"\r\n", 1000) + "\r\n", 400},
		{"two transfer codings", postHead + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"a body that ends early", postHead + closing + "Content-Length: 1000\r\n\r\n{\"data\":", 400},
	} {
		conn := svc.dial()
		_, _ = io.WriteString(conn, tt.text) // fails when the server has closed before its end
		_ = conn.CloseWrite()
		codes, err := statuses(conn)
		if err != nil || len(codes) != 1 || codes[0] != tt.want {
			t.Errorf("%s: answered %v (%v), want %d and the end", tt.name, codes, err, tt.want)
		}
	}
	svc.well()
}

// Requests that come before their predecessors were answered are answered in
// their order, and what is wrong with one does not touch the others.
func TestPipelining(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	get := func(path, header string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n"
	}
	good := rawPost("/async", `{"data":{"a":1},"task":"echo","callback_url":"`+svc.URL+`/test-callback"}`)
	for _, tt := range []struct {
		name, text string
		want       []int
	}{
		{"mixed", good + rawPost("/async", `{`) + rawPost("/sync", `{"data":{"a":1},"task":"sleep"}`) +
			rawPost("/async", `{"data":{}}`) + get("/livez", closing),
			[]int{202, 400, 200, 400, 200}},
		{"no more after a 413",
			rawPost("/sync", `{"data":{"a":"`+strings.Repeat("x", 80_000)+`"}}`) + get("/livez", ""), []int{413}},
		{"no more after what is no HTTP", get("/livez", "") + "nonsense\r\n\r\n" + get("/livez", ""), []int{200, 400}},
		{"a hundred", strings.Repeat(good, 100) + get("/livez", closing), append(repeated(202, 100), 200)},
	} {
		conn := svc.dial()
		if _, err := io.WriteString(conn, tt.text); err != nil {
			t.Fatal(err)
		}
		if codes, err := statuses(conn); err != nil || fmt.Sprint(codes) != fmt.Sprint(tt.want) {
			t.Errorf("%s: answered %v (%v), want %v", tt.name, codes, err, tt.want)
		}
	}
	svc.well()
}

func repeated(code, times int) []int {
	codes := make([]int, times)
	for i := range codes {
		codes[i] = code
	}
	return codes
}

// A body of 100 MB is refused before much of it was taken, whether it says its
// length or not.
func TestStreamOf100MB(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	const size = 100 << 20
	block := strings.Repeat(" ", 1<<20)
	for name, stream := range map[string]struct{ head, before, after string }{
		"with its length": {head: fmt.Sprintf("%sContent-Length: %d\r\n\r\n", postHead, size)},
		"in chunks":       {head: postHead + "Transfer-Encoding: chunked\r\n\r\n", before: "100000\r\n", after: "\r\n"},
	} {
		conn := svc.dial()
		sent, err := io.WriteString(conn, stream.head)
		for err == nil && sent < size {
			var n int
			n, err = io.WriteString(conn, stream.before+block+stream.after)
			sent += n
		}
		if err == nil || sent > size/2 {
			t.Errorf("%s: %d bytes were taken (%v)", name, sent, err)
		}
		// The refusal itself may be lost with the connection: TCP forgets what a reset overtakes.
		if codes, err := statuses(conn); err != nil || len(codes) > 1 || len(codes) == 1 &&
			codes[0] != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: answered %v (%v), want 413 or nothing", name, codes, err)
		}
	}
	svc.well()
}

// Clients that send their header byte by byte, or nothing at all, are cut off, and
// until then cost nobody else anything.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) {
		s.tune = func(h *http.Server) { h.ReadHeaderTimeout = time.Second }
	})
	const clients = 200
	var slow sync.WaitGroup
	for i := range clients {
		conn := svc.dial()
		slow.Go(func() {
			_, err := io.WriteString(conn, "POST /async HTTP/1.1\r\n"[:i%23])
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for err == nil && i%2 == 0 {
				<-tick.C
				_, err = io.WriteString(conn, "X")
			}
			if codes, err := statuses(conn); err != nil || len(codes) > 1 || len(codes) == 1 && codes[0]/100 != 4 {
				t.Errorf("client %d: answered %v (%v), want a closed connection", i, codes, err)
			}
		})
	}
	svc.well()
	slow.Wait()
	svc.well()
}

// A client may close its sending side and still read the answer to a GET.
func TestGetsOnHalfClosedConnectionsAreAnswered(t *testing.T) {
	t.Parallel()
	arrived := make(chan context.Context, 1)
	svc := start(t, func(s *setup) {
		s.tune = func(h *http.Server) {
			next := h.Handler
			h.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				arrived <- r.Context()
				next.ServeHTTP(w, r)
			})
		}
	})
	noticed := func() error { // net/http has seen the end of what the caller sends
		<-(<-arrived).Done()
		return nil
	}
	for method, path := range map[string]string{
		"Requests": "/requests", "Request": "/requests/req_00000000000000000000000000000000", "Stats": "/stats",
	} {
		svc.store.sabotage(method, noticed)
		conn := svc.dial()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want := http.StatusOK
		if method == "Request" {
			want = http.StatusNotFound
		}
		if codes, err := statuses(conn); err != nil || len(codes) != 1 || codes[0] != want {
			t.Errorf("GET %s: %v (%v), want %d", path, codes, err, want)
		}
	}
}

// A client that closes its sending side has gone, as far as HTTP can tell: its sync work is
// canceled, and never fails for a reason of ours. A 202 comes all the same.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for _, path := range []string{"/sync", "/async"} {
		body := `{"data":{"a":1},"task":"stuck","callback_url":"` + svc.URL + `/test-callback"}`
		conn := svc.dial()
		fmt.Fprint(conn, rawPost(path, body))
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		codes, err := statuses(conn)
		if err != nil || len(codes) > 1 || len(codes) == 1 && codes[0] >= 500 ||
			path == "/async" && (len(codes) != 1 || codes[0] != http.StatusAccepted) {
			t.Errorf("%s: answered %v (%v), want no 5xx, and a 202 from /async", path, codes, err)
		}
	}
	svc.until("the sync request is given up", func() bool {
		var failed []tandem.Request
		svc.get("/requests?mode=sync&status=failed").decode(t, &failed)
		return len(failed) == 1 && failed[0].ErrorCode == tandem.FailedClientClosed
	})
	svc.well()
}

// As many requests as the queue holds are accepted, however many ask at once; the
// others learn when to come back, and are taken once there is room.
func TestQueueAtItsCap(t *testing.T) {
	t.Parallel()
	const room, callers = 20, 100
	hold := newGate()
	svc := start(t, func(s *setup) {
		s.store.MaxQueue = room
		s.engine.Tasks = append(s.engine.Tasks, hold.task("held"))
	})
	order := `{"data":{"a":1},"task":"held","callback_url":"` + svc.URL + `/test-callback"}`
	var mu sync.Mutex
	var accepted, refused []answer
	var calling sync.WaitGroup
	for range callers {
		calling.Go(func() {
			a := svc.post("/async", order)
			mu.Lock()
			defer mu.Unlock()
			if a.status == http.StatusAccepted {
				accepted = append(accepted, a)
			} else {
				refused = append(refused, a)
			}
		})
	}
	calling.Wait()
	for _, a := range refused {
		if p := a.problem(t); p.Code != tandem.CodeQueueFull || p.RetryAfter < 1 {
			t.Errorf("refused with %d %s", a.status, a.body)
		}
	}
	for len(accepted) < room { // callers that were refused while others were under way may have left room
		a := svc.post("/async", order)
		if a.status != http.StatusAccepted {
			t.Fatalf("%d of %d accepted, and then %d %s", len(accepted), room, a.status, a.body)
		}
		accepted = append(accepted, a)
	}
	if a := svc.post("/async", order); a.status != http.StatusServiceUnavailable || len(accepted) != room {
		t.Errorf("%d accepted with room for %d, and then %d", len(accepted), room, a.status)
	}
	if a := svc.post("/sync", `{"data":{"a":1},"task":"echo"}`); a.status != http.StatusServiceUnavailable {
		t.Errorf("POST /sync at the cap: %d %s", a.status, a.body)
	}
	close(hold)
	svc.until("room", func() bool { return svc.post("/async", order).status == http.StatusAccepted })
	for _, a := range accepted {
		var reply struct {
			ID string `json:"request_id"`
		}
		a.decode(t, &reply)
		svc.wait(reply.ID, func(r tandem.Request) bool { return r.Status == tandem.StatusCallbackSent })
	}
}

// gate is a task that ends when the gate is closed.
type gate chan struct{}

func newGate() gate { return make(gate) }

func (g gate) task(name string) work.Task {
	return work.Task{Name: name, Class: work.IO,
		Run: work.JSON(func(ctx context.Context, _ json.RawMessage, _ int) (json.RawMessage, error) {
			select {
			case <-g:
				return nil, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		})}
}
