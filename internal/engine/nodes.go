package engine

import (
	"encoding/json"
	"maps"
	"time"

	"tandem/internal/egress"
	"tandem/internal/store"
)

// maxPublished is how many open breakers a node tells the others of.
const maxPublished = 100

// report is what the engine reads of what a node publishes, which is JSON. What cannot be read, from another version
// of tandem, is ignored.
type report struct {
	Open []openBreaker `json:"open"`
}

// openBreaker is a destination that a node has found failing. Times are relative: clocks differ.
// Nodes of older releases know no schemes: they apply it to both, and what they send has none.
type openBreaker struct {
	Scheme    string `json:"scheme"`
	Host      string `json:"host"`
	Failures  int    `json:"failures"`
	FailedAgo int64  `json:"failed_ago_ms"`
	OpenFor   int64  `json:"open_for_ms"`
}

// publish returns what the other nodes are to know.
func (e *Engine) publish() []byte {
	now, open := time.Now(), []openBreaker{}
	for _, d := range e.cfg.Egress.Failing(maxPublished) {
		open = append(open, openBreaker{
			Scheme: d.Scheme, Host: d.Host, Failures: d.FailureCount,
			FailedAgo: now.Sub(d.LastFailure).Milliseconds(), OpenFor: d.RetryAt.Sub(now).Milliseconds(),
		})
	}
	members := map[string]any{"open": open}
	if e.cfg.Publish != nil {
		maps.Copy(members, e.cfg.Publish())
	}
	text, err := json.Marshal(members)
	if err != nil { // never: there is nothing in it that JSON does not have
		return nil
	}
	return text
}

// receive opens the breakers that the other nodes published as open.
func (e *Engine) receive(states []store.State) {
	if e.cfg.Receive != nil {
		e.cfg.Receive(states)
	}
	for _, state := range states {
		var told report
		if json.Unmarshal(state.Told, &told) != nil {
			continue
		}
		at := time.Now().Add(-state.Age)
		for _, b := range told.Open[:min(len(told.Open), maxPublished)] {
			if b.Scheme == "" { // a failure of one scheme says nothing about the other
				continue
			}
			e.cfg.Egress.MarkFailing(Destination{
				Site: egress.Site{Scheme: b.Scheme, Host: b.Host}, FailureCount: b.Failures,
				LastFailure: at.Add(-time.Duration(b.FailedAgo) * time.Millisecond),
				RetryAt:     at.Add(time.Duration(b.OpenFor) * time.Millisecond),
			})
		}
	}
}
