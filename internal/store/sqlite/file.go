package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/gofrs/flock"

	"tandem/internal/store"
)

// databaseFile is a database file that this process owns. The database is opened after it and closed
// before it: closing a descriptor of the file drops every POSIX lock that SQLite holds on it.
type databaseFile struct {
	path  string
	lock  *flock.Flock // on the file beside it: keeps out a tandem that came by the same path
	file  *os.File     // with a lock of its own, where the system has one that SQLite does not notice
	known []knownFile  // set by remember
}

// knownFile is a file as it was when the database was opened.
type knownFile struct {
	path string
	info fs.FileInfo
}

// ownFile opens or creates a database file, for this process alone until close or the end of the process.
func ownFile(path string) (_ *databaseFile, err error) {
	d := &databaseFile{path: path, lock: flock.New(path+".lock", flock.SetPermissions(0o600))}
	ok, err := d.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock beside it (does its folder exist?): %w", err)
	}
	if !ok {
		return nil, errInUse
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := lockFile(d.file); err != nil {
		return nil, err
	}
	return d, oneName(path)
}

// errInUse says that another process owns a file, whether by the same name or by another one.
var errInUse = errors.New("another tandem is using it; stop that one first, or name another file")

// close lets go of the file.
func (d *databaseFile) close() error {
	var err error
	if d.file != nil {
		unlockFile(d.file)
		err = d.file.Close()
	}
	return errors.Join(err, d.lock.Close())
}

// remember notes which files the database consists of, once it is open and has been written to.
func (d *databaseFile) remember() error {
	names := []string{d.path, d.path + "-wal", d.path + "-shm"}
	if !locksFile {
		names = append(names, d.lock.Path())
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		os.SameFile(info, info) // Windows looks up which file it is now, instead of when it is compared
		d.known = append(d.known, knownFile{name, info})
	}
	return nil
}

// moved returns an error unless every file is still where it was. It looks at names and opens nothing.
func (d *databaseFile) moved() error {
	for _, known := range d.known {
		info, err := os.Stat(known.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = errors.New("it was removed or renamed")
		case err == nil && !os.SameFile(info, known.info):
			err = errors.New("another file has taken its place")
		case err == nil:
			continue
		}
		return fmt.Errorf("%w: %s: %w; put it back under this name, "+
			"or stop the server, restore a backup and start it again", store.ErrMoved, known.path, err)
	}
	return nil
}

// oneName refuses a database file that has several names. It opens nothing.
func oneName(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if n := links(info); n > 1 {
		return fmt.Errorf("the file has %d names (hard links), "+
			"and SQLite keeps what was written last beside only one of them; "+
			"remove the other names, or make a copy with VACUUM INTO and name that", n)
	}
	return nil
}

// makePrivate makes sure that nobody but their owner reads the files of a database of ours: they hold the
// signing secrets. It opens nothing, and leaves alone what is no file of its own.
func makePrivate(path string, log *slog.Logger) {
	if runtime.GOOS == "windows" { // there are no modes
		return
	}
	for _, name := range []string{path + "-wal", path + "-shm", path + ".lock", path} {
		info, err := os.Lstat(name)
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
			continue
		}
		mode := fmt.Sprintf("%o", info.Mode().Perm())
		switch err := os.Chmod(name, 0o600); {
		case err != nil:
			log.Warn("other users can read a file of the database, which holds secrets; chmod 600 it",
				"file", name, "mode", mode, "error", err)
		case name == path: // its mode is that of those beside it
			log.Warn("other users could read the database, which holds secrets; its files have mode 600 now",
				"file", name, "mode", mode)
		}
	}
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	if err == nil && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		log.Warn("other users can replace the database, because everybody may write to its folder; chmod o-w it",
			"folder", folder, "mode", fmt.Sprintf("%o", info.Mode().Perm()))
	}
}
