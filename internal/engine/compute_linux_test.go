package engine_test

import (
	"runtime"
	"testing"
	"testing/fstest"

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

func TestThreadsHaveTheLowestPriority(t *testing.T) {
	t.Parallel()
	ordinary := nice(t)
	do, stop := engine.StartThreads(2)
	got, policy := 0, uint32(0)
	do(func() {
		got = nice(t)
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Errorf("read the scheduling policy: %v", err)
			return
		}
		policy = attr.Policy
	})
	stop()
	want := 19
	if engine.CanYieldByPriority() {
		if got != want || policy != unix.SCHED_IDLE {
			t.Errorf("nice %d and policy %d on a compute thread, want %d and SCHED_IDLE", got, policy, want)
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
