package audit

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"time"
)

const fixHeaders = "let the proxy pass the headers of tandem on as they are, and keep no answers"

func headerChecks() []Check {
	return []Check{
		{
			ID: "headers-nosniff", Group: GroupHeaders,
			Title: "Browsers must not guess types",
			Level: LevelQuick, Remediation: fixHeaders,
			Run: checkNosniff,
		},
		{
			ID: "headers-no-store", Group: GroupHeaders,
			Title: "No cache keeps data",
			Level: LevelQuick, Needs: []Need{NeedCaller},
			Remediation: fixHeaders, Run: checkNoStore,
		},
		{
			ID: "headers-pages", Group: GroupHeaders,
			Title:       "Pages have a strict policy and cannot be framed",
			Level:       LevelQuick,
			Remediation: fixHeaders, Run: checkPages,
		},
		{
			ID: "headers-banner", Group: GroupHeaders,
			Title:       "No header names software and version",
			Level:       LevelQuick,
			Remediation: "turn server_tokens, X-Powered-By and the like off in the proxy", Run: checkBanner,
		},
		{
			ID: "headers-security-txt", Group: GroupHeaders,
			Title:       "/.well-known/security.txt says whom to tell",
			Level:       LevelQuick,
			Remediation: "set serve --security-contact, or serve the file from the proxy (RFC 9116)",
			Run:         checkSecurityTxt,
		},
	}
}

// errorOrders are requests that fail, in every way that an error comes about.
func errorOrders() []Order {
	return []Order{
		{Path: "/audit-no-such-path", NoKey: true}, {Path: "/requests", NoKey: true}, {Path: "/requests/" + unknownID},
		{Path: "/requests?limit=x"}, {Method: http.MethodDelete, Path: "/sync"}, post("/sync", `{}`),
	}
}

func checkNosniff(ctx context.Context, t *Target) Finding {
	var v verdict
	expect := func(a Answer) {
		v.expect(a, a.Header.Get("X-Content-Type-Options") == "nosniff", "no X-Content-Type-Options: nosniff")
	}
	for _, s := range t.sweep(ctx) {
		expect(s.Answer)
	}
	for _, o := range errorOrders() {
		expect(t.send(ctx, o))
	}
	return v.finding()
}

func checkNoStore(ctx context.Context, t *Target) Finding {
	var v verdict
	expect := func(a Answer) {
		control := a.Header.Get("Cache-Control")
		asks := strings.Contains(control, "private") && strings.Contains(control, "no-cache") // before every use
		v.expect(a, asks || strings.Contains(control, "no-store"), "Cache-Control is "+oneLine(control))
	}
	for _, s := range t.sweep(ctx) {
		if !s.open() {
			expect(s.Answer)
		}
	}
	expect(t.send(ctx, Order{Path: "/requests/" + unknownID}))
	expect(t.send(ctx, post("/sync", echoBody)))
	return v.finding()
}

// weakScripts is a policy that lets a page run what was slipped into it.
var weakScripts = regexp.MustCompile(`(script-src|default-src)[^;]*('unsafe-inline'|'unsafe-eval'|\*|data:|\bhttps?:)`)

// checkPages looks at everything that is HTML, wherever it is found.
func checkPages(ctx context.Context, t *Target) Finding {
	var v verdict
	page := func(a Answer) {
		policy := a.Header.Get("Content-Security-Policy")
		switch {
		case a.Err != nil:
			v.expect(a, false, "")
		case !strings.Contains(a.Header.Get("Content-Type"), "html"):
			return
		case policy == "" || !strings.Contains(policy, "default-src") && !strings.Contains(policy, "script-src"):
			v.expect(a, false, "no Content-Security-Policy for scripts")
		case weakScripts.MatchString(policy):
			v.expect(a, false, "Content-Security-Policy lets foreign scripts in: "+oneLine(policy))
		default:
			framed := !strings.Contains(policy, "frame-ancestors") && a.Header.Get("X-Frame-Options") == ""
			v.expect(a, !framed, "it can be framed")
			v.expect(a, a.Header.Get("Referrer-Policy") != "", "no Referrer-Policy")
		}
	}
	for _, s := range t.sweep(ctx) {
		page(s.Answer)
	}
	browser := map[string]string{"Accept": "text/html"}
	page(t.send(ctx, Order{Path: "/requests?limit=1", Header: browser}))
	for _, o := range errorOrders() {
		o.Header = browser
		page(t.send(ctx, o))
	}
	if v.failed == nil && v.unknown == nil && v.passed == nil {
		v.passf("there is no page")
	}
	return v.finding()
}

var versioned = regexp.MustCompile(`\d`)

func checkBanner(ctx context.Context, t *Target) Finding {
	var v verdict
	expect := func(a Answer) {
		server := a.Header.Get("Server")
		v.expect(a, !versioned.MatchString(server), "Server: "+oneLine(server))
		for _, name := range []string{"X-Powered-By", "X-AspNet-Version", "X-Runtime", "X-Generator"} {
			v.expect(a, a.Header.Get(name) == "", name+": "+oneLine(a.Header.Get(name)))
		}
	}
	for _, s := range t.sweep(ctx) {
		expect(s.Answer)
	}
	for _, o := range errorOrders() {
		expect(t.send(ctx, o))
	}
	return v.finding()
}

var expires = regexp.MustCompile(`(?mi)^Expires:\s*(\S+)\s*$`)

func checkSecurityTxt(ctx context.Context, t *Target) Finding {
	var v verdict
	a := t.send(ctx, Order{Path: "/.well-known/security.txt", NoKey: true})
	contact := regexp.MustCompile(`(?mi)^Contact:\s*\S+`).Match(a.Body)
	v.expect(a, a.Status == http.StatusOK && contact, "no file with a Contact")
	if found := expires.FindSubmatch(a.Body); a.Status == http.StatusOK && contact {
		var until time.Time
		var err error
		if found != nil {
			until, err = time.Parse(time.RFC3339, string(found[1]))
		}
		v.expect(a, found != nil && err == nil && until.After(time.Now()), "Expires is missing or past")
	}
	return v.finding()
}
