package main_test

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkSubmissionLog: single submissions at 200/s with the log and without, on two servers in turn. What is
// compared is the difference of a pair, which ran within the same ten seconds.
func BenchmarkSubmissionLog(b *testing.B) {
	serve := func(args ...string) *process {
		return startServe(b, append(args, "--db", filepath.Join(b.TempDir(), "tandem.db"), "--external-delay", "0s")...)
	}
	submit := postOf("/api/submit", `{"firstName":"Ada","lastName":"Lovelace"}`)
	for b.Loop() {
		with, without := serve("--submission-log", filepath.Join(b.TempDir(), "submissions.log")), serve()
		measure := func(p *process) (p50, p99 float64) {
			took := openLoop(b, p.url, 200, 4*time.Second, func(int) []byte { return submit }, http.StatusOK)
			return quantile(took, 0.5).Seconds() * 1000, quantile(took, 0.99).Seconds() * 1000
		}
		measure(with) // warm
		measure(without)
		var base, middle, tail []float64
		for round := range 2*rounds + 1 {
			first, second := with, without
			if round%2 == 1 { // what runs second may find a busier disk
				first, second = second, first
			}
			a50, a99 := measure(first)
			b50, b99 := measure(second)
			if round%2 == 1 {
				a50, a99, b50, b99 = b50, b99, a50, a99
			}
			base, middle, tail = append(base, b50), append(middle, a50-b50), append(tail, a99-b99)
		}
		reachedf(b, "submission log: added to the p50 of a response", "nothing", "%+.3f ms (of %.3f ms; rounds %+.3f)", median(middle), median(base), middle)
		reachedf(b, "submission log: added to the p99 of a response", "nothing", "%+.3f ms (rounds %+.3f)", median(tail), tail)
	}
}
