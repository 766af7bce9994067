//go:build unix && !linux

package work

import (
	"os/exec"
	"syscall"
)

const hasProgress = true

// group is the processes of a command: a process group. What leaves it is not ended with it, and no bounds hold for
// memory and processes: this system has no way to set them for another process.
type group struct {
	command *command
	request string

	pid int // of its first process, and so of the process group
}

// prepare says how cmd is to be started.
func (g *group) prepare(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return nil
}

func (g *group) started(cmd *exec.Cmd) { g.pid = cmd.Process.Pid }

func (g *group) terminate() { _ = syscall.Kill(-g.pid, syscall.SIGTERM) }

func (g *group) kill() { _ = syscall.Kill(-g.pid, syscall.SIGKILL) }

// wait waits for the first process, and kills the others.
func (g *group) wait(cmd *exec.Cmd, stop func()) error {
	err := cmd.Wait()
	stop()
	g.kill()
	return err
}

func (g *group) sweep() {}

func (g *group) close() {}
