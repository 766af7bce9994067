package engine

import (
	"context"
	"log/slog"
	"strings"

	"tandem"
)

// In debug mode the log tells the life of a request in steps, each with a mark:
//
//	🚀 work begins          💾 it is committed        🌐 another service was called
//	✅ work has ended well  ❌ it has failed         ⏳ waits for later
//	📝 went to the background
//
// Only these lines name people: they show what was submitted.

// telling reports whether steps are told. Code on a hot path asks before it collects what there is to tell.
func (e *Engine) telling() bool { return e.log.Enabled(context.Background(), slog.LevelDebug) }

// tell writes one step.
func (e *Engine) tell(step string, r *tandem.Request, attrs ...any) {
	e.log.Debug(step, append([]any{"request_id", r.ID}, attrs...)...)
}

// markOf is the mark of a request that somebody waited for, by what has become of it.
func markOf(status tandem.Status) string {
	switch status {
	case tandem.StatusCompleted:
		return "✅"
	case tandem.StatusFailed:
		return "❌"
	default:
		return "⏳"
	}
}

// wayOf is how the background came to a request.
func wayOf(r *tandem.Request) string {
	if r.CallbackStatus == "" {
		return "in the background"
	}
	return "async"
}

// tellBatch says what runs at the same time.
func (e *Engine) tellBatch(requests []*tandem.Request) {
	if !e.telling() {
		return
	}
	for _, r := range requests {
		attrs := []any{"in_flight", e.gate.count(), "submitted", strings.ReplaceAll(string(r.Data), `"`, "")}
		if r.BatchID != "" {
			attrs = append(attrs, "side_by_side", len(requests), "batch_id", r.BatchID)
		}
		e.tell("🚀 "+r.Task+": saved and worked on at the same time", r, attrs...)
	}
}

// observe tells what came of a run, and calls Config.Observe.
func (e *Engine) observe(run *Run) {
	r := &run.Request
	if e.telling() {
		step, attrs := markOf(r.Status)+" "+wayOf(r)+": "+string(r.Status), []any{"task", r.Task, "work", run.Working}
		switch {
		case run.Waited && r.Status == tandem.StatusPending:
			step, attrs = markOf(r.Status)+" "+r.Task+": its work is repeated in the background", []any{"took", run.Took}
		case run.Waited:
			step = markOf(r.Status) + " " + r.Task + ": " + string(r.Status)
			attrs = []any{"took", run.Took, "one_after_the_other", run.Took + min(run.Saving, run.Working)}
		}
		e.tell(step, r, attrs...)
	}
	if e.cfg.Observe != nil {
		e.cfg.Observe(*run)
	}
}
