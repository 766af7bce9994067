package audit

import (
	"context"
	"net/http"
	"strings"
)

const mendProxy = "upgrade tandem; let no proxy rewrite bodies or paths"

func inputChecks() []Check {
	caller := []Need{NeedCaller}
	return []Check{
		{
			ID: "input-json", Group: GroupInput, Title: "What is no JSON is refused", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: refuseBodies(``, `{"data":{"a":1}`, `{"data":{"a":1}}}`, `{"data":{"a":NaN},"task":"echo"}`, "{\"data\":{\"a\":\"\xff\"},\"task\":\"echo\"}"),
		},
		{
			ID: "input-duplicate-names", Group: GroupInput, Title: "A name that comes twice is refused", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: refuseBodies(`{"data":{"a":1,"a":2},"task":"echo"}`, `{"data":{"a":1},"task":"echo","task":"compute"}`),
		},
		{
			ID: "input-depth", Group: GroupInput, Title: "Deep nesting is refused", Level: LevelQuick, Needs: caller, Mend: "lower serve --max-depth",
			Run: refuseBodies(`{"task":"echo","data":` + nested(1_100) + `}`),
		},
		{
			ID: "input-types", Group: GroupInput, Title: "Values of the wrong type or out of range are refused", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: refuseBodies(
				`[]`, `{"data":{},"task":"echo"}`, `{"data":"x","task":"echo"}`, `{"data":{"a":1},"complexity":11,"task":"echo"}`,
				`{"data":{"a":1},"complexity":1e400,"task":"echo"}`, `{"data":{"a":1},"task":"rm -rf"}`,
			),
		},
		{
			ID: "input-media-type", Group: GroupInput, Title: "What a form of a foreign page can send is refused", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: checkMediaType,
		},
		{
			ID: "input-query", Group: GroupInput, Title: "Unusable parameters are refused", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: refusePaths(http.StatusUnprocessableEntity, "/requests?limit=abc", "/requests?status=%27", "/requests?since=yesterday", "/requests?no-such-filter=1"),
		},
		{
			ID: "input-path", Group: GroupInput, Title: "Paths lead nowhere but where they should", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: checkPaths,
		},
		{
			ID: "input-injection", Group: GroupInput, Title: "SQL in an id or a filter is data", Level: LevelQuick, Needs: caller, Mend: mendProxy,
			Run: checkInjection,
		},
	}
}

// refuseBodies posts bodies that must be refused as bad input.
func refuseBodies(bodies ...string) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		for _, body := range bodies {
			a := t.send(ctx, post("/sync", body))
			v.expect(a, a.refused(), "want a refusal as bad input")
		}
		return v.finding()
	}
}

// refusePaths asks for what must be answered with one status.
func refusePaths(status int, paths ...string) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		for _, path := range paths {
			a := t.send(ctx, Order{Path: path})
			v.expect(a, a.Status == status, "want "+http.StatusText(status))
		}
		return v.finding()
	}
}

func checkMediaType(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"} {
		o := post("/sync", `{"data":{"a":1},"task":"echo"}`)
		o.Header = map[string]string{"Content-Type": media}
		a := t.send(ctx, o)
		v.expect(a, a.Status == http.StatusUnsupportedMediaType || a.Status == http.StatusForbidden, "want 415")
	}
	return v.finding()
}

func checkPaths(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{
		"/requests/..%2f..%2f..%2f..%2fetc%2fpasswd", "/docs/..%2f..%2f..%2fetc%2fpasswd", "/docs/%2e%2e%2f%2e%2e%2fgo.mod",
		"/requests/%00", "/requests/%0d%0aSet-Cookie:%20audit=1", "/.git/config", "/.env", "/tandem.db", "/debug/pprof/",
	} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Status >= 300 && a.Status < 500 && a.Header.Get("Set-Cookie") == "", "want a 4xx that gives nothing away")
	}
	return v.finding()
}

func checkInjection(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/requests/%27%20OR%20%271%27=%271", "/requests/x%27;SELECT%201--"} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Status == http.StatusNotFound || a.refused(), "want 404")
	}
	for _, path := range []string{"/requests?task=%27%20OR%20%271%27=%271", "/requests?task=x%27)%20OR%201=1--"} {
		a := t.send(ctx, Order{Path: path})
		empty := a.Status == http.StatusOK && strings.TrimSpace(string(a.Body)) == "[]"
		v.expect(a, empty || a.refused(), "want an empty list or a refusal")
	}
	return v.finding()
}
