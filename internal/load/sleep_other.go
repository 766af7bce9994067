//go:build !linux

package load

import (
	"runtime"
	"time"
)

// sleep lets others run until d has passed. It keeps a core busy, for less than sleepBelow.
func sleep(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		runtime.Gosched()
	}
}
