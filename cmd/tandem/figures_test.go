package main_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"tandem/internal/load"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

// The figures of docs/performance.md: `make figures` prints each beside what
// was asked. They run the real binary with a database file; client and receiver
// are on the same machine. Speeds are ratios to a bare net/http handler measured in the
// same minute, the median of several rounds, because machines differ and are shared.

const rounds = 5

// reachedf prints one line of the table.
func reachedf(b *testing.B, what, asked, format string, args ...any) {
	b.Helper()
	b.Logf("%-58s asked %-12s reached %s", what, asked, fmt.Sprintf(format, args...))
}

func echoTo(sink string) []byte {
	return postOf("/async", `{"task":"echo","data":{"text":"hello","n":1},"callback_url":"`+sink+`/sink"}`)
}

// BenchmarkThroughput: accepts, full cycles and sync answers per second.
func BenchmarkThroughput(b *testing.B) {
	floor := startFloor(b)
	const connections = 128
	bare := func() float64 {
		const length = 3 * time.Second
		n := closedLoop(b, floor, connections, length, postOf("/echo", `{"task":"echo","data":{"text":"hello","n":1}}`), http.StatusOK)
		return float64(n) / length.Seconds()
	}
	for b.Loop() {
		var accepts, cycles, syncs, floors []float64
		for range rounds {
			p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"), "--callback-host-concurrency", "64")
			f := bare()
			const length = 8 * time.Second
			start := time.Now()
			n := closedLoop(b, p.url, connections, length, echoTo(floor), http.StatusAccepted)
			accepts = append(accepts, float64(n)/length.Seconds())
			for s := readStats(b, p.url); s.Requests.CallbackSent < n; s = readStats(b, p.url) {
				if s.Requests.CallbackFailed > 0 {
					b.Fatalf("%d callbacks failed", s.Requests.CallbackFailed)
				}
				<-time.After(20 * time.Millisecond)
			}
			cycles = append(cycles, float64(n)/time.Since(start).Seconds())
			const short = 3 * time.Second
			n = closedLoop(b, p.url, connections, short, postOf("/sync", `{"task":"echo","data":{"text":"hello","n":1}}`), http.StatusOK)
			syncs = append(syncs, float64(n)/short.Seconds())
			p.kill()
			f = (f + bare()) / 2
			last := len(accepts) - 1
			floors = append(floors, f)
			accepts[last], cycles[last], syncs[last] = accepts[last]/f, cycles[last]/f, syncs[last]/f
		}
		f := median(floors)
		b.Logf("floor: a bare net/http JSON echo, %d connections: %.0f/s", connections, f)
		reachedf(b, "durable accepts ÷ floor", "≥ 0.45", "%.2f (%.0f/s; rounds %.2f)", median(accepts), median(accepts)*f, accepts)
		reachedf(b, "full cycles ÷ floor, signed, 64 per host", "≥ 0.15", "%.3f (%.0f/s; rounds %.3f)", median(cycles), median(cycles)*f, cycles)
		reachedf(b, "sync answers ÷ floor", "≥ 0.25", "%.2f (%.0f/s; rounds %.2f)", median(syncs), median(syncs)*f, syncs)
	}
}

// BenchmarkAcceptBesideCompute: acceptance at 300/s on the idle server and while
// compute keeps every core busy, in turn.
func BenchmarkAcceptBesideCompute(b *testing.B) {
	floor := startFloor(b)
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"))
		accept := func() time.Duration {
			took := openLoop(b, p.url, 300, 8*time.Second, func(int) []byte { return echoTo(floor) }, http.StatusAccepted)
			return quantile(took, 0.99)
		}
		accept() // warm
		var idle, busy []float64
		for range rounds {
			idle = append(idle, accept().Seconds()*1000)
			var computing sync.WaitGroup
			computing.Go(func() {
				closedLoop(b, p.url, 2*runtime.NumCPU(), 9*time.Second, postOf("/sync", `{"task":"compute","complexity":2,"data":{"n":1}}`), http.StatusOK)
			})
			busy = append(busy, accept().Seconds()*1000)
			computing.Wait()
		}
		reachedf(b, "acceptance p99 at 300/s beside compute ÷ idle", "≤ 2", "%.2f (%.2f ms ÷ %.2f ms; idle %.2f, busy %.2f)",
			median(busy)/median(idle), median(busy), median(idle), idle, busy)
	}
}

// BenchmarkCallbackLag: planned send to callback read, at 100/s.
func BenchmarkCallbackLag(b *testing.B) {
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"))
		took := generate(b, load.Config{URL: p.url, Phases: []string{load.PhaseAsync}, Rate: 100, Duration: 20 * time.Second, Concurrency: 64, Task: "echo"}).Async.EndToEnd
		reachedf(b, "planned send to callback at 100/s, p50", "≤ 1.5 ms", "%.2f ms", took.P50MS)
		reachedf(b, "planned send to callback at 100/s, p99", "≤ 8 ms", "%.2f ms", took.P99MS)
	}
}

const million = 1_000_000

// BenchmarkHistory: what a million finished requests in the file cost.
func BenchmarkHistory(b *testing.B) {
	floor := startFloor(b)
	for b.Loop() {
		full := filepath.Join(b.TempDir(), "full.db")
		fill(b, full, million, false)
		var ratios []float64
		accepts := func(path string) float64 {
			p := startServe(b, "--db", path, "--retention", "0", "--callback-host-concurrency", "64")
			defer p.kill()
			const length = 3 * time.Second
			n := closedLoop(b, p.url, 128, length, echoTo(floor), http.StatusAccepted)
			drain(b, p) // or the next round on this file would start with work to do
			return float64(n) / length.Seconds()
		}
		for range rounds {
			empty := filepath.Join(b.TempDir(), "empty.db")
			ratios = append(ratios, accepts(full)/accepts(empty))
		}
		reachedf(b, "accepts with 1,000,000 rows ÷ empty file", "≥ 0.9", "%.2f (rounds %.2f)", median(ratios), ratios)

		p := startServe(b, "--db", full, "--retention", "0")
		worst, where := time.Duration(0), ""
		for _, path := range historyQueries() {
			if p99 := quantile(serial(b, p.url, 200, path), 0.99); p99 > worst {
				worst, where = p99, path
			}
		}
		reachedf(b, "GET /requests with 1,000,000 rows, p99 at the worst filter", "≤ 10 ms", "%.2f ms (%s)", worst.Seconds()*1000, where)
		reachedf(b, "GET /stats with 1,000,000 rows, p99", "≤ 5 ms", "%.2f ms", quantile(serial(b, p.url, 1000, "/stats"), 0.99).Seconds()*1000)
		p.kill()
	}
}

// drain waits until nothing is left to do.
func drain(b *testing.B, p *process) {
	b.Helper()
	for readStats(b, p.url).Queue.Depth > 0 {
		<-time.After(50 * time.Millisecond)
	}
}

// historyQueries are pages of the default size at every combination of filters,
// matching much, little and nothing.
func historyQueries() []string {
	var queries []string
	for _, mode := range []string{"", "&mode=sync", "&mode=async"} {
		for _, status := range []string{"", "&status=pending", "&status=completed", "&status=callback_sent", "&status=callback_failed", "&status=failed"} {
			for _, task := range []string{"", "&task=echo", "&task=compute"} {
				queries = append(queries, "/requests?limit=10"+mode+status+task)
			}
		}
	}
	return append(queries, "/requests?limit=10&offset=10000&status=callback_sent", "/requests?limit=10&since=2026-01-01T00:00:00Z&until=2026-01-01T01:00:00Z")
}

// serial asks one after the other and returns how long each answer took, sorted.
func serial(b *testing.B, base string, n int, path string) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		response, err := http.Get(base + path)
		if err != nil {
			b.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			b.Fatalf("%s: %d, %v", path, response.StatusCode, err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took
}

// BenchmarkIdle: what a server costs that nobody asks.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"))
		const length = 20 * time.Second
		before, _ := procStat(b, p)
		<-time.After(length)
		after, rss := procStat(b, p)
		reachedf(b, "idle: share of a core", "< 1 %", "%.2f %%", 100*(after-before).Seconds()/length.Seconds())
		reachedf(b, "idle: resident memory", "≤ 40 MB", "%.1f MB", float64(rss)/1e6)
	}
}

// BenchmarkBacklog: a million pending requests, most of them only on disk.
func BenchmarkBacklog(b *testing.B) {
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "tandem.db")
		fill(b, path, million, true)
		start := time.Now()
		p := startServe(b, "--db", path, "--io-workers", "1")
		ready := time.Since(start)
		var most int64
		for range 50 {
			<-time.After(200 * time.Millisecond)
			_, rss := procStat(b, p)
			most = max(most, rss)
		}
		if depth := readStats(b, p.url).Queue.Depth; depth < million-1000 {
			b.Errorf("%d requests are unfinished, want about %d", depth, million)
		}
		reachedf(b, "restart to ready with 1,000,000 pending", "≤ 5 s", "%.2f s", ready.Seconds())
		reachedf(b, "resident memory with 1,000,000 pending, most of 10 s", "≤ 250 MB", "%.1f MB", float64(most)/1e6)
	}
}

// fill writes rows as tandem would have: finished ones of every kind with their
// attempts, spread over 2026, or pending ones of a task that takes long.
func fill(b *testing.B, path string, n int, pending bool) {
	b.Helper()
	s, err := sqlite.Open(b.Context(), store.Config{URL: path})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	more, values := "callback_attempts, processing_us, started_at, completed_at, result", `
		-- Of 1,000: 900 delivered, 90 sync, 9 given up, 1 failed; compute is one in 100.
		iif(i % 1000 BETWEEN 900 AND 989, 'sync', 'async'), iif(i % 100 = 7, 'compute', 'echo'),
		CASE WHEN i % 1000 < 900 THEN 'callback_sent' WHEN i % 1000 < 990 THEN 'completed' WHEN i % 1000 < 999 THEN 'callback_failed' ELSE 'failed' END,
		CASE WHEN i % 1000 < 900 OR i % 1000 = 999 THEN 'sent' WHEN i % 1000 < 990 THEN '' ELSE 'failed' END,
		1, 100, ms * 1000, ms * 1000 + 100, CAST('{"text": "hello", "n": 1}' AS BLOB)`
	if pending {
		more, values = "lane, due_at", `'async', 'sleep', 'pending', 'pending', 'io', ms * 1000`
	}
	rows := `
	WITH RECURSIVE
		n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?),
		r AS (SELECT i, ? + i * 25000 AS ms FROM n)
	INSERT INTO requests (seq, id, complexity, callback_url, data, mode, task, status, callback_status, ` + more + `)
	SELECT ms << 12, printf('req_%012x70008%015x', ms, i), 10, 'http://127.0.0.1:1/', CAST('{"text": "hello", "n": 1}' AS BLOB), ` + values + ` FROM r`
	counts := map[string]int64{"rows/all": int64(n)}
	if pending {
		counts["unfinished/all"], counts["now/pending"], counts["queue/io"] = int64(n), int64(n), int64(n)
		counts["task/sleep"], counts["accepted/async"] = int64(n), int64(n)
	} else {
		counts["task/echo"], counts["task/compute"] = int64(n-n/100), int64(n/100)
		counts["accepted/async"], counts["accepted/sync"] = int64(n-n*9/100), int64(n*9/100)
	}
	text, err := json.Marshal(counts)
	if err != nil {
		b.Fatal(err)
	}
	for _, statement := range []struct {
		sql  string
		args []any
	}{
		{rows, []any{n, first}},
		{`INSERT INTO attempts SELECT seq, 1, 'delivered', seq / 4096000, 500, 200, '', NULL FROM requests WHERE callback_status = 'sent'`, nil},
		{`UPDATE totals SET counts = ?`, []any{string(text)}},
	} {
		if _, err := db.Exec(statement.sql, statement.args...); err != nil {
			b.Fatalf("%s: %v", statement.sql, err)
		}
	}
}
