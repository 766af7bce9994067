package engine

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lowestPriority is the nice value of a thread that gives way to all others.
const lowestPriority = 19

// canYieldByPriority reports whether threads of low priority keep the server
// responsive here. Under a CPU quota they do not: once it is used up everything
// waits, whatever its priority.
func canYieldByPriority() bool { return !hasCPUQuota(os.DirFS("/")) }

// longestSlice is the longest turn that a thread can ask for (sched_setattr(2), Linux 6.12; ignored before).
const longestSlice = 100 * time.Millisecond

// lowerPriority gives the calling thread, which must be locked to its goroutine,
// the lowest priority. Linux applies it to the one thread, unlike other systems.
//
// The nice value alone gives a share: since Linux 6.6 a thread that wakes up waits
// for the end of a niced one's slice, some milliseconds at every hand-over. A thread of
// SCHED_IDLE gives way at once (sched(7)), and takes what is left all the same, but only
// within its own group of processes: a session (sched_autogroup), a container, a service. To
// whoever is outside, the kernel's threads that finish an fsync among them, the group as a
// whole counts. Its slice is that of its threads, and who has a shorter one goes first.
func lowerPriority() error {
	long := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: lowestPriority, Runtime: uint64(longestSlice)}
	if err := unix.SchedSetAttr(0, long, 0); err != nil {
		return fmt.Errorf("lower the priority of a thread: %w", err)
	}
	idle := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE} // leaves nice value and slice as they are
	if err := unix.SchedSetAttr(0, idle, 0); err != nil {
		return fmt.Errorf("make a thread give way at once: %w", err)
	}
	return nil
}

// hasCPUQuota reports whether a control group of this process, or one above it,
// limits its CPU time (version 1 or 2). root is the file system; what cannot be read
// limits nothing.
func hasCPUQuota(root fs.FS) bool {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path; version 2 is hierarchy 0 without controllers
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			if quotaAbove(root, "sys/fs/cgroup", parts[2], "cpu.max", "max") {
				return true
			}
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			if controller != "cpu" {
				continue
			}
			for _, mount := range []string{"cpu", parts[1]} {
				if quotaAbove(root, path.Join("sys/fs/cgroup", mount), parts[2], "cpu.cfs_quota_us", "-1") {
					return true
				}
			}
		}
	}
	return false
}

// quotaAbove looks for a quota in file, from the group up to the mount. In a
// container the group may name a path of the host; the mount itself is then ours.
func quotaAbove(root fs.FS, mount, group, file, unlimited string) bool {
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		text, err := fs.ReadFile(root, path.Join(mount, group, file))
		if quota := strings.Fields(string(text)); err == nil && len(quota) > 0 && quota[0] != unlimited {
			return true
		}
		if group == "/" {
			return false
		}
	}
}
