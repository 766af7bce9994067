package audit

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"tandem"
)

// attacker is a page of somebody else.
const attacker = "https://attacker.invalid"

func corsChecks() []Check {
	const fix = "name your own origins only with serve --cors-origin; let the proxy add no Access-Control headers"
	return []Check{
		{
			ID: "cors-origin", Group: GroupCORS,
			Title: "Foreign pages cannot read answers",
			Level: LevelQuick, Remediation: fix,
			Run: checkOrigins,
		},
		{
			ID: "cors-preflight", Group: GroupCORS,
			Title: "Foreign pages get no leave to send",
			Level: LevelQuick, Remediation: fix,
			Run: checkPreflight,
		},
		{
			ID: "cors-cross-site-post", Group: GroupCORS,
			Title: "What a browser sends for a foreign page is refused",
			Level: LevelQuick,
			Remediation: "name no foreign origin with serve --cors-origin; " +
				"let the proxy pass Origin, Sec-Fetch-Site and Host on as they are",
			Run: checkCrossSite,
		},
		{
			ID: "cors-rebinding", Group: GroupCORS,
			Title: "A page that points its own name at the deployment gets nothing (DNS rebinding)",
			Level: LevelQuick,
			Remediation: "let the proxy pass Host on as it is, name no foreign host with serve --allowed-host; " +
				"or ask for API keys: leave --no-auth away",
			Run: checkRebinding,
		},
	}
}

// shared reports whether an answer lets an origin read it.
func (a Answer) shared(origin string) bool {
	allowed := a.Header.Get("Access-Control-Allow-Origin")
	return allowed == origin || allowed == "*" || a.Header.Get("Access-Control-Allow-Credentials") == "true"
}

// origins are those of foreign pages, some of them made to look like the deployment's own.
func (t *Target) origins() []string {
	host := t.base.Hostname()
	return []string{
		attacker, "null", t.base.Scheme + "://" + host + ".attacker.invalid", t.base.Scheme + "://attacker-" + host,
		"http://localhost:3000", "https://attacker.invalid?" + host,
	}
}

// checkOrigins asks every route that has data for a foreign page, with the caller's key, as a page would that has
// it; and a few routes for pages of every other name.
func checkOrigins(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.operations {
		if op.Method != http.MethodGet {
			continue
		}
		o := op.ask(t.ownID(ctx))
		if op.admin() {
			o.Key = t.cfg.AdminKey
		}
		origins := t.origins()
		if t.cfg.Level == LevelQuick && op.Path != "/requests" && op.Path != "/healthz" {
			origins = origins[:1]
		}
		for _, origin := range origins {
			o.Header = map[string]string{"Origin": origin}
			a := t.send(ctx, o)
			allowed := oneLine(a.Header.Get("Access-Control-Allow-Origin"))
			v.expect(a, !a.shared(origin), "it may be read there: Access-Control-Allow-Origin "+allowed)
		}
	}
	return v.finding()
}

// checkPreflight asks for leave to call every route, with a key and a JSON body.
func checkPreflight(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.operations {
		if op.open() {
			continue
		}
		a := t.send(ctx, Order{
			Method: http.MethodOptions, Path: op.target(unknownID), NoKey: true,
			Header: map[string]string{
				"Origin":                         attacker,
				"Access-Control-Request-Method":  op.Method,
				"Access-Control-Request-Headers": "authorization,content-type",
			},
		})
		v.expect(a, !a.shared(attacker), "leave to send is given")
	}
	return v.finding()
}

// checkCrossSite sends what a browser would for a script or form of a foreign page, to everything that can be sent to.
func checkCrossSite(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.writes() {
		for _, header := range []map[string]string{
			{"Origin": attacker, "Sec-Fetch-Site": "cross-site"},
			{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": attacker}, {"Origin": "null"},
		} {
			o := op.ask(unknownID)
			o.Header = header
			a := t.send(ctx, o)
			v.expect(a, a.Status == http.StatusForbidden, "want 403")
		}
	}
	return v.finding()
}

// rebound are names that a foreign page may have, some of them made to look like the deployment's own.
func (t *Target) rebound() []string {
	host := t.base.Hostname()
	return []string{
		"attacker.invalid", "attacker.invalid:" + cmp.Or(t.base.Port(), "80"), "localhost.attacker.invalid",
		"attacker-localhost", "127.0.0.1.attacker.invalid", strings.Trim(host, ".") + ".attacker.invalid",
	}
}

// checkRebinding sends what a browser would for a page whose name leads here, to every route that has data: the
// browser takes both for one origin, and only Host tells them apart. Such a page has no key, so a deployment that
// asks for one may refuse it for that.
func checkRebinding(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.operations {
		if op.open() {
			continue
		}
		names, id := t.rebound(), unknownID
		if op.Method == http.MethodGet {
			id = t.ownID(ctx)
		}
		if t.cfg.Level == LevelQuick && op.Path != "/requests" {
			names = names[:1]
		}
		for _, name := range names {
			o := op.ask(id)
			o.Host, o.NoKey = name, true
			o.Header = map[string]string{"Sec-Fetch-Site": "same-origin"}
			if op.Method != http.MethodGet {
				o.Header["Origin"] = t.base.Scheme + "://" + name
			}
			a := t.send(ctx, o)
			refused := a.Code() == tandem.CodeHostNotAllowed && a.Status == http.StatusMisdirectedRequest
			v.expect(a, refused || !t.open && a.denied(), "want 421 "+string(tandem.CodeHostNotAllowed))
		}
	}
	return v.finding()
}
