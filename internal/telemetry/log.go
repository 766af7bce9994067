package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"tandem"
	"tandem/internal/engine"
)

// In debug mode the log tells the life of a request in steps, each with a mark:
//
//	🚀 work begins          💾 it is committed        🌐 another service was called
//	✅ work has ended well  ❌ it has failed         ⏳ waits for later
//	📝 went to the background
//
// Only these lines name people: they show what was submitted.

// logStep writes the line about a step; there is none about Ran.
func (m *Metrics) logStep(event *engine.Event) {
	r := &event.Request
	log := func(message string, attrs ...slog.Attr) {
		attrs = append([]slog.Attr{slog.String("request_id", r.ID), slog.String("task", r.Task)}, attrs...)
		m.log.LogAttrs(context.Background(), slog.LevelDebug, message, attrs...)
	}
	took, inFlight := slog.Duration("took", event.Took), slog.Int("in_flight", event.InFlight)
	switch event.Step {
	case engine.Begun:
		attrs := []slog.Attr{inFlight, slog.String("submitted", strings.ReplaceAll(string(r.Data), `"`, ""))}
		if r.BatchID != "" {
			attrs = append(attrs, slog.Int("side_by_side", event.Rows), slog.String("batch_id", r.BatchID))
		}
		log("🚀 saved and worked on at the same time", attrs...)
	case engine.Accepted:
		switch {
		case event.Rows > 0:
			log("💾 committed", slog.Int("rows", event.Rows), took)
		case event.Waited:
			log("🚀 committed, its caller waits", took, inFlight)
		default:
			log("📝 committed, the work goes to the background", took, inFlight)
		}
	case engine.Started:
		log("🚀 work begins in the background", slog.Duration("waited", event.Took))
	case engine.Postponed:
		log("⏳ work will be repeated in the background", slog.Duration("work", event.Working), took)
	case engine.Ended:
		message := "✅ work completed"
		if r.Status == tandem.StatusFailed {
			message = "❌ work failed"
		}
		attrs := []slog.Attr{slog.Duration("work", event.Working), took}
		if event.Rows > 0 {
			attrs = append(attrs, slog.Duration("one_after_the_other", event.Took+min(event.Saving, event.Working)))
		}
		log(message, attrs...)
	case engine.Called:
		exchange := time.Duration(event.Attempt.DurationMS * float64(time.Millisecond))
		log("🌐 callback attempted", slog.String("outcome", string(event.Attempt.Outcome)),
			slog.Int("attempt", event.Attempt.Number), slog.Duration("took", exchange),
			slog.Duration("since_acceptance", event.Took))
		if !event.Attempt.NextAt.IsZero() {
			log("⏳ callback waits for the next attempt", slog.Time("until", event.Attempt.NextAt))
		}
	case engine.Ran:
	}
}
