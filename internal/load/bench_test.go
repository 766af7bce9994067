package load_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/internal/load"
)

// startFloor runs this test binary as a bare net/http server in a process of its own and returns its address.
func startFloor(tb testing.TB) string {
	tb.Helper()
	own, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(own)
	cmd.Env = append(os.Environ(), floorVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return "http://" + strings.TrimSpace(line)
}

// rival is another generator and how its answer is read.
type rival struct {
	name string
	args []string
	rate *regexp.Regexp
}

const rivalBody = `{"complexity":1,"data":{"number":1234}}`

// rivals: hey is a Go module (github.com/rakyll/hey), wrk a package of Debian.
func rivals(url string) []rival {
	return []rival{
		{"hey", []string{"-z", "2s", "-c", "64", "-m", "POST", "-T", "application/json", "-d", rivalBody, url + "/sync"}, regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)},
		{"wrk", []string{"-t1", "-c64", "-d2s", "-s", "testdata/post.lua", url + "/sync"}, regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)},
	}
}

// BenchmarkClosedLoop compares the requests per second of 64 connections against
// a bare net/http handler with those of other generators, in turn. Those that are not installed are left out.
func BenchmarkClosedLoop(b *testing.B) {
	url := startFloor(b)
	for range b.N {
		for _, other := range rivals(url) {
			path, err := exec.LookPath(other.name)
			if err != nil {
				b.Logf("%s is not installed", other.name)
				continue
			}
			cmd := exec.Command(path, other.args...)
			out, err := cmd.Output()
			match := other.rate.FindSubmatch(out)
			if err != nil || match == nil {
				b.Fatalf("%s: %v\n%s", other.name, err, out)
			}
			rate, err := strconv.ParseFloat(string(match[1]), 64)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(rate, other.name+"/s")
			cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			b.ReportMetric(float64(cpu.Microseconds())/rate/2, other.name+"-cpu-us/req")
		}
		report, err := load.Run(b.Context(), load.Config{URL: url, Phases: []string{load.PhaseSync}, Duration: 2 * time.Second, Concurrency: 64})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(report.Phases[0].Sync.AcceptedPerSecond, "tandem/s")
		b.ReportMetric(report.Generator.CPUSeconds*1e6/float64(report.Phases[0].Sync.Sent), "tandem-cpu-us/req")
		b.ReportMetric(report.Phases[0].Sync.Response.P99MS, "p99-ms")
	}
}

// BenchmarkOpenLoop holds a schedule of 5,000 a second and tells how late it was.
func BenchmarkOpenLoop(b *testing.B) {
	url := startFloor(b)
	for range b.N {
		report, err := load.Run(context.Background(), load.Config{
			URL: url, Phases: []string{load.PhaseSync}, Duration: 5 * time.Second, Warmup: time.Second, Concurrency: 64, Rate: 5000,
		})
		if err != nil {
			b.Fatal(err)
		}
		phase := report.Phases[0]
		b.ReportMetric(phase.Lag.P50MS, "lag-p50-ms")
		b.ReportMetric(phase.Lag.P99MS, "lag-p99-ms")
		b.ReportMetric(phase.OwnLag.P99MS, "own-lag-p99-ms")
		b.ReportMetric(phase.Sync.AcceptedPerSecond, "req/s")
		b.ReportMetric(100*report.Generator.CPUShare*float64(runtime.NumCPU()), "cpu-%")
	}
}
