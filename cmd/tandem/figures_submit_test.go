package main_test

import (
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// adas is the body of a batch of n.
func adas(n int) string {
	return `{"submissions":[` + adaBody + strings.Repeat(","+adaBody, n-1) + `]}`
}

// BenchmarkSubmit: how long a caller waits while the external service takes 120 ms, and how many
// submissions there are in a second when it takes no time at all.
func BenchmarkSubmit(b *testing.B) {
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"), "--external-delay", "120ms")
		for _, figure := range []struct{ what, asked, path, body string }{
			{"one submission, external service 120 ms, p50", "≤ 125 ms", "/api/submit", adaBody},
			{"a batch of 3, p50", "≤ 130 ms", "/api/submit/batch", adas(3)},
			{"a batch of 10, p50", "≤ 135 ms", "/api/submit/batch", adas(10)},
		} {
			took := inTurn(b, 50, p.url+figure.path, figure.body)
			reachedf(b, figure.what, figure.asked, "%.1f ms (p99 %.1f ms)", quantile(took, 0.5).Seconds()*1000, quantile(took, 0.99).Seconds()*1000)
		}
		p.kill()
		submitSpeed(b)
	}
}

// submitSpeed compares submissions per second with a bare handler, in turn.
func submitSpeed(b *testing.B) {
	b.Helper()
	floor := startFloor(b)
	const connections, length = 128, 3 * time.Second
	perSecond := func(base string, request []byte) float64 {
		return float64(closedLoop(b, base, connections, length, request, http.StatusOK)) / length.Seconds()
	}
	bare := func() float64 {
		return perSecond(floor, postOf("/echo", `{"task":"echo","data":{"text":"hello","n":1}}`))
	}
	var floors, ratios []float64
	for range rounds {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"), "--external-delay", "0s")
		f := bare()
		n := perSecond(p.url, postOf("/api/submit", adaBody))
		f = (f + bare()) / 2
		p.kill()
		floors, ratios = append(floors, f), append(ratios, n/f)
	}
	reachedf(b, "submissions ÷ floor, external service 0 ms", "≥ 0.25", "%.2f (%.0f/s; rounds %.2f)", median(ratios), median(ratios)*median(floors), ratios)
}

// inTurn posts one after the other and returns how long each answer took, sorted.
func inTurn(b *testing.B, n int, url, body string) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		response, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || strings.Contains(string(text), `"external":"pending"`) {
			b.Fatalf("%d %v: %s", response.StatusCode, err, text)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took
}
