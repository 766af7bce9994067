package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"tandem"
)

// The backlog that shows whether API keys take turns: 20 s of one core at most, 3 s where there are two cores.
const (
	mostBacklog   = 40 // requests of the first key
	shortBacklog  = 16 // the first of them are short; where many cores keep up with these, longer ones follow
	enoughWaiting = 14 // of them wait before the second key asks, and twice as many as run
	leastWaiting  = 8  // of them waited when the second key's request came, else nothing can be told
)

// checkFairness fills every slot with work of the first key and has the second one ask for a little. It judges by
// the order in which the work began, by the deployment's own clock: a slow deployment is not an unfair one.
func checkFairness(ctx context.Context, t *Target) Finding {
	var v verdict
	t.awaitAllowance(ctx, t.cfg.APIKey, mostBacklog)
	t.awaitAllowance(ctx, t.cfg.SecondKey, 1)
	callback := t.callback(t.cfg.Receiver.hook(http.StatusOK, ""))
	backlog, ok := t.fill(ctx, &v, callback)
	if !ok {
		return v.finding()
	}
	second := t.compute(ctx, t.cfg.SecondKey, callback, 1)
	second.Sent += " with --second-api-key"
	if !t.taken(&v, second) {
		return v.finding()
	}
	others, own, ok := t.ended(ctx, &v, backlog, second)
	if !ok {
		return v.finding()
	}
	waited, before := 0, 0
	for _, other := range others {
		if other.StartedAt.After(own.CreatedAt) {
			waited++
			if own.StartedAt.IsZero() || other.StartedAt.Before(own.StartedAt) {
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
	return v.finding()
}

// awaitAllowance waits for the rate limit's window to pass if a key has fewer calls left than it needs in a row.
func (t *Target) awaitAllowance(ctx context.Context, key string, calls int) {
	o := cheap
	o.Key = key
	a := t.send(ctx, o)
	most, seconds, announced := a.policy()
	left, ok := a.left()
	wait := time.Duration(seconds) * time.Second
	if !announced || !ok || left >= min(calls, most-1) || wait > longestWait {
		return // what is not there after all is refused
	}
	t.cfg.Progress(fmt.Sprintf("waiting %d s until %d requests may be sent in a row", seconds, calls))
	_ = pause(ctx, wait) // the next request notices the end of ctx
}

// compute asks for work that takes 75 ms of a core for each complexity, and takes a refusal for an answer.
func (t *Target) compute(ctx context.Context, key, callback string, complexity int) Answer {
	body, err := json.Marshal(map[string]any{
		"data": map[string]int{"audit": 1}, "task": "compute", "complexity": complexity, "callback_url": callback,
	})
	if err != nil {
		return Answer{Sent: "POST /async", Err: err}
	}
	o := hasty(post("/async", string(body)))
	o.Key = key
	a := t.send(ctx, o)
	a.Sent = fmt.Sprintf("POST /async compute %d", complexity)
	return a
}

// fill asks for work with the first key until enough of it waits, or there is as much as an audit may ask for. It
// returns the ids.
func (t *Target) fill(ctx context.Context, v *verdict, callback string) (ids map[string]bool, ok bool) {
	const atOnce = 4 // between two looks at the backlog
	ids = map[string]bool{}
	for waiting, running := 0, 0; waiting < max(enoughWaiting, 2*running) && len(ids) < mostBacklog; {
		complexity := 2
		if len(ids) >= shortBacklog {
			complexity = 10
		}
		for range atOnce {
			a := t.compute(ctx, t.cfg.APIKey, callback, complexity)
			if !t.taken(v, a) {
				return nil, false
			}
			ids[a.requestID()] = true
		}
		requests, ok := t.backlog(ctx, v, ids)
		if !ok {
			return nil, false
		}
		waiting, running = 0, 0
		for _, r := range requests {
			switch r.Status {
			case tandem.StatusPending:
				waiting++
			case tandem.StatusProcessing:
				running++
			default:
			}
		}
	}
	return ids, true
}

// backlog reads what has become of the requests of the first key.
func (t *Target) backlog(ctx context.Context, v *verdict, ids map[string]bool) ([]tandem.Request, bool) {
	a := t.send(ctx, Order{Path: "/requests?mode=async&task=compute&limit=100", Key: t.cfg.APIKey})
	var all, ours []tandem.Request
	if a.Err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &all) != nil {
		v.doubtf("%s: no list of requests", a)
		return nil, false
	}
	for _, r := range all {
		if ids[r.ID] {
			ours = append(ours, r)
		}
	}
	if len(ours) < len(ids) {
		v.doubtf("%s: it has %d of the %d requests that --api-key has just sent", a, len(ours), len(ids))
		return nil, false
	}
	return ours, true
}

// ended waits for the end of the backlog and of the second key's request, as long as one after the other ends.
func (t *Target) ended(
	ctx context.Context, v *verdict, backlog map[string]bool, second Answer,
) (others []tandem.Request, own tandem.Request, ok bool) {
	left := len(backlog) + 2
	for deadline := time.Now(); ; {
		a := t.send(ctx, Order{Path: "/requests/" + second.requestID(), Key: second.Key})
		if a.Err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &own) != nil {
			v.doubtf("%s with --second-api-key: what became of its request is not known", a)
			return nil, own, false
		}
		if others, ok = t.backlog(ctx, v, backlog); !ok {
			return nil, own, false
		}
		working, unfinished := 0, 0
		for _, r := range others {
			if r.CompletedAt.IsZero() {
				working++
			}
			if r.Unfinished() {
				unfinished++
			}
		}
		if own.Unfinished() {
			unfinished++
		}
		switch {
		case unfinished == 0:
			return others, own, true
		case unfinished < left:
			left, deadline = unfinished, time.Now().Add(t.cfg.Patience)
		case time.Now().After(deadline) && working == 0 && own.Status != tandem.StatusProcessing:
			// A callback is late, or the second key's work has not even begun.
			return others, own, true
		case time.Now().After(deadline):
			v.doubtf("%s: %d of the %d requests of --api-key have not ended", second, working, len(backlog))
			return nil, own, false
		}
		if err := pause(ctx, pollEvery); err != nil {
			v.doubtf("%s: %v", second, err)
			return nil, own, false
		}
	}
}
