package term

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	minRoom      = 10    // columns of a wrapped text, however long the mark before it is
	maxParagraph = 4_000 // characters of one
)

// Page is text for people as it grows. The zero value is empty, and its paragraphs are narrow.
type Page struct {
	Width int // columns of a paragraph

	text strings.Builder
}

// String returns the text.
func (p *Page) String() string { return p.text.String() }

// Linef writes one line without blanks at its end.
func (p *Page) Linef(format string, args ...any) {
	p.text.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// Factf writes a line with a name in front.
func (p *Page) Factf(name, format string, args ...any) {
	p.Linef("  %-10s %s", name, fmt.Sprintf(format, args...))
}

// Heading begins a section.
func (p *Page) Heading(text string) {
	p.Linef("\n%s\n%s", text, strings.Repeat("─", utf8.RuneCountInString(text)))
}

// List writes a section of points. Without points there is no section.
func (p *Page) List(title string, texts []string) {
	if len(texts) == 0 {
		return
	}
	p.Heading(title)
	for _, text := range texts {
		p.Paragraph("  • ", text)
	}
}

// Table writes rows in columns, two blanks apart. A column is as wide as its widest cell. widths may ask
// for more, and says as fmt does where cells stand: on the right, or on the left if it is negative. A column
// without a width has its cells on the left.
func (p *Page) Table(widths []int, rows [][]string) {
	widths = slices.Clone(widths)
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if n := utf8.RuneCountInString(cell); widths[i] > 0 {
				widths[i] = max(widths[i], n)
			} else {
				widths[i] = min(widths[i], -n)
			}
		}
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = fmt.Sprintf("%*s", widths[i], cell)
		}
		p.Linef("%s", strings.Join(cells, "  "))
	}
}

var (
	unit   = regexp.MustCompile(`(\d) (ms|µs|s|min|kB|MB|B|%)\b`) // a number and its unit
	colour = regexp.MustCompile(`\x1b\[[0-9;]*m`)                 // is no column wide
)

// NoBreak joins each number to its unit by a no-break space.
func NoBreak(text string) string { return unit.ReplaceAllString(text, "$1\u00a0$2") }

// Paragraph writes a text behind a mark, broken at blanks, but not between a number and its unit.
func (p *Page) Paragraph(mark, text string) {
	indent := utf8.RuneCountInString(colour.ReplaceAllString(mark, ""))
	for line := range wrap(NoBreak(Clean(text, maxParagraph)), max(p.Width-indent, minRoom)) {
		p.Linef("%s%s", mark, strings.ReplaceAll(line, "\u00a0", " "))
		mark = strings.Repeat(" ", indent)
	}
}

// wrap yields the lines of a text, each as long as possible. A word longer than a line is cut.
func wrap(text string, room int) func(func(string) bool) {
	return func(yield func(string) bool) {
		line := ""
		for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' }) {
			for runes := []rune(word); len(runes) > room; runes = []rune(word) {
				if line != "" && !yield(line) || !yield(string(runes[:room])) {
					return
				}
				line, word = "", string(runes[room:])
			}
			switch {
			case line == "":
				line = word
			case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= room:
				line += " " + word
			default:
				if !yield(line) {
					return
				}
				line = word
			}
		}
		if line != "" {
			yield(line)
		}
	}
}
