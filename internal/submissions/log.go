package submissions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tandem"
)

const (
	defaultLogSize   = 64 << 20
	defaultLogKeep   = 4
	defaultLogBuffer = 8192
	maxLogBatch      = 64 << 10 // bytes of one write
	dropsCheck       = time.Second
	dropsWarnEvery   = time.Minute
)

// LogConfig configures a [Log]. Zero fields take the defaults named.
type LogConfig struct {
	Path    string       // required; the older files are Path.1 (the newest) and so on
	Names   bool         // lines tell the names of people: debug mode only
	MaxSize int64        // bytes of one file; 64 MiB
	Keep    int          // older files kept; 4
	Buffer  int          // lines waiting for the disk, at most; 8,192
	Log     *slog.Logger // slog.Default
}

// Line is one line of the submission log: the outcome of a submission, or of another attempt to call the external
// service for it. Times are in milliseconds.
type Line struct {
	Time         time.Time       `json:"time"` // when it ended, UTC
	SubmissionID string          `json:"submission_id"`
	BatchID      string          `json:"batch_id,omitempty"`
	Status       tandem.Status   `json:"status"`               // as it is in the history now
	ErrorCode    string          `json:"error_code,omitempty"` // why it is not completed
	SaveMS       float64         `json:"save_ms,omitempty"`    // its commit; 0 for a later attempt, without a commit
	ExternalMS   float64         `json:"external_ms"`          // the external call, at the same time
	TotalMS      float64         `json:"total_ms"`             // from its arrival
	Names        json.RawMessage `json:"names,omitempty"`      // the input; kept only with names in the log
}

// LogStats counts lines since the start.
type LogStats struct {
	Written int64
	Dropped int64 // the buffer was full, or the file could not be written
}

// Log keeps a line per submission in a file, rotated by size. Nobody waits for it: lines go into a bounded buffer, and
// [Log.Run] writes them. Lines lost to a full buffer or a failed write are counted, with a warning once a minute at
// most. A crash loses the buffer: the history is the record, this is a log.
//
// A nil log is off. Its methods may be called from any number of goroutines, Run and Close from one.
type Log struct {
	cfg     LogConfig
	file    *logFile // Run's, while it runs
	lines   chan Line
	written atomic.Int64
	dropped atomic.Int64
	failure atomic.Pointer[error] // why the last line could not be written
}

// OpenLog opens the file for appending, with the rights 0600 if it is new. It finds out whether files can be
// created beside it, as will be necessary later.
func OpenLog(cfg LogConfig) (*Log, error) {
	if cfg.Path == "" || cfg.MaxSize < 0 || cfg.Keep < 0 || cfg.Buffer < 0 {
		return nil, errors.New("open submission log: Path is required; MaxSize, Keep and Buffer must not be negative")
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = defaultLogSize
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultLogKeep
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = defaultLogBuffer
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	file, err := openLogFile(cfg.Path, cfg.MaxSize, cfg.Keep)
	if err != nil {
		return nil, fmt.Errorf("open submission log: %w", err)
	}
	return &Log{cfg: cfg, file: file, lines: make(chan Line, cfg.Buffer)}, nil
}

// Append takes a line without waiting. It does not modify line.Names, and neither may the caller afterwards.
func (l *Log) Append(line Line) {
	if l == nil {
		return
	}
	if !l.cfg.Names {
		line.Names = nil
	}
	select {
	case l.lines <- line:
	default:
		l.dropped.Add(1)
	}
}

// Stats returns the counters; it reports false when the log is off.
func (l *Log) Stats() (LogStats, bool) {
	if l == nil {
		return LogStats{}, false
	}
	return LogStats{Written: l.written.Load(), Dropped: l.dropped.Load()}, true
}

// Run writes lines until ctx ends, then the rest of the buffer, and returns. It is called once.
func (l *Log) Run(ctx context.Context) {
	if l == nil {
		return
	}
	var writer sync.WaitGroup
	writer.Go(func() { l.write(ctx) })
	// A writer blocked by the disk could not warn, so this goroutine does.
	tick := time.NewTicker(dropsCheck)
	defer tick.Stop()
	var told int64
	var last time.Time
	warn := func() {
		dropped := l.dropped.Load()
		attrs := []any{"lines", dropped - told, "path", l.cfg.Path}
		if failure := l.failure.Swap(nil); failure != nil {
			attrs = append(attrs, "error", *failure)
		}
		l.cfg.Log.Warn("submission log: lines were dropped", attrs...)
		told, last = dropped, time.Now()
	}
	for running := true; running; {
		select {
		case <-tick.C:
			if l.dropped.Load() > told && (last.IsZero() || time.Since(last) >= dropsWarnEvery) {
				warn()
			}
		case <-ctx.Done():
			running = false
		}
	}
	writer.Wait()
	if l.dropped.Load() > told {
		warn()
	}
}

// Close closes the file. Run has returned, or was never called.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	if err := l.file.close(); err != nil {
		return fmt.Errorf("close submission log: %w", err)
	}
	return nil
}

// write is the one writer: all waiting lines go out in one write.
func (l *Log) write(ctx context.Context) {
	var batch bytes.Buffer
	encoder := json.NewEncoder(&batch)
	encoder.SetEscapeHTML(false)
	for {
		batch.Reset()
		var lines int64
		add := func(line Line) {
			before := batch.Len()
			if err := encoder.Encode(line); err != nil {
				batch.Truncate(before)
				l.drop(1, err)
				return
			}
			lines++
		}
		select {
		case line := <-l.lines:
			add(line)
		case <-ctx.Done():
			if len(l.lines) == 0 {
				return
			}
		}
		for batch.Len() < maxLogBatch && len(l.lines) > 0 { // nobody else receives
			add(<-l.lines)
		}
		if lines == 0 {
			continue
		}
		if err := l.file.write(batch.Bytes()); err != nil {
			l.drop(lines, err)
		} else {
			l.written.Add(lines)
		}
	}
}

// drop counts lost lines.
func (l *Log) drop(lines int64, err error) {
	l.failure.Store(&err)
	l.dropped.Add(lines)
}
