//go:build unix && !linux

package work

import (
	"fmt"
	"syscall"
)

// lowerPriority makes this process give way to others.
func lowerPriority() error {
	const nice = 5
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	return nil
}

// hasCPUQuota reports false: only control groups of Linux set quotas.
func hasCPUQuota() bool { return false }
