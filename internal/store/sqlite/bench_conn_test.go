package sqlite_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

// BenchmarkWriterConn runs a transaction with the statements of 64 requests, from acceptance to callback, through the
// connection of the writer and through one of database/sql.
func BenchmarkWriterConn(b *testing.B) {
	const requests = 64
	for _, direct := range []bool{true, false} {
		b.Run(fmt.Sprintf("direct=%v", direct), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "tandem.db")
			s, err := sqlite.Open(b.Context(), store.Config{URL: path})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil { // the schema is there
				b.Fatal(err)
			}
			exec, closeConn, err := sqlite.OpenWriterConn(b.Context(), path, direct)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = closeConn() }()
			run := func(text string, args ...any) {
				if _, err := exec(text, args...); err != nil {
					b.Fatal(err)
				}
			}
			data := []byte(`{"n":12345678,"hello":"world"}`)
			begun := time.Now()
			seq := int64(0)
			for b.Loop() {
				run(`BEGIN IMMEDIATE`)
				for range requests {
					seq++
					run(sqlite.InsertRequest, seq, fmt.Sprintf("req_%032x", seq), "async", "echo", "pending", "pending", 1,
						nil, "io", seq, "http://127.0.0.1/", data, nil, nil, "net-1")
					run(`
						UPDATE requests
						SET status = ?, result = ?, lane = ?, due_at = ?
						WHERE seq = ? AND lane = ? AND status = ?`, "completed", data, "deliver", seq, seq, "io", "pending")
					run(`
						UPDATE requests
						SET status = ?, callback_status = ?, lane = ?, due_at = ?
						WHERE seq = ? AND lane = ? AND status = ?`, "callback_sent", "sent", nil, nil, seq, "deliver", "completed")
				}
				run(`COMMIT`)
			}
			b.ReportMetric(float64(time.Since(begun).Microseconds())/float64(seq), "µs/request")
		})
	}
}
