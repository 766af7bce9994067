//go:build linux

package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// abuse is how much a test asks for: a little in CI, all of it with `make abuse`.
func abuse(little, all int) int {
	if os.Getenv("TANDEM_ABUSE") == "full" {
		return all
	}
	return little
}

// TestAbuseSlowClients measures a client that works while others only hold their connections: half
// of them never end their header, half never end their body. Beyond the cap on connections it is served as well.
// With `make abuse` its p99 must be at most twice that of a quiet server.
func TestAbuseSlowClients(t *testing.T) {
	t.Parallel()
	slow, calls := abuse(200, 1_000), abuse(100, 20_000)
	for _, tt := range []struct {
		name, most string
		bodies     bool // half of them are slow with their body
	}{
		{"below the cap", "10000", true},
		{"beyond the cap", fmt.Sprint(slow / 2), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := startServe(t, "--max-connections", tt.most)
			busy := &worker{client: &http.Client{Transport: &http.Transport{}, Timeout: patience}, url: p.url}
			busy.work(t, calls/10) // warm
			before := busy.work(t, calls)

			stop := make(chan struct{})
			var crowd sync.WaitGroup
			var held atomic.Int64
			for i := range slow {
				crowd.Go(func() { hold(strings.TrimPrefix(p.url, "http://"), tt.bodies && i%2 == 0, &held, stop) })
			}
			want := int64(slow)
			if !tt.bodies {
				want = int64(slow) / 3 // there is room for half of them
			}
			if err := poll("slow clients", func() error {
				if n := held.Load(); n < want {
					return fmt.Errorf("%d", n)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			busy.client.CloseIdleConnections() // it had waited longest, so it made room, which the client may not know yet
			during := busy.work(t, calls)
			close(stop)
			crowd.Wait()
			after := busy.work(t, calls)
			busy.client.CloseIdleConnections()

			quiet := max(before, after)
			t.Logf("%d slow clients, --max-connections %s: p99 of %d calls %v, quiet %v before and %v after (%.2f×)", slow, tt.most, calls, during, before, after, float64(during)/float64(quiet))
			if abuse(0, 1) == 1 && during > 2*quiet {
				t.Errorf("p99 %v, want at most twice %v", during, quiet)
			}
		})
	}
}

// worker is a client that sends its next request when the last was answered.
type worker struct {
	client *http.Client
	url    string
}

// work sends so many requests and returns the p99 of their times. Every one must be answered.
func (w *worker) work(t *testing.T, calls int) time.Duration {
	t.Helper()
	times := make([]time.Duration, calls)
	for i := range times {
		began := time.Now()
		response, err := w.client.Post(w.url+"/sync", "application/json", strings.NewReader(`{"data":{"a":1},"task":"echo"}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if times[i] = time.Since(began); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("call %d: %s (%v)", i, response.Status, err)
		}
	}
	slices.Sort(times)
	return times[calls*99/100]
}

// hold keeps a connection with half a request on it, and opens another when it is closed.
func hold(address string, body bool, held *atomic.Int64, stop <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	head := "POST /sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	if body {
		head += "Content-Length: 10000\r\n\r\n"
	} else {
		head += "X-Slow: "
	}
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_, err = io.WriteString(conn, head)
			held.Add(1)
		}
		for err == nil {
			select {
			case <-stop:
				conn.Close()
				return
			case <-tick.C:
				_, err = io.WriteString(conn, " ")
			}
		}
		if conn != nil {
			conn.Close()
			held.Add(-1)
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// TestAbuseAddresses sends calls of as many addresses as there can be through a trusted proxy: the
// table of the limiter does not grow beyond its cap, who called before keeps exactly what is left, and
// who has nothing left gets nothing.
func TestAbuseAddresses(t *testing.T) {
	t.Parallel()
	const quota, honest, most = 100, 20, 256 << 20
	addresses := abuse(20_000, 1_000_000)
	p := startServe(t, "--rate-limit", fmt.Sprintf("%d/1h", quota), "--trusted-proxy", "127.0.0.0/8")
	target := strings.TrimPrefix(p.url, "http://")

	good := dialLine(t, target)
	left := make([]int, honest)
	for i := range left {
		left[i] = quota
	}
	visit := func() {
		for i := range left {
			status, remaining := good.call(t, fmt.Sprintf("198.18.0.%d", i))
			if left[i]--; status != http.StatusUnprocessableEntity || remaining != left[i] {
				t.Errorf("client %d: %d with %d left, want %d", i, status, remaining, left[i])
			}
		}
		if status, _ := good.call(t, "198.18.1.1"); status != http.StatusTooManyRequests {
			t.Errorf("who has nothing left: %d", status)
		}
	}
	for range quota { // this one uses everything up
		good.call(t, "198.18.1.1")
	}
	visit()

	const batch, floods = 200, 4
	began, next := time.Now(), atomic.Int64{}
	var refused atomic.Int64
	var flooding sync.WaitGroup
	for range floods {
		flooding.Go(func() {
			conn := dialLine(t, target)
			for {
				first := next.Add(batch) - batch
				if first >= int64(addresses) {
					return
				}
				refused.Add(conn.flood(t, first, batch))
			}
		})
	}
	flooded := make(chan struct{})
	go func() { flooding.Wait(); close(flooded) }()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-flooded:
			done = true
		case <-tick.C:
		}
		if left[0] > 1 {
			visit()
		}
	}
	took := time.Since(began)

	response, err := http.Get(p.url + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var stats struct {
		Rate struct {
			Tracked  int `json:"clients_tracked"`
			Capacity int `json:"capacity"`
		} `json:"rate_limiting"`
	}
	if err := json.NewDecoder(response.Body).Decode(&stats); err != nil {
		t.Fatal(err)
	}
	if want := min(addresses+honest+1, stats.Rate.Capacity); stats.Rate.Tracked != want {
		t.Errorf("%d clients are tracked, want %d", stats.Rate.Tracked, want)
	}
	if peak := memoryPeak(t, p.cmd.Process.Pid); peak > most {
		t.Errorf("it has used %d MiB, want at most %d", peak>>20, most>>20)
	} else {
		t.Logf("%d addresses in %v: %d of them refused, at most %d MiB; %d honest clients exact in %d visits each",
			addresses, took.Round(time.Second), refused.Load(), peak>>20, honest, quota-left[0])
	}
}

// line is a connection on which many requests are under way.
type line struct {
	net.Conn
	answers *bufio.Reader
}

func dialLine(t *testing.T, address string) *line {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &line{conn, bufio.NewReader(conn)}
}

const cheapCall = "POST /sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n" +
	"X-Forwarded-For: %s\r\n\r\n{}"

// call sends one request as an address; what is left is -1 when the answer does not say.
func (l *line) call(t *testing.T, from string) (status, left int) {
	t.Helper()
	fmt.Fprintf(l, cheapCall, from)
	return l.answer(t)
}

func (l *line) answer(t *testing.T) (status, left int) {
	t.Helper()
	response, err := http.ReadResponse(l.answers, nil)
	if err != nil {
		t.Error(err)
		return 0, -1
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Error(err)
	}
	if _, err := fmt.Sscanf(response.Header.Get("RateLimit"), `"post";r=%d;`, &left); err != nil {
		left = -1
	}
	return response.StatusCode, left
}

// flood sends calls of new addresses and returns how many were refused for the limit.
func (l *line) flood(t *testing.T, first int64, batch int) (refused int64) {
	t.Helper()
	var text strings.Builder
	for n := first; n < first+int64(batch); n++ {
		fmt.Fprintf(&text, cheapCall, fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255))
	}
	if _, err := io.WriteString(l, text.String()); err != nil {
		t.Error(err)
		return 0
	}
	for range batch {
		switch status, _ := l.answer(t); status {
		case http.StatusTooManyRequests:
			refused++
		case http.StatusUnprocessableEntity:
		default:
			t.Errorf("answered %d", status)
		}
	}
	return refused
}

// TestAbuseFuzz sends requests that are valid but for something, as the OpenAPI document has them, to
// the real binary: no answer is a 5xx, nothing panics, and its memory comes back to what it was.
func TestAbuseFuzz(t *testing.T) {
	t.Parallel()
	const seed, senders, slack = 1, 8, 64 << 20
	requests := abuse(5_000, 100_000)
	// With GOGC=50 resident memory is close to the live heap. An idle process keeps its garbage for two
	// minutes, and with GOGC=400 that is four times as much as what lives.
	p := start(t, []string{"GOGC=50"}, "serve", "--listen", "127.0.0.1:0",
		"--db", filepath.Join(t.TempDir(), "tandem.db"), "--callback-attempts", "1")
	p.awaitReady(t)
	grammar := readGrammar(t, p.url+"/test-callback")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}, Timeout: patience}
	var mu sync.Mutex // guards seen
	seen := map[int]int{}
	run := func(seed uint64, requests int) {
		s := grammar.sower(seed)
		for range requests {
			request := s.request(t, p.url)
			response, err := client.Do(request)
			if err != nil {
				t.Errorf("seed %d: %s %s: %v", seed, request.Method, request.URL, err)
				continue
			}
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil || response.StatusCode >= 500 {
				t.Errorf("seed %d: %s %s\n%.2000s\nanswered %s %s (%v)", seed, request.Method, request.URL, s.body, response.Status, body, err)
			}
			if response.StatusCode >= 400 && response.StatusCode != http.StatusRequestHeaderFieldsTooLarge && request.Method != http.MethodHead && response.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("seed %d: %s %s answered %s with %s", seed, request.Method, request.URL, response.Status, response.Header.Get("Content-Type"))
			}
			mu.Lock()
			seen[response.StatusCode]++
			mu.Unlock()
		}
	}
	run(0, requests/20) // what one does for the first time stays
	normal, began := memory(t, p.cmd.Process.Pid, "VmRSS"), time.Now()
	var sending sync.WaitGroup
	for n := range senders {
		sending.Go(func() { run(seed+uint64(n), requests/senders) })
	}
	sending.Wait()
	took := time.Since(began)
	var after int64
	if err := poll("memory as before", func() error {
		run(0, 20) // garbage of the requests just sent is collected when more is allocated
		if after = memory(t, p.cmd.Process.Pid, "VmRSS"); after > normal+slack {
			return fmt.Errorf("%d MiB, was %d", after>>20, normal>>20)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	client.CloseIdleConnections()
	for _, status := range []int{200, 202, 400, 404, 405, 413, 415, 422} { // the fuzzing reaches all of it
		if seen[status] == 0 {
			t.Errorf("nothing was answered with %d", status)
		}
	}
	t.Logf("%d requests in %v: %v; %d MiB before, %d after, %d at most", requests, took.Round(time.Second), seen, normal>>20, after>>20, memoryPeak(t, p.cmd.Process.Pid)>>20)
	if err := awaitOK(p.url + "/readyz"); err != nil {
		t.Error(err)
	}
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 || strings.Contains(p.stderr.String(), "panic") || strings.Contains(p.stderr.String(), `"level":"ERROR"`) {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
}
