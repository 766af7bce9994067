package server_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/server"
)

// What a browser sends for a page of another origin is refused, whatever it looks like; programs and
// pages of our own or of a named origin pass. Reading is never refused: a browser keeps the answer to itself.
func TestForeignPagesCannotSend(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.CORSOrigins = []string{"https://app.example.com", "http://localhost:3000"} })
	for _, tt := range []struct {
		name    string
		headers []string
		passes  bool
	}{
		{"a program", nil, true},
		{"a program that sends its own origin", []string{"Origin: " + svc.URL}, true},
		{"our own page", []string{"Sec-Fetch-Site: same-origin", "Origin: " + svc.URL}, true},
		{"our own page behind a proxy that changes the host",
			[]string{"Sec-Fetch-Site: same-origin", "Origin: https://tandem.example.com"}, true},
		{"typed into a browser", []string{"Sec-Fetch-Site: none"}, true},
		{"a named origin", []string{"Sec-Fetch-Site: cross-site", "Origin: https://app.example.com"}, true},
		{"another named origin", []string{"Sec-Fetch-Site: cross-site", "Origin: http://localhost:3000"}, true},
		{"a stranger", []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example.com"}, false},
		{"a stranger in an old browser", []string{"Origin: https://evil.example.com"}, false},
		{"no origin that has a name", []string{"Sec-Fetch-Site: cross-site", "Origin: null"}, false},
		{"a form without Origin", []string{"Sec-Fetch-Site: cross-site"}, false},
		{"a neighbour under the same domain", []string{"Sec-Fetch-Site: same-site", "Origin: https://other.example.com"},
			false},
		{"the named host without TLS", []string{"Sec-Fetch-Site: cross-site", "Origin: http://app.example.com"}, false},
		{"the named host on another port", []string{"Sec-Fetch-Site: cross-site", "Origin: https://app.example.com:8443"},
			false},
		{"a host that begins like the named one",
			[]string{"Sec-Fetch-Site: cross-site", "Origin: https://app.example.com.evil.example"}, false},
	} {
		for _, path := range []string{"/sync", "/async", "/api/submit", "/test-callback"} {
			a := svc.do(http.MethodPost, path, `{"data":{"a":1},"task":"echo"}`, tt.headers...)
			if refused := a.status == http.StatusForbidden; refused == tt.passes {
				t.Errorf("%s: POST %s: %d %s", tt.name, path, a.status, a.body)
			} else if refused && a.problem(t).Code != tandem.CodeCrossOrigin {
				t.Errorf("%s: POST %s: %s", tt.name, path, a.body)
			}
		}
		if a := svc.do(http.MethodGet, "/requests", "", tt.headers...); a.status != http.StatusOK {
			t.Errorf("%s: GET: %d %s", tt.name, a.status, a.body)
		}
	}
}

// Patterns let in whoever can have a name that fits.
func TestOriginsAreNamed(t *testing.T) {
	t.Parallel()
	for origin, ok := range map[string]bool{
		"https://app.example.com": true, "http://localhost:3000": true, "https://app.example.com:8443": true,
		"*": false, "https://*.example.com": false, "http://localhost:*": false, "null": false, "app.example.com": false,
		"https://app.example.com/": false, "": false,
	} {
		if err := server.ValidOrigins([]string{origin}); (err == nil) != ok {
			t.Errorf("%q: %v", origin, err)
		}
	}
}

func TestSecurityTxt(t *testing.T) {
	t.Parallel()
	const path = "/.well-known/security.txt"
	if a := start(t, nil).get(path); a.status != http.StatusNotFound {
		t.Errorf("without a contact: %d %s", a.status, a.body)
	}
	svc := start(t, func(s *setup) { s.server.SecurityContact = "mailto:security@example.com" })
	a := svc.get(path)
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%d %v", a.status, a.header)
	}
	fields := map[string]string{}
	for line := range strings.Lines(a.body) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if _, twice := fields[name]; twice {
			t.Errorf("%s stands twice", name)
		}
		fields[name] = value
	}
	until, err := time.Parse(time.RFC3339, fields["Expires"])
	if left := time.Until(until); err != nil || left < 30*24*time.Hour || left > 366*24*time.Hour {
		t.Errorf("Expires %q, want between a month and a year from now", fields["Expires"])
	}
	if fields["Contact"] != "mailto:security@example.com" {
		t.Errorf("%s", a.body)
	}
}

func TestSecurityContact(t *testing.T) {
	t.Parallel()
	for contact, ok := range map[string]bool{
		"": true, "mailto:security@example.com": true, "https://example.com/security": true,
		"security@example.com": false, "http://example.com/security": false, "mailto:nobody": false, "https://": false,
		"mailto:a@example.com\nContact: " +
			"mailto:b@example.com": false, "https://example.com/a b": false, "tel:+1-201-555-0123": false,
	} {
		if err := server.ValidContact(contact); (err == nil) != ok {
			t.Errorf("%q: %v", contact, err)
		}
	}
}
