//go:build linux

package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
)

// TestHostileClients sends the real binary everything at once that may cost
// memory, and looks at the most it has ever used. A service that kept what these clients
// send would need gigabytes.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	const most = 256 << 20 // bytes; it takes some 60 MiB
	p := startServe(t)
	address := strings.TrimPrefix(p.url, "http://")
	megabyte := strings.Repeat("x", 1<<20)
	head := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nWebhook-Id: x\r\n"
	}
	const get = "GET /requests HTTP/1.1\r\nHost: localhost\r\n"
	nested := strings.Repeat("[", 100_000)
	chunks := hostile{before: "100000\r\n", block: megabyte, after: "\r\n", times: 100}
	kinds := map[string]hostile{
		"100 MB with its length":  {head: head("/async") + "Content-Length: 104857600\r\n\r\n", block: megabyte, times: 100},
		"100 MB in chunks":        chunks.with(head("/sync") + "Transfer-Encoding: chunked\r\n\r\n"),
		"100 MB for the demo":     chunks.with(head("/test-callback") + "Transfer-Encoding: chunked\r\n\r\n"),
		"100 MB after a GET":      chunks.with(get + "Transfer-Encoding: chunked\r\n\r\n"),
		"100 MB of one header":    {head: head("/sync") + "X: ", block: megabyte, times: 100},
		"100 MB of headers":       {head: head("/sync"), block: "X: " + megabyte[:4000] + "\r\n", times: 25_000},
		"100 MB of trailers":      {head: head("/sync") + "Transfer-Encoding: chunked\r\n\r\n0\r\n", block: "X: " + megabyte[:4000] + "\r\n", times: 25_000},
		"100 MB of a path":        {head: "GET /", block: megabyte, times: 100},
		"100,000 levels":          {head: fmt.Sprintf("%sContent-Length: %d\r\n\r\n", head("/sync"), len(nested)), block: nested, times: 1},
		"5,000 requests in a row": {block: head("/sync") + "Content-Length: 2\r\n\r\n{}", times: 5_000},
		"slow headers":            {head: head("/sync"), stay: true},
		"slow bodies":             {head: head("/sync") + "Content-Length: 70000\r\n\r\n", block: megabyte[:60_000], times: 1, stay: true},
	}
	release := make(chan struct{}) // ends those that stay
	var clients sync.WaitGroup
	for name, kind := range kinds {
		number := 8
		if kind.stay {
			number = 100
		}
		for range number {
			clients.Go(func() {
				for _, status := range kind.attack(t, address, release) {
					if status >= 500 {
						t.Errorf("%s: answered %d", name, status)
					}
				}
			})
		}
	}
	for range 20 { // meanwhile others are served
		if status := <-post(p.url+"/sync", `{"data":{"a":1},"task":"echo"}`); status != http.StatusOK {
			t.Errorf("meanwhile POST /sync answered %d", status)
		}
	}
	close(release)
	clients.Wait()

	if used := memoryPeak(t, p.cmd.Process.Pid); used > most {
		t.Errorf("it has used %d MiB, want at most %d", used>>20, most>>20)
	} else {
		t.Logf("it has used %d MiB at most", used>>20)
	}
	response, err := http.Get(p.url + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var stats struct {
		Errors map[tandem.Code]int `json:"errors"`
	}
	if err := json.NewDecoder(response.Body).Decode(&stats); err != nil || stats.Errors[tandem.CodeInternal] != 0 || stats.Errors[tandem.CodeTooLarge] == 0 {
		t.Errorf("errors %v (%v), want some %s and no %s", stats.Errors, err, tandem.CodeTooLarge, tandem.CodeInternal)
	}
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 || strings.Contains(p.stderr.String(), "panic") {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
}

// hostile is what a client sends: a head, and then a block again and again.
type hostile struct {
	head, before, block, after string
	times                      int
	stay                       bool // and then nothing, until it is released
}

func (h hostile) with(head string) hostile { h.head = head; return h }

// attack sends it all, or as much as the server takes, and returns the status
// codes of what it answers.
func (h hostile) attack(t *testing.T, address string, release <-chan struct{}) (statuses []int) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
		return nil
	}
	var reading sync.WaitGroup
	reading.Go(func() { // while it sends: a server that must wait for its reader stops reading
		answers := bufio.NewReader(conn)
		for {
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				return
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			if len(statuses) == 0 || statuses[len(statuses)-1] != answer.StatusCode {
				statuses = append(statuses, answer.StatusCode)
			}
		}
	})
	w := bufio.NewWriterSize(conn, 64<<10)
	_, err = io.WriteString(w, h.head)
	for i := 0; i < h.times && err == nil; i++ {
		_, err = io.WriteString(w, h.before+h.block+h.after)
	}
	if w.Flush() == nil && h.stay {
		<-release
	}
	conn.(*net.TCPConn).CloseWrite()
	reading.Wait()
	return statuses
}

// memoryPeak is the most memory that a process has had at any moment, in bytes.
func memoryPeak(t testing.TB, pid int) int64 { t.Helper(); return memory(t, pid, "VmHWM") }

// memory reads one figure of a process's memory, in bytes.
func memory(t testing.TB, pid int, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		if name != field {
			continue
		}
		kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return kilobytes << 10
	}
	t.Fatalf("no %s in the status of process %d", field, pid)
	return 0
}
