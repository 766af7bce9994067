package submissions

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// logFile is a file of lines with rotation: path becomes path.1, path.1 becomes path.2, and the last one goes. One
// goroutine uses it.
type logFile struct {
	path    string
	maxSize int64
	keep    int
	file    *os.File // nil: it could not be opened, and the next write tries again
	size    int64
}

// openLogFile opens or creates path, and finds out whether its directory takes new files.
func openLogFile(path string, maxSize int64, keep int) (*logFile, error) {
	probe, err := os.CreateTemp(filepath.Dir(path), ".tandem-*")
	if err != nil {
		// The name of the probe would only puzzle.
		if cause, ok := errors.AsType[*fs.PathError](err); ok {
			err = cause.Err
		}
		return nil, fmt.Errorf("create files in %s: %w", filepath.Dir(path), err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return nil, err
	}
	f := &logFile{path: path, maxSize: maxSize, keep: keep}
	return f, f.open()
}

// open opens path for appending. A line cut off by a crash is ended; a file of something else, such as the database,
// stays as it is.
func (f *logFile) open() error {
	if info, err := os.Stat(f.path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.path) // opening it might wait for a reader
	}
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	size, err := f.endLastLine(file)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.file, f.size = file, size
	return nil
}

// endLastLine makes file one of whole lines, and returns its size.
func (f *logFile) endLastLine(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	size, edge := info.Size(), make([]byte, 1)
	if _, err := file.ReadAt(edge, 0); err != nil {
		return 0, err
	}
	if edge[0] != '{' {
		return 0, fmt.Errorf("%s is something else: it does not begin with a JSON line", f.path)
	}
	if _, err := file.ReadAt(edge, size-1); err != nil || edge[0] == '\n' {
		return size, err
	}
	_, err = file.WriteString("\n")
	return size + 1, err
}

// write appends whole lines, all of them or none. If the file was moved or removed, a new one replaces it.
func (f *logFile) write(lines []byte) error {
	if f.file != nil && !f.inPlace() {
		_ = f.close() // its lines are written
	}
	if f.file == nil {
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.size >= f.maxSize {
		if err := errors.Join(f.close(), f.shift()); err != nil {
			return fmt.Errorf("begin a new file: %w", err)
		}
		if err := f.open(); err != nil {
			return err
		}
	}
	n, err := f.file.Write(lines)
	if err != nil {
		if n > 0 { // half a line would spoil the next one as well
			err = errors.Join(err, f.file.Truncate(f.size))
		}
		return err
	}
	f.size += int64(n)
	return nil
}

// inPlace reports whether path still names the open file.
func (f *logFile) inPlace() bool {
	named, err := os.Stat(f.path)
	if err != nil {
		return false
	}
	ours, err := f.file.Stat()
	return err == nil && os.SameFile(named, ours)
}

// shift moves every file one number up.
func (f *logFile) shift() error {
	for number := f.keep; number >= 1; number-- {
		older := f.path
		if number > 1 {
			older = fmt.Sprintf("%s.%d", f.path, number-1)
		}
		if err := os.Rename(older, fmt.Sprintf("%s.%d", f.path, number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (f *logFile) close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
