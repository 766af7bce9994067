package audit

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"tandem"
)

// attacker is somebody else's page.
const attacker = "https://attacker.invalid"

// unshared is the rule for a probe of a foreign page: it may neither read the answer nor send the request.
func unshared(a answer) string {
	allowed := a.Header.Get("Access-Control-Allow-Origin")
	if allowed == a.probe.Header["Origin"] || allowed == "*" ||
		a.Header.Get("Access-Control-Allow-Credentials") == "true" {
		return "a foreign page may: Access-Control-Allow-Origin " + oneLine(allowed)
	}
	return ""
}

// checkOrigins asks every route with data for a foreign page, with the caller's key; and a few routes for pages of
// other names, some of them similar to the deployment's own.
func checkOrigins(ctx context.Context, t *target, v *verdict) {
	host := t.base.Hostname()
	for _, op := range t.operations {
		if op.Method != http.MethodGet {
			continue
		}
		p := op.ask(t.ownID(ctx))
		if op.admin() {
			p.Key = t.cfg.AdminKey
		}
		origins := []string{
			attacker, "null", t.base.Scheme + "://" + host + ".attacker.invalid", t.base.Scheme + "://attacker-" + host,
			"http://localhost:3000", attacker + "?" + host,
		}
		if t.cfg.Level == LevelQuick && op.Path != "/requests" && op.Path != "/healthz" {
			origins = origins[:1]
		}
		for _, origin := range origins {
			v.judge(t.send(ctx, p.with("Origin", origin)), unshared)
		}
	}
}

// preflights ask for permission to call every route, with a key and a JSON body.
func preflights(t *target) (all []probe) {
	for _, op := range t.operations {
		if !op.open() {
			all = append(all, probe{
				Method: http.MethodOptions, Path: op.target(unknownID), NoKey: true, Header: map[string]string{
					"Origin": attacker, "Access-Control-Request-Method": op.Method,
					"Access-Control-Request-Headers": "authorization,content-type",
				},
			})
		}
	}
	return all
}

// crossSite are a browser's requests for a script or form of a foreign page, to every writable route.
func crossSite(t *target) (all []probe) {
	for _, op := range t.writes() {
		for _, header := range []map[string]string{
			{"Origin": attacker, "Sec-Fetch-Site": "cross-site"},
			{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": attacker}, {"Origin": "null"},
		} {
			p := op.ask(unknownID)
			p.Header = header
			all = append(all, p)
		}
	}
	return all
}

// checkRebinding sends a browser's requests for a page after DNS rebinding to every route with data. To the browser
// both are one origin; only Host distinguishes them. Such a page has no key, so a deployment with keys may refuse the
// request for the lack of one.
func checkRebinding(ctx context.Context, t *target, v *verdict) {
	host := strings.Trim(t.base.Hostname(), ".")
	refused := must(func(a answer) bool {
		foreign := a.code() == tandem.CodeHostNotAllowed && a.Status == http.StatusMisdirectedRequest
		return foreign || !t.open && a.denied()
	}, "want 421 "+string(tandem.CodeHostNotAllowed))
	for _, op := range t.operations {
		if op.open() {
			continue
		}
		id := unknownID
		if op.Method == http.MethodGet {
			id = t.ownID(ctx)
		}
		names := []string{ // some of them similar to the deployment's own
			"attacker.invalid", "attacker.invalid:" + cmp.Or(t.base.Port(), "80"), "localhost.attacker.invalid",
			"attacker-localhost", "127.0.0.1.attacker.invalid", host + ".attacker.invalid",
		}
		if t.cfg.Level == LevelQuick && op.Path != "/requests" {
			names = names[:1]
		}
		for _, name := range names {
			p := op.ask(id).with("Sec-Fetch-Site", "same-origin")
			p.Host, p.NoKey = name, true
			if op.Method != http.MethodGet {
				p = p.with("Origin", t.base.Scheme+"://"+name)
			}
			v.judge(t.send(ctx, p), refused)
		}
	}
}
