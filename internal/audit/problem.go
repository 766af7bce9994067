package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"tandem"
)

func errorChecks() []Check {
	return []Check{
		{
			ID: "error-problems", Group: GroupErrors,
			Title: "Errors are problems after RFC 9457",
			Level: LevelQuick, Needs: []Need{NeedCaller},
			Remediation: "let the proxy pass the answers of tandem on instead of pages of its own", Run: checkProblems,
		},
		{
			ID: "error-markup", Group: GroupErrors,
			Title:       "Errors never are pages with what the caller wrote",
			Level:       LevelQuick,
			Remediation: "let no proxy make HTML of errors", Run: checkMarkup,
		},
		{
			ID: "error-request-id", Group: GroupErrors,
			Title:       "A hostile X-Request-ID is replaced",
			Level:       LevelQuick,
			Remediation: "let the proxy set X-Request-ID itself, or remove it", Run: checkRequestID,
		},
		{
			ID: "error-5xx", Group: GroupErrors,
			Title: "Nothing in this audit made the server fail",
			Level: LevelQuick, stage: 1,
			Remediation: "bad input must never be a 5xx: look into the log under the X-Request-ID of the answer, " +
				"and report it as SECURITY.md says",
			Run: checkCrashes,
		},
		{
			ID: "error-internals", Group: GroupErrors,
			Title: "No answer in this audit tells of the inside",
			Level: LevelQuick, stage: 1,
			Remediation: "turn error pages of the proxy off; if tandem said it, report it as SECURITY.md says",
			Run:         checkLeaks,
		},
		{
			ID: "error-addresses", Group: GroupErrors,
			Title: "No error in this audit names an address inside",
			Level: LevelQuick, stage: 1,
			Remediation: "turn error pages of the proxy off; if tandem said it, report it as SECURITY.md says",
			Run:         checkAddresses,
		},
		{
			ID: "error-secrets", Group: GroupErrors,
			Title: "No answer in this audit holds a key or a signing secret",
			Level: LevelQuick, stage: 1,
			Remediation: fixShown,
			Run:         checkSecrets,
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

// checkCrashes looks back at all answers, after requests of its own that are meant to be hard.
func checkCrashes(ctx context.Context, t *Target) Finding {
	var v verdict
	expect := func(path string) {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.Status < http.StatusInternalServerError, "want a 4xx")
	}
	for _, path := range []string{"/requests/" + strings.Repeat("a", 4_000), "/requests/%00", "/requests/%ff", "/%"} {
		expect(path)
	}
	hard := []string{
		"%00", "%ff%fe", "99999999999999999999", "-1", "0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z",
		"%F0%9F%92%A9", strings.Repeat("a", 2_000),
	}
	for _, op := range t.lists(func(operation) bool { return true }) {
		for _, p := range op.Queries {
			for _, value := range hard {
				expect(op.Path + "?" + url.QueryEscape(p.Name) + "=" + value)
			}
		}
	}
	return v.lookedBack(t.crashes)
}

// lookedBack is the finding of a check that goes by all answers of the audit: those of its own are among them.
func (v *verdict) lookedBack(lines []string) Finding {
	v.failed = slices.Clone(lines)
	return v.finding()
}

func checkLeaks(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, o := range append(errorOrders(), Order{Path: "/requests/%27%22%3C%00"}) {
		v.expect(t.send(ctx, o), true, "")
	}
	return v.lookedBack(t.leaks)
}

// checkAddresses looks back as well, and at the history of a callback that was cut off, where it has a receiver.
func checkAddresses(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, o := range errorOrders() {
		v.expect(t.send(ctx, o), true, "")
	}
	if t.cfg.Receiver == nil || !t.has(NeedCaller) {
		return v.lookedBack(t.addresses)
	}
	a := t.submit(ctx, t.callback(t.cfg.Receiver.hook(cutOff, "")))
	if a.Status == http.StatusAccepted {
		request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
		for _, attempt := range request.Attempts {
			if found := foundIn(addresses, attempt.Error, t.cfg.CallbackURL); found != "" {
				t.addresses = append(t.addresses, fmt.Sprintf("%s, with %q in the error of an attempt", last, found))
			}
		}
	}
	return v.lookedBack(t.addresses)
}

// checkSecrets looks back, too, at answers to everything that can be read, and at what came to the receiver.
func checkSecrets(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, s := range t.sweep(ctx) {
		v.expect(s.Answer, true, "")
	}
	v.expect(t.send(ctx, post("/sync", echoBody)), true, "")
	for _, text := range t.cfg.Receiver.texts() {
		if found := secretIn(text); found != "" {
			t.secrets = append(t.secrets, "a callback holds something that begins with "+found)
		}
	}
	return v.lookedBack(t.secrets)
}
