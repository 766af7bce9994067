package audit

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"tandem"
)

// The backlog for the fairness check: 20 s of one core at most, 3 s on two cores.
const (
	mostBacklog   = 40 // requests of the first key
	shortBacklog  = 16 // the first of them are short; where many cores keep up with these, longer ones follow
	enoughWaiting = 14 // of them wait before the second key asks, and twice as many as run
	leastWaiting  = 8  // of them waited when the second key's request came, else nothing can be said
	batchSize     = 4  // requests between two looks at the backlog
)

// checkFairness fills every slot with work of the first key and has the second one ask for a little. It judges by the
// order in which the work began, by the deployment's own clock: a slow deployment is not an unfair one.
func checkFairness(ctx context.Context, t *target, v *verdict) {
	t.awaitQuota(ctx, t.cfg.APIKey, mostBacklog)
	t.awaitQuota(ctx, t.cfg.SecondKey, 1)
	callback := t.callback(t.cfg.Receiver.New(http.StatusOK, ""))
	ids, ok := t.fill(ctx, v, callback)
	if !ok {
		return
	}
	second := t.compute(ctx, t.cfg.SecondKey, callback, 1)
	if !v.accepted(second) {
		return
	}
	first, own, ok := t.ended(ctx, v, ids, second)
	if !ok {
		return
	}
	waited, before := 0, 0
	for _, r := range first.requests {
		if r.StartedAt.After(own.CreatedAt) {
			waited++
			if own.StartedAt.IsZero() || r.StartedAt.Before(own.StartedAt) {
				before++
			}
		}
	}
	seen := fmt.Sprintf("%s: its work began after %d of the %d requests of --api-key that waited when it came",
		second, before, waited)
	switch {
	case waited < leastWaiting:
		v.doubtf("%s: too few to tell, the deployment is fast", seen)
	case before > waited/2:
		v.failf("%s", seen)
	case own.Status == tandem.StatusFailed:
		v.doubtf("%s, and failed: %s", seen, oneLine(own.ErrorMessage))
	default:
		v.passf("%s", seen)
	}
}

// awaitQuota waits for one window of the rate limit if a key has fewer calls left than it needs in a row.
func (t *target) awaitQuota(ctx context.Context, key string, calls int) {
	p := cheap
	p.Key = key
	q := t.send(ctx, p).quota()
	wait := time.Duration(q.seconds) * time.Second
	if !q.announced || !q.known || q.left >= min(calls, q.calls-1) || wait > longestWait {
		return // a call too many is refused
	}
	t.cfg.Progress(fmt.Sprintf("waiting %d s until %d requests may be sent in a row", q.seconds, calls))
	_ = pause(ctx, wait) // the next request notices the end of ctx
}

// compute asks for work, 75 ms of a core for each complexity. A refusal is an answer.
func (t *target) compute(ctx context.Context, key, callback string, complexity int) answer {
	p := async(callback, fmt.Sprintf(`"task":"compute","complexity":%d`, complexity)).hasty()
	p.Key, p.Shown = key, fmt.Sprintf("POST /async compute %d", complexity)
	if key == t.cfg.SecondKey {
		p.Shown += " with --second-api-key"
	}
	return t.send(ctx, p)
}

// backlog is the state of the first key's requests.
type backlog struct {
	requests         []tandem.Request
	waiting, running int // not begun; under way
	working          int // both of them
	unfinished       int // the same, with due callbacks
}

// fill asks for work with the first key until enough of it waits, or there is as much as an audit may ask for. It
// returns the ids.
func (t *target) fill(ctx context.Context, v *verdict, callback string) (ids map[string]bool, ok bool) {
	ids = make(map[string]bool)
	for now := (backlog{}); now.waiting < max(enoughWaiting, 2*now.running) && len(ids) < mostBacklog; {
		complexity := 2
		if len(ids) >= shortBacklog {
			complexity = 10
		}
		for range batchSize {
			a := t.compute(ctx, t.cfg.APIKey, callback, complexity)
			if !v.accepted(a) {
				return nil, false
			}
			ids[a.requestID()] = true
		}
		if now, ok = t.backlog(ctx, v, ids); !ok {
			return nil, false
		}
	}
	return ids, true
}

// backlog reads the state of the first key's requests.
func (t *target) backlog(ctx context.Context, v *verdict, ids map[string]bool) (b backlog, ok bool) {
	a := t.send(ctx, probe{Path: "/requests?mode=async&task=compute&limit=100", Key: t.cfg.APIKey})
	var all []tandem.Request
	if !a.decode(&all) {
		v.doubtf("%s: no list of requests", a)
		return b, false
	}
	count := func(n *int, counts bool) {
		if counts {
			*n++
		}
	}
	for _, r := range all {
		if ids[r.ID] {
			b.requests = append(b.requests, r)
			count(&b.waiting, r.Status == tandem.StatusPending)
			count(&b.running, r.Status == tandem.StatusProcessing)
			count(&b.working, r.CompletedAt.IsZero())
			count(&b.unfinished, r.Unfinished())
		}
	}
	if len(b.requests) < len(ids) {
		v.doubtf("%s: it has %d of the %d requests that --api-key has just sent", a, len(b.requests), len(ids))
		return b, false
	}
	return b, true
}

// ended waits for the end of the backlog and of the second key's request, as long as one after the other ends.
func (t *target) ended(
	ctx context.Context, v *verdict, ids map[string]bool, second answer,
) (first backlog, own tandem.Request, ok bool) {
	left := len(ids) + 2
	for deadline := time.Now(); ; {
		a := t.send(ctx, probe{Path: "/requests/" + second.requestID(), Key: t.cfg.SecondKey})
		if !a.decode(&own) {
			v.doubtf("%s: the outcome of its request is unknown", a)
			return first, own, false
		}
		if first, ok = t.backlog(ctx, v, ids); !ok {
			return first, own, false
		}
		unfinished := first.unfinished
		if own.Unfinished() {
			unfinished++
		}
		late := time.Now().After(deadline)
		switch {
		case unfinished == 0:
			return first, own, true
		case unfinished < left:
			left, deadline = unfinished, time.Now().Add(t.cfg.Timeout)
		case late && first.working == 0 && own.Status != tandem.StatusProcessing:
			return first, own, true // a callback is late, or the second key's work has not even begun
		case late:
			v.doubtf("%s: %d of the %d requests of --api-key have not ended", second, first.working, len(ids))
			return first, own, false
		}
		if err := pause(ctx, pollEvery); err != nil {
			v.doubtf("%s: %v", second, err)
			return first, own, false
		}
	}
}
