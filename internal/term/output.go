package term

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

	"golang.org/x/term"
)

// The width of lines on a terminal.
const (
	unknownWidth = 80  // of a terminal of unknown width
	maxWidth     = 120 // wider lines are hard to read
)

// Output is standard output or standard error, as text for people. It escapes as [Escape] does, remembers the first
// failed write, and then writes nothing more.
type Output struct {
	name string
	raw  io.Writer

	mu     sync.Mutex // guards failed
	failed error      // of the first failed write
}

// NewOutput returns an output to w; errors call it by name.
func NewOutput(name string, w io.Writer) *Output { return &Output{name: name, raw: w} }

// Raw is the writer below, for escape sequences of our own and for data. It escapes and remembers nothing.
func (o *Output) Raw() io.Writer { return o.raw }

// Write writes a text, whole characters.
func (o *Output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		return 0, o.failed
	}
	if _, err := Escape(o.raw).Write(text); err != nil {
		if broken, ok := errors.AsType[*fs.PathError](err); ok {
			err = broken.Err // the rest names the device
		}
		o.failed = fmt.Errorf("write %s: %w", o.name, err)
		return 0, o.failed
	}
	return len(text), nil
}

// Err returns the first error of a write; nil: everything was written.
func (o *Output) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

// Columns is the width of the terminal, at most 120; 0: this is no terminal, or a dumb one.
func (o *Output) Columns() int {
	file, ok := o.raw.(*os.File)
	if !ok || !IsTerminal(file) || os.Getenv("TERM") == "dumb" || !interpretsEscapes(file) {
		return 0
	}
	if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 {
		return min(columns, maxWidth)
	}
	return unknownWidth
}

// Color reports whether text may be coloured.
func (o *Output) Color() bool { return os.Getenv("NO_COLOR") == "" && o.Columns() > 0 }

// IsTerminal reports whether a reader or writer is a terminal.
func IsTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Escape returns a writer that escapes everything a terminal might obey or reorder: control characters, invisible
// marks, and bytes that are not UTF-8. In a line of JSON these can stand in strings only, and JSON readers get the same
// value. Each Write needs whole characters.
func Escape(w io.Writer) io.Writer { return escaper{w} }

type escaper struct{ w io.Writer }

func (e escaper) Write(text []byte) (int, error) {
	hidden := func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }
	if utf8.Valid(text) && !bytes.ContainsFunc(text, hidden) {
		return e.w.Write(text)
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
	_, err := e.w.Write(escaped.Bytes())
	return len(text), err
}
