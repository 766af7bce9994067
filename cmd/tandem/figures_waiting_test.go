package main_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/load"
	"tandem/internal/tandemtest"
)

// BenchmarkDeadReceiver takes the figures of [deadReceiver] with a database file.
func BenchmarkDeadReceiver(b *testing.B) {
	for b.Loop() {
		deadReceiver(b, filepath.Join(b.TempDir(), "tandem.db"), nil)
	}
}

// postgresDeadReceiver takes them with PostgreSQL.
func postgresDeadReceiver(b *testing.B) {
	for b.Loop() {
		url := tandemtest.Postgres(b, tandemtest.Measured)
		deadReceiver(b, url, newMeter(b, url))
	}
}

// deadReceiver is what 100,000 callbacks cost that wait for a host which is down, and what the callbacks to
// another one notice of them.
func deadReceiver(b *testing.B, db string, database *meter) {
	b.Helper()
	const most, length, writesTotal = 100_000, 2 * time.Minute, "tandem_store_commit_writes_sum"
	p := startServe(b, "--db", db)
	healthy := func() *load.Latency {
		return generate(b, load.Config{
			URL: p.url, Phases: []string{load.PhaseAsync}, Rate: 100, Duration: 20 * time.Second,
			Concurrency: 64, Task: "echo",
		}).Async.EndToEnd
	}
	alone := healthy()
	dead := tandemtest.Refusing(b)
	for readStats(b, p.url).Queue.Depth < most {
		closedLoop(b, p.url, 16, time.Second, echoTo(dead), http.StatusAccepted)
	}
	for metric(b, p.url, `tandem_queue_jobs{lane="io"}`) > 0 {
		<-time.After(100 * time.Millisecond)
	}
	beside := healthy()
	<-time.After(30 * time.Second) // until the breaker is open, and what was written is in its place

	writes, cpu := metric(b, p.url, writesTotal), processCPU(b, p)
	var before spent
	if database != nil {
		before = database.read(b)
	}
	<-time.After(length)
	waiting := readStats(b, p.url).Queue.Depth
	perSecond := func(n float64) float64 { return n / length.Seconds() }
	reachedf(b, fmt.Sprintf("%d callbacks for a dead host: writes/s", waiting), "≤ 20", "%.2f",
		perSecond(metric(b, p.url, writesTotal)-writes))
	reachedf(b, "the same: share of a core", "≤ 2 %", "%.2f %%", 100*perSecond((processCPU(b, p)-cpu).Seconds()))
	if database != nil {
		after := database.read(b)
		reachedf(b, "the same: share of a core of the database", "≤ 2 %", "%.2f %%",
			100*perSecond((after.cpu-before.cpu).Seconds()))
	}
	reachedf(b, "p50 of a healthy host beside them ÷ alone", "no bound", "%.2f (%.2f ms, %.2f ms)",
		beside.P50MS/alone.P50MS, beside.P50MS, alone.P50MS)
	reachedf(b, "p99 of a healthy host beside them ÷ alone", "no bound", "%.2f (%.2f ms, %.2f ms)",
		beside.P99MS/alone.P99MS, beside.P99MS, alone.P99MS)
}

// metric reads one of a server's metrics, by its name with labels.
func metric(b *testing.B, base, name string) (n float64) {
	b.Helper()
	response, err := http.Get(base + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(value, &n); err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s in /metrics", name)
	return 0
}

// postgresHeldSnapshot is what a transaction costs that stays open, as pg_dump's does, at 150 requests per
// second: SNAPSHOT_DURATION (1m) after it was opened, compared with the beginning.
func postgresHeldSnapshot(b *testing.B) {
	duration := time.Minute
	if text := os.Getenv("SNAPSHOT_DURATION"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		url := tandemtest.Postgres(b, tandemtest.Measured)
		p := startServe(b, "--db", url)
		m := newMeter(b, url)
		under := func(length time.Duration) (p50 float64, cpu time.Duration) {
			before := m.read(b)
			took := generate(b, load.Config{
				URL: p.url, Phases: []string{load.PhaseAsync}, Rate: 150, Duration: length, Concurrency: 64,
				Task: "echo",
			}).Async.EndToEnd
			return took.P50MS, m.read(b).cpu - before.cpu
		}
		const window = 20 * time.Second
		under(window) // plans are made
		held := newMeter(b, url)
		held.exec(b, `BEGIN ISOLATION LEVEL REPEATABLE READ`)
		held.exec(b, `SELECT FROM requests LIMIT 1`)
		firstP50, firstCPU := under(window)
		under(duration)
		lastP50, lastCPU := under(window)
		held.exec(b, `COMMIT`)
		when := fmt.Sprintf("a transaction held for %v: ", duration+2*window)
		reachedf(b, when+"p50, last 20 s ÷ first", "≤ 1.5", "%.2f (%.1f ms, %.1f ms)", lastP50/firstP50, lastP50, firstP50)
		reachedf(b, when+"CPU of the database", "≤ 1.5", "%.2f (%.2f s, %.2f s)",
			lastCPU.Seconds()/firstCPU.Seconds(), lastCPU.Seconds(), firstCPU.Seconds())
	}
}
