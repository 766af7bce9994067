package submissions_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/submissions"
)

// openLog opens a submission log; its path is in a directory of its own unless cfg has one.
func openLog(t *testing.T, cfg submissions.LogConfig) (*submissions.Log, string) {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "submissions.log")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	log, err := submissions.OpenLog(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log, cfg.Path
}

// flush writes what was appended.
func flush(log *submissions.Log) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	log.Run(ctx)
}

// must ends the test when its setting cannot be made.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// submission is a line whose id says which it is.
func submission(number int) submissions.Line {
	return submissions.Line{
		Time: time.Unix(0, 0).UTC(), SubmissionID: fmt.Sprint("req_", number), Status: tandem.StatusCompleted,
		SaveMS: 1.5, ExternalMS: 120, TotalMS: 121, Names: json.RawMessage(`{"firstName":"Ada","lastName":"<Lovelace>"}`),
	}
}

// logged reads the ids from a file of lines.
func logged(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for line := range strings.Lines(string(text)) {
		var read submissions.Line
		if err := json.Unmarshal([]byte(line), &read); err != nil {
			t.Errorf("%s: %q: %v", path, line, err)
		}
		ids = append(ids, read.SubmissionID)
	}
	return ids
}

func stats(t *testing.T, log *submissions.Log, want submissions.LogStats) {
	t.Helper()
	if got, on := log.Stats(); got != want || !on {
		t.Errorf("stats %+v, %v; want %+v", got, on, want)
	}
}

// TestSubmissionLogLines: what a line says, and that it names people only when asked to.
func TestSubmissionLogLines(t *testing.T) {
	t.Parallel()
	for _, names := range []bool{false, true} {
		log, path := openLog(t, submissions.LogConfig{Names: names})
		log.Append(submission(7))
		flush(log)
		want := `{"time":"1970-01-01T00:00:00Z","submission_id":"req_7","status":"completed",` +
			`"save_ms":1.5,"external_ms":120,"total_ms":121`
		if names {
			want += `,"names":{"firstName":"Ada","lastName":"<Lovelace>"}`
		}
		text, err := os.ReadFile(path)
		if diff := cmp.Diff(want+"}\n", string(text)); err != nil || diff != "" {
			t.Errorf("names %v: %v (-want +got):\n%s", names, err, diff)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file: %v, %v", info.Mode(), err)
		}
		stats(t, log, submissions.LogStats{Written: 1})
	}
}

// TestSubmissionLogOff: a nil log takes everything and does nothing.
func TestSubmissionLogOff(t *testing.T) {
	t.Parallel()
	var log *submissions.Log
	log.Append(submission(1))
	log.Run(context.Background()) // returns at once
	if _, on := log.Stats(); on || log.Close() != nil {
		t.Error("a nil log is not off")
	}
}

// TestSubmissionLogBuffer: lines beyond the buffer are dropped and counted, and nobody waits for the disk.
func TestSubmissionLogBuffer(t *testing.T) {
	t.Parallel()
	var warnings bytes.Buffer
	log, path := openLog(t, submissions.LogConfig{Buffer: 10, Log: slog.New(slog.NewTextHandler(&warnings, nil))})
	for i := range 13 {
		log.Append(submission(i)) // nobody writes yet: the eleventh would wait for ever
	}
	stats(t, log, submissions.LogStats{Dropped: 3})
	flush(log)
	stats(t, log, submissions.LogStats{Written: 10, Dropped: 3})
	if got := logged(t, path); len(got) != 10 || got[0] != "req_0" || got[9] != "req_9" {
		t.Errorf("lines %v", got)
	}
	if got := warnings.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "lines=3") {
		t.Errorf("warnings:\n%s", got)
	}
}

// TestSubmissionLogWarnsOnceAMinute drops lines for three minutes and a half.
func TestSubmissionLogWarnsOnceAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var warnings bytes.Buffer
		log, path := openLog(t, submissions.LogConfig{Log: slog.New(slog.NewTextHandler(&warnings, nil))})
		must(t, os.RemoveAll(filepath.Dir(path)))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { log.Run(ctx) })
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		const drops = 2100
		for i := range drops {
			<-tick.C
			log.Append(submission(i))
		}
		synctest.Wait()
		if n := strings.Count(warnings.String(), "\n"); n != 4 {
			t.Errorf("%d warnings in 210 s\n%s", n, warnings.String())
		}
		cancel()
		running.Wait()
		stats(t, log, submissions.LogStats{Dropped: drops})
		told := 0
		for line := range strings.Lines(warnings.String()) {
			_, after, _ := strings.Cut(line, "lines=")
			var n int
			if _, err := fmt.Sscan(after, &n); err != nil || !strings.Contains(line, "no such file or directory") {
				t.Errorf("%v in %s", err, line)
			}
			told += n
		}
		if told != drops {
			t.Errorf("warned about %d lines of %d", told, drops)
		}
	})
}

// TestSubmissionLogComesBack: a directory that goes away costs the lines of that time, and no others; what
// another program moves away is left to it.
func TestSubmissionLogComesBack(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "logs")
	must(t, os.Mkdir(folder, 0o755))
	log, path := openLog(t, submissions.LogConfig{Path: filepath.Join(folder, "submissions.log")})
	write := func(number int) {
		log.Append(submission(number))
		flush(log)
	}
	write(1)
	must(t, os.Rename(folder, folder+"-away"))
	write(2)
	stats(t, log, submissions.LogStats{Written: 1, Dropped: 1})
	must(t, os.Rename(folder+"-away", folder))
	write(3)
	must(t, os.Rename(path, path+".moved"))
	write(4)
	stats(t, log, submissions.LogStats{Written: 3, Dropped: 1})
	if diff := cmp.Diff([][]string{{"req_1", "req_3"}, {"req_4"}},
		[][]string{logged(t, path+".moved"), logged(t, path)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSubmissionLogAfterACrash: the line that a crash has cut off does not spoil the next one.
func TestSubmissionLogAfterACrash(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "submissions.log")
	must(t, os.WriteFile(path, []byte("{\"submission_id\":\"req_0\"}\n{\"submiss"), 0o600))
	log, _ := openLog(t, submissions.LogConfig{Path: path})
	log.Append(submission(1))
	flush(log)
	text, err := os.ReadFile(path)
	lines := strings.SplitAfter(string(text), "\n")
	if err != nil || len(lines) != 4 || lines[1] != "{\"submiss\n" || !strings.Contains(lines[2], "req_1") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestSubmissionLogRotates: however long lines and files are, the files together hold the newest lines in their order,
// each of them whole, and there are no more of them than asked for.
func TestSubmissionLogRotates(t *testing.T) {
	t.Parallel()
	base, runs := t.TempDir(), 0
	rapid.Check(t, func(r *rapid.T) {
		runs++
		folder := filepath.Join(base, fmt.Sprint(runs))
		if err := os.Mkdir(folder, 0o755); err != nil {
			r.Fatal(err)
		}
		path := filepath.Join(folder, "submissions.log")
		cfg := submissions.LogConfig{
			Path: path, MaxSize: rapid.Int64Range(1, 1000).Draw(r, "size"), Keep: rapid.IntRange(1, 4).Draw(r, "keep"),
			Log: slog.New(slog.DiscardHandler),
		}
		var want []string
		for range rapid.IntRange(1, 3).Draw(r, "starts") {
			log, err := submissions.OpenLog(cfg)
			if err != nil {
				r.Fatal(err)
			}
			for range rapid.IntRange(0, 8).Draw(r, "flushes") {
				for range rapid.IntRange(1, 3).Draw(r, "lines") {
					log.Append(submission(len(want)))
					want = append(want, fmt.Sprint("req_", len(want)))
				}
				flush(log)
			}
			if err := log.Close(); err != nil {
				r.Fatal(err)
			}
		}
		var got []string
		for number := cfg.Keep; number >= 0; number-- {
			name := path
			if number > 0 {
				name = fmt.Sprintf("%s.%d", path, number)
			}
			if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			got = append(got, logged(t, name)...)
		}
		if files, err := os.ReadDir(folder); err != nil || len(files) > cfg.Keep+1 {
			r.Errorf("files %v, %v", files, err)
		}
		if len(got) == 0 && len(want) > 0 ||
			!cmp.Equal(append([]string{}, want[len(want)-len(got):]...), append([]string{}, got...)) {
			r.Errorf("lines %v are not the last ones of %d", got, len(want))
		}
	})
}

// TestSubmissionLogKeepsWhatFits: a file begins anew when it has its size, not before.
func TestSubmissionLogKeepsWhatFits(t *testing.T) {
	t.Parallel()
	line := int64(len(`{"time":"1970-01-01T00:00:00Z","submission_id":"req_0","status":"completed",`+
		`"save_ms":1.5,"external_ms":120,"total_ms":121}`) + 1)
	for _, test := range []struct {
		size int64
		want []int // lines per file, the newest last
	}{
		{3*line - 1, []int{3, 3, 1}},
		{3 * line, []int{3, 3, 1}},
		{3*line + 1, []int{0, 4, 3}},
	} {
		log, path := openLog(t, submissions.LogConfig{MaxSize: test.size, Keep: 2})
		for i := range 7 {
			log.Append(submission(i))
			flush(log)
		}
		got := []int{0, len(logged(t, path+".1")), len(logged(t, path))}
		if _, err := os.Stat(path + ".2"); err == nil {
			got[0] = len(logged(t, path+".2"))
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("files of %d bytes (-want +got):\n%s", test.size, diff)
		}
	}
}

// TestOpenSubmissionLogErrors: what cannot be a log is found out at the start.
func TestOpenSubmissionLogErrors(t *testing.T) {
	t.Parallel()
	folder, database := t.TempDir(), filepath.Join(t.TempDir(), "tandem.db")
	must(t, os.WriteFile(database, []byte("SQLite format 3\x00"), 0o600))
	for _, test := range []struct {
		name string
		cfg  submissions.LogConfig
		want string
	}{
		{"no path", submissions.LogConfig{}, "Path is required"},
		{"negative size", submissions.LogConfig{Path: filepath.Join(folder, "a"), MaxSize: -1}, "negative"},
		{"negative keep", submissions.LogConfig{Path: filepath.Join(folder, "a"), Keep: -1}, "negative"},
		{"negative buffer", submissions.LogConfig{Path: filepath.Join(folder, "a"), Buffer: -1}, "negative"},
		{"no folder", submissions.LogConfig{Path: filepath.Join(folder, "missing", "a")},
			"create files in " + filepath.Join(folder, "missing") + ": no such file or directory"},
		{"a folder", submissions.LogConfig{Path: folder}, "is not a regular file"},
		{"the database", submissions.LogConfig{Path: database}, database +
			" is something else: it does not begin with a JSON line"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log, err := submissions.OpenLog(test.cfg)
			if log != nil || err == nil || !strings.Contains(err.Error(), "open submission log: ") ||
				!strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, %v; want %q", log, err, test.want)
			}
		})
	}
	t.Cleanup(func() { // after the parallel cases
		if files, err := os.ReadDir(folder); err != nil || len(files) != 0 {
			t.Errorf("left behind: %v, %v", files, err)
		}
		if text, err := os.ReadFile(database); err != nil || string(text) != "SQLite format 3\x00" {
			t.Errorf("the database is now %q, %v", text, err)
		}
	})
}

// TestSubmissionLogFromManyGoroutines appends while it is written, stopped and counted.
func TestSubmissionLogFromManyGoroutines(t *testing.T) {
	t.Parallel()
	for range 50 {
		log, path := openLog(t, submissions.LogConfig{MaxSize: 2000, Keep: 100, Buffer: 16})
		ctx, cancel := context.WithCancel(t.Context())
		var running, appending sync.WaitGroup
		running.Go(func() { log.Run(ctx) })
		for g := range 4 {
			appending.Go(func() {
				for i := range 25 {
					log.Append(submission(100*g + i))
					log.Stats()
				}
			})
		}
		appending.Wait()
		cancel()
		running.Wait()
		got, _ := log.Stats()
		lines := 0
		files, err := filepath.Glob(path + "*")
		must(t, err)
		for _, file := range files {
			lines += len(logged(t, file))
		}
		if got.Written != int64(lines) || got.Written+got.Dropped != 100 {
			t.Errorf("%d lines of 100; %+v", lines, got)
		}
	}
}
