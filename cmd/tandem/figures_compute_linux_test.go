package main_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"tandem/internal/load"
)

// BenchmarkComputeBesideNeighbours: on a machine that others keep busy, what compute in the queue changes
// for the callers of other work, and what it gets. Both in turn, with one neighbour for each core.
func BenchmarkComputeBesideNeighbours(b *testing.B) {
	own, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for range runtime.NumCPU() {
		startCommand(b, exec.Command(own), []string{spinVariable + "=1"})
	}
	const length = 6 * time.Second
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"))
		echo := func() load.Side {
			return *generate(b, load.Config{
				URL: p.url, Phases: []string{load.PhaseSync}, Duration: length, Concurrency: 32, Task: "echo",
			}).Sync
		}
		echo() // warm
		var throughput, p99, cores []float64
		for range rounds {
			alone := echo()
			stop := make(chan struct{}) // closed when nothing is to be computed any more
			var computing sync.WaitGroup
			for range 2 * runtime.NumCPU() {
				computing.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							<-post(p.url+"/sync", `{"task":"compute","data":{"n":1}}`)
						}
					}
				})
			}
			before, start := childrenTime(b, p), time.Now()
			beside := echo()
			cores = append(cores, (childrenTime(b, p)-before).Seconds()/time.Since(start).Seconds())
			close(stop)
			computing.Wait()
			throughput = append(throughput, beside.AcceptedPerSecond/alone.AcceptedPerSecond)
			p99 = append(p99, beside.Response.P99MS/alone.Response.P99MS)
		}
		reachedf(b, "beside neighbours: sync echo, with compute ÷ without",
			"≥ 0.75", "%.2f (rounds %.2f)", median(throughput), throughput)
		reachedf(b, "beside neighbours: its p99, with compute ÷ without",
			"≤ 2", "%.2f (rounds %.2f)", median(p99), p99)
		reachedf(b, "beside neighbours: cores that compute gets", "≥ 0.2", "%.2f (rounds %.2f)", median(cores), cores)
	}
}

// childrenTime is the CPU time so far of all compute processes of a server.
func childrenTime(b *testing.B, p *process) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, pid := range childProcesses(b, p.cmd.Process.Pid) {
		cpu, _ := procStatOf(b, pid)
		sum += cpu
	}
	return sum
}

// BenchmarkComputeProcessMemory: what idle compute processes add to the memory of a server, until they end.
func BenchmarkComputeProcessMemory(b *testing.B) {
	for b.Loop() {
		p := startServe(b, "--db", filepath.Join(b.TempDir(), "tandem.db"))
		closedLoop(b, p.url, 2*runtime.NumCPU(), time.Second,
			postOf("/sync", `{"task":"compute","data":{"n":1}}`), http.StatusOK)
		var sum int64
		children := childProcesses(b, p.cmd.Process.Pid)
		for _, pid := range children {
			_, rss := procStatOf(b, pid)
			sum += rss
		}
		reachedf(b, "resident memory of one idle compute process", "no bound", "%.1f MB",
			float64(sum)/1e6/float64(max(1, len(children))))
	}
}
