package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"tandem"
)

// breakerFailures is how many failures in a row a breaker of tandem lets pass: each node's, until one
// of them opens and tells the others.
const breakerFailures = 5

func breakerChecks() []Check {
	return []Check{{
		ID: "breaker-opens", Group: GroupBreaker,
		Title: "A receiver that fails is left alone",
		Level: LevelFull, Needs: []Need{NeedCaller, NeedReceiver}, stage: 2,
		Remediation: "five failures in a row must open the breaker of a destination, " +
			"and no flag turns that off: report it. " +
			"Of several nodes each may count its own, and only --admin-key tells how many there are",
		Run: checkBreaker,
	}}
}

// checkBreaker lets callbacks fail until the breaker must be open, and then looks whether another one,
// which would succeed, is still tried. Other checks of callbacks come before this one.
func checkBreaker(ctx context.Context, t *Target) Finding {
	var v verdict
	failing, nodes := 0, t.nodes(ctx)
	for range nodes*(breakerFailures-1) + 2 { // one of the nodes has had five, and then there is one more
		broken := t.cfg.Receiver.hook(http.StatusInternalServerError, "")
		a := t.submit(ctx, t.callback(broken))
		if !t.taken(&v, a) {
			return v.finding()
		}
		// Retries of the earlier ones fail as well and count: the breaker may open before the last.
		patience := t.cfg.Patience
		if failing > 0 {
			patience = t.cfg.Settle
		}
		if broken.wait(ctx.Done(), patience) == 0 {
			break
		}
		// We know of the failure before the deployment does.
		request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
		if len(request.Attempts) == 0 {
			v.doubtf("a callback was answered with 500, and the history does not tell: %s", last)
			return v.finding()
		}
		failing++
	}
	if failing == 0 {
		v.doubtf("no callback arrived within %v; is --callback-url right?", t.cfg.Patience)
		return v.finding()
	}
	if nodes > 1 && pause(ctx, 2*t.cfg.Settle) != nil { // they hear of it every two seconds
		v.doubtf("interrupted")
		return v.finding()
	}
	probe := t.cfg.Receiver.hook(http.StatusOK, "")
	a := t.submit(ctx, t.callback(probe))
	if !t.taken(&v, a) {
		return v.finding()
	}
	if probe.wait(ctx.Done(), t.cfg.Settle) > 0 {
		v.failf("%d callbacks in a row were answered with 500, and the next was still sent", failing)
		return v.finding()
	}
	request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool {
		return r.Status == tandem.StatusCompleted
	})
	switch {
	case last.Err != nil || last.Status != http.StatusOK || request.Status != tandem.StatusCompleted:
		v.doubtf("the callback behind %d failures did not come, but its work did not end either: %s", failing, last)
	case request.CallbackAttempts > 0:
		v.failf("a callback that was held back used up %d attempts", request.CallbackAttempts)
	default:
		v.passf("after %d callbacks answered with 500 the next one was held back, without using an attempt", failing)
	}
	return v.finding()
}

func serviceChecks() []Check {
	return []Check{
		{
			ID: "health-open", Group: GroupServices,
			Title: "Health checks need no key",
			Level: LevelQuick, Remediation: "let the proxy pass /livez, /readyz and /healthz on",
			Run: checkHealthOpen,
		},
		{
			ID: "health-details", Group: GroupServices,
			Title: "Health checks give nothing away",
			Level: LevelQuick, Remediation: fixReport,
			Run: checkHealthDetails,
		},
		{
			ID: "stats-restricted", Group: GroupServices,
			Title:       "Figures are for the operator only",
			Level:       LevelQuick,
			Remediation: fixKeys + "; or keep /stats, /api/stats, /metrics and /nodes inside with the proxy",
			Run:         checkStatsRestricted,
		},
		{
			ID: "stats-count", Group: GroupServices,
			Title: "The figures count what happens",
			Level: LevelQuick, Needs: []Need{NeedCaller, NeedStats}, Remediation: "let no proxy cache /stats",
			Run: checkStatsCount,
		},
		{
			ID: "stats-secrets", Group: GroupServices,
			Title: "The figures hold no secret",
			Level: LevelQuick, Needs: []Need{NeedStats},
			Remediation: fixShown,
			Run:         checkStatsSecrets,
		},
	}
}

func checkHealthOpen(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		a := t.send(ctx, Order{Path: path, NoKey: true})
		v.expect(a, a.Status == http.StatusOK, "want 200")
	}
	return v.finding()
}

func checkHealthDetails(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		a := t.send(ctx, Order{Path: path, NoKey: true})
		var members map[string]any
		if a.Err == nil && json.Unmarshal(a.Body, &members) != nil {
			v.expect(a, false, "no JSON object")
			continue
		}
		var more []string
		for name := range members {
			if !slices.Contains([]string{"status", "timestamp", "version", "uptime_seconds"}, name) {
				more = append(more, oneLine(name))
			}
		}
		slices.Sort(more)
		v.expect(a, more == nil || a.Code() != "", "it tells "+strings.Join(more, ", "))
	}
	return v.finding()
}

func checkStatsRestricted(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.guarded() {
		if !op.admin() {
			continue
		}
		o := op.ask(unknownID)
		o.NoKey = true
		a := t.send(ctx, o)
		a.Sent += " without a key"
		v.expect(a, a.denied(), "want 401")
	}
	return v.finding()
}

// checkStatsCount does a piece of work and looks for it in the figures. Others may work as well, so at
// least one more is enough.
func checkStatsCount(ctx context.Context, t *Target) Finding {
	var v verdict
	total := func() (float64, bool) {
		a, figures := t.stats(ctx)
		requests, _ := figures["request_statistics"].(map[string]any)
		n, ok := requests["total_requests"].(float64)
		if !ok {
			v.expect(a, false, "no request_statistics.total_requests")
		}
		return n, ok
	}
	before, ok := total()
	if !ok {
		return v.finding()
	}
	work := t.send(ctx, post("/sync", `{"data":{"audit":1},"task":"echo"}`))
	if work.Err != nil || work.Status != http.StatusOK {
		v.doubtf("%s", work)
		return v.finding()
	}
	after, ok := total()
	switch {
	case !ok:
	case after > before:
		v.passf("total_requests went from %.0f to %.0f", before, after)
	default:
		v.failf("total_requests is %.0f before and %.0f after a request", before, after)
	}
	return v.finding()
}

func checkStatsSecrets(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/stats", "/metrics"} {
		a := t.send(ctx, Order{Path: path, NoKey: t.cfg.AdminKey == "", Key: t.cfg.AdminKey})
		if a.Err == nil && a.Status != http.StatusOK {
			v.doubtf("%s", a)
			continue
		}
		found := secretIn(string(a.Body))
		v.expect(a, found == "", "it holds something like a secret, beginning with "+found)
	}
	return v.finding()
}
