package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"tandem/internal/load"
)

// Bounds of the live view.
const (
	viewEvery    = 5 * time.Second // between plain lines of one phase
	viewMaxBar   = 32              // characters
	viewMinBar   = 6               // a shorter one says nothing
	viewBarFrom  = 50              // columns; narrower terminals show figures only
	viewNoWidth  = 80              // columns of a terminal that does not tell
	viewMaxWidth = 120             // wider lines are hard to read
)

// view shows where a run stands: on a terminal one line that is drawn again and
// again, in a pipe a line from time to time. When a phase is over, a line of it stays.
// It never hides the cursor or leaves the line it is on, so there is nothing that an
// interruption could leave broken.
type view struct {
	out   *output
	live  bool       // out is a terminal and may be drawn on
	color bool       // live, and nobody objects
	width func() int // columns of the terminal
	drawn bool       // there is a line to be wiped
	told  time.Time  // when the last plain line was printed
}

// newView draws on out if that is a terminal, unless plain lines are asked for.
func newView(out *output, plain bool) *view {
	v := &view{out: out, width: func() int { return viewNoWidth }}
	file, ok := fileOf(out)
	if plain || !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" || !drawable(file) {
		return v
	}
	v.live, v.color = true, os.Getenv("NO_COLOR") == ""
	v.width = func() int {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 {
			return min(columns, viewMaxWidth)
		}
		return viewNoWidth
	}
	return v
}

// show is load.Config.Progress.
func (v *view) show(p load.Progress) {
	now := time.Now()
	switch {
	case p.Done:
		v.wipe()
		fmt.Fprintln(v.out, doneLine(p))
		v.told = now
	case v.live:
		fmt.Fprint(v.out.raw, "\r", v.draw(p, v.width()-1), "\x1b[K") // the last column would wrap
		v.drawn = true
	case v.told.IsZero():
		v.told = now // the first line is due in a while
	case now.Sub(v.told) >= viewEvery:
		v.told = now
		fmt.Fprintln(v.out, "  "+strings.Join(append([]string{fmt.Sprintf("%-8s", p.Phase), position(p)}, figures(p)...), "  "))
	}
}

// wipe removes the line that is drawn, if there is one.
func (v *view) wipe() {
	if v.drawn {
		fmt.Fprint(v.out.raw, "\r\x1b[K")
		v.drawn = false
	}
}

// draw lays one line out in so many columns: the figures in their order of importance while
// they fit, and a bar in what is left.
func (v *view) draw(p load.Progress, columns int) string {
	line := fmt.Sprintf("  %-8s", p.Phase)
	if len(line) > columns {
		return ""
	}
	tail, room := "", columns
	if columns >= viewBarFrom {
		room -= viewMinBar + 1
	}
	for _, figure := range append([]string{position(p)}, figures(p)...) {
		if width(line)+width(tail)+2+width(figure) > room {
			break
		}
		tail += "  " + figure
	}
	if length := min(columns-width(line)-width(tail)-1, viewMaxBar); length >= viewMinBar {
		line += " " + v.bar(share(p), length)
	}
	return line + tail
}

// bar is a progress bar of a share of 0..1.
func (v *view) bar(share float64, length int) string {
	filled := int(share * float64(length))
	done, rest := strings.Repeat("━", filled), strings.Repeat("─", length-filled)
	if v.color {
		return "\x1b[36m" + done + "\x1b[90m" + rest + "\x1b[0m"
	}
	return done + rest
}

// width is the number of columns of a text of ours, which holds no wide characters.
func width(text string) int { return len([]rune(text)) }

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
		told = append(told, fmt.Sprintf("%6s/s", threeDigits(p.PerSecond)))
	}
	if p.Outstanding > 0 || p.Draining {
		told = append(told, fmt.Sprintf("%d outstanding", p.Outstanding))
	}
	if !p.Draining && p.P99MS > 0 {
		told = append(told, fmt.Sprintf("p50 %s p99 %s ms", threeDigits(p.P50MS), threeDigits(p.P99MS)))
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

// threeDigits writes a number as exactly as somebody can read who sees it for a moment.
func threeDigits(number float64) string {
	switch {
	case number < 9.995:
		return fmt.Sprintf("%.2f", number)
	case number < 99.95:
		return fmt.Sprintf("%.1f", number)
	default:
		return fmt.Sprintf("%.0f", number)
	}
}
