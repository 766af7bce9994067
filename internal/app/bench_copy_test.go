package app_test

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/tandemtest"
)

// fillFile adds requests of a typical size straight to a file: of ten, four sync ones that are completed, five
// async ones whose callback was sent, and one that waits.
func fillFile(t testing.TB, path string, requests int) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	now := time.Now()
	for _, statement := range []string{`
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
		INSERT INTO requests (seq, id, mode, task, status, callback_status, complexity, callback_attempts, processing_us,
		                      started_at, completed_at, lane, due_at, callback_url, data, result)
		SELECT (?2 + i) << 12 | (i & 4095), printf('req_%012x7%03x8%015x', ?2 + i, i & 4095, i),
		       iif(i % 10 < 4, 'sync', 'async'), 'echo', CASE WHEN i % 10 < 4 THEN 'completed' WHEN i % 10 < 9 THEN 'callback_sent' ELSE 'pending' END,
		       CASE WHEN i % 10 < 4 THEN '' WHEN i % 10 < 9 THEN 'sent' ELSE 'pending' END, 1, iif(i % 10 BETWEEN 4 AND 8, 1, 0), 1500,
		       1000 * (?2 + i), 1000 * (?2 + i) + 1500, iif(i % 10 = 9, 'io', NULL), iif(i % 10 = 9, 1000 * (?2 + i), NULL),
		       iif(i % 10 < 4, '', 'https://hooks.example.com/tandem/callback'),
		       CAST(printf('{"name": "customer %d", "order": %d, "lines": ["first", "second", "third"], "note": "as agreed on the phone"}', i, i * 7) AS BLOB),
		       iif(i % 10 = 9, NULL, CAST(printf('{"echo": {"name": "customer %d", "order": %d, "lines": ["first", "second", "third"]}, "done": true}', i, i * 7) AS BLOB))
		FROM n`, `
		INSERT INTO attempts (request, number, outcome, started_at, duration_us, status_code, error)
		SELECT seq, 1, 'delivered', completed_at, 2500, 200, ''
		FROM requests
		WHERE status = 'callback_sent' AND ?1 + ?2 > 0`, `
		UPDATE totals
		SET counts = (
			SELECT json_object('accepted/sync', sum(mode = 'sync'), 'accepted/async', sum(mode = 'async'), 'task/echo', count(*), 'rows/all', count(*),
			                   'ended/completed', sum(lane IS NULL), 'ended/callback_sent', sum(status = 'callback_sent'),
			                   'now/pending', sum(status = 'pending'), 'queue/io', sum(lane IS NOT NULL), 'unfinished/all', sum(lane IS NOT NULL))
			FROM requests)
		WHERE ?1 + ?2 > 0`} {
		if _, err := db.Exec(statement, requests, now.UnixMilli()-int64(requests)); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkCopy copies a million requests, and compares them: `go test ./internal/app -run xxx -bench Copy -benchtime 1x`.
func BenchmarkCopy(b *testing.B) {
	const requests = 1_000_000
	path := filepath.Join(b.TempDir(), "tandem.db")
	fillFile(b, path, requests)
	for b.Loop() {
		b.StopTimer()
		to := emptyPostgres(b, tandemtest.Durable)
		b.StartTimer()
		copied := time.Duration(0)
		began := time.Now()
		report := copyAll(b, app.CopyConfig{From: path, To: to, Progress: func(p app.CopyProgress) {
			if p.Phase == app.CopyRows && p.Over {
				copied = time.Since(began)
			}
		}})
		if n := report.Target.Attempts; n != requests/2 {
			b.Fatalf("%d attempts", n)
		}
		b.ReportMetric(requests/copied.Seconds(), "copied/s")
		b.ReportMetric(requests/(time.Since(began)-copied).Seconds(), "compared/s")
	}
	b.ReportMetric(0, "ns/op")
}
