package submissions_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"tandem/internal/submissions"
)

// BenchmarkSubmissionLogAppend is all that the submission log adds to a response.
func BenchmarkSubmissionLogAppend(b *testing.B) {
	log, err := submissions.OpenLog(submissions.LogConfig{
		Path: filepath.Join(b.TempDir(), "submissions.log"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	line := submission(1)
	b.ReportAllocs()
	waiting := 0
	for b.Loop() {
		log.Append(line)
		if waiting++; waiting == 8192 { // the buffer is full
			b.StopTimer()
			flush(log)
			waiting = 0
			b.StartTimer()
		}
	}
	flush(log)
	if stats, _ := log.Stats(); stats.Dropped > 0 {
		b.Errorf("%+v", stats)
	}
	if err := log.Close(); err != nil {
		b.Fatal(err)
	}
}
