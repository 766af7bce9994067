package load

import (
	"fmt"
	"io"

	"tandem/internal/term"
)

// tableWidth is the width of a text for people, in columns.
const tableWidth = 78

// WriteText writes the report for people, as plain text of at most 78 columns.
func WriteText(w io.Writer, r *Report) error {
	v, _ := newView(r) // a damaged histogram concerns charts only
	t := term.Page{Width: tableWidth}
	if v.Interrupted != "" {
		t.Paragraph("INTERRUPTED: ", v.Interrupted)
	}
	if v.Invalid != "" {
		t.Paragraph("INVALID: ", v.Invalid)
	}
	if v.Interrupted != "" || v.Invalid != "" {
		t.Linef("")
	}
	for _, fact := range v.Facts {
		t.Paragraph(fmt.Sprintf("%-10s", fact.Name), fact.Text)
	}
	for _, section := range v.Sections {
		section.write(&t)
	}
	t.List("Errors", v.Failures)
	t.List("Findings", v.Findings)
	t.List("When to choose which", v.Choices)
	if len(r.Thresholds) > 0 {
		t.Heading("Thresholds")
	}
	for _, threshold := range r.Thresholds {
		verdict := "FAILED  "
		if threshold.Pass {
			verdict = "kept    "
		}
		t.Paragraph("  "+verdict, threshold.Expression+" ("+threshold.Shown()+")")
	}
	t.List("Warnings", r.Warnings)
	t.Linef("")
	t.Paragraph("", v.Machine)
	if _, err := io.WriteString(w, t.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// write writes the table of two sides.
func (s section) write(t *term.Page) {
	head := []string{""}
	if s.HasSync {
		head = append(head, "sync")
	}
	if s.HasAsync {
		head = append(head, "async")
	}
	if s.Both() {
		head = append(head, "async is")
	}
	lines := [][]string{head}
	for _, group := range s.Groups {
		lines = append(lines, []string{group.Heading})
		for _, row := range group.Rows {
			lines = append(lines, append([]string{"  " + row.Label}, row.Cells...))
		}
	}
	t.Heading(s.Title)
	t.Table([]int{-30, 14, 14, 14}, lines)
}
