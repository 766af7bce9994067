package load

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleep sleeps for less than sleepBelow, in the kernel: about 0.06 ms late, and no
// core is busy meanwhile. A signal may end it early.
func sleep(d time.Duration) {
	left := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&left, nil) // the caller looks at the clock again
}
