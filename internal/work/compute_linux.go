package work

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// computeNice is added to the nice value of a compute process. Beside programs that keep every core busy
	// it then gets a tenth to a fifth of what they do, and does not come to a standstill (decision 14).
	computeNice = 5

	// computeSlice is the time slice that it requests, the longest there is (sched_setattr(2),
	// Linux 6.12; ignored before). Since Linux 6.6 a thread that wakes up takes the core from one
	// with a longer slice, and otherwise waits for the end of that slice.
	computeSlice = 100 * time.Millisecond
)

// lowerPriority makes the calling thread, which must be locked to its goroutine, give way to others.
func lowerPriority() error {
	now, err := unix.SchedGetAttr(0, 0)
	nice := computeNice
	if err == nil {
		nice = min(int(now.Nice)+computeNice, 19)
	}
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: int32(nice), Runtime: uint64(computeSlice),
	}
	if unix.SchedSetAttr(0, attr, 0) == nil {
		return nil
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil { // a sandbox may know this call only
		return fmt.Errorf("lower the priority: %w", err)
	}
	return nil
}

// hasCPUQuota reports whether the CPU time of this process is limited. Low priority does not
// help then: once the quota is used up everything waits.
func hasCPUQuota() bool { return cpuQuota(os.DirFS("/")) }

// cpuQuota reports whether a control group of this process, or one above it,
// limits its CPU time (version 1 or 2). root is the file system; what cannot be read
// limits nothing.
func cpuQuota(root fs.FS) bool {
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
