package work

import (
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// hasProgress is false: a program of Windows has no descriptor 3.
const hasProgress = false

// group is the processes of a command: a job object. What the program starts in the moment before it is in the job is
// not in it.
type group struct {
	command *command
	request string

	pid uint32
	job windows.Handle // 0: there is none
}

// prepare makes the job, which ends its processes when its last handle is closed, that is also when tandem dies.
func (g *group) prepare(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return err
	}
	g.job = job
	bounds := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	bounds.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	if g.command.Memory > 0 {
		bounds.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_JOB_MEMORY
		bounds.JobMemoryLimit = uintptr(g.command.Memory)
	}
	if g.command.Processes > 0 {
		bounds.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
		bounds.BasicLimitInformation.ActiveProcessLimit = uint32(g.command.Processes)
	}
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&bounds)), uint32(unsafe.Sizeof(bounds)))
	return err
}

func (g *group) started(cmd *exec.Cmd) {
	g.pid = uint32(cmd.Process.Pid)
	const access = windows.PROCESS_SET_QUOTA | windows.PROCESS_TERMINATE
	process, err := windows.OpenProcess(access, false, g.pid)
	if err != nil {
		return // it has ended
	}
	defer windows.CloseHandle(process) //nolint:errcheck // nothing is left to do
	_ = windows.AssignProcessToJobObject(g.job, process)
}

// terminate asks the program to end, which those with a console can hear.
func (g *group) terminate() { _ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, g.pid) }

func (g *group) kill() { _ = windows.TerminateJobObject(g.job, 1) }

// wait waits for the first process, and kills the others.
func (g *group) wait(cmd *exec.Cmd, stop func()) error {
	err := cmd.Wait()
	stop()
	g.kill()
	return err
}

func (g *group) sweep() {}

func (g *group) close() {
	if g.job != 0 {
		_ = windows.CloseHandle(g.job)
	}
}
