package main

import (
	"os"
	"os/signal"
	"syscall"

	"tandem/internal/work"
)

// computeCommand is a child process of the server, for work that computes (see [work.ServeCompute]).
type computeCommand struct{}

// Run works until its standard input ends. Signals are for the server: Ctrl-C and service managers
// send them to its children as well, whose work may finish during the drain.
func (*computeCommand) Run(t *terminal) error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return work.ServeCompute(t.in, t.out.Raw(), work.Builtin())
}

// computeProcess is the command line of a computeCommand; nil: none can be started.
func computeProcess() []string {
	// On Linux this is the program that runs, even if an upgrade has replaced its file.
	program := "/proc/self/exe"
	if _, err := os.Stat(program); err != nil {
		if program, err = os.Executable(); err != nil {
			return nil
		}
	}
	return []string{program, "compute"}
}
