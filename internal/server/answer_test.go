package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"tandem/internal/engine"
	"tandem/internal/server"
)

// longHistory fills a service with 1,000 requests: GET /requests?limit=1000 is an answer of 7 MiB.
func longHistory(t *testing.T, svc *service) {
	t.Helper()
	data := json.RawMessage(`{"a":"` + strings.Repeat("x", 3_500) + `"}`)
	var filling sync.WaitGroup
	for range 10 {
		filling.Go(func() {
			for range 100 {
				_, err := svc.engine.Do(t.Context(), engine.Order{Task: "echo", Complexity: 1, Data: data})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	filling.Wait()
}

// heap is how many bytes of Go objects live. Tests that run at the same time add some.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// mostGrowth is what 64 MiB of answers may cost, with some room for other tests.
const mostGrowth = 160 << 20

// atMost bounds how long answers to many readers may take to begin, on a machine that is busy.
const atMost = 5 * time.Minute

// stuckReader asks and reads the status only.
func stuckReader(t *testing.T, address net.Addr, path string, buffer int) (conn *net.TCPConn, status string) {
	t.Helper()
	dialed, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Error(err)
		return new(net.TCPConn), ""
	}
	conn = dialed.(*net.TCPConn)
	first := make([]byte, len("HTTP/1.1 200"))
	err = errors.Join(conn.SetReadBuffer(buffer), conn.SetDeadline(time.Now().Add(atMost)))
	if err == nil {
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path)
	}
	if err == nil {
		_, err = io.ReadFull(conn, first)
	}
	if err != nil {
		t.Error(err)
	}
	return conn, strings.TrimPrefix(string(first), "HTTP/1.1 ")
}

func TestReadersThatDoNotReadHoldLittleMemory(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server = server.WithReaderTimeout(s.server, time.Hour) })
	longHistory(t, svc)
	before := heap()
	var mu sync.Mutex // guards the two below
	answered := map[string]int{}
	var conns []*net.TCPConn
	var asking sync.WaitGroup
	for range 90 {
		asking.Go(func() {
			conn, status := stuckReader(t, svc.Listener.Addr(), "/requests?limit=1000", 4096)
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
			answered[status]++
		})
	}
	asking.Wait()
	if grown := heap() - before; grown > mostGrowth {
		t.Errorf("90 readers hold %d MiB", grown>>20)
	}
	if share := server.ClientMemory / (512 << 10); answered["200"] != share || answered["429"] != 90-share {
		t.Errorf("%v, want %d readers with an answer, and 429 for the others", answered, share)
	}
	a := svc.get("/requests?limit=1000")
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("another answer for the same client: %d %v", a.status, a.header)
	}
	for _, conn := range conns {
		conn.Close()
	}
	svc.until("the memory is free again", func() bool { return svc.get("/requests?limit=1").status == http.StatusOK })
}

func TestReadersThatDoNotReadAreCutOff(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server = server.WithReaderTimeout(s.server, 50*time.Millisecond) })
	longHistory(t, svc)
	const window = 128 << 10 // of at least a segment; else the kernel waits for 100 s before it sends what it holds
	conn, status := stuckReader(t, svc.Listener.Addr(), "/requests?limit=1000", window)
	defer conn.Close()
	if status != "200" {
		t.Fatal(status)
	}
	svc.until("only this request is being answered", func() bool {
		return strings.Contains(svc.get("/metrics").body, "\ntandem_http_requests_in_flight 1\n")
	})
	if got, err := io.Copy(io.Discard, conn); got > 6<<20 {
		t.Errorf("it got %d bytes all the same (%v)", got, err)
	}
}

// listEncoder writes the headers of GET /requests?limit=300, 2 MiB, for the streams of one connection.
type listEncoder struct {
	block   bytes.Buffer
	encoder *hpack.Encoder
}

func (e *listEncoder) ask(t *testing.T, stream uint32) http2.HeadersFrameParam {
	t.Helper()
	if e.encoder == nil {
		e.encoder = hpack.NewEncoder(&e.block)
	}
	e.block.Reset()
	for _, f := range [][2]string{
		{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", "/requests?limit=300"},
	} {
		if err := e.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: bytes.Clone(e.block.Bytes()), EndHeaders: true, EndStream: true,
	}
}

func TestStreamsWithoutWindowHoldLittleMemory(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server = server.WithReaderTimeout(s.server, time.Hour) })
	longHistory(t, svc)
	address, id := secureWeb(t, svc.Config.Handler, quiet())
	before := heap()
	s := speak(t, address, id.pool)
	err := s.conn.SetDeadline(time.Now().Add(atMost))
	if err = errors.Join(err, s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})); err != nil {
		t.Fatal(err)
	}
	const streams = 90
	encoder := new(listEncoder)
	for i := range uint32(streams) {
		if err := s.WriteHeaders(encoder.ask(t, 2*i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for begun := 0; begun < streams; {
		frame, err := s.ReadFrame()
		if err != nil {
			t.Fatalf("after %d answers: %v", begun, err)
		}
		if _, ok := frame.(*http2.HeadersFrame); ok {
			begun++
		}
	}
	if grown := heap() - before; grown > mostGrowth {
		t.Errorf("%d streams hold %d MiB", streams, grown>>20)
	}
}

func TestStreamsWithoutWindowAreCutOff(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server = server.WithReaderTimeout(s.server, 50*time.Millisecond) })
	longHistory(t, svc)
	address, id := secureWeb(t, svc.Config.Handler, quiet())
	s := speak(t, address, id.pool)
	err := s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if err = errors.Join(err, s.WriteHeaders(new(listEncoder).ask(t, 1))); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if reset, ok := frame.(*http2.RSTStreamFrame); ok && reset.StreamID == 1 {
			return
		}
	}
}

// A reader that goes on reading gets all of it, in chunks or not; each request is there once.
func TestLongListsAreWhole(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	longHistory(t, svc)
	for _, query := range []string{
		"limit=1000", "limit=1000&offset=0", "limit=999", "limit=101", "limit=100", "limit=99&offset=5",
	} {
		response, err := svc.Client().Get(svc.URL + "/requests?" + query) // the checking client is slow with so much
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		if err = errors.Join(err, response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		a := answer{response.StatusCode, response.Header, string(text)}
		var limit, offset int
		_, _ = fmt.Sscanf(query, "limit=%d&offset=%d", &limit, &offset) // the second may be missing
		seen := map[string]bool{}
		last := "req_g"
		for _, id := range ids(t, a) {
			if id >= last {
				t.Fatalf("%s: %s after %s", query, id, last)
			}
			seen[id], last = true, id
		}
		if len(seen) != limit || (link(t, a) == "") != (limit == 1000) {
			t.Errorf("%s: %d requests, Link %q", query, len(seen), link(t, a))
		}
	}
}
