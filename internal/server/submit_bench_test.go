package server_test

import (
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// A submission beside a sync order that does as little: both are two commits, of a database file.
func BenchmarkSyncEcho(b *testing.B) {
	benchSync(b, "/sync", `{"task":"echo","data":{"text":"hello","n":1}}`)
}
func BenchmarkSubmit(b *testing.B) { benchSync(b, "/api/submit", ada) }

func benchSync(b *testing.B, path, body string) {
	svc := start(b, func(s *setup) { s.store.URL = filepath.Join(b.TempDir(), "tandem.db") })
	target, err := url.Parse("http://127.0.0.1" + path)
	if err != nil {
		b.Fatal(err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	b.SetParallelism(64)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			w := &discard{header: make(http.Header, 8)}
			svc.Config.Handler.ServeHTTP(w, &http.Request{
				Method: http.MethodPost, URL: target, Header: header, ContentLength: int64(len(body)),
				Body: io.NopCloser(strings.NewReader(body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "127.0.0.1",
			})
			if w.status != http.StatusOK {
				b.Errorf("answered with %d", w.status)
				return
			}
		}
	})
}
