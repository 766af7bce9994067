package audit

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"tandem/internal/receiver"
)

func checkProblems(ctx context.Context, t *target, v *verdict) {
	for _, c := range []struct {
		probe  probe
		status int
	}{
		{probe{Path: "/audit-no-such-path"}, http.StatusNotFound},
		{probe{Path: "/requests/" + unknownID}, http.StatusNotFound},
		{probe{Method: http.MethodDelete, Path: "/sync"}, http.StatusMethodNotAllowed},
		{post("/sync", `{"data":`), http.StatusBadRequest},
		{post("/sync", `{}`), http.StatusUnprocessableEntity},
	} {
		v.judge(t.send(ctx, c.probe), func(a answer) string {
			p := a.problem()
			switch {
			case a.Status != c.status:
				return "want " + http.StatusText(c.status)
			case !strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json"):
				return "no application/problem+json"
			case a.Status == http.StatusMethodNotAllowed && a.Header.Get("Allow") == "":
				return "no Allow"
			case p.Type == "" || p.Title == "" || p.Code == "" || p.Status != a.Status:
				return "type, title, code or status is missing"
			default:
				return ""
			}
		})
	}
}

var checkMarkup = sends(must(func(a answer) bool {
	media := a.Header.Get("Content-Type")
	html := media == "" || strings.Contains(media, "html")
	return !html || !strings.Contains(string(a.Body), "<script>alert(1)</script>")
}, "the page holds the script"), probes(
	probe{Path: "/%3Cscript%3Ealert(1)%3C/script%3E"},
	probe{Path: "/problems/%3Cscript%3Ealert(1)%3C%2Fscript%3E"},
	probe{Path: "/requests?%3Cscript%3Ealert(1)%3C/script%3E=1"},
))

func checkRequestID(ctx context.Context, t *target, v *verdict) {
	for _, id := range []string{"<script>", strings.Repeat("a", 2_000), `x" level="error`, "x\tadmin"} {
		a := t.send(ctx, probe{Path: "/healthz"}.with("X-Request-ID", id))
		v.expect(a, a.Header.Get("X-Request-ID") != id, "it came back unchanged")
	}
}

// looksBack is a check of all answers of the audit, after some of its own. The revealed texts decide it.
func looksBack(found func(*target) []string, probes func(*target) []probe) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		sends(isAny, probes)(ctx, t, v)
		v.failed = slices.Clone(found(t))
	}
}

// hardRequests are extreme values for every parameter of every list.
func hardRequests(t *target) []probe {
	all := []probe{
		{Path: "/requests/" + strings.Repeat("a", 4_000)}, {Path: "/requests/%00"}, {Path: "/requests/%ff"}, {Path: "/%"},
	}
	hard := []string{
		"%00", "%ff%fe", "99999999999999999999", "-1", "0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z",
		"%F0%9F%92%A9", strings.Repeat("a", 2_000),
	}
	for _, op := range t.lists(isAnyList) {
		for _, p := range op.Queries {
			for _, value := range hard {
				all = append(all, probe{Path: op.Path + "?" + url.QueryEscape(p.Name) + "=" + value})
			}
		}
	}
	return all
}

// checkAddresses also looks at the history of a callback with a broken connection, where there is a receiver.
func checkAddresses(ctx context.Context, t *target, v *verdict) {
	if t.cfg.Receiver != nil && t.has(NeedCaller) {
		a := t.submit(ctx, t.callback(t.cfg.Receiver.New(receiver.CutOff, "")))
		if a.Status == http.StatusAccepted {
			attempt, last := t.firstAttempt(ctx, a)
			if attempt != nil && foundIn(addresses, attempt.Error, t.cfg.CallbackURL) != "" {
				t.addresses = append(t.addresses, fmt.Sprintf("%s, with %q in the error of an attempt", last,
					foundIn(addresses, attempt.Error, t.cfg.CallbackURL)))
			}
		}
	}
	looksBack(func(t *target) []string { return t.addresses }, probes(failing...))(ctx, t, v)
}

// checkSecrets also looks at the answers of all readable routes, and at the calls of the receiver.
func checkSecrets(ctx context.Context, t *target, v *verdict) {
	for _, text := range t.cfg.Receiver.Texts() {
		if found := secretIn(text); found != "" {
			t.secrets = append(t.secrets, "a callback holds something that begins with "+found)
		}
	}
	for _, s := range t.sweep(ctx) {
		v.judge(s.answer, isAny)
	}
	looksBack(func(t *target) []string { return t.secrets }, probes(post("/sync", echoBody)))(ctx, t, v)
}
