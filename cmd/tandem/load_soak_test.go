//go:build linux

package main_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"tandem/internal/load"
)

const (
	loadSoakShort = 8 * time.Second // without SOAK_DURATION
	loadSoakRate  = 1000            // requests per second of a long one
)

// TestLoadMemory runs the generator for SOAK_DURATION (8 s when that is not set) and looks at its
// memory: no measurement is kept beyond its histogram, so it is level in the second and the last
// quarter (in 8 s: bounded). Its open files are its connections, as many as the service makes it need.
func TestLoadMemory(t *testing.T) {
	t.Parallel()
	duration, rate := loadSoakShort, soakGentle
	text, long := os.LookupEnv("SOAK_DURATION")
	if long {
		var err error
		if duration, err = time.ParseDuration(text); err != nil || duration < loadSoakShort {
			t.Fatalf("SOAK_DURATION=%q: want a duration of at least %v", text, loadSoakShort)
		}
		rate = loadSoakRate
	} else if testing.Short() {
		t.Skipf("takes %v", loadSoakShort)
	}
	server := startServe(t, "--callback-host-concurrency", "64")
	p := start(t, nil, "load", "--url", server.url, "--phases", load.PhaseMixed, "--sync-ratio", "0.2", "--task", "echo",
		"--rate", strconv.Itoa(rate), "--duration", duration.String(), "--output", "report.json")
	var samples []sample
	tick := time.NewTicker(duration / soakSamples)
	defer tick.Stop()
	for end := time.Now().Add(duration * 19 / 20); time.Now().Before(end); { // while it certainly runs
		select {
		case <-tick.C:
			samples = append(samples, sample{memory: memory(t, p.cmd.Process.Pid, "VmRSS")})
		case <-p.exited:
			t.Fatalf("it ended too early: %v\n%s", p.err, p.stderr.String())
		}
	}
	select {
	case <-p.exited:
	case <-time.After(duration/20 + patience): // the rest of it, and callbacks
	}
	// Beside other tests the generator may be late, and the run INVALID: exit code 3.
	if code := p.exitCode(t); code != 0 && (long || code != 3) {
		t.Fatalf("exit code %d\n%s%s", code, p.stdout.String(), p.stderr.String())
	}
	verdict(t, samples, long)
	report := readLoadReport(t, p, "report.json")
	phase := report.Phases[0]
	sent, planned := phase.Sync.Sent+phase.Async.Sent, int64(float64(rate)*duration.Seconds())
	t.Logf("%v at %d requests per second: %d sent, %d callbacks, own lag p99 %.2f ms, %.0f MB at most",
		duration, rate, sent, phase.Callbacks.Delivered, report.Generator.LagP99MS, float64(report.Generator.MaxMemoryBytes)/1e6)
	if sent != planned || phase.Callbacks.Missing != 0 {
		t.Errorf("%d of %d planned requests sent, %d callbacks missing; want all, none", sent, planned, phase.Callbacks.Missing)
	}
}
