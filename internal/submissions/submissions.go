// Package submissions is the sample application on the engine: each submission is work with a retry policy, saved and
// passed on to an external service at the same time, side by side.
//
// It is a client of the engine and of the server like any other. [App.Task] is its work, [App.Observe] gets the
// outcome, and [App.API] is its part of the HTTP API; the engine, the store and the server know nothing of it. The
// package hides the external service and its simulator, the rules for names of people, and the log of submissions. It
// promises at least one call for each submission, always under the same Idempotency-Key, until the service confirms or
// rejects it, or a day is over.
package submissions

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/work"
)

// Task is the task of every submission in the history.
const Task = "submission"

// Config of an [App].
type Config struct {
	External External
	Lines    *Log         // gets a line per submission; nil: there is none. The App neither runs nor closes it
	Log      *slog.Logger // slog.Default
}

// App is the application. Its methods may be called from any number of goroutines.
type App struct {
	external External
	lines    *Log
	log      *slog.Logger

	mu    sync.Mutex // guards calls
	calls map[tandem.Outcome]int64
}

// New makes the application. It fails on an invalid cfg.
func New(cfg Config) (*App, error) {
	external, err := cfg.External.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("submissions: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &App{external: external, lines: cfg.Lines, log: cfg.Log, calls: map[tandem.Outcome]int64{}}, nil
}

// batch is a group of submissions, or a single one.
type batch struct {
	id    string // "": a single one
	keyID string
	owner string
	data  []json.RawMessage // JSON objects, checked by the caller
}

// submit saves submissions and passes them on. A caller's disconnect changes nothing.
func (a *App) submit(e *engine.Engine, b batch) ([]engine.Run, error) {
	return e.Beside(engine.Batch{
		Task: Task, ID: b.id, KeyID: b.keyID, Owner: b.owner, Data: b.data, SlotTimeout: a.external.Timeout,
	})
}

// Observe logs the outcome of the call for a submission.
func (a *App) Observe(event engine.Event) {
	run, r := &event.Run, &event.Request
	if r.Task != Task || event.Step != engine.Ended && event.Step != engine.Postponed {
		return
	}
	calling := callTime(run)
	if !run.Waited && calling == 0 && r.Status == tandem.StatusPending {
		return
	}
	a.lines.Append(Line{
		Time: run.EndedAt, SubmissionID: r.ID, BatchID: r.BatchID, Status: r.Status, ErrorCode: r.ErrorCode,
		SaveMS: milliseconds(run.Saving), ExternalMS: milliseconds(calling), TotalMS: milliseconds(run.Took), Names: r.Data,
	})
	if a.lines != nil && run.Waited {
		a.log.Debug("📝 submission: its line for the log is written in the background", "request_id", r.ID)
	}
}

// callTime is the duration of the call; 0: none was made.
func callTime(run *engine.Run) time.Duration {
	if run.Result.State() == work.StateHeld && run.Result.Message() == "" {
		return 0
	}
	return run.Working
}

// called counts one call of the external service.
func (a *App) called(outcome tandem.Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls[outcome]++
}

// Calls are the calls of the external service since the start, by outcome.
func (a *App) Calls() map[tandem.Outcome]int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.calls)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
