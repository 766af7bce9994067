package work

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// lowerPriority makes this process give way to others.
func lowerPriority() error {
	if err := windows.SetPriorityClass(windows.CurrentProcess(), windows.BELOW_NORMAL_PRIORITY_CLASS); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	return nil
}

// hasCPUQuota reports false: only control groups of Linux set quotas.
func hasCPUQuota() bool { return false }
