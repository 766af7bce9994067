package audit

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"tandem"
)

// Largest allowances that an audit uses up to see what comes after them.
const (
	mostDrained     = 200
	mostDrainedFull = 1_000
)

func rateChecks() []Check {
	caller := []Need{NeedCaller}
	return []Check{
		{
			ID: "rate-limit-announced", Group: GroupRate,
			Title: "Answers to POST say how much is left",
			Level: LevelQuick, Needs: caller,
			Remediation: "set serve --rate-limit 50/60s, and let the proxy pass RateLimit headers on",
			Run:         checkAnnounced(cheap),
		},
		{
			ID: "rate-limit-reads", Group: GroupRate,
			Title: "GET has an allowance of its own",
			Level: LevelQuick, Needs: caller,
			Remediation: "set serve --read-limit 600/60s, and let the proxy pass RateLimit headers on",
			Run:         checkAnnounced(glance),
		},
		{
			ID: "rate-limit-forwarded-for", Group: GroupRate,
			Title: "Nobody escapes with an invented X-Forwarded-For",
			Level: LevelQuick, Needs: caller,
			Remediation: "name only your own proxies with serve --trusted-proxy, " +
				"and let them overwrite X-Forwarded-For",
			Run: checkRateForwarded,
		},
		{
			ID: "rate-limit-batch", Group: GroupRate,
			Title: "A batch counts as many as it holds",
			Level: LevelFull, Needs: caller,
			Remediation: fixReport, Run: checkRateBatch,
		},
		{
			ID: "rate-limit-wrong-key", Group: GroupRate,
			Title: "Guessing keys is limited",
			Level: LevelFull, stage: 3,
			Remediation: "set serve --rate-limit 50/60s; let no proxy answer 401 itself", Run: checkRateWrongKey,
		},
		{
			ID: "rate-limit-enforced", Group: GroupRate,
			Title: "Beyond the limit the answer is 429 with Retry-After",
			Level: LevelQuick, Needs: caller, stage: 4,
			Remediation: "set serve --rate-limit 50/60s", Run: checkEnforced(cheap, (*Target).postsBeside),
		},
		{
			ID: "rate-limit-reads-enforced", Group: GroupRate,
			Title: "Beyond the limit on GET, too",
			Level: LevelQuick, Needs: caller, stage: 5,
			Remediation: "set serve --read-limit 600/60s", Run: checkEnforced(glance, (*Target).getsBeside),
		},
	}
}

// glance is a GET that counts and finds nothing.
var glance = Order{Path: "/requests/" + unknownID}

// cheap is a POST that is refused for what is in it: it counts, and costs nothing.
var cheap = post("/sync", `{}`)

var (
	ratePolicy = regexp.MustCompile(`^"[^"]+";q=(\d+);w=(\d+)`)
	rateLeft   = regexp.MustCompile(`;r=(\d+)`)
)

// policy reads RateLimit-Policy: calls and seconds.
func (a Answer) policy() (calls, seconds int, ok bool) {
	found := ratePolicy.FindStringSubmatch(a.Header.Get("RateLimit-Policy"))
	if found == nil {
		return 0, 0, false
	}
	calls, err := strconv.Atoi(found[1])
	seconds, err2 := strconv.Atoi(found[2])
	return calls, seconds, err == nil && err2 == nil && calls > 0 && seconds > 0
}

// left reads RateLimit: how many calls would be taken now.
func (a Answer) left() (int, bool) {
	found := rateLeft.FindStringSubmatch(a.Header.Get("RateLimit"))
	if found == nil {
		return 0, false
	}
	left, err := strconv.Atoi(found[1])
	return left, err == nil
}

// limits shows the headers about the rate limit.
func (a Answer) limits() string {
	return "RateLimit-Policy: " + oneLine(cmp.Or(a.Header.Get("RateLimit-Policy"), "none")) + ", RateLimit: " + oneLine(cmp.Or(a.Header.Get("RateLimit"), "none"))
}

// checkAnnounced looks for the two headers.
func checkAnnounced(o Order) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		a := t.send(ctx, o)
		_, _, announced := a.policy()
		_, left := a.left()
		a.Sent += " with " + a.limits()
		v.expect(a, announced && left, "want both headers")
		return v.finding()
	}
}

// checkRateForwarded sends three POSTs under three names that nobody has: each must find those before it
// counted. That less is left than before cannot be asked for: older calls run out meanwhile.
func checkRateForwarded(ctx context.Context, t *Target) Finding {
	var v verdict
	for i := range 3 {
		from := fmt.Sprintf("198.18.%d.%d", rand.N(256), rand.N(256)) // RFC 2544: no client's
		o := cheap
		o.Header = map[string]string{"X-Forwarded-For": from, "X-Real-IP": from, "Forwarded": "for=" + from}
		o.Hasty = i > 0 // a wait would let the first run out, and a 429 says that it counts
		a := t.send(ctx, o)
		a.Sent = "POST /sync as " + from
		calls, _, announced := a.policy()
		left, ok := a.left()
		switch {
		case a.Err != nil:
			v.expect(a, false, "")
		case i > 0 && a.Status == http.StatusTooManyRequests:
			v.passf("%s", a)
		case !announced || !ok:
			v.doubtf("%s: no RateLimit headers to compare", a)
		case left > calls-1-i:
			v.failf("%s with %d of %d left: what was sent under other names does not count", a, left, calls)
		default:
			v.passf("%s with %d of %d left", a, left, calls)
		}
	}
	return v.finding()
}

// checkRateBatch makes four submissions: a refused batch may rightly count as one. It looks again, twice at
// most, when the three seem to count as one: older calls may have run out meanwhile.
func checkRateBatch(ctx context.Context, t *Target) Finding {
	var v verdict
	const entry = `{"firstName":"Audit","lastName":"Audit"}`
	for tries := 1; ; tries++ {
		first := t.send(ctx, post("/api/submit/batch", `{"submissions":[`+entry+`]}`))
		second := t.send(ctx, post("/api/submit/batch", `{"submissions":[`+entry+`,`+entry+`,`+entry+`]}`))
		before, ok := first.left()
		after, ok2 := second.left()
		second.Sent = "a batch of 1, then of 3"
		switch {
		case first.Status == http.StatusNotFound:
			v.doubtf("%s: there are no batches here", first)
		case first.Err != nil || second.Err != nil || !ok || !ok2:
			v.doubtf("%s, %s: no RateLimit headers to compare", first, second)
		case before-after < 3 && tries < 3 && pause(ctx, t.cfg.Settle) == nil:
			continue
		default:
			second.Sent += ", " + strconv.Itoa(before) + " and then " + strconv.Itoa(after) + " left"
			v.expect(second, before-after >= 3, "the three count as one")
		}
		return v.finding()
	}
}

// drains is the largest allowance that this audit uses up.
func (t *Target) drains() int {
	if t.cfg.Level == LevelFull {
		return mostDrainedFull
	}
	return mostDrained
}

// checkRateWrongKey guesses until it is stopped.
func checkRateWrongKey(ctx context.Context, t *Target) Finding {
	var v verdict
	const unannounced = 60 // guesses, where nobody says how many are too many
	guesses := unannounced
	var last Answer
	for i := 0; i <= guesses; i++ {
		o := cheap
		o.Key, o.Hasty = unknownKey(), true
		last = t.send(ctx, o)
		last.Sent = "wrong key number " + strconv.Itoa(i+1)
		if last.Err != nil || last.Status != http.StatusUnauthorized && last.Status != http.StatusForbidden {
			break
		}
		if calls, _, announced := last.policy(); announced {
			guesses = calls
		}
		if guesses > t.drains() {
			v.doubtf("%s: the limit of %d is more than an audit tries (%d)", last, guesses, t.drains())
			return v.finding()
		}
	}
	switch {
	case last.Err == nil && last.Status != http.StatusTooManyRequests && last.Status != http.StatusUnauthorized && last.Status != http.StatusForbidden:
		v.doubtf("%s: keys are not asked for", last)
	default:
		v.expect(last, last.Status == http.StatusTooManyRequests, "guessing goes on unhindered")
	}
	return v.finding()
}

// hasty is an order that takes a 429 for an answer.
func hasty(o Order) Order {
	o.Hasty = true
	return o
}

// drain repeats an order until it is refused with 429 or must have been, and says how often it was sent.
func (t *Target) drain(ctx context.Context, o Order, calls int) (last Answer, sent int) {
	for sent < calls+2 && last.Err == nil && last.Status != http.StatusTooManyRequests {
		last = t.send(ctx, hasty(o))
		sent++
	}
	return last, sent
}

// checkEnforced uses an allowance up with requests that cost nothing, and then looks whether it holds for all that
// counts against it. It comes last: afterwards the deployment has no time for us.
func checkEnforced(o Order, beside func(*Target) (routes, spellings []Order)) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		began := time.Now()
		a := t.send(ctx, hasty(o))
		calls, seconds, announced := a.policy()
		switch {
		case !announced:
			calls, seconds = 60, 3600
		case calls > t.drains() && t.cfg.Level == LevelQuick:
			return Finding{Skipped, []string{fmt.Sprintf("--level full uses a limit of %d in %d s up", calls, seconds)}}
		case calls > t.drains():
			v.doubtf("%s: the limit of %d in %d s is more than an audit tries (%d)", a, calls, seconds, t.drains())
			return v.finding()
		}
		a, sent := t.drain(ctx, o, calls)
		took := time.Since(began)
		a.Sent += ", number " + strconv.Itoa(sent)
		if a.Err == nil && a.Status != http.StatusTooManyRequests && took > time.Duration(seconds)*time.Second {
			v.doubtf("%s: they took %v, longer than the window", a, took.Round(time.Second))
			return v.finding()
		}
		wait, err := strconv.Atoi(a.Header.Get("Retry-After"))
		v.expect(a, a.Status == http.StatusTooManyRequests, "none was refused with 429")
		if a.Status != http.StatusTooManyRequests {
			return v.finding()
		}
		v.expect(a, err == nil && wait > 0, "no Retry-After in whole seconds")
		v.expect(a, a.Code() == tandem.CodeRateLimited, "not the problem RATE_LIMITED")
		routes, spellings := beside(t)
		for _, other := range spellings {
			if elsewhere(t.send(ctx, hasty(other))) {
				continue
			}
			routes = append(routes, other)
		}
		// Calls of before the check run out of the window meanwhile, so one may get through; as many as the
		// allowance holds may not.
		for _, other := range routes {
			a, sent := t.drain(ctx, other, calls)
			v.expect(a, a.Status == http.StatusTooManyRequests,
				fmt.Sprintf("sent %d times, it does not count against the limit", sent))
		}
		return v.finding()
	}
}

// postsBeside are the other ways to ask for work: every route, what might give a caller another name, and other
// spellings.
func (t *Target) postsBeside() (routes, spellings []Order) {
	for _, op := range t.writes() {
		if !op.open() && !op.admin() {
			routes = append(routes, op.ask(unknownID))
		}
	}
	for _, path := range t.spellings(cheap.Path) {
		o := cheap
		o.Path = path
		spellings = append(spellings, o)
	}
	return append(routes, disguised(cheap)...), spellings
}

// getsBeside are the other ways to read.
func (t *Target) getsBeside() (routes, spellings []Order) {
	for _, op := range t.guarded() {
		if !op.admin() && (op.Method == http.MethodGet || op.Method == http.MethodHead) {
			routes = append(routes, op.ask(unknownID))
		}
	}
	for _, path := range t.spellings("/requests") {
		spellings = append(spellings, Order{Path: path})
	}
	return append(routes, disguised(Order{Path: "/requests?limit=1"})...), spellings
}

// disguised is an order under other names.
func disguised(o Order) []Order {
	var all []Order
	for _, header := range []map[string]string{
		{"X-Forwarded-For": "198.18.7.7", "X-Real-IP": "198.18.7.7"}, {"User-Agent": "another"},
		{"X-Request-ID": "another"},
	} {
		o.Header = header
		all = append(all, o)
	}
	return all
}
