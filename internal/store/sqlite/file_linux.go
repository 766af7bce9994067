package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// locksFile: the file itself is locked too, which keeps out a server that opens it by another name.
const locksFile = true

// lockedByte is far from those that SQLite locks, which are the 512 from 1 GiB on.
const lockedByte = 1 << 40

// lockFile locks the file itself until the descriptor is closed. A lock of the open file description is
// independent of SQLite's POSIX locks, which belong to the process; one of flock(2) is not, on NFS.
func lockFile(file *os.File) error {
	err := setLock(file, unix.F_WRLCK)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return errInUse
	case err != nil:
		return fmt.Errorf("lock it: %w", err)
	}
	return nil
}

// unlockFile comes before the descriptor is closed: a child process that is being started has a copy of it.
func unlockFile(file *os.File) {
	_ = setLock(file, unix.F_UNLCK) // fails only if there is no lock
}

func setLock(file *os.File, kind int16) error {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: lockedByte, Len: 1}
	return unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
}
