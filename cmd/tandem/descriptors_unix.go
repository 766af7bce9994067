//go:build unix

package main

import "syscall"

// maxDescriptors is how many files and connections this process may have open; false: unknown.
func maxDescriptors() (uint64, bool) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, false
	}
	return uint64(limit.Cur), true //nolint:unconvert // signed on some systems
}
