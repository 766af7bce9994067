package work_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"tandem/internal/work"
)

// schedulingTask reports how the computing thread is scheduled.
func schedulingTask() work.Task {
	return work.Task{Name: "scheduling", Class: work.CPU,
		Run: work.JSON(func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
			attr, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				return nil, err
			}
			return json.Marshal(attr)
		})}
}

// The priority is low, and not the lowest: beside busy programs SCHED_IDLE stands still.
func TestComputeProcessHasLowPriority(t *testing.T) {
	t.Parallel()
	ours, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(t, computeProcess(t), 1)
	result, err := do(t.Context(), pool.Task(schedulingTask()), `{}`)
	if err != nil {
		t.Fatal(err)
	}
	var got unix.SchedAttr
	if err := json.Unmarshal(result, &got); err != nil {
		t.Fatal(err)
	}
	if want := min(ours.Nice+work.ComputeNice, 19); got.Nice != want || got.Policy == unix.SCHED_IDLE {
		t.Errorf("nice %d and policy %d, want nice %d and not SCHED_IDLE", got.Nice, got.Policy, want)
	}
	known := ours.Runtime > 0 // false: before Linux 6.12
	if known && got.Policy == unix.SCHED_BATCH && got.Runtime != uint64(work.ComputeSlice) {
		t.Errorf("a slice of %d ns, want %v", got.Runtime, work.ComputeSlice)
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
		if got := work.CPUQuota(tt.root); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
