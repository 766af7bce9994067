package term

import (
	"os"

	"golang.org/x/sys/windows"
)

// interpretsEscapes asks the console to interpret escape sequences, as old ones require, and reports whether it does.
func interpretsEscapes(file *os.File) bool {
	console := windows.Handle(file.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
