package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"tandem"
	"tandem/internal/receiver"
)

const (
	breakerFailures = 5                // in a row, to open the breaker of a node; it then notifies the others
	breakerOpen     = 30 * time.Second // a breaker is surely still open so long after a failure
)

// checkBreaker lets callbacks fail until the breaker must be open, and then looks whether another one, to a healthy
// hook, is still attempted. Other checks of callbacks come before this one. A slow deployment leaves it undecided.
func checkBreaker(ctx context.Context, t *target, v *verdict) {
	nodes := t.nodes(ctx)
	enough := nodes*(breakerFailures-1) + 1 // failures: one of the nodes has had five
	failing, last := 0, time.Time{}
	// Retries of earlier callbacks fail as well and count: the breaker may open before the last.
	for range enough + 1 {
		h, a, ok := t.deliver(ctx, v, http.StatusInternalServerError, "")
		if !ok {
			return
		}
		if _, ok := t.heldBack(ctx, v, a, h); !ok {
			return
		} else if len(h.Calls()) == 0 {
			break
		}
		last = h.Calls()[0].At
		// We know of the failure before the deployment does.
		if attempt, now := t.firstAttempt(ctx, a); attempt == nil {
			v.doubtf("a callback was answered with 500, and the history does not say so: %s", now)
			return
		}
		failing++
	}
	if failing == 0 {
		v.doubtf("no callback arrived; is --callback-url right?")
		return
	}
	if nodes > 1 && pause(ctx, 2*t.cfg.Quiet) != nil { // nodes tell each other every two seconds
		v.doubtf("interrupted")
		return
	}
	h, a, ok := t.deliver(ctx, v, http.StatusOK, "")
	if !ok {
		return
	}
	request, ok := t.heldBack(ctx, v, a, h)
	arrived := h.Calls()
	switch {
	case !ok:
	case len(arrived) > 0 && failing < enough:
		v.doubtf("a callback came late, and only %d of %d failures were seen: the deployment is too slow to tell",
			failing, enough)
	case len(arrived) > 0 && arrived[0].At.Sub(last) > breakerOpen:
		v.doubtf("the next callback came %v after the last failure, when the breaker may be half-open: "+
			"the deployment is too slow to tell", arrived[0].At.Sub(last).Round(time.Second))
	case len(arrived) > 0:
		v.failf("%d callbacks in a row were answered with 500, and the next was still sent", failing)
	case len(request.Attempts) > 0:
		v.doubtf("the callback behind %d failures was tried and did not arrive: %s", failing,
			oneLine(string(request.Attempts[0].Outcome)))
	case request.CallbackAttempts > 0:
		v.failf("a held-back callback used up %d attempts", request.CallbackAttempts)
	default:
		v.passf("after %d callbacks answered with 500 the next one was held back, without using an attempt", failing)
	}
}

// heldBack waits for a callback. It returns after the arrival, or with the request if there is none some time after the
// end of the work. It is false when the work does not end.
func (t *target) heldBack(
	ctx context.Context, v *verdict, made answer, h *receiver.Hook,
) (request tandem.Request, ok bool) {
	if h.Wait(ctx, t.cfg.Quiet) {
		return request, true
	}
	request, last := t.await(ctx, made, func(r tandem.Request) bool {
		return len(h.Calls()) > 0 || r.Status == tandem.StatusCompleted
	})
	if !h.Wait(ctx, t.cfg.Quiet) && request.Status != tandem.StatusCompleted {
		v.doubtf("a callback did not come, but its work did not end either: %s", last)
		return request, false
	}
	return request, true
}

var health = probes(
	probe{Path: "/livez", NoKey: true}, probe{Path: "/readyz", NoKey: true}, probe{Path: "/healthz", NoKey: true},
)

// fewDetails is the rule for the answer of a health check.
func fewDetails(a answer) string {
	var members map[string]any
	if json.Unmarshal(a.Body, &members) != nil {
		return "no JSON object"
	}
	var more []string
	for name := range members {
		if !slices.Contains([]string{"status", "timestamp", "version", "uptime_seconds"}, name) {
			more = append(more, oneLine(name))
		}
	}
	if more == nil || a.code() != "" {
		return ""
	}
	slices.Sort(more)
	return "it reveals " + strings.Join(more, ", ")
}

// operations ask for the operator's routes without a key.
func operations(t *target) (all []probe) {
	for _, op := range t.guarded() {
		if op.admin() {
			p := op.ask(unknownID)
			p.NoKey = true
			all = append(all, p)
		}
	}
	return all
}

// checkStatsCount does some work and looks for it in the statistics. Others may work as well, so one more at least is
// enough.
func checkStatsCount(ctx context.Context, t *target, v *verdict) {
	total := func() (float64, bool) {
		var stats struct {
			Requests struct {
				Total *float64 `json:"total_requests"`
			} `json:"request_statistics"`
		}
		a := t.operator(ctx, "/stats")
		if !a.decode(&stats) || stats.Requests.Total == nil {
			v.expect(a, false, "no request_statistics.total_requests")
			return 0, false
		}
		return *stats.Requests.Total, true
	}
	before, ok := total()
	if !ok {
		return
	}
	if work := t.send(ctx, post("/sync", echoBody)); work.Err != nil || work.Status != http.StatusOK {
		v.doubtf("%s", work)
		return
	}
	if after, ok := total(); ok && after > before {
		v.passf("total_requests went from %.0f to %.0f", before, after)
	} else if ok {
		v.failf("total_requests is %.0f before and %.0f after a request", before, after)
	}
}

func checkStatsSecrets(ctx context.Context, t *target, v *verdict) {
	for _, path := range []string{"/stats", "/metrics"} {
		a := t.operator(ctx, path)
		if a.Err == nil && a.Status != http.StatusOK {
			v.doubtf("%s", a)
			continue
		}
		found := secretIn(string(a.Body))
		v.expect(a, found == "", "it holds something like a secret, beginning with "+found)
	}
}
