package engine

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"tandem"
	"tandem/internal/store"
)

// In debug mode the log tells the life of a request in steps, each with a mark:
//
//	🚀 work begins          💾 it is committed        🌐 another service was called
//	✅ work has ended well  ❌ it has failed         ⏳ waits for later
//	📝 went to the background
//
// Only these lines name people: they show what was submitted.

// telling reports whether steps are told. Whoever is on a hot path asks before it collects what there is to tell.
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

// tellSubmissions says what runs at the same time.
func (e *Engine) tellSubmissions(requests []*tandem.Request) {
	if !e.telling() {
		return
	}
	for _, r := range requests {
		attrs := []any{"in_flight", e.gate.count(), "submitted", strings.ReplaceAll(string(r.Data), `"`, "")}
		if r.BatchID != "" {
			attrs = append(attrs, "side_by_side", len(requests), "batch_id", r.BatchID)
		}
		e.tell("🚀 submission: saved and passed on at the same time", r, attrs...)
	}
}

// submissionDone notes how long a submission took when its caller is answered, tells what has become of it, and
// leaves its line for the log.
func (e *Engine) submissionDone(s *Submission, arrived time.Time) {
	r, ended := &s.Request, time.Now()
	s.Took = ended.Sub(arrived)
	e.cfg.SubmissionLog.Append(SubmissionLine{
		Time: e.now(), SubmissionID: r.ID, BatchID: r.BatchID, Status: r.Status, ErrorCode: r.ErrorCode,
		SaveMS: milliseconds(s.Saving), ExternalMS: milliseconds(s.Calling), TotalMS: milliseconds(s.Took), Names: r.Data,
	})
	if !e.telling() {
		return
	}
	if r.Status == tandem.StatusPending {
		e.tell(markOf(r.Status)+" submission: the call is repeated in the background", r, "took", s.Took)
	} else {
		e.tell(markOf(r.Status)+" submission: "+string(r.Status), r, "took", s.Took, "one_after_the_other", s.Took+min(s.Saving, s.Calling))
	}
	if e.cfg.SubmissionLog != nil {
		e.tell("📝 submission: its line for the log is written in the background", r)
	}
}

// repeatDone is submissionDone for a call that the background made; o is nil if there will be another one.
func (e *Engine) repeatDone(r *tandem.Request, o *store.Outcome, calling time.Duration) {
	ended := e.now()
	line := SubmissionLine{
		Time: ended, SubmissionID: r.ID, BatchID: r.BatchID, Status: tandem.StatusPending,
		ExternalMS: milliseconds(calling), TotalMS: milliseconds(ended.Sub(r.CreatedAt)), Names: r.Data,
	}
	if o != nil {
		line.Status, line.ErrorCode = o.Status(), o.ErrorCode
	}
	e.cfg.SubmissionLog.Append(line)
	if e.telling() {
		e.tell(markOf(line.Status)+" submission, in the background: "+string(line.Status), r, "since_its_arrival", ended.Sub(r.CreatedAt))
	}
}
