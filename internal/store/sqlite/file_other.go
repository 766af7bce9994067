//go:build !linux

package sqlite

import "os"

// locksFile: the lock on the file beside is all there is. Where flock(2) and POSIX locks know of
// each other, or locks are mandatory, one on the file itself would keep SQLite out.
const locksFile = false

func lockFile(*os.File) error { return nil }

func unlockFile(*os.File) {}
