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

// Largest quotas for an audit to use up.
const (
	mostDrained     = 200
	mostDrainedFull = 1_000
)

// glance is a counted GET of nothing.
var glance = probe{Path: "/requests/" + unknownID}

// cheap is a POST with a bad body: it counts, and costs nothing.
var cheap = post("/sync", `{}`)

var (
	ratePolicy = regexp.MustCompile(`^"[^"]+";q=(\d+);w=(\d+)`)
	rateLeft   = regexp.MustCompile(`;r=(\d+)`)
)

// quota holds the headers about the rate limit.
type quota struct {
	calls, seconds int
	announced      bool // RateLimit-Policy names both
	left           int  // calls left now
	known          bool // RateLimit names left
}

func (a answer) quota() (q quota) {
	if found := ratePolicy.FindStringSubmatch(a.Header.Get("RateLimit-Policy")); found != nil {
		q.calls, _ = strconv.Atoi(found[1]) // 0 where it is out of range
		q.seconds, _ = strconv.Atoi(found[2])
		q.announced = q.calls > 0 && q.seconds > 0
	}
	if found := rateLeft.FindStringSubmatch(a.Header.Get("RateLimit")); found != nil {
		var err error
		q.left, err = strconv.Atoi(found[1])
		q.known = err == nil
	}
	return q
}

// announced is the rule for the presence of both rate limit headers.
func announced(a answer) string {
	if q := a.quota(); !q.announced || !q.known {
		return fmt.Sprintf("want both headers; RateLimit-Policy: %s, RateLimit: %s",
			oneLine(cmp.Or(a.Header.Get("RateLimit-Policy"), "none")), oneLine(cmp.Or(a.Header.Get("RateLimit"), "none")))
	}
	return ""
}

// checkRateForwarded sends three POSTs under three unused addresses: each must count the ones before it. It cannot
// demand fewer calls left than before: older calls expire meanwhile.
func checkRateForwarded(ctx context.Context, t *target, v *verdict) {
	for i := range 3 {
		from := fmt.Sprintf("198.18.%d.%d", rand.N(256), rand.N(256)) // RFC 2544: no client's
		p := cheap
		p.Header = map[string]string{"X-Forwarded-For": from, "X-Real-IP": from, "Forwarded": "for=" + from}
		p.Hasty = i > 0 // a wait would let the first expire, and a 429 proves the count
		p.Shown = "POST /sync as " + from
		a := t.send(ctx, p)
		q := a.quota()
		switch {
		case a.Err != nil || i > 0 && a.Status == http.StatusTooManyRequests:
			v.judge(a, isAny)
		case !q.announced || !q.known:
			v.doubtf("%s: no RateLimit headers to compare", a)
		case q.left > q.calls-1-i:
			v.failf("%s with %d of %d left: calls under other addresses do not count", a, q.left, q.calls)
		default:
			v.passf("%s with %d of %d left", a, q.left, q.calls)
		}
	}
}

// checkRateBatch makes four submissions: a refused batch may count as one. Older calls may expire meanwhile, so it
// looks again, twice at most, when the three seem to count as one.
func checkRateBatch(ctx context.Context, t *target, v *verdict) {
	const entry = `{"firstName":"Audit","lastName":"Audit"}`
	for tries := 1; ; tries++ {
		first := t.send(ctx, post("/api/submit/batch", `{"submissions":[`+entry+`]}`))
		second := t.send(ctx, post("/api/submit/batch", `{"submissions":[`+entry+`,`+entry+`,`+entry+`]}`))
		before, after := first.quota(), second.quota()
		switch {
		case first.Status == http.StatusNotFound:
			v.doubtf("%s: there are no batches here", first)
		case first.Err != nil || second.Err != nil || !before.known || !after.known:
			v.doubtf("%s, %s: no RateLimit headers to compare", first, second)
		case before.left-after.left < 3 && tries < 3 && pause(ctx, t.cfg.Quiet) == nil:
			continue
		default:
			second.Sent = fmt.Sprintf("a batch of 1, then of 3, %d and then %d left", before.left, after.left)
			v.expect(second, before.left-after.left >= 3, "the three count as one")
		}
		return
	}
}

// drains is the largest quota for this audit to use up.
func (t *target) drains() int {
	if t.cfg.Level == LevelFull {
		return mostDrainedFull
	}
	return mostDrained
}

// checkRateWrongKey guesses until it is stopped.
func checkRateWrongKey(ctx context.Context, t *target, v *verdict) {
	guesses := 60 // where no quota is announced
	var last answer
	for i := 0; i <= guesses; i++ {
		p := cheap.hasty()
		p.Key, p.Shown = unknownKey(), "wrong key number "+strconv.Itoa(i+1)
		last = t.send(ctx, p)
		if !last.unauthorized() {
			break
		}
		if q := last.quota(); q.announced {
			guesses = q.calls
		}
		if guesses > t.drains() {
			v.doubtf("%s: the limit of %d is more than an audit tries (%d)", last, guesses, t.drains())
			return
		}
	}
	if last.Err == nil && last.Status != http.StatusTooManyRequests && !last.unauthorized() {
		v.doubtf("%s: keys are not asked for", last)
		return
	}
	v.expect(last, last.Status == http.StatusTooManyRequests, "guessing is not limited")
}

// drain repeats a probe until it is refused with 429 or must have been, and says how often it was sent.
func (t *target) drain(ctx context.Context, p probe, calls int) (last answer, sent int) {
	for sent < calls+2 && last.Err == nil && last.Status != http.StatusTooManyRequests {
		last = t.send(ctx, p.hasty())
		sent++
	}
	return last, sent
}

// checkEnforced uses a quota up with cheap probes, and then checks it for every other counted request. It comes last:
// afterwards the deployment has no calls left for the audit.
func checkEnforced(p probe, others func(*target) (routes, spellings []probe)) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		began := time.Now()
		q := t.send(ctx, p.hasty()).quota()
		if !q.announced {
			q.calls, q.seconds = 60, 3600
		}
		if limit := fmt.Sprintf("a limit of %d in %d s", q.calls, q.seconds); q.calls > t.drains() {
			if t.cfg.Level == LevelQuick {
				v.skipped = []string{"--level full uses up " + limit}
			} else {
				v.doubtf("%s is more than an audit tries (%d)", limit, t.drains())
			}
			return
		}
		a, sent := t.drain(ctx, p, q.calls)
		a.Sent += ", number " + strconv.Itoa(sent)
		if a.Status == http.StatusTooManyRequests {
			v.judge(a, wellLimited)
			t.expectLimited(ctx, v, q.calls, others)
		} else if took := time.Since(began); a.Err == nil && took > time.Duration(q.seconds)*time.Second {
			v.doubtf("%s: they took %v, longer than the window", a, took.Round(time.Second))
		} else {
			v.expect(a, false, "none was refused with 429")
		}
	}
}

// wellLimited is the rule for a 429.
func wellLimited(a answer) string {
	if wait, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || wait <= 0 {
		return "no Retry-After in whole seconds"
	}
	if a.code() != tandem.CodeRateLimited {
		return "not the problem RATE_LIMITED"
	}
	return ""
}

// expectLimited sends every other counted request after the quota is used up. Calls from before the check expire
// meanwhile, so one may get through; as many as the quota may not.
func (t *target) expectLimited(
	ctx context.Context, v *verdict, calls int, others func(*target) (routes, spellings []probe),
) {
	routes, spellings := others(t)
	for _, other := range spellings {
		if !t.send(ctx, other.hasty()).elsewhere() {
			routes = append(routes, other)
		}
	}
	for _, other := range routes {
		a, sent := t.drain(ctx, other, calls)
		v.expect(a, a.Status == http.StatusTooManyRequests,
			fmt.Sprintf("sent %d times, it does not count against the limit", sent))
	}
}

// otherPosts are the other ways to ask for work: every route, disguises, and other spellings.
func (t *target) otherPosts() (routes, spellings []probe) {
	for _, op := range t.writes() {
		if !op.open() && !op.admin() {
			routes = append(routes, op.ask(unknownID))
		}
	}
	return append(routes, disguised(cheap)...), respelled(cheap, t.spellings(cheap.Path))
}

// otherReads are the other ways to read.
func (t *target) otherReads() (routes, spellings []probe) {
	for _, op := range t.guarded() {
		if !op.admin() && (op.Method == http.MethodGet || op.Method == http.MethodHead) {
			routes = append(routes, op.ask(unknownID))
		}
	}
	return append(routes, disguised(probe{Path: "/requests?limit=1"})...), respelled(probe{}, t.spellings("/requests"))
}

// respelled is a probe under other paths.
func respelled(p probe, paths []string) (all []probe) {
	for _, path := range paths {
		p.Path = path
		all = append(all, p)
	}
	return all
}

// disguised is a probe as another client might send it.
func disguised(p probe) []probe {
	forwarded := p.with("X-Forwarded-For", "198.18.7.7").with("X-Real-IP", "198.18.7.7")
	return []probe{forwarded, p.with("User-Agent", "another"), p.with("X-Request-ID", "another")}
}
