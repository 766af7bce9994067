package work_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"tandem/internal/work"
)

// TestHTTPCutAnswer: an answer that is cut after any of its bytes is never a result.
func TestHTTPCutAnswer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
	} {
		for _, reset := range []bool{false, true} {
			var cut atomic.Int64
			url, seen := rawService(t, func(conn *net.TCPConn, _ *http.Request) bool {
				_, _ = io.WriteString(conn, answer[:cut.Load()])
				if reset {
					_ = conn.SetLinger(0)
				}
				return false
			})
			for n := range len(answer) {
				cut.Store(int64(n))
				// A task for each, because its breaker opens.
				result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: url}), order())
				body, _ := result.Body()
				// The last CR LF of a chunked body adds nothing.
				whole := name == "chunks" && n >= len(answer)-2
				if want := work.StateUnknown; !whole && (result.State() != want || body != nil) {
					t.Errorf("%s, reset %v, cut after %d bytes: %+v", name, reset, n, outcomeOf(result))
				}
			}
			if n := seen.Load(); n != int64(len(answer)) {
				t.Errorf("%s: %d requests for %d runs", name, n, len(answer))
			}
		}
	}
}

// TestHTTPCutRequest: a request that was reset before it was written whole was not done.
func TestHTTPCutRequest(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	in := order()
	in.Data = make([]byte, 32<<20) // more than the kernel takes before anybody reads
	task := httpTask(t, work.HTTP{URL: "http://" + listener.Addr().String()})
	for _, read := range []int{0, 1, 100, 5000} {
		var served sync.WaitGroup
		served.Go(func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.CopyN(io.Discard, conn, int64(read))
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		})
		result := work.Run(t.Context(), task, in)
		served.Wait()
		if result.State() != work.StateAgain {
			t.Errorf("reset after %d bytes: %+v", read, outcomeOf(result))
		}
	}
}

// TestHTTPKeptConnection: a service that closes a kept connection while a request is on its way may have begun, so
// the request is not repeated.
func TestHTTPKeptConnection(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", "x"} {
		var first atomic.Bool
		first.Store(true)
		url, seen := rawService(t, func(conn *net.TCPConn, _ *http.Request) bool {
			if !first.Swap(false) {
				return false
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return true
		})
		task, in := httpTask(t, work.HTTP{URL: url}), order()
		in.Data = []byte(data)
		if result := work.Run(t.Context(), task, in); result.State() != work.StateDone {
			t.Fatalf("%+v", outcomeOf(result))
		}
		if result := work.Run(t.Context(), task, in); result.State() != work.StateUnknown || seen.Load() != 2 {
			t.Errorf("data %q: %d requests, %+v", data, seen.Load(), outcomeOf(result))
		}
	}
}

// TestHTTPHostile: a service that never ends takes bounded memory and time, and leaves no connection.
func TestHTTPHostile(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	chunk := "10000\r\n" + strings.Repeat("x", 0x10000) + "\r\n"
	for name, tt := range map[string]struct {
		serve   func(*net.TCPConn, *http.Request) bool
		state   work.State
		message string // a part
	}{
		"endless body":         {forever(ok+"\r\n", chunk), work.StateFailed, "larger than max_result"},
		"endless chunks":       {forever(ok+"Transfer-Encoding: chunked\r\n\r\n", chunk), work.StateFailed, "larger than"},
		"endless line":         {forever(ok+"Content-Type: application/x-ndjson\r\n\r\n", chunk[7:100]), work.StateFailed, "larger"},
		"endless event":        {forever(ok+"Content-Type: text/event-stream\r\n\r\n", "data: x\n"), work.StateFailed, "larger"},
		"endless event line":   {forever(ok+"Content-Type: text/event-stream\r\n\r\ndata", ":xx"), work.StateFailed, "larger"},
		"endless progress":     {forever(ok+"Content-Type: application/x-ndjson\r\n\r\n", "1\n"), work.StateUnknown, "no answer"},
		"endless comments":     {forever(ok+"Content-Type: text/event-stream\r\n\r\n", ": x\n\n"), work.StateUnknown, "no answer"},
		"header bomb":          {forever(ok, "X-Bomb: "+strings.Repeat("x", 1000)+"\r\n"), work.StateUnknown, ""},
		"endless header":       {forever(ok+"X: ", "xxxxxxxxxxxxxxxx"), work.StateUnknown, ""},
		"1xx flood":            {forever("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), work.StateUnknown, ""},
		"endless error":        {forever("HTTP/1.1 404 x\r\n\r\n", "no such page "), work.StateFailed, "404 Not Found: no such"},
		"slow drip":            {drip(ok + "Content-Length: 1000\r\n\r\n"), work.StateUnknown, "no answer within"},
		"slow header":          {drip("HTTP/1.1 "), work.StateUnknown, "no answer within"},
		"slow error":           {drip("HTTP/1.1 403 x\r\nContent-Length: 99\r\n\r\n"), work.StateFailed, "403 Forbidden"},
		"no answer":            {drip(""), work.StateUnknown, "no answer within"},
		"taken, then a drip":   {drip("HTTP/1.1 202 x\r\nLocation: /1\r\nContent-Length: 99\r\n\r\n"), work.StateTaken, ""},
		"more after the end":   {forever(ok+"Content-Length: 1\r\n\r\n", "1HTTP/1.1 200 OK\r\n\r\n"), work.StateDone, ""},
		"chunk of a huge size": {say(ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"), work.StateUnknown, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{}, 1)
			url, _ := rawService(t, func(conn *net.TCPConn, r *http.Request) bool {
				defer func() { ended <- struct{}{} }()
				return tt.serve(conn, r)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			result := work.Run(ctx, httpTask(t, work.HTTP{URL: url, MaxResult: 100_000}), order())
			if result.State() != tt.state || !strings.Contains(result.Message(), tt.message) {
				t.Errorf("%+v", outcomeOf(result))
			}
			select {
			case <-ended: // the connection was closed, without the service's help
			case <-time.After(5 * time.Second):
				t.Error("the connection stays open")
			}
		})
	}
}

// drip writes a head, and then a byte each 50 ms until the other side has gone.
func drip(head string) func(*net.TCPConn, *http.Request) bool {
	return func(conn *net.TCPConn, _ *http.Request) bool {
		_, _ = io.WriteString(conn, head)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = conn.Read(make([]byte, 1))
		}()
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-gone:
				return false
			case <-ticker.C:
				if head != "" {
					_, _ = io.WriteString(conn, "x")
				}
			}
		}
	}
}

// TestHTTPCancel: cancellation closes the connection.
func TestHTTPCancel(t *testing.T) {
	t.Parallel()
	begun, gone := make(chan struct{}), make(chan struct{})
	url, _ := rawService(t, func(conn *net.TCPConn, _ *http.Request) bool {
		close(begun)
		_, _ = conn.Read(make([]byte, 1))
		close(gone)
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan work.Result)
	task := httpTask(t, work.HTTP{URL: url})
	go func() { ended <- work.Run(ctx, task, order()) }()
	<-begun
	cancel()
	if result := <-ended; result.State() != work.StateUnknown {
		t.Errorf("%+v", outcomeOf(result))
	}
	<-gone
}

// TestHTTPRestart: a service that is restarted in the middle leaves an unknown outcome, then refuses, and then works.
func TestHTTPRestart(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	var served sync.WaitGroup
	served.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		listener.Close()
		conn.Close()
	})
	task := httpTask(t, work.HTTP{URL: "http://" + address})
	if result := work.Run(t.Context(), task, order()); result.State() != work.StateUnknown {
		t.Errorf("in the middle: %+v", outcomeOf(result))
	}
	served.Wait()
	if got, want := outcomeOf(work.Run(t.Context(), task, order())), (outcome{State: work.StateAgain,
		Message: "connection refused"}); got != want {
		t.Errorf("while it is away: %+v", got)
	}
	listener, err = net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	service := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(
		func(http.ResponseWriter, *http.Request) {})}}
	service.Start()
	defer service.Close()
	if result := work.Run(t.Context(), task, order()); result.State() != work.StateDone {
		t.Errorf("when it is back: %+v", outcomeOf(result))
	}
}

// TestHTTPBreaker: a service that fails again and again is left alone, and no attempt is used up.
func TestHTTPBreaker(t *testing.T) {
	t.Parallel()
	url, seen := rawService(t, say("HTTP/1.1 500 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
	task := httpTask(t, work.HTTP{URL: url})
	for range 5 {
		if result := work.Run(t.Context(), task, order()); result.State() != work.StateUnknown {
			t.Fatalf("%+v", outcomeOf(result))
		}
	}
	result := work.Run(t.Context(), task, order())
	if result.State() != work.StateHeld || seen.Load() != 5 {
		t.Errorf("%+v after %d requests", outcomeOf(result), seen.Load())
	}
	policy, now := work.Retry{Attempts: 1, Backoff: time.Second, MaxAge: time.Hour}, time.Now()
	if at, runs, again := policy.After(work.Ended{Result: result, Attempt: 1, Accepted: now, At: now}, 0); !again ||
		runs != 0 || at.Sub(now) < 50*time.Second {
		t.Errorf("again %v after %v, %d runs", again, at.Sub(now), runs)
	}
}

// TestHTTPMetadata: metadata services stay forbidden, whatever resolves to them.
func TestHTTPMetadata(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "::ffff:169.254.169.254", "fd00:ec2::254",
		"64:ff9b::a9fe:a9fe", "fd20:ce::254",
	} {
		task := httpTask(t, work.HTTP{URL: "http://service.internal:7000/", Resolver: resolvesTo(t, address)})
		if got, want := outcomeOf(work.Run(t.Context(), task, order())), (outcome{State: work.StateFailed,
			Message: "the address of the service is one that is never called"}); got != want {
			t.Errorf("%s: %+v", address, got)
		}
	}
	// A private address is the operator's word.
	url, _ := rawService(t, say("HTTP/1.1 204 x\r\n\r\n"))
	url = strings.Replace(url, "127.0.0.1", "service.internal", 1)
	task := httpTask(t, work.HTTP{URL: url, Resolver: resolvesTo(t, "127.0.0.1")})
	if result := work.Run(t.Context(), task, order()); result.State() != work.StateDone {
		t.Errorf("%+v", outcomeOf(result))
	}
}

// resolvesTo is a resolver for which every name has one address.
func resolvesTo(t *testing.T, address string) *net.Resolver {
	t.Helper()
	addr := net.ParseIP(address)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // to the resolver a connection that is no datagram is TCP
		go func() {
			defer theirs.Close()
			var size uint16
			if binary.Read(theirs, binary.BigEndian, &size) != nil {
				return
			}
			question := make([]byte, size)
			if _, err := io.ReadFull(theirs, question); err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(question) != nil {
				return
			}
			m.Response, m.Additionals = true, nil
			q := m.Questions[0]
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
			is4 := addr.To4() != nil && !strings.Contains(address, ":")
			switch {
			case q.Type == dnsmessage.TypeA && is4:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte(addr.To4())}}}
			case q.Type == dnsmessage.TypeAAAA && !is4:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(addr.To16())}}}
			}
			packed, err := m.Pack()
			if err != nil {
				return
			}
			_, _ = theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
		}()
		return ours, nil
	}}
}
