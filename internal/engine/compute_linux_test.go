package engine_test

import (
	"runtime"
	"testing"
	"testing/fstest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/internal/engine"
)

// nice is the nice value of the calling thread.
func nice(t *testing.T) int {
	t.Helper()
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	if err != nil {
		t.Fatalf("read the priority: %v", err)
	}
	return 20 - raw // the system call returns 20 - nice
}

// slice is the turn of the calling thread, which is of SCHED_IDLE: Linux tells it of other policies
// only, and keeps it when the policy is changed in this way. It is 0 if we may not change it.
func slice(t *testing.T) time.Duration {
	t.Helper()
	param := struct{ priority int32 }{}
	_, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_BATCH, uintptr(unsafe.Pointer(&param)))
	if errno == unix.EPERM {
		return 0
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if errno != 0 || err != nil {
		t.Fatalf("read the slice: %v, %v", errno, err)
	}
	return time.Duration(attr.Runtime)
}

func TestThreadsHaveTheLowestPriority(t *testing.T) {
	t.Parallel()
	ordinary := nice(t)
	do, stop := engine.StartThreads(2)
	got, policy, turn := 0, uint32(0), time.Duration(0)
	do(func() {
		got = nice(t)
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Errorf("read the scheduling policy: %v", err)
			return
		}
		policy, turn = attr.Policy, slice(t)
	})
	stop()
	want := 19
	if engine.CanYieldByPriority() {
		if got != want || policy != unix.SCHED_IDLE {
			t.Errorf("nice %d and policy %d on a compute thread, want %d and SCHED_IDLE", got, policy, want)
		}
		ours, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if ours.Runtime > 0 && turn != 0 && turn != 100*time.Millisecond { // 0: a kernel that does not let it be chosen
			t.Errorf("a compute thread has a slice of %v, want 100 ms", turn)
		}
	} else if got != ordinary {
		t.Errorf("nice %d on a compute thread under a quota, want %d", got, ordinary)
	}
	// Their priority has ended with them.
	for range 50 {
		after := make(chan int)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			after <- nice(t)
		}()
		if n := <-after; n != ordinary {
			t.Fatalf("nice %d on a thread of the program, want %d", n, ordinary)
		}
	}
}

func TestCPUQuota(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const v2, v1 = "0::/user.slice/app\n", "5:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n"
	for _, tt := range []struct {
		name string
		root fstest.MapFS
		want bool
	}{
		{"nothing to read", fstest.MapFS{}, false},
		{"v2, none", fstest.MapFS{"proc/self/cgroup": file(v2), "sys/fs/cgroup/user.slice/app/cpu.max": file("max 100000\n")}, false},
		{"v2, ours", fstest.MapFS{"proc/self/cgroup": file(v2), "sys/fs/cgroup/user.slice/app/cpu.max": file("150000 100000\n")}, true},
		{"v2, above us", fstest.MapFS{
			"proc/self/cgroup": file(v2), "sys/fs/cgroup/user.slice/app/cpu.max": file("max 100000\n"),
			"sys/fs/cgroup/user.slice/cpu.max": file("50000 100000\n"),
		}, true},
		{"v2, a neighbour's", fstest.MapFS{"proc/self/cgroup": file(v2), "sys/fs/cgroup/user.slice/other/cpu.max": file("50000 100000\n")}, false},
		{"v2, inside a container", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("50000 100000\n")}, true},
		{"v1, none", fstest.MapFS{"proc/self/cgroup": file(v1), "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": file("-1\n")}, false},
		{"v1, ours", fstest.MapFS{"proc/self/cgroup": file(v1), "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": file("50000\n")}, true},
		{"v1, mounted under both names", fstest.MapFS{"proc/self/cgroup": file(v1), "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": file("50000\n")}, true},
		{"v1, another controller", fstest.MapFS{"proc/self/cgroup": file("5:cpuset:/\n"), "sys/fs/cgroup/cpu/cpu.cfs_quota_us": file("50000\n")}, false},
	} {
		if got := engine.HasCPUQuota(tt.root); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
