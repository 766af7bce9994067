//go:build !linux

package load

import (
	"runtime"
	"time"
)

// nap lets others run until d has passed. It keeps a core busy, for less than napBelow.
func nap(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		runtime.Gosched()
	}
}
