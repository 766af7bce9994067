package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

const fixProxy = "let no proxy rewrite bodies, paths or headers; if none stands between, report it as SECURITY.md says"

func inputChecks() []Check {
	caller := []Need{NeedCaller}
	return []Check{
		{
			ID: "input-json", Group: GroupInput,
			Title: "What is no JSON is refused",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: refuseBodies(``, `{"data":{"a":1}`, `{"data":{"a":1}}}`, `{"data":{"a":NaN},"task":"echo"}`, "{\"data\":{\"a\":\"\xff\"},\"task\":\"echo\"}"),
		},
		{
			ID: "input-duplicate-names", Group: GroupInput,
			Title: "A name that comes twice is refused",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: refuseBodies(`{"data":{"a":1,"a":2},"task":"echo"}`, `{"data":{"a":1},"task":"echo","task":"compute"}`),
		},
		{
			ID: "input-depth", Group: GroupInput,
			Title: "Deep nesting is refused",
			Level: LevelQuick, Needs: caller, Remediation: "lower serve --max-depth",
			Run: refuseBodies(`{"task":"echo","data":` + nested(1_100) + `}`),
		},
		{
			ID: "input-types", Group: GroupInput,
			Title: "Values of the wrong type or out of range are refused",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: refuseBodies(
				`[]`, `{"data":{},"task":"echo"}`, `{"data":"x","task":"echo"}`, `{"data":{"a":1},"complexity":11,"task":"echo"}`,
				`{"data":{"a":1},"complexity":1e400,"task":"echo"}`, `{"data":{"a":1},"task":"rm -rf"}`,
			),
		},
		{
			ID: "input-media-type", Group: GroupInput,
			Title: "No route takes what a form of a foreign page can send",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: checkMediaType,
		},
		{
			ID: "input-query", Group: GroupInput,
			Title: "Unusable parameters are refused",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: checkQueries,
		},
		{
			ID: "input-path", Group: GroupInput,
			Title: "Nothing is served that is not in the API",
			Level: LevelQuick,
			Remediation: "let the proxy pass on to tandem only what is tandem's, " +
				"and serve no files and no debugging handlers beside it",
			Run: checkPaths,
		},
		{
			ID: "input-injection", Group: GroupInput,
			Title: "SQL in an id or a filter is data",
			Level: LevelQuick, Needs: caller, Remediation: fixProxy,
			Run: checkInjection,
		},
	}
}

// refuseBodies posts bodies that must be refused as bad input.
func refuseBodies(bodies ...string) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		for _, body := range bodies {
			o := post("/sync", body)
			o.Either = true
			a := t.send(ctx, o)
			v.expect(a, a.refused(), "want a refusal as bad input")
		}
		return v.finding()
	}
}

// checkMediaType sends every route that takes JSON what browsers send without asking, and something that only looks
// like JSON.
func checkMediaType(ctx context.Context, t *Target) Finding {
	var v verdict
	types := []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"}
	if t.cfg.Level == LevelFull {
		types = append(types, "text/plain; charset=application/json", "application/xml", "text/json",
			"application/jsonp", "*/*")
	}
	for _, op := range t.writes() {
		if op.admin() || !op.JSON {
			continue
		}
		for _, media := range types {
			o := op.ask(unknownID)
			o.Header, o.Either = map[string]string{"Content-Type": media}, true
			a := t.send(ctx, o)
			v.expect(a, a.Status == http.StatusUnsupportedMediaType || a.Status == http.StatusForbidden, "want 415")
		}
	}
	return v.finding()
}

// checkQueries gives every list what it cannot use: a parameter that it does not have, and bad values for those
// that it has.
func checkQueries(ctx context.Context, t *Target) Finding {
	var v verdict
	bad := map[string]string{
		"limit": "abc", "offset": "-1", "since": "yesterday", "until": "2026-13-01", "status": "%27", "mode": "sync%27",
		"cursor": "nonsense",
	}
	for _, op := range t.lists(func(operation) bool { return true }) {
		queries := []string{"no-such-filter=1", "limit=1&limit=2", "limit=%zz"}
		for _, p := range op.Queries {
			if value, known := bad[p.Name]; known {
				queries = append(queries, p.Name+"="+value)
			}
		}
		for _, query := range queries {
			a := t.send(ctx, Order{Path: op.Path + "?" + query})
			v.expect(a, a.refused(), "want a refusal as bad input")
		}
	}
	return v.finding()
}

// strangePaths are what other software serves, what lies in the folder of a deployment, and ways out of a folder.
func strangePaths(level Level) []string {
	all := []string{
		"/debug/pprof/", "/debug/vars", "/debug/requests", "/.git/HEAD", "/.git/config", "/.env", "/tandem.db",
		"/tandem.db-wal", "/data.db",
		"/backup.db", "/tandem.yaml", "/submissions.log", "/requests/..%2f..%2f..%2f..%2fetc%2fpasswd",
		"/docs/..%2f..%2f..%2fetc%2fpasswd",
		"/docs/%2e%2e%2f%2e%2e%2fgo.mod", "/docs/.git/HEAD", "/requests/%00", "/requests/%0d%0aSet-Cookie:%20audit=1",
		"/server-status", "/actuator/env",
	}
	if level == LevelFull {
		all = append(all,
			"/debug/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/.git/", "/.git/index", "/.hg/", "/.svn/entries",
			"/.aws/credentials", "/.ssh/id_rsa",
			"/.DS_Store", "/.htpasswd", "/db/tandem.db", "/var/lib/tandem/tandem.db", "/data/tandem.db",
			"/tandem.db.gz", "/tandem.db-shm", "/tandem.db.lock",
			"/tandem.sqlite", "/tandem.sqlite3", "/app.db", "/database.db", "/test.db", "/config.yaml",
			"/docker-compose.yml", "/go.mod", "/main.go",
			"/static/", "/files/", "/admin", "/console", "/phpinfo.php", "/nginx_status", "/docs/",
			"/docs/..%5c..%5cgo.mod", "/docs/....//go.mod", "/etc/passwd",
		)
	}
	return all
}

func checkPaths(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range strangePaths(t.cfg.Level) {
		for i, spelled := range []string{
			path, "/" + path, "/livez/.." + path, strings.ToUpper(path[:min(len(path), 6)]) + path[min(len(path), 6):],
		} {
			if i > 0 && strings.Contains(path, "%") {
				break
			}
			a := t.send(ctx, Order{Path: spelled, NoKey: i > 1})
			quiet := a.Status >= 300 && a.Status < 500 && a.Header.Get("Set-Cookie") == ""
			v.expect(a, quiet, "want a 4xx that gives nothing away")
		}
	}
	return v.finding()
}

// checkInjection writes SQL where ids and names belong. There is something to find: the audit has made it.
func checkInjection(ctx context.Context, t *Target) Finding {
	var v verdict
	if _, ok := t.property(ctx, &v); !ok {
		return v.finding()
	}
	for _, path := range []string{"/requests/%27%20OR%20%271%27=%271", "/requests/x%27;SELECT%201--"} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Status == http.StatusNotFound || a.refused(), "want 404")
	}
	for _, op := range t.lists(func(operation) bool { return true }) {
		for _, p := range op.Queries {
			if p.Name != "task" && p.Name != "batch_id" {
				continue
			}
			for _, attack := range []string{
				"%27%20OR%20%271%27=%271", "x%27)%20OR%201=1--", "x%27%20UNION%20SELECT%20*%20FROM%20keys--", "%25",
				"_",
			} {
				a := t.send(ctx, Order{Path: op.Path + "?" + p.Name + "=" + attack})
				harmless := a.refused() || a.Status == http.StatusNotFound || a.Status == http.StatusOK && empty(a.Body)
				v.expect(a, harmless, "want an empty list or a refusal")
			}
		}
	}
	return v.finding()
}

// empty reports whether a body is a list without entries, on its own or as the member of an object.
func empty(body []byte) bool {
	var list []json.RawMessage
	if json.Unmarshal(body, &list) == nil {
		return len(list) == 0
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return false
	}
	for _, member := range members {
		if json.Unmarshal(member, &list) == nil && len(list) > 0 {
			return false
		}
	}
	return true
}
