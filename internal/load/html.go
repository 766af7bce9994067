package load

import (
	"fmt"
	"html/template"
	"io"
	"strings"
)

var htmlPage = template.Must(template.New("report").Parse("<!doctype html><meta charset=utf-8><title>tandem load</title><pre>{{.}}</pre>\n"))

// WriteHTML writes the report as one self-contained page.
func WriteHTML(w io.Writer, r *Report) error {
	var text strings.Builder
	if err := WriteTable(&text, r); err != nil {
		return err
	}
	if err := htmlPage.Execute(w, text.String()); err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	return nil
}
