package term

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a progress line.
const (
	plainEvery = 5 * time.Second // between plain lines
	maxBar     = 32              // characters
	minBar     = 6               // a shorter one says nothing
	barFrom    = 50              // columns; narrower terminals show facts only
)

// Progress shows the state of a long task: on a terminal one line, redrawn again and again, in a pipe a line from time
// to time. It never hides the cursor or leaves the line it is on, so an interruption leaves nothing broken. One
// goroutine uses it at a time.
type Progress struct {
	out   *Output
	plain bool
	drawn bool      // there is a line to wipe
	told  time.Time // when the last plain line was printed
}

// NewProgress draws on out if it is a terminal, unless plain lines are asked for.
func NewProgress(out *Output, plain bool) *Progress { return &Progress{out: out, plain: plain} }

// Step is where something stands. Its texts are ours: they are not escaped.
type Step struct {
	Name  string
	Share float64  // done, 0..1; negative: unknown, so there is no bar
	Facts []string // the most important first
}

// Live reports whether the progress is drawn on a terminal.
func (p *Progress) Live() bool { return p.columns() > 0 }

// columns is the width of the terminal; 0: plain lines.
func (p *Progress) columns() int {
	if p.plain {
		return 0
	}
	return p.out.Columns()
}

// Show draws a step, or prints it if a plain line is due.
func (p *Progress) Show(s Step) {
	now, columns := time.Now(), p.columns()
	switch {
	case columns > 0:
		fmt.Fprint(p.out.Raw(), "\r", p.draw(s, columns-1), "\x1b[K") // the last column would wrap
		p.drawn = true
	case p.told.IsZero():
		p.told = now // the first line is due in a while
	case now.Sub(p.told) >= plainEvery:
		p.told = now
		fmt.Fprintln(p.out, "  "+strings.Join(append([]string{fmt.Sprintf("%-8s", s.Name)}, s.Facts...), "  "))
	}
}

// End replaces the drawn line by a final one.
func (p *Progress) End(line string) {
	p.Wipe()
	fmt.Fprintln(p.out, line)
	p.told = time.Now()
}

// Wipe removes the drawn line, if there is one.
func (p *Progress) Wipe() {
	if p.drawn {
		fmt.Fprint(p.out.Raw(), "\r\x1b[K")
		p.drawn = false
	}
}

// draw lays one line out in so many columns: the facts in their order while they fit, and a bar in the rest.
func (p *Progress) draw(s Step, columns int) string {
	width := utf8.RuneCountInString
	line, tail, room := fmt.Sprintf("  %-8s", s.Name), "", columns
	if width(line) > columns {
		return string([]rune(line)[:columns])
	}
	if columns >= barFrom && s.Share >= 0 {
		room -= minBar + 1
	}
	for _, fact := range s.Facts {
		if width(line)+width(tail)+2+width(fact) > room {
			break
		}
		tail += "  " + fact
	}
	if length := min(columns-width(line)-width(tail)-1, maxBar); length >= minBar && s.Share >= 0 {
		line += " " + p.bar(s.Share, length)
	}
	return line + tail
}

// bar is a progress bar of a share of 0..1.
func (p *Progress) bar(share float64, length int) string {
	filled := int(share * float64(length))
	done, rest := strings.Repeat("━", filled), strings.Repeat("─", length-filled)
	if p.out.Color() {
		return "\x1b[36m" + done + "\x1b[90m" + rest + "\x1b[0m"
	}
	return done + rest
}
