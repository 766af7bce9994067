package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"tandem/internal/load"
)

// reports are the files that a report goes to. They are opened before the run, so that one that
// cannot be written is known in time, and an old report is replaced by a whole new one or not at all.
type reports []*reportFile

// reportFile is one of them.
type reportFile struct {
	name   string // as it was given
	target string // with symbolic links followed
	write  func(io.Writer, *load.Report) error
	file   *os.File // beside target until it is whole; target itself when that is no regular file
	beside bool
}

// openReports opens those that have a name. After an error none is left.
func openReports(output, html string) (reports, error) {
	var opened reports
	for _, r := range []*reportFile{
		{name: output, write: func(w io.Writer, report *load.Report) error { return report.Encode(w) }},
		{name: html, write: load.WriteHTML},
	} {
		if r.name == "" {
			continue
		}
		if err := r.open(); err != nil {
			opened.discard()
			return nil, fmt.Errorf("write the report: %w", err)
		}
		opened = append(opened, r)
	}
	return opened, nil
}

// open makes a file beside the target, which tells whether the target can be made. A
// device or pipe has no old contents to lose, and must not be replaced by a file.
func (r *reportFile) open() (err error) {
	if r.target, err = filepath.EvalSymlinks(r.name); err != nil {
		r.target = r.name // not there yet
	}
	info, err := os.Stat(r.target)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a directory", r.name)
	case err == nil && !info.Mode().IsRegular():
		r.file, err = os.OpenFile(r.target, os.O_WRONLY, 0)
		return err
	case err == nil:
		// Renaming would get past a file that is write-protected.
		protected, err := os.OpenFile(r.target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_ = protected.Close()
	}
	r.beside = true
	r.file, err = os.CreateTemp(filepath.Dir(r.target), "."+filepath.Base(r.target)+".*")
	return err
}

// write fills every file, puts it in its place, and says where it is.
func (rs reports) write(t *terminal, report *load.Report) error {
	for _, r := range rs {
		if err := r.fill(report); err != nil {
			return fmt.Errorf("write the report %s: %w", r.name, err)
		}
	}
	for i, r := range rs {
		if i == 0 {
			t.printf("\n")
		}
		t.printf("report: %s\n", absolute(r.name))
	}
	return nil
}

// fill writes the report and puts the file in its place.
func (r *reportFile) fill(report *load.Report) error {
	if err := r.write(r.file, report); err != nil {
		return err
	}
	if !r.beside {
		return r.file.Close()
	}
	if err := errors.Join(r.file.Chmod(0o644), r.file.Close()); err != nil { // for others, too
		return err
	}
	if err := os.Rename(r.file.Name(), r.target); err != nil {
		return err
	}
	r.beside = false // nothing to discard any more
	return nil
}

// discard removes what has not come into its place.
func (rs reports) discard() {
	for _, r := range rs {
		_ = r.file.Close()
		if r.beside {
			_ = os.Remove(r.file.Name()) // an error leaves an empty file behind, and there is nobody to tell
		}
	}
}
