// Command tandem does slow work for its callers in two ways: while they wait,
// or afterwards with a signed callback.
//
// Each command has a file of its own; config.go reads flags, environment and
// configuration file; package app puts the parts together. Nothing but main ends the process.
// Exit codes:
//
//	0        ok; for serve and sink, also a clean stop after SIGINT or SIGTERM
//	1        it could not run, or its output could not be written
//	2        bad arguments, environment or configuration file
//	3        a threshold or a check failed, or a measurement was invalid
//	130/143  SIGINT or SIGTERM ended it before it was done
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"tandem/internal/app"
	"tandem/internal/term"
)

// The exit codes besides 0. An interruption has 128 and the number of its signal.
const (
	exitCannotRun   = 1
	exitBadArgument = 2
	exitCheckFailed = 3
)

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run carries out one command line, which begins with the program's name, and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, signals := watchSignals()
	defer signals.stop()
	unsetEmptyVariables()
	t := &terminal{
		in: os.Stdin, out: term.NewOutput("standard output", stdout), err: term.NewOutput("standard error", stderr),
		program: invocation(args[0]), halt: signals.second, unguarded: signals.suspended,
	}
	err := dispatch(ctx, args[1:], t)
	if err == nil {
		err = cmp.Or(t.out.Err(), t.err.Err())
	}
	if err == nil {
		return 0
	}
	if broken := t.out.Err(); errors.Is(broken, syscall.EPIPE) && errors.Is(err, broken) {
		return exitCannotRun // the reader has left, as head(1) does, and knows
	}
	failure := asFailure(err)
	if !failure.silent {
		fmt.Fprintln(t.err, "tandem:", failure.err)
	}
	if failure.hint != "" {
		fmt.Fprintln(t.err, "hint:", failure.hint)
	}
	return failure.code
}

// unsetEmptyVariables unsets empty TANDEM_ variables: container files and scripts often pass variables on
// that have no value.
func unsetEmptyVariables() {
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); value == "" && strings.HasPrefix(name, "TANDEM_") {
			os.Unsetenv(name) //nolint:errcheck // a name that is set can be unset
		}
	}
}

// terminal is what a command has of the world outside.
type terminal struct {
	in        io.Reader
	out, err  *term.Output
	program   string          // how to call tandem once more, in lines that are meant to be pasted
	halt      <-chan struct{} // closed by the second signal: stop at once
	unguarded func(func())    // calls a function during which a signal ends the process, as it does by default
}

// goRun matches the temporary folder and the cache in which `go run` keeps what it has built.
var goRun = regexp.MustCompile(`/go-build\d*/`)

// invocation is how the shell that called the program finds it again: by its short name, as it was
// typed, or in the way of the README when `go run` built it in a folder that will be gone.
func invocation(name string) string {
	if goRun.MatchString(filepath.ToSlash(name)) {
		return "go run ./cmd/tandem"
	}
	short := filepath.Base(name)
	if found, err := exec.LookPath(short); err == nil && found == name {
		return short
	}
	return name
}

// printf writes to standard output, which remembers whether that worked.
func (t *terminal) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// table writes rows to standard output, laid out as [term.Page.Table] does.
func (t *terminal) table(widths []int, rows [][]string) {
	var p term.Page
	p.Table(widths, rows)
	t.printf("%s", &p)
}

// warnf writes a warning to standard error, one line.
func (t *terminal) warnf(format string, args ...any) {
	fmt.Fprintf(t.err, "warning: "+format+"\n", args...)
}

// failure is an error that knows its exit code.
type failure struct {
	code   int
	err    error
	hint   string // what to do about it; ""
	silent bool   // everything was said already
}

// Error returns the text of the cause.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

// badArgument is a failure with exit code 2.
func badArgument(hint, format string, args ...any) error {
	return &failure{code: exitBadArgument, err: fmt.Errorf(format, args...), hint: hint}
}

// asFailure finds the exit code of err: its own, that of its kind, that of the signal that caused
// it, or 1.
func asFailure(err error) *failure {
	if failed, ok := errors.AsType[*failure](err); ok {
		return failed
	}
	if ours, ok := errors.AsType[*app.Error](err); ok {
		code := exitCannotRun
		if ours.Invalid {
			code = exitBadArgument
		}
		return &failure{code: code, err: err, hint: ours.Hint}
	}
	if stopped, ok := errors.AsType[interruption](err); ok {
		return &failure{code: stopped.code(), err: stopped}
	}
	return &failure{code: exitCannotRun, err: err}
}

// interruption is the cause of a context that a signal ended.
type interruption struct{ signal os.Signal }

// Error says which signal came.
func (i interruption) Error() string { return "stopped by signal: " + i.signal.String() }

// code is 128 and the number of the signal, as shells have it.
func (i interruption) code() int {
	if number, ok := i.signal.(syscall.Signal); ok {
		return 128 + int(number)
	}
	return exitCannotRun
}

// sameSignal is how long further signals are taken for the first one: timeout(1)
// and some supervisors signal the process and then its group, and mean one stop.
const sameSignal = 500 * time.Millisecond

// signals turns SIGINT and SIGTERM into requests to stop: the first politely, the
// second at once. A third one finds the default behaviour and ends the process.
type signals struct {
	incoming chan os.Signal
	second   chan struct{} // closed by the second one
	quit     chan struct{} // closed by stop
	done     sync.WaitGroup
}

// watchSignals also returns a context, which the first signal ends with an
// interruption as its cause.
func watchSignals() (context.Context, *signals) {
	first, cancel := context.WithCancelCause(context.Background())
	s := &signals{incoming: make(chan os.Signal, 2), second: make(chan struct{}), quit: make(chan struct{})}
	s.notify()
	// A reader of our output that goes away is an error of the write. Unless SIGPIPE is notified, Go ends
	// the process when that is standard output or standard error, even if our parent ignores the signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	s.done.Go(func() {
		defer signal.Stop(s.incoming)
		defer cancel(nil)
		var stopping time.Time // when the first came
		for {
			select {
			case sig := <-s.incoming:
				if stopping.IsZero() {
					stopping = time.Now()
					cancel(interruption{sig})
				} else if time.Since(stopping) > sameSignal {
					close(s.second)
					return
				}
			case <-s.quit:
				return
			}
		}
	})
	return first, s
}

// notify asks for the signals.
func (s *signals) notify() { signal.Notify(s.incoming, os.Interrupt, syscall.SIGTERM) }

// suspended calls f, during which signals have their default behaviour: what waits for a
// person at a terminal cannot be stopped in any other way.
func (s *signals) suspended(f func()) {
	signal.Stop(s.incoming)
	defer s.notify()
	f()
}

// stop gives the signals their default behaviour back.
func (s *signals) stop() {
	close(s.quit)
	s.done.Wait()
}
