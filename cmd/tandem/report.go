package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"tandem/internal/load"
)

// reports are the files that a report goes to. Whether they can be written is found out
// before the run; an old report is replaced by a whole new one or not at all, and whatever
// ends the run leaves nothing half done.
type reports []reportFile

// reportFile is one of them.
type reportFile struct {
	name   string // as it was given
	target string // with symbolic links followed
	plain  bool   // target is a file or will be one; else a device or pipe, which no file must replace
	encode func(io.Writer, *load.Report) error
}

// openReports tries those that have a name.
func openReports(output, html string) (reports, error) {
	var tried reports
	for _, r := range []reportFile{
		{name: output, encode: func(w io.Writer, report *load.Report) error { return report.Encode(w) }},
		{name: html, encode: load.WriteHTML},
	} {
		if r.name == "" {
			continue
		}
		if err := r.try(); err != nil {
			if broken, ok := errors.AsType[*os.PathError](err); ok {
				err = broken.Err // the rest names a file beside it
			}
			return nil, fmt.Errorf("write the report %s: %w", r.name, err)
		}
		tried = append(tried, r)
	}
	return tried, nil
}

// try finds out whether the file can be written, and leaves it as it is.
func (r *reportFile) try() (err error) {
	if r.target, err = filepath.EvalSymlinks(r.name); err != nil {
		r.target = r.name // not there yet
	}
	info, err := os.Stat(r.target)
	if err == nil {
		if info.IsDir() {
			return errors.New("it is a directory")
		}
		if !info.Mode().IsRegular() {
			return nil // a reader of a pipe would take a try for the whole report
		}
		// Replacing it would get past a write protection.
		old, err := os.OpenFile(r.target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := old.Close(); err != nil {
			return err
		}
	}
	r.plain = true
	file, err := r.beside()
	if err != nil {
		return err
	}
	return errors.Join(file.Close(), os.Remove(file.Name()))
}

// beside makes a file in the same folder, from where it can take the target's place.
func (r *reportFile) beside() (*os.File, error) {
	return os.CreateTemp(filepath.Dir(r.target), "."+filepath.Base(r.target)+".*")
}

// write writes all of them.
func (rs reports) write(report *load.Report) error {
	for _, r := range rs {
		write := r.replace
		if !r.plain {
			write = r.fill
		}
		if err := write(report); err != nil {
			return fmt.Errorf("write the report %s: %w", r.name, err)
		}
	}
	return nil
}

// name says where they are.
func (rs reports) name(t *terminal) {
	if len(rs) > 0 {
		t.printf("\n")
	}
	for _, r := range rs {
		t.printf("report: %s\n", absolute(r.name))
	}
}

// replace writes a new file and puts it in the place of the old one.
func (r *reportFile) replace(report *load.Report) error {
	file, err := r.beside()
	if err != nil {
		return err
	}
	err = errors.Join(r.encode(file, report), file.Chmod(0o644), file.Close()) // a report is for others, too
	if err == nil {
		err = os.Rename(file.Name(), r.target)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// fill writes to a device or pipe.
func (r *reportFile) fill(report *load.Report) error {
	file, err := os.OpenFile(r.target, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(r.encode(file, report), file.Close())
}

// absolute is a file's whole name, for people who have to find it.
func absolute(name string) string {
	if whole, err := filepath.Abs(name); err == nil {
		return whole
	}
	return name
}
