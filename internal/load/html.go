package load

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"

	"tandem/internal/term"
)

// pageFiles are the parts of the HTML report.
//
//go:embed page/* third_party/uplot/uPlot.iife.min.js third_party/uplot/uPlot.min.css
var pageFiles embed.FS

// page is the data of the HTML template.
type page struct {
	*view

	Policy string // Content-Security-Policy: nothing is fetched, and no script runs but ours
	Style  template.CSS
	Script template.JS
	Charts []chart
}

// WriteHTML writes the report as one self-contained page: it fetches nothing, and can be mailed, printed and read
// without a network.
func WriteHTML(w io.Writer, r *Report) error {
	v, err := newView(r)
	if err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	style := file("third_party/uplot/uPlot.min.css") + "\n" + file("page/report.css")
	script := file("third_party/uplot/uPlot.iife.min.js") + "\n" + file("page/report.js")
	p := page{view: v, Style: template.CSS(style), Script: template.JS(script)} //nolint:gosec // files of this package
	p.Policy = fmt.Sprintf("default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; base-uri 'none'; "+
		"form-action 'none'", digest(script), digest(style))
	for _, section := range v.Sections {
		p.Charts = append(p.Charts, section.Charts...)
	}
	layout := template.New("").Funcs(template.FuncMap{"together": term.NoBreak})
	if err := template.Must(layout.Parse(file("page/report.html"))).Execute(w, p); err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	return nil
}

// file is the text of an embedded file.
func file(name string) string {
	text, err := pageFiles.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(text)
}

// digest is how a Content-Security-Policy names an inline script or style.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}
