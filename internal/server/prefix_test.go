package server_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"tandem/internal/server"
)

// links finds what a page refers to.
var links = regexp.MustCompile(` (?:href|src|spec-url)="([^"]*)"`)

// proxied answers to /tandem/… only, with what a server gives at the rest of the path.
func proxied(svc *service, path string, headers ...string) answer {
	svc.t.Helper()
	rest, ok := strings.CutPrefix(path, "/tandem/")
	if !ok {
		svc.t.Errorf("%s leads out of the path of the proxy", path)
	}
	return svc.do(http.MethodGet, "/"+rest, "", headers...)
}

func TestLinksOfPagesLeadSomewhereUnderAnyPath(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for _, page := range []string{
		"/tandem/", "/tandem/docs", "/tandem/redoc", "/tandem/problems", "/tandem/problems/INTERNAL",
	} {
		here, err := url.Parse("http://example.com" + page)
		if err != nil {
			t.Fatal(err)
		}
		found := links.FindAllStringSubmatch(proxied(svc, page, "Accept: text/html").body, -1)
		if len(found) < 3 {
			t.Errorf("%s has only %d links", page, len(found))
		}
		for _, link := range found {
			target, err := here.Parse(link[1])
			if err != nil {
				t.Fatal(err)
			}
			if a := proxied(svc, target.Path, "Accept: */*"); a.status != http.StatusOK {
				t.Errorf("%s: %s leads to %d", page, link[1], a.status)
			}
		}
	}
	script := proxied(svc, "/tandem/docs/docs.js").body
	if !strings.Contains(script, `"openapi.json"`) {
		t.Errorf("Swagger UI does not look for the document beside its page: %s", script)
	}
	var doc struct {
		Servers []struct {
			URL string `json:"url"`
		} `json:"servers"`
	}
	proxied(svc, "/tandem/openapi.json").decode(t, &doc)
	if len(doc.Servers) != 1 || doc.Servers[0].URL != "." {
		t.Errorf("servers: %v, want the folder of the document", doc.Servers)
	}
}

func TestLocationAndLinkFollowThePathOfTheProxy(t *testing.T) {
	t.Parallel()
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	const own = "X-Forwarded-Prefix: "
	for _, tt := range []struct {
		name    string
		trusted []netip.Prefix
		base    string
		headers []string
		want    string
	}{
		{"no prefix", nil, "", nil, ""},
		{"an untrusted peer", nil, "", []string{own + "/evil"}, ""},
		{"an untrusted peer and a base", nil, "https://example.com/base", []string{own + "/evil"}, "/base"},
		{"a proxy", local, "", []string{own + "/tandem"}, "/tandem"},
		{"a slash at the end", local, "", []string{own + "/a/b-c/"}, "/a/b-c"},
		{"the root", local, "https://example.com/base", []string{own + "/"}, ""},
		{"a proxy overrides the base", local, "https://example.com/base", []string{own + "/tandem"}, "/tandem"},
		{"a proxy without the header", local, "https://example.com/base/", nil, "/base"},
		{"a base without path", nil, "https://example.com", nil, ""},
		{"another host", local, "", []string{own + "//evil.example"}, ""},
		{"a URL", local, "", []string{own + "https://evil.example"}, ""},
		{"no path", local, "", []string{own + "tandem"}, ""},
		{"dots", local, "", []string{own + "/a/../b"}, ""},
		{"the end of a link", local, "", []string{own + `/a>; rel="x`}, ""},
		{"a backslash", local, "", []string{own + `/\evil.example`}, ""},
		{"too long", local, "", []string{own + "/" + strings.Repeat("a", 256)}, ""},
	} {
		svc := start(t, func(s *setup) { s.server.TrustedProxies, s.server.BaseURL = tt.trusted, tt.base })
		var location string
		for range 2 {
			a := svc.do(http.MethodPost, "/async",
				`{"data":{"a":1},"task":"echo","callback_url":"`+svc.URL+`/test-callback"}`, tt.headers...)
			location = a.header.Get("Location")
		}
		if !strings.HasPrefix(location, tt.want+"/requests/req_") {
			t.Errorf("%s: Location %s, want %s/requests/…", tt.name, location, tt.want)
		}
		next := link(t, svc.do(http.MethodGet, "/requests?limit=1", "", tt.headers...))
		if !strings.HasPrefix(next, tt.want+"/requests?cursor=") {
			t.Errorf("%s: Link %s, want %s/requests?…", tt.name, next, tt.want)
		}
	}
}

func TestTheHostOfTheBaseURLIsAllowed(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.BaseURL = "https://Example.com:8443/tandem" })
	for host, want := range map[string]int{
		"example.com": http.StatusOK, "other.example": http.StatusMisdirectedRequest,
	} {
		if a := svc.do(http.MethodGet, "/livez", "", "Host: "+host); a.status != want {
			t.Errorf("%s: %d, want %d", host, a.status, want)
		}
	}
}

func TestBaseURLsAreChecked(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"": true, "https://example.com": true, "http://example.com:8000/": true,
		"https://example.com/a/b": true, "http://[::1]:8000/t": true,
		"example.com": false, "/tandem": false, "ftp://example.com": false, "https://": false,
		"https://u:p@example.com": false, "https://example.com/?a": false, "https://example.com/#a": false,
		"https://example.com/a/../b": false, "https://example.com//a": false,
	} {
		if err := server.ValidBaseURL(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
