package engine

import (
	"encoding/json"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"tandem/internal/egress"
	"tandem/internal/store"
)

// maxTold is how many open breakers a node tells the others of.
const maxTold = 100

// report is what nodes that share a database tell each other, as JSON. Of one that is not
// understood, from another version of tandem, nothing is heard.
type report struct {
	Latency   map[string][]byte `json:"latency"` // :: key of Vitals.Latency → histogram of the last minutes, as HDR writes it
	PerSecond float64           `json:"per_second"`
	Open      []openBreaker     `json:"open"`
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

// heard is what other nodes have told.
type heard struct {
	latency   map[string]*hdrhistogram.Histogram // of all of them together; not changed any more
	perSecond float64
}

// tellNodes is what this node tells the others.
func (e *Engine) tellNodes() []byte {
	now := time.Now()
	told := report{Latency: map[string][]byte{}, PerSecond: e.vitals.perSecond(now), Open: []openBreaker{}}
	for kind, series := range e.vitals.latency {
		times := series.window(now)
		if times.TotalCount() == 0 {
			continue
		}
		if text, err := times.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
			told.Latency[kind] = text
		}
	}
	for _, d := range e.cfg.Egress.Failing(maxTold) {
		told.Open = append(told.Open, openBreaker{
			Scheme: d.Scheme, Host: d.Host, Failures: d.FailureCount,
			FailedAgo: now.Sub(d.LastFailure).Milliseconds(), OpenFor: d.RetryAt.Sub(now).Milliseconds(),
		})
	}
	text, err := json.Marshal(told)
	if err != nil { // never: there is nothing in it that JSON does not have
		return nil
	}
	return text
}

// hearNodes takes in what the others tell.
func (e *Engine) hearNodes(states []store.State) {
	all := &heard{latency: map[string]*hdrhistogram.Histogram{}}
	for _, state := range states {
		var told report
		if json.Unmarshal(state.Told, &told) != nil {
			continue
		}
		all.perSecond += told.PerSecond
		for kind, text := range told.Latency {
			times, err := hdrhistogram.Decode(text)
			if err != nil || e.vitals.latency[kind] == nil {
				continue
			}
			if all.latency[kind] == nil {
				all.latency[kind] = newHistogram()
			}
			all.latency[kind].Merge(times)
		}
		e.learn(told.Open, state.Age)
	}
	e.vitals.others.Store(all)
}

// learn has the breakers open that another node told of a while ago.
func (e *Engine) learn(open []openBreaker, age time.Duration) {
	told := time.Now().Add(-age)
	for _, b := range open[:min(len(open), maxTold)] {
		if b.Scheme == "" { // what one scheme has failed for says nothing of the other
			continue
		}
		e.cfg.Egress.MarkFailing(Destination{
			Site: egress.Site{Scheme: b.Scheme, Host: b.Host}, FailureCount: b.Failures,
			LastFailure: told.Add(-time.Duration(b.FailedAgo) * time.Millisecond),
			RetryAt:     told.Add(time.Duration(b.OpenFor) * time.Millisecond),
		})
	}
}
