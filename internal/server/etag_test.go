package server_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"tandem"
	"tandem/internal/server"
)

func TestRequestIsSentOnlyWhenItChanged(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	release := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer receiver.Close()
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo()
	id := svc.submit(`{"data":{"a":1},"task":"echo","callback_url":"` + receiver.URL + `"}`)
	path := "/requests/" + id

	bodies := map[string]string{} // :: tag → the body it stands for
	var newest answer
	until := func(status tandem.Status) {
		svc.until(string(status), func() bool {
			newest = svc.get(path)
			tag := newest.header.Get("ETag")
			if known, ok := bodies[tag]; ok && known != newest.body {
				t.Fatalf("%s stands for two bodies:\n%s\n%s", tag, known, newest.body)
			}
			bodies[tag] = newest.body
			var r tandem.Request
			newest.decode(t, &r)
			return r.Status == status
		})
	}
	until(tandem.StatusCompleted)
	letGo()
	until(tandem.StatusCallbackSent)
	current := newest.header.Get("ETag")
	if !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(current) ||
		newest.header.Get("Cache-Control") != "private, no-cache" {
		t.Errorf("%v", newest.header)
	}
	if len(bodies) < 2 {
		t.Errorf("%d tags for a request that went through two states", len(bodies))
	}
	for tag := range bodies {
		a := svc.do(http.MethodGet, path, "", "If-None-Match: "+tag)
		if tag != current && (a.status != http.StatusOK || a.body != newest.body) || tag == current &&
			(a.status != http.StatusNotModified || a.body != "") {
			t.Errorf("%s: %d %s", tag, a.status, a.body)
		}
		if a.header.Get("ETag") != current || a.header.Get("Cache-Control") != "private, no-cache" {
			t.Errorf("%s: %v", tag, a.header)
		}
	}
	if a := svc.do(http.MethodHead, path, "", "If-None-Match: "+current); a.status != http.StatusNotModified {
		t.Errorf("HEAD: %d", a.status)
	}
	if a := svc.do(http.MethodGet, "/requests/unknown", "", "If-None-Match: *"); a.status != http.StatusNotFound ||
		a.header.Get("ETag") != "" {
		t.Errorf("what is not there: %d %v", a.status, a.header)
	}
	svc.store.sabotage("Request", unavailable)
	if a := svc.do(http.MethodGet, path, "", "If-None-Match: "+current); a.status != http.StatusServiceUnavailable ||
		a.header.Get("ETag") != "" {
		t.Errorf("what cannot be read: %d %v", a.status, a.header)
	}
}

func TestStatsAreSentOnlyWhenTheyChanged(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 3, nil)
	// same tells whether the figures are still those of a tag, and returns their tag now.
	same := func(tag string) (bool, string) {
		t.Helper()
		a := svc.do(http.MethodGet, "/stats", "", "If-None-Match: "+tag)
		if a.status != http.StatusOK && a.status != http.StatusNotModified {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return a.status == http.StatusNotModified, a.header.Get("ETag")
	}
	_, tag := same(`"none"`)
	if !regexp.MustCompile(`^W/"[0-9a-f]{32}"$`).MatchString(tag) {
		t.Errorf("ETag: %s", tag)
	}
	if unchanged, _ := same(tag); !unchanged {
		t.Error("the figures of an idle server change")
	}
	for _, event := range []struct {
		name   string
		happen func()
	}{
		{"a request", func() { svc.post("/sync", `{"data":{"a":1},"task":"echo"}`) }},
		{"work that fails", func() { svc.post("/sync", `{"data":{"a":1},"task":"broken"}`) }},
		{"bad input", func() { svc.post("/sync", `{`) }},
		{"a refusal", func() { svc.post("/sync", `{`) }},
		{"an unknown path", func() { svc.get("/nothing") }},
	} {
		event.happen()
		unchanged, next := same(tag)
		if unchanged || next == tag {
			t.Errorf("%s is not seen", event.name)
		}
		tag = next
	}

	// Another process is another matter, even if nothing has happened to either.
	one, two := start(t, nil), start(t, nil)
	if a, b := one.get("/stats").header.Get("ETag"), two.get("/stats").header.Get("ETag"); a == b {
		t.Errorf("two processes have the tag %s", a)
	}
}

func TestNamesTag(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		lines string // of If-None-Match, joined by newlines
		tag   string
		want  bool
	}{
		{`"a"`, `"a"`, true},
		{`"a"`, `"b"`, false},
		{`W/"a"`, `"a"`, true},
		{`"a"`, `W/"a"`, true},
		{`W/"a"`, `W/"a"`, true},
		{`w/"a"`, `"a"`, false},
		{`"b", "a"`, `"a"`, true},
		{`"b",W/"a" , "c"`, `"a"`, true},
		{`"b","c"`, `"a"`, false},
		{`,, "a"`, `"a"`, true},
		{`"x,"a"`, `"a"`, false},
		{`"x,y", "a"`, `"a"`, true},
		{"\"b\"\n\"a\"", `"a"`, true},
		{`*`, `"a"`, true},
		{`"b", *`, `"a"`, true},
		{`a`, `"a"`, false},
		{`"a`, `"a"`, false},
		{`"a""b"`, `"b"`, true},
		{`"b" x "a"`, `"a"`, false},
		{``, `"a"`, false},
		{`""`, `"a"`, false},
		{`W/`, `"a"`, false},
		{strings.Repeat(`"b",`, 10_000) + `"a"`, `"a"`, true},
	} {
		if got := server.NamesTag(strings.Split(tt.lines, "\n"), tt.tag); got != tt.want {
			t.Errorf("If-None-Match: %.40s names %s: %v", tt.lines, tt.tag, got)
		}
	}
}
