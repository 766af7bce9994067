package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// refuses posts bad bodies and wants a refusal.
func refuses(bodies ...string) checkFunc {
	all := make([]probe, len(bodies))
	for i, body := range bodies {
		all[i] = post("/sync", body)
		all[i].Either = true
	}
	return sends(isRefused, probes(all...))
}

// formPosts send every JSON route the media types of a browser without preflight, and near-misses of JSON.
func formPosts(t *target) (all []probe) {
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
			p := op.ask(unknownID).with("Content-Type", media)
			p.Either = true
			all = append(all, p)
		}
	}
	return all
}

// badQueries ask every list for an unknown parameter, and give its own ones bad values.
func badQueries(t *target) (all []probe) {
	bad := map[string]string{
		"limit": "abc", "offset": "-1", "since": "yesterday", "until": "2026-13-01", "status": "%27", "mode": "sync%27",
		"cursor": "nonsense",
	}
	for _, op := range t.lists(isAnyList) {
		queries := []string{"no-such-filter=1", "limit=1&limit=2", "limit=%zz"}
		for _, p := range op.Queries {
			if value, known := bad[p.Name]; known {
				queries = append(queries, p.Name+"="+value)
			}
		}
		for _, query := range queries {
			all = append(all, probe{Path: op.Path + "?" + query})
		}
	}
	return all
}

// foreignPaths are routes of other software, files in the folder of a deployment, and ways out of a folder.
var foreignPaths = []string{
	"/debug/pprof/", "/debug/vars", "/debug/requests", "/.git/HEAD", "/.git/config", "/.env", "/tandem.db",
	"/tandem.db-wal", "/data.db", "/backup.db", "/tandem.yaml", "/submissions.log",
	"/requests/..%2f..%2f..%2f..%2fetc%2fpasswd", "/docs/..%2f..%2f..%2fetc%2fpasswd", "/docs/%2e%2e%2f%2e%2e%2fgo.mod",
	"/docs/.git/HEAD", "/requests/%00", "/requests/%0d%0aSet-Cookie:%20audit=1", "/server-status", "/actuator/env",
}

// moreForeignPaths are for the full level.
var moreForeignPaths = []string{
	"/debug/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/.git/", "/.git/index", "/.hg/", "/.svn/entries",
	"/.aws/credentials", "/.ssh/id_rsa", "/.DS_Store", "/.htpasswd", "/db/tandem.db", "/var/lib/tandem/tandem.db",
	"/data/tandem.db", "/tandem.db.gz", "/tandem.db-shm", "/tandem.db.lock", "/tandem.sqlite", "/tandem.sqlite3",
	"/app.db", "/database.db", "/test.db", "/config.yaml", "/docker-compose.yml", "/go.mod", "/main.go", "/static/",
	"/files/", "/admin", "/console", "/phpinfo.php", "/nginx_status", "/docs/", "/docs/..%5c..%5cgo.mod",
	"/docs/....//go.mod", "/etc/passwd",
}

// strangePaths ask for foreign paths in several spellings, half of them without a key.
func strangePaths(t *target) (all []probe) {
	paths := foreignPaths
	if t.cfg.Level == LevelFull {
		paths = slices.Concat(paths, moreForeignPaths)
	}
	for _, path := range paths {
		all = append(all, probe{Path: path})
		if !strings.Contains(path, "%") {
			start := min(len(path), 6)
			all = append(all, probe{Path: "/" + path}, probe{Path: "/livez/.." + path, NoKey: true},
				probe{Path: strings.ToUpper(path[:start]) + path[start:], NoKey: true})
		}
	}
	return all
}

// checkInjection writes SQL where ids and names belong. There is something to find: requests of the audit's own.
func checkInjection(ctx context.Context, t *target, v *verdict) {
	if _, ok := t.property(ctx, v); !ok {
		return
	}
	harmless := must(func(a answer) bool {
		return a.refused() || a.Status == http.StatusNotFound ||
			a.Status == http.StatusOK && strings.Contains(a.probe.Path, "?") && empty(a.Body)
	}, "want 404, an empty list or a refusal")
	for _, path := range []string{"/requests/%27%20OR%20%271%27=%271", "/requests/x%27;SELECT%201--"} {
		v.judge(t.send(ctx, probe{Path: path}), harmless)
	}
	for _, op := range t.lists(isAnyList) {
		for _, p := range op.Queries {
			if p.Name != "task" && p.Name != "batch_id" {
				continue
			}
			for _, attack := range []string{
				"%27%20OR%20%271%27=%271", "x%27)%20OR%201=1--", "x%27%20UNION%20SELECT%20*%20FROM%20keys--", "%25", "_",
			} {
				v.judge(t.send(ctx, probe{Path: op.Path + "?" + p.Name + "=" + attack}), harmless)
			}
		}
	}
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
