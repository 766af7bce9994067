package main_test

import (
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkSubmissionLog: single submissions at 200/s with the log and without, on two servers with database files, in
// turn. Many short turns, because other load on the machine then meets both alike; so does their order, which changes.
func BenchmarkSubmissionLog(b *testing.B) {
	const turns, length = 20, 1500 * time.Millisecond
	serve := func(args ...string) *process {
		return startServe(b, append(args, "--db", filepath.Join(b.TempDir(), "tandem.db"), "--external-delay", "0s")...)
	}
	submit := postOf("/api/submit", `{"firstName":"Ada","lastName":"Lovelace"}`)
	for b.Loop() {
		servers := [2]*process{serve(), serve("--submission-log", filepath.Join(b.TempDir(), "submissions.log"))}
		var took [2][]time.Duration // without, with
		var added []float64         // to the p50, by turn
		for turn := range turns {
			var middle [2]float64
			for i := range servers {
				which := (i + turn) % 2
				one := openLoop(b, servers[which].url, 200, length, func(int) []byte { return submit }, http.StatusOK)
				middle[which] = quantile(one, 0.5).Seconds() * 1000
				took[which] = append(took[which], one...)
			}
			added = append(added, middle[1]-middle[0])
		}
		slices.Sort(took[0])
		slices.Sort(took[1])
		slices.Sort(added)
		milliseconds := func(which int, q float64) float64 { return quantile(took[which], q).Seconds() * 1000 }
		reachedf(b, "submission log: added to the p50 of a response", "nothing", "%+.3f ms (median of %d turns, half of them within %+.3f to %+.3f; p50 %.3f ms without, %.3f ms with)",
			median(added), turns, added[turns/4], added[turns-1-turns/4], milliseconds(0, 0.5), milliseconds(1, 0.5))
		reachedf(b, "submission log: p99 of a response without and with", "alike", "%.2f ms, %.2f ms", milliseconds(0, 0.99), milliseconds(1, 0.99))
	}
}
