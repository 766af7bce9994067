package server

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"

	"github.com/swaggest/swgui/v5/static"

	"tandem"
)

const mediaHTML = "text/html"

// Everything a page needs comes from here, and the browser is told to take
// nothing from anywhere else. Swagger UI and ReDoc set styles from their scripts,
// and ReDoc searches in a worker.
const (
	plainPolicy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	docsPolicy  = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; " +
		"connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

//go:embed pages/docs.html
var docsPage []byte

//go:embed pages/redoc.html
var redocPage []byte

//go:embed pages/problems.html
var problemsHTML string

var problemsPage = template.Must(template.New("problems").Parse(problemsHTML))

//go:embed pages/docs.js pages/docs.css pages/tandem.css third_party/redoc/redoc.standalone.js.gz
var files embed.FS

// asset is a file of the pages. Those that end in .gz are kept compressed.
type asset struct {
	from interface {
		ReadFile(name string) ([]byte, error)
	}
	path, media string
}

// :: file under /docs/ → where it is kept
var assets = map[string]asset{
	"docs.js":              {files, "pages/docs.js", "text/javascript; charset=utf-8"},
	"docs.css":             {files, "pages/docs.css", "text/css; charset=utf-8"},
	"tandem.css":           {files, "pages/tandem.css", "text/css; charset=utf-8"},
	"redoc.js":             {files, "third_party/redoc/redoc.standalone.js.gz", "text/javascript; charset=utf-8"},
	"swagger-ui-bundle.js": {static.FS, "swagger-ui-bundle.js.gz", "text/javascript; charset=utf-8"},
	"swagger-ui.css":       {static.FS, "swagger-ui.css.gz", "text/css; charset=utf-8"},
	"favicon.png":          {static.FS, "favicon-32x32.png", "image/png"},
}

// page is the route of a page of documentation.
func page(path, id, name string, html []byte) route {
	return route{
		method: http.MethodGet, path: path, id: id, tag: tagPages, summary: "This document, for people (" + name + ")",
		status: http.StatusOK, media: mediaHTML, access: forEverybody,
		handle: func(w http.ResponseWriter, _ *http.Request) error { return writePage(w, docsPolicy, html) },
	}
}

// writePage writes HTML that may take from elsewhere only what policy says.
func writePage(w http.ResponseWriter, policy string, html []byte) error {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", policy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Frame-Options", "DENY") // for browsers that do not know frame-ancestors
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-cache")
	_, _ = w.Write(html) // fails only when the caller has gone
	return nil
}

// handleAsset serves a file of the pages. They change with the binary only.
func (s *server) handleAsset(w http.ResponseWriter, r *http.Request) error {
	a, ok := assets[r.PathValue("file")]
	if !ok {
		return notFound(w, r)
	}
	content, err := a.from.ReadFile(a.path)
	if err != nil {
		return fmt.Errorf("read asset: %w", err)
	}
	header := w.Header()
	if strings.HasSuffix(a.path, ".gz") {
		header.Set("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			header.Set("Content-Encoding", "gzip")
		} else if content, err = unzip(content); err != nil {
			return fmt.Errorf("decompress asset: %w", err)
		}
	}
	header.Set("Content-Type", a.media)
	header.Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(content) // fails only when the caller has gone
	return nil
}

// unzip serves the rare client that does not take gzip.
func unzip(compressed []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(reader)
}

// handleDocument serves the OpenAPI document, as YAML where the path ends so.
func (s *server) handleDocument(w http.ResponseWriter, r *http.Request) error {
	media, body := "application/json", s.json
	if strings.HasSuffix(r.URL.Path, ".yaml") {
		media, body = "application/yaml", s.yaml
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(body) // fails only when the caller has gone
	return nil
}

// handleProblems lists every code.
func handleProblems(w http.ResponseWriter, _ *http.Request) error {
	return writeProblemPage(w, "Errors", "", kinds)
}

// handleProblem is where the type of a problem leads.
func handleProblem(w http.ResponseWriter, r *http.Request) error {
	code := tandem.Code(r.PathValue("code"))
	_, k := kindOf(code)
	if k.Code != code {
		return tandem.Errorf(tandem.CodeNotFound, "There is no such code. /problems lists them.")
	}
	return writeProblemPage(w, string(code), "../", []kind{k})
}

// writeProblemPage writes the help for some codes; root is the way from the page to the root of the server.
func writeProblemPage(w http.ResponseWriter, title, root string, list []kind) error {
	var html bytes.Buffer
	err := problemsPage.Execute(&html, struct {
		Title, Root string
		Kinds       []kind
	}{title, root, list})
	if err != nil {
		return fmt.Errorf("render help page: %w", err)
	}
	return writePage(w, plainPolicy, html.Bytes())
}
