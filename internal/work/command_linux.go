package work

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const hasProgress = true

// group is the processes of a command: a process group, and a cgroup as well where they are delegated to tandem. What
// leaves the process group is still in the cgroup.
type group struct {
	command *command
	request string

	pid  int      // of its first process, and so of the process group
	dir  string   // of its cgroup; "": it has none
	file *os.File // dir, open until the start
}

// prepare says how cmd is to be started.
func (g *group) prepare(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	base := delegated()
	if base == "" {
		return nil
	}
	dir, err := os.MkdirTemp(base, "tandem-")
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	g.dir = dir
	if g.file, err = os.Open(dir); err != nil {
		return fmt.Errorf("open a cgroup: %w", err)
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(g.file.Fd())
	return nil
}

// started bounds what has been started. Where the cgroup cannot do it resource limits do, of each process; what the
// program has done in the moment between is not bounded.
func (g *group) started(cmd *exec.Cmd) {
	g.pid = cmd.Process.Pid
	for _, bound := range []struct {
		most     int64
		file     string
		resource int
	}{
		{g.command.Memory, "memory.max", unix.RLIMIT_DATA}, // RLIMIT_AS counts what is only reserved
		{int64(g.command.Processes), "pids.max", unix.RLIMIT_NPROC},
	} {
		if bound.most == 0 || g.dir != "" && g.write(bound.file, strconv.FormatInt(bound.most, 10)) == nil {
			continue
		}
		limit := unix.Rlimit{Cur: uint64(bound.most), Max: uint64(bound.most)}
		_ = unix.Prlimit(g.pid, bound.resource, &limit, nil) // an error says that it has ended
	}
}

func (g *group) write(file, text string) error {
	return os.WriteFile(filepath.Join(g.dir, file), []byte(text), 0)
}

func (g *group) terminate() { _ = unix.Kill(-g.pid, unix.SIGTERM) }

func (g *group) kill() {
	if g.dir != "" {
		_ = g.write("cgroup.kill", "1")
	}
	_ = unix.Kill(-g.pid, unix.SIGKILL)
}

// wait waits for the first process, and kills the others. Until that process is reaped nothing else can have its
// number; stop is called before, and then nothing but wait may call kill.
func (g *group) wait(cmd *exec.Cmd, stop func()) error {
	for {
		err := unix.Waitid(unix.P_PID, g.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	stop()
	g.kill()
	return cmd.Wait()
}

// sweep kills what has left the process group, where there is no cgroup: by the request in its environment.
func (g *group) sweep() {
	mark := []byte("TANDEM_REQUEST_ID=" + g.request + "\x00")
	for range 10 { // something may be started while we look
		found := false
		entries, _ := os.ReadDir("/proc")
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			process, err := os.FindProcess(pid) // a descriptor, so the number cannot change hands
			if err != nil {
				continue
			}
			environment, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
			if err == nil && bytes.Contains(environment, mark) {
				found = true
				_ = process.Kill()
			}
			_ = process.Release()
		}
		if !found {
			return
		}
	}
}

// close removes the cgroup. Its processes have been killed; until they have ended it is busy.
func (g *group) close() {
	if g.file != nil {
		_ = g.file.Close()
	}
	if g.dir == "" {
		return
	}
	events, err := os.Open(filepath.Join(g.dir, "cgroup.events"))
	if err != nil {
		return
	}
	defer events.Close() //nolint:errcheck // it was only read
	for range 500 {
		_, _ = events.ReadAt(make([]byte, 64), 0) // from here on a change wakes the poll
		if err := os.Remove(g.dir); !errors.Is(err, unix.EBUSY) {
			return
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, 10)
	}
}

// delegated is the folder of the cgroup in which tandem may make others; "": none is delegated to it.
var delegated = sync.OnceValue(func() string { return delegatedTo(os.DirFS("/")) })

// delegatedTo looks for it: the group of this process in the hierarchy of version 2, or the one above it where systemd
// has put tandem into a subgroup (DelegateSubgroup=).
func delegatedTo(root fs.FS) string {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return ""
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return ""
	}
	mount, ours := "", ""
	for line := range strings.Lines(string(mounts)) {
		if before, after, _ := strings.Cut(line, " - "); strings.HasPrefix(after, "cgroup2 ") {
			if fields := strings.Fields(before); len(fields) > 4 {
				mount = cmp.Or(mount, fields[4])
			}
		}
	}
	for line := range strings.Lines(string(groups)) {
		if path, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
			ours = path
		}
	}
	if mount == "" || ours == "" {
		return ""
	}
	dir := filepath.Join(mount, ours)
	mark := make([]byte, 1)
	if n, err := unix.Getxattr(filepath.Dir(dir), "user.delegate", mark); err == nil && n == 1 && mark[0] == '1' {
		dir = filepath.Dir(dir)
	}
	probe, err := os.MkdirTemp(dir, "tandem-")
	if err != nil {
		return ""
	}
	defer os.Remove(probe)                                                  //nolint:errcheck // an empty group costs nothing
	if _, err := os.Stat(filepath.Join(probe, "cgroup.kill")); err != nil { // Linux 5.14
		return ""
	}
	// Groups bound memory and processes only if these are on. That fails where tandem itself is in this group.
	_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids"), 0)
	return dir
}
