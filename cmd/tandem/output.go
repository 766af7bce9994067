package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// output is standard output or standard error, as text for people. It escapes what a terminal might obey,
// and remembers the first write that failed: run turns that into exit code 1. After that it writes nothing.
type output struct {
	name string
	raw  io.Writer // as it is: for escape sequences of our own

	mu     sync.Mutex // guards failed
	failed error      // of the first write that failed
}

func newOutput(name string, w io.Writer) *output { return &output{name: name, raw: w} }

// Write writes a text, whole characters.
func (o *output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		return 0, o.failed
	}
	if _, err := (&plain{o.raw}).Write(text); err != nil {
		if broken, ok := errors.AsType[*fs.PathError](err); ok {
			err = broken.Err // the rest names the device
		}
		o.failed = fmt.Errorf("write %s: %w", o.name, err)
		return 0, o.failed
	}
	return len(text), nil
}

// err is why something that was printed is not there; nil: all of it is.
func (o *output) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

// fileOf is the file that a writer writes to, if it is one.
func fileOf(w io.Writer) (*os.File, bool) {
	if o, ok := w.(*output); ok {
		w = o.raw
	}
	file, ok := w.(*os.File)
	return file, ok
}

// plain escapes what a terminal might obey or show in another order: control characters, marks that nobody
// sees, and bytes that are no UTF-8. In a line of JSON they can stand in strings only, and what is read from
// it is the same.
type plain struct{ w io.Writer }

// Write writes whole characters.
func (p *plain) Write(text []byte) (int, error) {
	if utf8.Valid(text) && !bytes.ContainsFunc(text, hidden) {
		return p.w.Write(text)
	}
	var escaped bytes.Buffer
	for _, r := range string(text) {
		switch {
		case !hidden(r):
			escaped.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&escaped, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&escaped, `\u%04x`, r)
		}
	}
	_, err := p.w.Write(escaped.Bytes())
	return len(text), err
}

// hidden reports whether a character cannot be seen.
func hidden(r rune) bool { return r != '\n' && r != ' ' && !unicode.IsPrint(r) }
