//go:build unix

package load

import (
	"runtime"
	"syscall"
	"time"
)

// usage is the CPU time of this process so far, and its largest resident memory in bytes.
func usage() (cpu time.Duration, memory int64) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, 0
	}
	memory = int64(u.Maxrss) //nolint:unconvert // 32 bits wide on some platforms
	if runtime.GOOS != "darwin" && runtime.GOOS != "ios" {
		memory <<= 10 // everybody else counts in KiB
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), memory
}
