package work

import (
	"log/slog"
	"time"
)

// What the external tests reach into: parts that are pure or stand alone.
var (
	RunCompute     = runCompute
	Canonical      = canonical
	DefaultCompute = defaultCompute
)

// NewPoolIdle is NewPool with processes that end after another idle time.
func NewPoolIdle(argv []string, count int, idle time.Duration, log *slog.Logger) *Pool {
	p := NewPool(argv, count, log)
	p.idle = idle
	return p
}

// Processes is how many there are, those included that are about to end.
func (p *Pool) Processes() int { return len(p.permits) }
