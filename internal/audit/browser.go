package audit

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// failing are requests for every kind of error.
var failing = []probe{
	{Path: "/audit-no-such-path", NoKey: true}, {Path: "/requests", NoKey: true}, {Path: "/requests/" + unknownID},
	{Path: "/requests?limit=x"}, {Method: http.MethodDelete, Path: "/sync"}, post("/sync", `{}`),
}

// everywhere is a check of all readable routes, and of errors.
func everywhere(r rule) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		for _, s := range t.sweep(ctx) {
			v.judge(s.answer, r)
		}
		for _, p := range failing {
			v.judge(t.send(ctx, p), r)
		}
	}
}

func nosniff(a answer) string {
	if a.Header.Get("X-Content-Type-Options") != "nosniff" {
		return "no X-Content-Type-Options: nosniff"
	}
	return ""
}

var versioned = regexp.MustCompile(`\d`)

func noBanner(a answer) string {
	if server := a.Header.Get("Server"); versioned.MatchString(server) {
		return "Server: " + oneLine(server)
	}
	for _, name := range []string{"X-Powered-By", "X-AspNet-Version", "X-Runtime", "X-Generator"} {
		if value := a.Header.Get(name); value != "" {
			return name + ": " + oneLine(value)
		}
	}
	return ""
}

func checkNoStore(ctx context.Context, t *target, v *verdict) {
	answers := []answer{t.send(ctx, probe{Path: "/requests/" + unknownID}), t.send(ctx, post("/sync", echoBody))}
	for _, s := range t.sweep(ctx) {
		if !s.open() {
			answers = append(answers, s.answer)
		}
	}
	for _, a := range answers {
		control := a.Header.Get("Cache-Control")
		asks := strings.Contains(control, "private") && strings.Contains(control, "no-cache") // before every use
		v.expect(a, asks || strings.Contains(control, "no-store"), "Cache-Control is "+oneLine(control))
	}
}

// weakScripts matches a policy open to injected scripts.
var weakScripts = regexp.MustCompile(`(script-src|default-src)[^;]*('unsafe-inline'|'unsafe-eval'|\*|data:|\bhttps?:)`)

// strictPage is the rule for a page of HTML.
func strictPage(a answer) string {
	policy := a.Header.Get("Content-Security-Policy")
	switch {
	case policy == "" || !strings.Contains(policy, "default-src") && !strings.Contains(policy, "script-src"):
		return "no Content-Security-Policy for scripts"
	case weakScripts.MatchString(policy):
		return "Content-Security-Policy lets foreign scripts in: " + oneLine(policy)
	case !strings.Contains(policy, "frame-ancestors") && a.Header.Get("X-Frame-Options") == "":
		return "it can be framed"
	case a.Header.Get("Referrer-Policy") == "":
		return "no Referrer-Policy"
	default:
		return ""
	}
}

// checkPages looks at every HTML answer.
func checkPages(ctx context.Context, t *target, v *verdict) {
	judge := func(a answer) {
		if a.Err != nil || strings.Contains(a.Header.Get("Content-Type"), "html") {
			v.judge(a, strictPage)
		}
	}
	for _, s := range t.sweep(ctx) {
		judge(s.answer)
	}
	for _, p := range append([]probe{{Path: "/requests?limit=1"}}, failing...) {
		judge(t.send(ctx, p.with("Accept", "text/html")))
	}
	if v.empty() {
		v.passf("there is no page")
	}
}

var expires = regexp.MustCompile(`(?mi)^Expires:\s*(\S+)\s*$`)

func checkSecurityTxt(ctx context.Context, t *target, v *verdict) {
	a := t.send(ctx, probe{Path: "/.well-known/security.txt", NoKey: true})
	contact := regexp.MustCompile(`(?mi)^Contact:\s*\S+`).Match(a.Body)
	if a.Err != nil || a.Status != http.StatusOK || !contact {
		v.expect(a, false, "no file with a Contact")
		return
	}
	var until time.Time // zero where it is missing or malformed
	if found := expires.FindSubmatch(a.Body); found != nil {
		until, _ = time.Parse(time.RFC3339, string(found[1]))
	}
	v.expect(a, until.After(time.Now()), "Expires is missing or past")
}
