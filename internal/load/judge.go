package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"tandem/internal/term"
)

// This file decides about the validity of a report, and adds its warnings.

// finish completes the report.
func (r *run) finish(ctx context.Context, ran []*running) (*Report, error) {
	report := r.report
	for i, p := range ran {
		if callbacks := report.Phases[i].Callbacks; callbacks != nil {
			late := r.inbox.counters(p) // includes arrivals during later phases
			late.MissingByStatus, late.MissingSampled = callbacks.MissingByStatus, callbacks.MissingSampled
			late.Breaker = callbacks.Breaker
			*callbacks = late
		}
	}
	report.WallSeconds = r.now().Seconds()
	report.Generator.Cores = runtime.GOMAXPROCS(0)
	_, report.Generator.MaxMemoryBytes = usage()
	report.Interrupted = ctx.Err() != nil
	r.warn()
	if total(report, func(s *Side) int64 { return s.Accepted }) == 0 {
		r.invalidf("nothing was measured: no request was accepted")
	}
	report.Valid = len(report.InvalidReasons) == 0
	report.Comparison = compare(report)
	report.Insights = insights(report)
	if report.Interrupted {
		return report, nil
	}
	for _, threshold := range r.cfg.Thresholds {
		result, err := threshold.Evaluate(report)
		if err != nil { // Validate has checked it: only a run without measurements gets here
			r.warnf("%v", err)
			result = ThresholdResult{Expression: threshold.Expression, Metric: threshold.Metric}
		}
		report.Thresholds = append(report.Thresholds, result)
	}
	return report, nil
}

// note keeps the first text of each category of errors.
func (r *run) note(a answer) {
	if a.category == "" || a.detail == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.notes[a.category]; !known && len(r.notes) < maxNotes {
		r.notes[a.category] = term.Clean(a.detail, maxNote)
	}
}

func (r *run) invalidf(format string, args ...any) {
	r.report.InvalidReasons = append(r.report.InvalidReasons, fmt.Sprintf(format, args...))
}

func (r *run) warnf(format string, args ...any) {
	r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
}

// examine decides whether a phase measured the service or the generator.
func (r *run) examine(phase *Phase, p *running, cpu time.Duration) {
	cores := runtime.GOMAXPROCS(0)
	switch reason := p.stopped.Load(); {
	case reason == nil:
	case errors.Is(*reason, errLeftAlone):
		r.warnf("%s: sending ended early: %v", phase.Name, *reason)
	default:
		r.invalidf("%s: sending ended early: %v", phase.Name, *reason)
	}
	if p.plan != nil {
		own := phase.OwnLag.P99MS
		r.report.Generator.LagP99MS = max(r.report.Generator.LagP99MS, own)
		if reason := tooLate(own, phase); reason != "" {
			r.invalidf("%s: %s", phase.Name, reason)
		}
		var planned, sent int64
		for _, side := range phase.both() {
			planned, sent = planned+side.Planned, sent+side.Sent
		}
		if sent < planned && p.stopped.Load() == nil {
			r.invalidf("%s: %d of %d planned requests were never sent, because as many as allowed were in flight until %v "+
				"after the end: the rate is more than the service can do, and its response times are worse than those here",
				phase.Name, planned-sent, planned, r.cfg.Timeout)
		}
		if lag := phase.Lag.P99MS; lag > own+ms(latestLag) {
			r.warnf("%s: requests waited for one of %d places in flight (p99 %.0f ms); their response times hold that "+
				"wait, their service times do not", phase.Name, r.cfg.Concurrency, lag)
		}
		return
	}
	// Of a phase shorter than a second the share says nothing.
	if share := cpu.Seconds() / max(phase.WallSeconds, 1) / float64(cores); share >= busyShare {
		r.invalidf("%s: the generator used %.0f %% of its %d cores, so it measured itself", phase.Name, 100*share, cores)
	}
}

// tooLate judges the generator's own lag in a phase; "": it is in time.
func tooLate(own float64, phase *Phase) string {
	median := 0.0
	for _, side := range phase.both() {
		if side.Response.Count > 0 && (median == 0 || side.Response.P50MS < median) {
			median = side.Response.P50MS
		}
	}
	switch {
	case own > ms(latestLag):
		return fmt.Sprintf("the generator itself was late: p99 %.1f ms after the planned send", own)
	case own > ms(tolerableLag) && median > 0 && own > lagOfResponse*median:
		return fmt.Sprintf("the generator itself was late: p99 %.1f ms after the planned send, with a median response of "+
			"%.1f ms", own, median)
	default:
		return ""
	}
}

// warn adds the warnings about the whole run.
func (r *run) warn() {
	report := r.report
	async := report.asksAsync()
	if report.Generator.SharesMachine {
		r.warnf("The service runs on the generator's machine: they compete for its cores, and the figures of a machine of " +
			"its own would be better.")
	}
	if text := starved(report); text != "" {
		r.warnf("%s", text)
	}
	if async && r.poller != nil {
		r.warnf("No callback could reach the generator: it asked for each result with GET /requests/{id}, at most %d times "+
			"a "+
			"second. End-to-end times are to the poll that saw the result. The service was given callback URLs at %s, which "+
			"resolve nowhere and reach nobody; its own records will show them as failed.",
			int(time.Second/pollPace), strings.TrimPrefix(strings.TrimSuffix(pollBase, "/"), "https://"))
	}
	if async && r.poller == nil && r.cfg.Secret.IsZero() {
		r.warnf("No signing secret was given: the signatures of callbacks were not checked.")
	}
	if offset := report.Target.ClockOffsetMS; async && offset != 0 {
		r.warnf("The clock of the service differs from this one by %.1f ms; delivery lag is corrected by that.", offset)
	}
	if retried := total(report, func(s *Side) int64 { return s.Retried }); retried > 0 {
		r.warnf("%d refusals (429 or 503) were waited out as the service asked; response times hold the waiting, service "+
			"times do not.", retried)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, category := range slices.Sorted(maps.Keys(r.notes)) {
		r.warnf("The first %s: %s", category, r.notes[category])
	}
}

// total adds a counter up over all phases and sides.
func total(r *Report, of func(*Side) int64) int64 {
	var sum int64
	for _, phase := range r.Phases {
		for _, side := range phase.both() {
			sum += of(side)
		}
	}
	return sum
}

// starved warns about CPU-bound work waiting for a core, on a busy machine; "": no sign of it.
func starved(r *Report) string {
	f := figuresOf(r)
	for _, phase := range []string{PhaseSync, PhaseAsync} {
		used, took := f.value(phase+".server.cpu_per_request"), f.value(phase+".processing.p50")
		whole := f.value(phase+".completed") == f.value(phase+".accepted") // else the CPU time includes other work
		if r.Settings.computes() && whole && used >= 5 && took > 2*used {
			text, _, _ := f.fill(fmt.Sprintf("The machine was busy: work that uses {%[1]s.server.cpu_per_request} of CPU "+
				"time took {%[1]s.processing.p50} (p50), because other programs wanted the cores as well. On an idle "+
				"machine the figures would be better.", phase))
			return text
		}
	}
	return ""
}
