package telemetry

import "time"

// NewAt is New with the time as an argument.
func NewAt(cfg Config, now time.Time) *Metrics { return newMetrics(cfg, now) }

// RecentAt is Recent with the time as an argument.
func (m *Metrics) RecentAt(now time.Time) (Latencies, float64) { return m.recent(now) }
