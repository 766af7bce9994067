package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// drawable has the console interpret escape codes, which old ones do not do of
// themselves, and reports whether it will.
func drawable(file *os.File) bool {
	console := windows.Handle(file.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
