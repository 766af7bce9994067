package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

func errorChecks() []Check {
	return []Check{
		{
			ID: "error-problems", Group: GroupErrors, Title: "Errors are problems after RFC 9457", Level: LevelQuick, Needs: []Need{NeedCaller},
			Mend: "let the proxy pass the answers of tandem on instead of pages of its own", Run: checkProblems,
		},
		{
			ID: "error-markup", Group: GroupErrors, Title: "Errors never are pages with what the caller wrote", Level: LevelQuick,
			Mend: "let no proxy make HTML of errors", Run: checkMarkup,
		},
		{
			ID: "error-request-id", Group: GroupErrors, Title: "A hostile X-Request-ID is replaced", Level: LevelQuick,
			Mend: "upgrade tandem; let the proxy set X-Request-ID itself", Run: checkRequestID,
		},
		{
			ID: "error-5xx", Group: GroupErrors, Title: "Nothing in this audit made the server fail", Level: LevelQuick, stage: 2,
			Mend: "report it: bad input must never be a 5xx", Run: checkCrashes,
		},
		{
			ID: "error-internals", Group: GroupErrors, Title: "No answer in this audit tells of the inside", Level: LevelQuick, stage: 2,
			Mend: "report it; turn error pages of the proxy off", Run: checkLeaks,
		},
	}
}

func checkProblems(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, c := range []struct {
		order  Order
		status int
	}{
		{Order{Path: "/audit-no-such-path"}, http.StatusNotFound},
		{Order{Path: "/requests/req_00000000000000000000000000000000"}, http.StatusNotFound},
		{Order{Method: http.MethodDelete, Path: "/sync"}, http.StatusMethodNotAllowed},
		{post("/sync", `{"data":`), http.StatusBadRequest},
		{post("/sync", `{}`), http.StatusUnprocessableEntity},
	} {
		a := t.send(ctx, c.order)
		var problem struct {
			Type   string `json:"type"`
			Title  string `json:"title"`
			Code   string `json:"code"`
			Status int    `json:"status"`
		}
		decoded := json.Unmarshal(a.Body, &problem) == nil
		switch {
		case a.Status != c.status:
			v.expect(a, false, "want "+http.StatusText(c.status))
		case !strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json"):
			v.expect(a, false, "no application/problem+json")
		case a.Status == http.StatusMethodNotAllowed && a.Header.Get("Allow") == "":
			v.expect(a, false, "no Allow")
		default:
			v.expect(a, decoded && problem.Type != "" && problem.Title != "" && problem.Code != "" && problem.Status == a.Status, "type, title, code or status is missing")
		}
	}
	return v.finding()
}

func checkMarkup(ctx context.Context, t *Target) Finding {
	var v verdict
	const script = "<script>alert(1)</script>"
	for _, path := range []string{"/%3Cscript%3Ealert(1)%3C/script%3E", "/problems/%3Cscript%3Ealert(1)%3C%2Fscript%3E", "/requests?%3Cscript%3Ealert(1)%3C/script%3E=1"} {
		a := t.send(ctx, Order{Path: path})
		html := strings.Contains(a.Header.Get("Content-Type"), "html") || a.Header.Get("Content-Type") == ""
		v.expect(a, !html || !strings.Contains(string(a.Body), script), "the page holds the script")
	}
	return v.finding()
}

func checkRequestID(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, id := range []string{"<script>", strings.Repeat("a", 2_000), `x" level="error`, "x\tadmin"} {
		a := t.send(ctx, Order{Path: "/healthz", Header: map[string]string{"X-Request-ID": id}})
		v.expect(a, a.Header.Get("X-Request-ID") != id, "it came back as it was")
	}
	return v.finding()
}

// checkCrashes looks back at all answers, after a few requests of its own that are meant to be hard.
func checkCrashes(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{
		"/requests?limit=99999999999999999999", "/requests?offset=-1", "/requests?cursor=%ff%fe", "/requests?since=0000-00-00T00:00:00Z", "/requests/" + strings.Repeat("a", 4_000), "/%",
	} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Status < http.StatusInternalServerError, "want a 4xx")
	}
	v.failed = nil // all of them are in the list
	for _, line := range t.crashes {
		v.failf("%s", line)
	}
	return v.finding()
}

// checkLeaks looks back at all answers, too.
func checkLeaks(ctx context.Context, t *Target) Finding {
	var v verdict
	a := t.send(ctx, Order{Path: "/requests/%27%22%3C%00"})
	v.expect(a, true, "")
	for _, line := range t.leaks {
		v.failf("%s", line)
	}
	return v.finding()
}
