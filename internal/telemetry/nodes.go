package telemetry

import (
	"encoding/json"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"tandem/internal/store"
)

// measured is what other nodes have measured, all of them together. It is not changed once made.
type measured struct {
	latency   [seriesCount]*hdrhistogram.Histogram // nil: nothing
	perSecond float64
}

// report is what a node publishes of its measurements. What cannot be read, from another version of tandem, is ignored.
type report struct {
	Latency   map[string][]byte `json:"latency"` // :: name → histogram of the last minutes, as HDR writes it
	PerSecond float64           `json:"per_second"`
}

// Publish returns the members of a report, for engine.Config.Publish.
func (m *Metrics) Publish() map[string]any {
	now, latency := time.Now(), map[string][]byte{}
	for i, s := range m.series {
		times := s.window(now)
		if times.TotalCount() == 0 {
			continue
		}
		if text, err := times.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
			latency[kinds[i].name] = text
		}
	}
	return map[string]any{"latency": latency, "per_second": m.rate.perSecond(now)}
}

// Receive adds up the reports of the other nodes, for engine.Config.Receive.
func (m *Metrics) Receive(states []store.State) {
	all := &measured{}
	for _, state := range states {
		var told report
		if json.Unmarshal(state.Told, &told) != nil {
			continue
		}
		all.perSecond += told.PerSecond
		for i, kind := range kinds {
			text := told.Latency[kind.name]
			if text == nil {
				continue
			}
			times, err := hdrhistogram.Decode(text)
			if err != nil {
				continue
			}
			if all.latency[i] == nil {
				all.latency[i] = newHistogram()
			}
			all.latency[i].Merge(times)
		}
	}
	m.others.Store(all)
}
