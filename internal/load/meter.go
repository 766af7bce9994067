package load

import (
	"context"
	"sync"
	"time"
)

// meter reads the service's CPU time and memory during a phase, in its own /metrics.
type meter struct {
	service *service
	off     bool // it cannot be read
	first   processUse

	mu     sync.Mutex // guards the fields below
	last   processUse
	memory int64 // the largest seen
}

// newMeter takes the first reading.
func (r *run) newMeter(ctx context.Context) *meter {
	m := &meter{service: r.service, off: !r.report.Target.MetricsRead}
	if m.off {
		return m
	}
	var err error
	m.first, err = m.service.processUse(ctx)
	m.off = err != nil
	m.last, m.memory = m.first, m.first.memory
	return m
}

// run takes a reading every second until ctx ends.
func (m *meter) run(ctx context.Context) {
	if m.off {
		return
	}
	ticker := time.NewTicker(meterEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			m.read(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// read takes a reading; one that fails, as under too much load, is left out.
func (m *meter) read(ctx context.Context) {
	now, err := m.service.processUse(ctx)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.memory = now, max(m.memory, now.memory)
}

// finish takes the last reading. CPUCores is set by the phase.
func (m *meter) finish(ctx context.Context) *ServerUse {
	if m.off {
		return nil
	}
	m.read(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.cpu < m.first.cpu {
		return nil // it was restarted
	}
	return &ServerUse{CPUSeconds: m.last.cpu - m.first.cpu, MaxMemoryBytes: m.memory}
}
