package server_test

import (
	"net/http"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/server"
)

func TestIndex(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.Debug = true })
	var overview struct {
		Version   string            `json:"version"`
		Status    string            `json:"status"`
		Async     bool              `json:"async_enabled"`
		Debug     bool              `json:"debug_mode"`
		Message   string            `json:"message"`
		Endpoints map[string]string `json:"endpoints"`
	}
	a := svc.get("/")
	a.decode(t, &overview)
	if overview.Version != tandem.Version || overview.Status != "running" || !overview.Async || !overview.Debug ||
		overview.Message == "" ||
		a.header.Get("Content-Type") != "application/json" || a.header.Get("Vary") != "Accept" {
		t.Errorf("%v %s", a.header, a.body)
	}
	for name, path := range map[string]string{
		"index": "/", "health": "/health", "submit": "/api/submit", "submit-batch": "/api/submit/batch",
		"submission-stats": "/api/stats",
		"list-submissions": "/api/submissions", "sync": "/sync", "async": "/async", "docs": "/docs",
	} {
		if overview.Endpoints[name] != path {
			t.Errorf("endpoint %s is %q, want %s", name, overview.Endpoints[name], path)
		}
	}
	const browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	page := svc.do(http.MethodGet, "/", "", browser)
	if page.status != http.StatusOK || page.header.Get("Content-Type") != "text/html; charset=utf-8" ||
		page.header.Get("Vary") != "Accept" ||
		!strings.Contains(page.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%d %v", page.status, page.header)
	}
	if strings.Contains(page.body, `="http`) || strings.Contains(page.body, "<script") ||
		strings.Contains(page.body, "style=") {
		t.Errorf("the page takes something from elsewhere: %s", page.body)
	}
	links := 0
	for _, part := range strings.Split(page.body, `href="`)[1:] { // all lead somewhere
		path, _, _ := strings.Cut(part, `"`)
		if a := svc.do(http.MethodGet, "/"+path, "", browser); a.status != http.StatusOK {
			t.Errorf("%s: %d", path, a.status)
		}
		links++
	}
	if links < 8 {
		t.Errorf("only %d links", links)
	}
}

func TestPrefersHTML(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"":                 false,
		"*/*":              false,
		"application/json": false,
		"text/html":        true,
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": true,
		"text/*":                                 true,
		"application/*":                          false,
		"text/html, application/json":            false, // both the same: a program
		"text/html;q=0.5, application/json":      false,
		"text/html, application/json;q=0.9":      true,
		"text/html;q=0.9, */*":                   false,
		"*/*, application/json;q=0.1":            true, // the more specific one counts
		"text/*;q=0.1, text/html;q=1, */*;q=0.5": true,
		"text/html;q=0":                          false,
		"TEXT/HTML":                              true,
		"text/html;q=2":                          false, // nonsense is not heard
		"text/html;q=NaN":                        false,
		"text/html;q=x, */*":                     false,
		"nonsense, text/html":                    true,
		"text/plain":                             false,
	} {
		if got := server.PrefersHTML(accept); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
	if !server.PrefersHTML("application/json;q=0.2", "text/html") {
		t.Error("two lines are one list")
	}
}
