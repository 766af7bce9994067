//go:build !unix

package main

// maxDescriptors: unknown on this system.
func maxDescriptors() (uint64, bool) { return 0, false }
