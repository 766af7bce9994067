package audit

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"time"
)

const mendHeaders = "let the proxy pass the headers of tandem on; upgrade tandem"

func headerChecks() []Check {
	return []Check{
		{
			ID: "headers-nosniff", Group: GroupHeaders, Title: "Browsers must not guess types", Level: LevelQuick, Mend: mendHeaders,
			Run: checkNosniff,
		},
		{
			ID: "headers-no-store", Group: GroupHeaders, Title: "No cache keeps data", Level: LevelQuick, Needs: []Need{NeedCaller}, Mend: mendHeaders,
			Run: checkNoStore,
		},
		{
			ID: "headers-pages", Group: GroupHeaders, Title: "Pages have a strict policy and cannot be framed", Level: LevelQuick, Mend: mendHeaders,
			Run: checkPages,
		},
		{
			ID: "headers-banner", Group: GroupHeaders, Title: "No header names software and version", Level: LevelQuick, Mend: "turn server_tokens, X-Powered-By and the like off in the proxy",
			Run: checkBanner,
		},
		{
			ID: "headers-security-txt", Group: GroupHeaders, Title: "/.well-known/security.txt says whom to tell", Level: LevelQuick, Mend: "upgrade tandem, or serve the file from the proxy (RFC 9116)",
			Run: checkSecurityTxt,
		},
	}
}

func checkNosniff(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/healthz", "/docs", "/openapi.json", "/requests?limit=1"} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Header.Get("X-Content-Type-Options") == "nosniff", "no X-Content-Type-Options: nosniff")
	}
	return v.finding()
}

func checkNoStore(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, o := range []Order{{Path: "/requests?limit=1"}, {Path: "/requests/req_00000000000000000000000000000000"}, post("/sync", `{"data":{"audit":1},"task":"echo"}`)} {
		a := t.send(ctx, o)
		control := a.Header.Get("Cache-Control")
		asks := strings.Contains(control, "private") && strings.Contains(control, "no-cache") // before every use
		v.expect(a, asks || strings.Contains(control, "no-store"), "Cache-Control is "+oneLine(control))
	}
	return v.finding()
}

// weakScripts is a policy that lets a page run what was slipped into it.
var weakScripts = regexp.MustCompile(`(script-src|default-src)[^;]*('unsafe-inline'|'unsafe-eval'|\*|data:|\bhttps?:)`)

func checkPages(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/docs", "/redoc", "/problems"} {
		a := t.send(ctx, Order{Path: path})
		policy := a.Header.Get("Content-Security-Policy")
		switch {
		case a.Status == http.StatusNotFound:
			v.passf("%s: there is no such page", a)
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
	return v.finding()
}

var versioned = regexp.MustCompile(`\d`)

func checkBanner(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/healthz", "/audit-no-such-path"} {
		a := t.send(ctx, Order{Path: path})
		server := a.Header.Get("Server")
		v.expect(a, !versioned.MatchString(server), "Server: "+oneLine(server))
		for _, name := range []string{"X-Powered-By", "X-AspNet-Version", "X-Runtime"} {
			v.expect(a, a.Header.Get(name) == "", name+": "+oneLine(a.Header.Get(name)))
		}
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

// attacker is a page of somebody else.
const attacker = "https://attacker.invalid"

func corsChecks() []Check {
	const mend = "name your own origins only with serve --cors-origin; let the proxy add no Access-Control headers"
	return []Check{
		{
			ID: "cors-origin", Group: GroupCORS, Title: "Foreign pages cannot read answers", Level: LevelQuick, Mend: mend,
			Run: checkOrigins,
		},
		{
			ID: "cors-preflight", Group: GroupCORS, Title: "Foreign pages get no leave to send", Level: LevelQuick, Mend: mend,
			Run: checkPreflight,
		},
		{
			ID: "cors-cross-site-post", Group: GroupCORS, Title: "What a browser sends for a foreign page is refused", Level: LevelQuick, Mend: "upgrade tandem; let the proxy pass Sec-Fetch-Site and Origin on",
			Run: checkCrossSite,
		},
	}
}

// shared reports whether an answer lets an origin read it.
func (a Answer) shared(origin string) bool {
	allowed := a.Header.Get("Access-Control-Allow-Origin")
	return allowed == origin || allowed == "*" || a.Header.Get("Access-Control-Allow-Credentials") == "true"
}

func checkOrigins(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, origin := range []string{attacker, "null", t.base.Scheme + "://" + t.base.Hostname() + ".attacker.invalid"} {
		a := t.send(ctx, Order{Path: "/healthz", Header: map[string]string{"Origin": origin}})
		v.expect(a, !a.shared(origin), "it may be read there: Access-Control-Allow-Origin "+oneLine(a.Header.Get("Access-Control-Allow-Origin")))
	}
	return v.finding()
}

func checkPreflight(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/sync", "/async"} {
		a := t.send(ctx, Order{Method: http.MethodOptions, Path: path, NoKey: true, Header: map[string]string{
			"Origin": attacker, "Access-Control-Request-Method": "POST",
		}})
		v.expect(a, !a.shared(attacker), "leave to send is given")
	}
	return v.finding()
}

// checkCrossSite sends what a browser would for a script or form of a foreign page.
func checkCrossSite(ctx context.Context, t *Target) Finding {
	var v verdict
	o := cheap
	o.Header = map[string]string{"Origin": attacker, "Sec-Fetch-Site": "cross-site"}
	a := t.send(ctx, o)
	a.Sent = "POST /sync for a page of " + attacker
	v.expect(a, a.Status == http.StatusForbidden, "want 403")
	return v.finding()
}
