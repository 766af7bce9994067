//go:build !windows

package main

import "os"

// drawable reports whether escape codes mean anything on a terminal.
func drawable(*os.File) bool { return true }
