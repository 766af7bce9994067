package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wire is one HTTP/1.1 connection that sends requests made beforehand and reads
// no more of an answer than it must. Where a server is driven to its limit on the machine of its
// client, or is not tandem (the floor), this is the client: internal/load costs several times the CPU,
// which the server would miss. What comes back is measured with internal/load, which receives it.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialWire(tb testing.TB, base string) *wire {
	tb.Helper()
	u, err := url.Parse(base)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		tb.Fatal(err)
	}
	return &wire{conn: conn, in: bufio.NewReader(conn)}
}

// do sends a whole request and returns the status of the answer.
func (w *wire) do(request []byte) (int, error) {
	if _, err := w.conn.Write(request); err != nil {
		return 0, err
	}
	line, err := w.in.ReadSlice('\n')
	if err != nil || len(line) < 12 {
		return 0, fmt.Errorf("status line %q: %w", line, err)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, err
	}
	length := 0
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	_, err = w.in.Discard(length)
	return status, err
}

// postOf is a POST of a JSON body as it goes over the wire.
func postOf(path, body string) []byte {
	return fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, len(body), body)
}

// closedLoop has so many connections repeat a request for a while, each sending
// the next when it has read the answer, and returns how many were answered as wanted.
func closedLoop(tb testing.TB, base string, connections int, length time.Duration, request []byte, want int) int64 {
	tb.Helper()
	var answered atomic.Int64
	var group sync.WaitGroup
	end := time.Now().Add(length)
	for range connections {
		w := dialWire(tb, base)
		group.Go(func() {
			defer w.conn.Close()
			for time.Now().Before(end) {
				status, err := w.do(request)
				if err != nil || status != want {
					tb.Errorf("answered with %d, %v; want %d", status, err, want)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	return answered.Load()
}

// openLoop sends requests by a schedule, whatever becomes of them, and returns
// how long each took from its planned time, sorted. request makes the i-th one.
func openLoop(tb testing.TB, base string, perSecond int, length time.Duration, request func(i int) []byte, want int) []time.Duration {
	tb.Helper()
	const connections = 64
	n := int(length.Seconds() * float64(perSecond))
	took := make([]time.Duration, n)
	next := make(chan int) // unbuffered: a connection takes the next when it is free
	start := time.Now()
	planned := func(i int) time.Time { return start.Add(time.Duration(i) * time.Second / time.Duration(perSecond)) }
	var group sync.WaitGroup
	for range connections {
		w := dialWire(tb, base)
		group.Go(func() {
			defer w.conn.Close()
			for i := range next {
				status, err := w.do(request(i))
				took[i] = time.Since(planned(i))
				if err != nil || status != want {
					tb.Errorf("answered with %d, %v; want %d", status, err, want)
				}
			}
		})
	}
	for i := range n {
		<-time.After(time.Until(planned(i)))
		next <- i
	}
	close(next)
	group.Wait()
	slices.Sort(took)
	return took
}

// quantile of sorted times, nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// median of figures that were taken in turn.
func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[len(sorted)/2]
}

// startFloor runs this test binary as the server that others are held against
// (see serveFloor) and returns its address.
func startFloor(tb testing.TB) string {
	tb.Helper()
	address, err := freeAddress()
	if err != nil {
		tb.Fatal(err)
	}
	own, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	startCommand(tb, exec.Command(own), []string{floorVariable + "=" + address})
	base := "http://" + address
	if err := awaitOK(base + "/"); err != nil {
		tb.Fatal(err)
	}
	return base
}

// floorVariable makes TestMain serve the floor instead of running tests.
const floorVariable = "TANDEM_TEST_FLOOR"

// spinVariable makes TestMain keep a core busy, as a neighbour of tandem does, instead of running tests.
const spinVariable = "TANDEM_TEST_SPIN"

// spin never returns: it ends with the process.
func spin() {
	for x := 2.0; x > 1; x = math.Sqrt(x) + 1 {
	}
}

// serveFloor is a bare net/http server: POST /echo decodes a JSON object and
// encodes it again, POST /sink reads a callback and answers 200. It ends with the process.
func serveFloor(address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body) // fails only when the caller has gone
	})
	mux.HandleFunc("POST /sink", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: time.Minute}
	return server.ListenAndServe()
}

// procStat reads what Linux knows of a process: CPU time so far and resident bytes.
func procStat(tb testing.TB, p *process) (cpu time.Duration, rss int64) {
	tb.Helper()
	return procStatOf(tb, p.cmd.Process.Pid)
}

// procStatOf is procStat for any process.
func procStatOf(tb testing.TB, pid int) (cpu time.Duration, rss int64) {
	tb.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			tb.Fatal(err)
		}
		return string(text)
	}
	stat := read("stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	for _, ticks := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.ParseInt(ticks, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	for line := range strings.Lines(read("status")) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if _, err := fmt.Sscanf(value, "%d kB", &rss); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return cpu, rss << 10
}

// stats of a server, the parts that figures are made of.
type stats struct {
	Requests struct {
		CallbackSent   int64 `json:"callback_sent"`
		CallbackFailed int64 `json:"callback_failed"`
		Total          int64 `json:"total_requests"`
	} `json:"request_statistics"`
	Queue struct {
		Depth int64 `json:"depth"`
	} `json:"queue"`
}

func readStats(tb testing.TB, base string) stats {
	tb.Helper()
	var s stats
	response, err := http.Get(base + "/stats")
	if err != nil {
		tb.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		tb.Fatal(err)
	}
	return s
}
