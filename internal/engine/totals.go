package engine

import (
	"maps"
	"time"

	"tandem"
)

// UnknownTask stands in an [Ending] for every task that the configuration has no more.
const UnknownTask = "unknown"

// Totals is what the engine has counted since it was made, for those who watch
// it over a long time; [Vitals] is about the last few minutes.
type Totals struct {
	// requests whose work has ended; every task has those that ended well, also while there is none
	Ended     map[Ending]int64
	Durations map[string]Histogram // by the keys of Vitals.Latency
	Breakers  map[string]int       // :: state → destinations remembered; a gauge
}

// Ending is a way for work to end. There are as many as there are modes, tasks
// and reasons to fail.
type Ending struct {
	Mode      tandem.Mode
	Task      string // a task of this configuration, or UnknownTask
	ErrorCode string // one of the tandem.Failed… constants; "" means it ended well
}

// Histogram counts durations.
type Histogram struct {
	Count   uint64
	Sum     time.Duration
	Buckets map[time.Duration]uint64 // :: bound → how many were not longer than that
}

// bounds of the buckets of a [Histogram]: fine where a commit and a callback at once
// are, coarse where retries are.
var bounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 5 * time.Minute, time.Hour,
}

// Totals returns the current figures. It costs less than [Engine.Vitals].
func (e *Engine) Totals() Totals {
	totals := e.vitals.totals()
	for name, task := range e.tasks {
		totals.Ended[Ending{Mode: tandem.ModeSync, Task: name}] += 0
		if !task.Internal {
			totals.Ended[Ending{Mode: tandem.ModeAsync, Task: name}] += 0
		}
	}
	totals.Breakers = e.cfg.Egress.Breakers()
	return totals
}

// end counts one request whose work has ended.
func (v *vitals) end(how Ending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended[how]++
}

func (v *vitals) totals() Totals {
	out := Totals{Durations: make(map[string]Histogram, len(v.latency))}
	for kind, series := range v.latency {
		out.Durations[kind] = series.total()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	out.Ended = maps.Clone(v.ended)
	return out
}

// total returns everything recorded since the start.
func (s *series) total() Histogram {
	out := Histogram{Buckets: make(map[time.Duration]uint64, len(bounds))}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Sum = s.sum
	for i, n := range s.buckets {
		out.Count += n
		if i < len(bounds) {
			out.Buckets[bounds[i]] = out.Count
		}
	}
	return out
}
