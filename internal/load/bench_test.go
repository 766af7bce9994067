//go:build unix

package load_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
		{"hey", []string{"-z", "2s", "-c", "64", "-m", "POST", "-T", "application/json", "-d", rivalBody, url + "/sync"},
			regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)},
		{"wrk", []string{"-t1", "-c64", "-d2s", "-s", "testdata/post.lua", url + "/sync"},
			regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)},
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
			took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			b.ReportMetric(float64(took.Microseconds())/rate/2, other.name+"-cpu-us/req")
		}
		cpu := processCPU(b)
		answers := bareLoop(b, url+"/sync", 64, 2*time.Second)
		b.ReportMetric(float64(answers)/2, "net/http/s")
		b.ReportMetric(float64((processCPU(b)-cpu).Microseconds())/float64(answers), "net/http-cpu-us/req")
		report, err := load.Run(b.Context(),
			load.Config{URL: url, Phases: []string{load.PhaseSync}, Duration: 2 * time.Second, Concurrency: 64})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(report.Phases[0].Sync.AcceptedPerSecond, "tandem/s")
		b.ReportMetric(report.Generator.CPUSeconds*1e6/float64(report.Phases[0].Sync.Sent), "tandem-cpu-us/req")
		b.ReportMetric(report.Phases[0].Sync.Response.P99MS, "p99-ms")
	}
}

// bareLoop is the least that a caller with net/http can do: the same request over and over, the
// answer thrown away, nothing measured. It returns how many were answered.
func bareLoop(b *testing.B, url string, callers int, length time.Duration) int64 {
	transport := &http.Transport{MaxIdleConnsPerHost: callers, DisableCompression: true}
	defer transport.CloseIdleConnections()
	var answers atomic.Int64
	var group sync.WaitGroup
	end := time.Now().Add(length)
	for range callers {
		group.Go(func() {
			for time.Now().Before(end) {
				request, err := http.NewRequest(http.MethodPost, url, strings.NewReader(rivalBody))
				if err != nil {
					b.Error(err)
					return
				}
				response, err := transport.RoundTrip(request)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				answers.Add(1)
			}
		})
	}
	group.Wait()
	return answers.Load()
}

// processCPU is the CPU time of this process so far.
func processCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkOpenLoop holds a schedule of 5,000 a second and tells how late it was.
func BenchmarkOpenLoop(b *testing.B) {
	url := startFloor(b)
	for range b.N {
		report, err := load.Run(context.Background(), load.Config{
			URL: url, Phases: []string{load.PhaseSync}, Duration: 5 * time.Second, Warmup: time.Second, Concurrency: 64,
			Rate: 5000,
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
