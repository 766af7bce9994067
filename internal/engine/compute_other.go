//go:build !linux

package engine

// canYieldByPriority: elsewhere a priority belongs to the process, not to a thread.
func canYieldByPriority() bool { return false }

func lowerPriority() error { return nil }
