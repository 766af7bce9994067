package main_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"tandem/internal/load"
	"tandem/internal/store/postgres"
	"tandem/internal/tandemtest"
)

// The figures of docs/performance.md with PostgreSQL: `make bench-postgres`. The database is on
// the same machine as everything else, waits for its disk, and has the settings that initdb
// gives it but for tandemtest.Measured. What is counted are all statements of the
// database, those of River and each BEGIN and COMMIT included.

const postgresRounds = 3

// meter reads what a database has done.
type meter struct {
	conn *pgx.Conn
	pid  int // of the server's first process
}

// spent is what a database has done since it was made, and the CPU time of its server's processes.
type spent struct {
	statements, wal int64
	cpu             time.Duration
}

func newMeter(b *testing.B, url string) *meter {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(context.Background()) })
	m := &meter{conn: conn}
	m.exec(b, `CREATE EXTENSION IF NOT EXISTS pg_stat_statements`)
	var pid string
	if err := conn.QueryRow(b.Context(), `SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)`).Scan(&pid); err != nil {
		b.Fatal(err)
	}
	if m.pid, err = strconv.Atoi(pid); err != nil {
		b.Fatal(err)
	}
	return m
}

func (m *meter) exec(b *testing.B, statement string) {
	b.Helper()
	if _, err := m.conn.Exec(b.Context(), statement); err != nil {
		b.Fatalf("%s: %v", statement, err)
	}
}

func (m *meter) read(b *testing.B) spent {
	b.Helper()
	s := spent{cpu: familyCPU(b, m.pid)}
	err := m.conn.QueryRow(b.Context(), `
		SELECT (SELECT sum(calls)::bigint FROM pg_stat_statements JOIN pg_database ON oid = dbid WHERE datname = current_database()),
		       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`).Scan(&s.statements, &s.wal)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// familyCPU is the CPU time of a process, of its children, and of those that have ended.
func familyCPU(b *testing.B, pid int) (cpu time.Duration) {
	b.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		name, rest, _ := strings.Cut(string(text), " (")
		fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
		own, parent := name == strconv.Itoa(pid), fields[1] == strconv.Itoa(pid)
		last := 13 // utime and stime
		if own {
			last = 15 // and those of children that have ended
		}
		for _, ticks := range fields[11:last] {
			n, err := strconv.ParseInt(ticks, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			if own || parent {
				cpu += time.Duration(n) * 10 * time.Millisecond
			}
		}
	}
	return cpu
}

// plainRiver is how many jobs that do nothing River works in a second, with what its own
// benchmark sets: no requests, no results, no callbacks.
func plainRiver(b *testing.B) float64 {
	b.Helper()
	const jobs = 60_000
	pool, err := pgxpool.New(b.Context(), tandemtest.Postgres(b, tandemtest.Measured)+"&pool_max_conns=20")
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := migrator.Migrate(b.Context(), rivermigrate.DirectionUp, nil); err != nil {
		b.Fatal(err)
	}
	var worked atomic.Int64
	all := make(chan struct{})
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[nothing]) error {
		if worked.Add(1) == jobs {
			close(all)
		}
		return nil
	}))
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1000}},
		Workers:           workers,
		Logger:            slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	for chunk := range slices.Chunk(slices.Repeat([]river.InsertManyParams{{Args: nothing{}}}, jobs), 5000) {
		if _, err := client.InsertManyFast(b.Context(), chunk); err != nil {
			b.Fatal(err)
		}
	}
	start := time.Now()
	if err := client.Start(context.WithoutCancel(b.Context())); err != nil {
		b.Fatal(err)
	}
	<-all
	if err := client.Stop(context.Background()); err != nil { // when it returns they are completed in the database, too
		b.Fatal(err)
	}
	return jobs / time.Since(start).Seconds()
}

// nothing is the job of plainRiver.
type nothing struct{}

func (nothing) Kind() string { return "nothing" }

// BenchmarkPostgres takes the figures.
func BenchmarkPostgres(b *testing.B) {
	b.Run("throughput", postgresThroughput)
	b.Run("lag", postgresLag)
	b.Run("history", postgresHistory)
	b.Run("idle", postgresIdle)
	b.Run("dead receiver", postgresDeadReceiver)
	b.Run("held snapshot", postgresHeldSnapshot)
}

// postgresThroughput: accepts and full cycles per second, and what each costs.
func postgresThroughput(b *testing.B) {
	floor := startFloor(b)
	const connections = 128
	bare := func() float64 {
		const length = 2 * time.Second
		n := closedLoop(b, floor, connections, length, postOf("/echo", `{"task":"echo","data":{"text":"hello","n":1}}`), http.StatusOK)
		return float64(n) / length.Seconds()
	}
	for b.Loop() {
		figures := map[string][]float64{}
		note := func(name string, figure float64) { figures[name] = append(figures[name], figure) }
		for range postgresRounds {
			url := tandemtest.Postgres(b, tandemtest.Measured)
			p := startServe(b, "--db", url, "--callback-host-concurrency", "64")
			m := newMeter(b, url)
			f, plain := bare(), plainRiver(b)
			m.exec(b, `CHECKPOINT`)
			before, beforeCPU := m.read(b), processCPU(b, p)
			const length = 5 * time.Second
			start := time.Now()
			n := closedLoop(b, p.url, connections, length, echoTo(floor), http.StatusAccepted)
			accepts := float64(n) / length.Seconds()
			awaitSent(b, p, n)
			cycles := float64(n) / time.Since(start).Seconds()
			after, afterCPU := m.read(b), processCPU(b, p)
			p.kill()
			f, plain = (f+bare())/2, (plain+plainRiver(b))/2
			each := func(total float64) float64 { return total / float64(n) }
			note("floor", f)
			note("river", plain)
			note("accepts", accepts/f)
			note("accepts/s", accepts)
			note("cycles", cycles/plain)
			note("cycles/s", cycles)
			note("statements", each(float64(after.statements-before.statements)))
			note("wal", each(float64(after.wal-before.wal)))
			note("server", each(float64((afterCPU - beforeCPU).Microseconds())))
			note("database", each(float64((after.cpu - before.cpu).Microseconds())))
		}
		b.Logf("floor: a bare net/http JSON echo, %d connections: %.0f/s; plain River, jobs that do nothing: %.0f/s", connections, median(figures["floor"]), median(figures["river"]))
		reachedf(b, "durable accepts ÷ floor", "≥ 0.12", "%.3f (%.0f/s; rounds %.3f)", median(figures["accepts"]), median(figures["accepts/s"]), figures["accepts"])
		reachedf(b, "full cycles ÷ plain River, signed, 64 per host", "≥ 0.2", "%.3f (%.0f/s; rounds %.3f)", median(figures["cycles"]), median(figures["cycles/s"]), figures["cycles"])
		reachedf(b, "statements per request, BEGIN and COMMIT included", "≤ 6", "%.2f (rounds %.2f)", median(figures["statements"]), figures["statements"])
		reachedf(b, "WAL bytes per request", "no bound", "%.0f (rounds %.0f)", median(figures["wal"]), figures["wal"])
		reachedf(b, "CPU µs per request: server", "no bound", "%.0f (rounds %.0f)", median(figures["server"]), figures["server"])
		reachedf(b, "CPU µs per request: database", "no bound", "%.0f (rounds %.0f)", median(figures["database"]), figures["database"])
	}
}

func processCPU(b *testing.B, p *process) time.Duration {
	b.Helper()
	cpu, _ := procStat(b, p)
	return cpu
}

// awaitSent waits until so many callbacks are delivered.
func awaitSent(b *testing.B, p *process, n int64) {
	b.Helper()
	for s := readStats(b, p.url); s.Requests.CallbackSent < n; s = readStats(b, p.url) {
		if s.Requests.CallbackFailed > 0 {
			b.Fatalf("%d callbacks failed", s.Requests.CallbackFailed)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// postgresLag: planned send to callback read, at 100/s, and what a request costs then, when few share a transaction.
func postgresLag(b *testing.B) {
	for b.Loop() {
		url := tandemtest.Postgres(b, tandemtest.Measured)
		p := startServe(b, "--db", url)
		m := newMeter(b, url)
		const perSecond, seconds = 100, 20
		m.exec(b, `CHECKPOINT`)
		before := m.read(b)
		took := generate(b, load.Config{URL: p.url, Phases: []string{load.PhaseAsync}, Rate: perSecond, Duration: seconds * time.Second, Concurrency: 64, Task: "echo"}).Async.EndToEnd
		after := m.read(b)
		reachedf(b, "planned send to callback at 100/s, p50", "≤ 20 ms", "%.1f ms", took.P50MS)
		reachedf(b, "planned send to callback at 100/s, p99", "no bound", "%.1f ms", took.P99MS)
		reachedf(b, "statements per request at 100/s", "no bound", "%.1f", float64(after.statements-before.statements)/(perSecond*seconds))
		reachedf(b, "WAL bytes per request at 100/s", "no bound", "%.0f", float64(after.wal-before.wal)/(perSecond*seconds))
	}
}

// postgresHistory: what two million finished requests in the database cost.
func postgresHistory(b *testing.B) {
	floor := startFloor(b)
	for b.Loop() {
		full := tandemtest.Postgres(b, tandemtest.Measured)
		fillPostgres(b, full, 2*million)
		var ratios []float64
		accepts := func(url string) float64 {
			p := startServe(b, "--db", url, "--retention", "0", "--callback-host-concurrency", "64")
			defer p.kill()
			const length = 4 * time.Second
			n := closedLoop(b, p.url, 128, length, echoTo(floor), http.StatusAccepted)
			drain(b, p) // or the next round on this database would start with work to do
			return float64(n) / length.Seconds()
		}
		for round := range rounds {
			empty := tandemtest.Postgres(b, tandemtest.Measured)
			if round%2 == 0 {
				first := accepts(full)
				ratios = append(ratios, first/accepts(empty))
			} else {
				first := accepts(empty)
				ratios = append(ratios, accepts(full)/first)
			}
		}
		reachedf(b, "accepts with 2,000,000 rows ÷ empty database", "≥ 0.9", "%.2f (rounds %.2f)", median(ratios), ratios)

		newMeter(b, full).exec(b, `VACUUM requests`) // as autovacuum does in time: what has changed its status left dead entries in the index
		p := startServe(b, "--db", full, "--retention", "0")
		worst, where := time.Duration(0), ""
		for _, path := range historyQueries() {
			if p99 := quantile(serial(b, p.url, 50, path), 0.99); p99 > worst {
				worst, where = p99, path
			}
		}
		reachedf(b, "GET /requests with 2,000,000 rows, p99 at the worst filter", "no bound", "%.1f ms (%s)", worst.Seconds()*1000, where)
		reachedf(b, "GET /stats with 2,000,000 rows, p99", "no bound", "%.1f ms", quantile(serial(b, p.url, 500, "/stats"), 0.99).Seconds()*1000)
		p.kill()
	}
}

// fillPostgres writes rows as tandem would have: finished ones of every kind with their attempts, spread over 2026.
func fillPostgres(b *testing.B, url string, n int) {
	b.Helper()
	if err := postgres.Migrate(b.Context(), url); err != nil {
		b.Fatal(err)
	}
	conn, err := pgx.Connect(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	counts := fmt.Sprintf(`{"rows/all": %d, "task/echo": %d, "task/compute": %d, "accepted/async": %d, "accepted/sync": %d}`, n, n-n/100, n/100, n-n*9/100, n*9/100)
	for _, statement := range []string{
		// Of 1,000: 900 delivered, 90 sync, 9 given up, 1 failed; compute is one in 100.
		fmt.Sprintf(`
		INSERT INTO requests (id, mode, task, status, callback_status, complexity, callback_attempts, processing_us, started_at, completed_at, node, callback_url, data, result)
		SELECT (lpad(to_hex(ms), 12, '0') || '7000' || '8' || lpad(to_hex(i), 15, '0'))::uuid,
		       CASE WHEN i %% 1000 BETWEEN 900 AND 989 THEN 'sync' ELSE 'async' END,
		       CASE WHEN i %% 100 = 7 THEN 'compute' ELSE 'echo' END,
		       CASE WHEN i %% 1000 < 900 THEN 'callback_sent' WHEN i %% 1000 < 990 THEN 'completed' WHEN i %% 1000 < 999 THEN 'callback_failed' ELSE 'failed' END,
		       CASE WHEN i %% 1000 < 900 OR i %% 1000 = 999 THEN 'sent' WHEN i %% 1000 < 990 THEN '' ELSE 'failed' END,
		       1, 1, 100, to_timestamp(ms / 1000.0), to_timestamp(ms / 1000.0), 'filled', 'http://127.0.0.1:1/', '{"text": "hello", "n": 1}', '{"text": "hello", "n": 1}'
		FROM (SELECT i, 1767225600000 + i * 12000 AS ms FROM generate_series(0::bigint, %d) AS i) AS r`, n-1),
		`INSERT INTO attempts (request, number, outcome, started_at, duration_us, status_code, error)
		SELECT id, 1, 'delivered', completed_at, 500, 200, '' FROM requests WHERE callback_status = 'sent'`,
		fmt.Sprintf(`UPDATE counters SET counts = '%s' WHERE node = ''`, counts),
		`VACUUM ANALYZE`,
		`CHECKPOINT`,
	} {
		if _, err := conn.Exec(b.Context(), statement); err != nil {
			b.Fatalf("%s: %v", statement, err)
		}
	}
}

// postgresIdle: what three nodes ask of their database that nobody asks.
func postgresIdle(b *testing.B) {
	for b.Loop() {
		url := tandemtest.Postgres(b, tandemtest.Measured)
		for range 3 {
			startServe(b, "--db", url)
		}
		m := newMeter(b, url)
		const length = 20 * time.Second
		<-time.After(5 * time.Second) // while they find each other, and River its leader
		before := m.read(b)
		<-time.After(length)
		after := m.read(b)
		reachedf(b, "statements/s of three idle nodes", "< 20", "%.1f", float64(after.statements-before.statements)/length.Seconds())
		reachedf(b, "database of three idle nodes: share of a core", "no bound", "%.2f %%", 100*(after.cpu-before.cpu).Seconds()/length.Seconds())
	}
}
