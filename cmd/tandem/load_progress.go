package main

import (
	"fmt"

	"tandem/internal/load"
	"tandem/internal/term"
)

// showLoad is a load.Config.Progress. Of each phase that is over a line stays.
func showLoad(progress *term.Progress) func(load.Progress) {
	return func(p load.Progress) {
		if p.Done {
			progress.End(doneLine(p))
			return
		}
		progress.Show(term.Step{Name: p.Phase, Share: share(p), Facts: append([]string{position(p)}, figures(p)...)})
	}
}

// share is how much of the phase is done: of what is sent, or, once everything is, of
// the callbacks that have come.
func share(p load.Progress) float64 {
	done := 0.0
	switch {
	case p.Draining && p.Sent > 0:
		done = 1 - float64(p.Outstanding)/float64(p.Sent)
	case p.Draining:
		done = 1
	case p.Planned > 0:
		done = float64(p.Sent) / float64(p.Planned)
	}
	if p.Duration > 0 && !p.Draining {
		done = max(done, float64(p.Elapsed)/float64(p.Duration))
	}
	return min(max(done, 0), 1)
}

// position says how far the phase is.
func position(p load.Progress) string {
	switch {
	case p.Draining:
		return "all sent"
	case p.Planned > 0:
		return fmt.Sprintf("%d of %d", p.Sent, p.Planned)
	default:
		return fmt.Sprintf("%.0f of %.0f s", p.Elapsed.Seconds(), p.Duration.Seconds())
	}
}

// figures are what changes, the most important first.
func figures(p load.Progress) []string {
	var told []string
	if p.Errors > 0 {
		told = append(told, fmt.Sprintf("%d errors", p.Errors))
	}
	if !p.Draining {
		told = append(told, fmt.Sprintf("%6s/s", load.ShowNumber(p.PerSecond)))
	}
	if p.Outstanding > 0 || p.Draining {
		told = append(told, fmt.Sprintf("%d outstanding", p.Outstanding))
	}
	if !p.Draining && p.P99MS > 0 {
		told = append(told, fmt.Sprintf("p50 %s p99 %s ms", load.ShowNumber(p.P50MS), load.ShowNumber(p.P99MS)))
	}
	return told
}

// doneLine is what stays of a phase.
func doneLine(p load.Progress) string {
	line := fmt.Sprintf("  %-8s %6d requests  %6.1f s", p.Phase, p.Sent, p.Elapsed.Seconds())
	if p.Errors > 0 {
		line += fmt.Sprintf("  %d errors", p.Errors)
	}
	if p.Outstanding > 0 {
		line += fmt.Sprintf("  %d callbacks missing", p.Outstanding)
	}
	return line
}
