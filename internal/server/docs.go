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
	"sync"

	"tandem"
)

const mediaHTML = "text/html"

// Everything a page needs comes from here, and the browser is told to take
// nothing from anywhere else. Swagger UI and ReDoc set styles from their scripts,
// and ReDoc searches in a worker.
const (
	plainPolicy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	docsPolicy  = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
		"font-src 'self' data:; " +
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
//go:embed third_party/swagger-ui/swagger-ui-bundle.js.gz third_party/swagger-ui/swagger-ui.css.gz
//go:embed third_party/swagger-ui/favicon-32x32.png
var files embed.FS

// asset is a file of the pages.
type asset struct {
	media  string
	kept   func() ([]byte, error) // as it is in the binary
	plain  func() ([]byte, error) // the same uncompressed: unpacked once, on first use
	zipped bool                   // kept is compressed with gzip
}

// assetOf is a file of the binary; those whose names end in .gz are compressed.
func assetOf(path, media string) asset {
	kept := sync.OnceValues(func() ([]byte, error) { return files.ReadFile(path) })
	a := asset{media: media, kept: kept, plain: kept, zipped: strings.HasSuffix(path, ".gz")}
	if a.zipped {
		a.plain = sync.OnceValues(func() ([]byte, error) { return unzip(kept) })
	}
	return a
}

const (
	mediaScript = "text/javascript; charset=utf-8"
	mediaStyle  = "text/css; charset=utf-8"
)

// :: file under /docs/ → what it is
var assets = map[string]asset{
	"docs.js":              assetOf("pages/docs.js", mediaScript),
	"docs.css":             assetOf("pages/docs.css", mediaStyle),
	"tandem.css":           assetOf("pages/tandem.css", mediaStyle),
	"redoc.js":             assetOf("third_party/redoc/redoc.standalone.js.gz", mediaScript),
	"swagger-ui-bundle.js": assetOf("third_party/swagger-ui/swagger-ui-bundle.js.gz", mediaScript),
	"swagger-ui.css":       assetOf("third_party/swagger-ui/swagger-ui.css.gz", mediaStyle),
	"favicon.png":          assetOf("third_party/swagger-ui/favicon-32x32.png", "image/png"),
}

// page is the route of a page of documentation.
func page(path, id, name string, html []byte) Route {
	return Route{
		Method: http.MethodGet, Path: path, ID: id, Tag: tagPages, Summary: "This document, for people (" + name + ")",
		Status: http.StatusOK, Media: mediaHTML, Access: ForEverybody,
		Handle: func(w http.ResponseWriter, _ *http.Request) error { return writePage(w, docsPolicy, html) },
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
	header, read := w.Header(), a.plain
	if a.zipped {
		header.Set("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			header.Set("Content-Encoding", "gzip")
			read = a.kept
		}
	}
	content, err := read()
	if err != nil {
		return fmt.Errorf("read asset: %w", err)
	}
	header.Set("Content-Type", a.media)
	header.Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(content) // fails only when the caller has gone
	return nil
}

// unzip serves the rare client that does not take gzip.
func unzip(kept func() ([]byte, error)) ([]byte, error) {
	compressed, err := kept()
	if err != nil {
		return nil, err
	}
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(reader)
}

// handleDocument serves the OpenAPI document, as YAML where the path ends so.
func (s *server) handleDocument(w http.ResponseWriter, r *http.Request) error {
	media, render := "application/json", s.json
	if strings.HasSuffix(r.URL.Path, ".yaml") {
		media, render = "application/yaml", s.yaml
	}
	body, err := render()
	if err != nil {
		return fmt.Errorf("describe the HTTP API: %w", err)
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(body) // fails only when the caller has gone
	return nil
}

// allProblems is the page of every code, rendered on the first request for it.
var allProblems = sync.OnceValues(func() ([]byte, error) { return problemPage("Errors", "", kinds) })

// handleProblems lists every code.
func handleProblems(w http.ResponseWriter, _ *http.Request) error {
	html, err := allProblems()
	if err != nil {
		return err
	}
	return writePage(w, plainPolicy, html)
}

// handleProblem is where the type of a problem leads.
func handleProblem(w http.ResponseWriter, r *http.Request) error {
	code := tandem.Code(r.PathValue("code"))
	_, k := kindOf(code)
	if k.Code != code {
		return tandem.Errorf(tandem.CodeNotFound, "There is no such code. /problems lists them.")
	}
	html, err := problemPage(string(code), "../", []kind{k})
	if err != nil {
		return err
	}
	return writePage(w, plainPolicy, html)
}

// problemPage is the help for some codes; root is the way from the page to the root of the server.
func problemPage(title, root string, list []kind) ([]byte, error) {
	var html bytes.Buffer
	err := problemsPage.Execute(&html, struct {
		Title, Root string
		Kinds       []kind
	}{title, root, list})
	if err != nil {
		return nil, fmt.Errorf("render help page: %w", err)
	}
	return html.Bytes(), nil
}
