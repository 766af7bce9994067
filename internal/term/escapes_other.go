//go:build !windows

package term

import "os"

// interpretsEscapes reports whether escape sequences work on a terminal.
func interpretsEscapes(*os.File) bool { return true }
