//go:build linux

package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/receiver"
)

const (
	soakShort   = 15 * time.Second // without SOAK_DURATION
	soakCallers = 32               // callers who wait for an answer at the same time, at most
	soakGentle  = 150              // requests per second of a short soak, which shares the machine with other tests
	soakTrial   = 5 * time.Second  // at full load, to find what half of it is
	soakSamples = 200              // in all
)

// TestSoak runs the real binary on a file for SOAK_DURATION, at half the load that
// it can take (15 s at a gentle load when that is not set), and compares memory,
// goroutines and open files in the second and in the last quarter: they stay level
// (in 15 s: bounded).
func TestSoak(t *testing.T) {
	t.Parallel()
	duration := soakShort
	text, long := os.LookupEnv("SOAK_DURATION")
	if long {
		var err error
		if duration, err = time.ParseDuration(text); err != nil || duration < soakShort {
			t.Fatalf("SOAK_DURATION=%q: want a duration of at least %v", text, soakShort)
		}
	} else if testing.Short() {
		t.Skipf("takes %v", soakShort)
	}
	secret := tandem.NewSecret()
	database := filepath.Join(t.TempDir(), "soak.db")
	p := start(t, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, "serve", "--listen", "127.0.0.1:0", "--db", database,
		"--callback-backoff", "100ms", "--callback-host-concurrency", "64")
	p.awaitReady(t)
	s := newSoak(t, p, secret)

	rate := float64(soakGentle)
	if long {
		begun := time.Now()
		s.run(t.Context(), soakTrial, 1e6, 0)
		s.drain(t)
		rate = float64(s.served()) / time.Since(begun).Seconds() / 2
		s.late.Store(0)
	}
	t.Logf("%v at %.0f requests per second", duration, rate)
	var sampling sync.WaitGroup
	var samples []sample
	ctx, stop := context.WithCancel(t.Context())
	sampling.Go(func() { samples = s.sample(ctx, t, duration/soakSamples) })
	enough := s.served() + int64(duration.Seconds()*rate/2)
	s.run(ctx, duration, rate, enough)
	stop()
	sampling.Wait()
	s.drain(t)

	verdict(t, samples, long)
	counts := s.receiver.Counts()
	t.Logf("%d async accepted, %d sync answered, %d not sent in time, %d refused, %d callbacks of which %d repeats",
		s.accepted.Load(), s.answered.Load(), s.late.Load(), s.refused.Load(), counts.Received, counts.Duplicates)
	if lost := s.accepted.Load() - s.doomed.Load() - counts.Delivered; lost != 0 || counts.BadSignature+counts.Malformed > 0 {
		t.Errorf("%d callbacks did not come; %+v", lost, counts)
	}
	if served := s.served(); served < enough {
		t.Errorf("%d requests served, want %d at the least: too few to show anything", served, enough)
	}
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
}

// soak is the load and what came of it.
type soak struct {
	p        *process
	client   *http.Client
	receiver *receiver.Receiver
	good     string // where callbacks go
	broken   string // where some go that are answered 404 every time

	accepted, doomed, answered, refused, late atomic.Int64
}

func newSoak(t *testing.T, p *process, secret tandem.Secret) *soak {
	t.Helper()
	s := &soak{p: p, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: soakCallers}, Timeout: patience}}
	var err error
	if s.receiver, err = receiver.New(receiver.Config{Secret: secret, MaxKeys: 10_000_000}); err != nil {
		t.Fatal(err)
	}
	good := httptest.NewServer(s.receiver)
	t.Cleanup(good.Close)
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
	t.Cleanup(broken.Close)
	t.Cleanup(s.client.CloseIdleConnections)
	s.good, s.broken = good.URL+"/soak", broken.URL+"/soak"
	return s
}

// served is how many requests have had the answer that they asked for.
func (s *soak) served() int64 { return s.accepted.Load() + s.answered.Load() }

// run asks for work at a rate for so long, and longer on a machine that is too busy to serve enough requests in that
// time.
func (s *soak) run(ctx context.Context, duration time.Duration, rate float64, enough int64) {
	ctx, cancel := context.WithTimeout(ctx, duration+crashPatience)
	defer cancel()
	turns := make(chan int, soakCallers)
	var callers sync.WaitGroup
	for range soakCallers {
		callers.Go(func() {
			for n := range turns {
				s.call(n)
			}
		})
	}
	defer callers.Wait()
	defer close(turns)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if time.Since(begun) > duration && s.served() >= enough {
			return
		}
		for due := int(time.Since(begun).Seconds() * rate); n < due; n++ {
			select {
			case turns <- n:
			default:
				s.late.Add(int64(due - n)) // every caller waits: these are not sent any more
				n = due - 1
			}
		}
	}
}

// call sends one order: every tenth is sync, every fiftieth cannot be delivered,
// every hundredth is refused.
func (s *soak) call(n int) {
	path, callback, body := "/async", s.good, `{"data":{"n":%d},"task":"echo","callback_url":%q}`
	switch {
	case n%100 == 99:
		body = `{"data":{},"n":%d,"callback_url":%q}`
	case n%50 == 48:
		callback = s.broken
	case n%10 == 7:
		path = "/sync"
	}
	response, err := s.client.Post(s.p.url+path, "application/json", strings.NewReader(fmt.Sprintf(body, n, callback)))
	if err != nil {
		return
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	switch {
	case err != nil:
	case response.StatusCode == http.StatusAccepted:
		if callback == s.broken {
			s.doomed.Add(1)
		}
		s.accepted.Add(1)
	case response.StatusCode == http.StatusOK:
		s.answered.Add(1)
	default:
		s.refused.Add(1)
	}
}

// sample is one look at the process.
type sample struct{ memory, goroutines, files int64 }

// sample looks at the process every so often, until ctx ends.
func (s *soak) sample(ctx context.Context, t *testing.T, every time.Duration) (samples []sample) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return samples
		}
		stats, err := s.stats()
		files, failed := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.p.cmd.Process.Pid))
		if err := errors.Join(err, failed); err != nil {
			t.Errorf("look at the process: %v", err)
			return samples
		}
		samples = append(samples, sample{memory(t, s.p.cmd.Process.Pid, "VmRSS"), stats.System.Goroutines, int64(len(files))})
	}
}

// soakStats is what a soak reads of /stats.
type soakStats struct {
	System struct {
		Goroutines int64 `json:"goroutines"`
	} `json:"system"`
}

func (s *soak) stats() (stats soakStats, err error) {
	response, err := s.client.Get(s.p.url + "/stats")
	if err != nil {
		return stats, err
	}
	defer response.Body.Close()
	return stats, json.NewDecoder(response.Body).Decode(&stats)
}

// drain waits until nothing is left to do.
func (s *soak) drain(t *testing.T) {
	t.Helper()
	(&crash{url: s.p.url, client: s.client}).drain(t)
}

// verdict compares the medians of the second and the last quarter. A short soak,
// which is not warm before it ends and shares the machine, only has to stay bounded.
func verdict(t *testing.T, samples []sample, long bool) {
	t.Helper()
	quarter := len(samples) / 4
	if quarter < 5 {
		t.Fatalf("%d samples: too few to tell", len(samples))
	}
	for _, figure := range []struct {
		name  string
		of    func(sample) int64
		unit  int64
		slack int64 // that is no growth, beside a tenth
		bound int64 // of a short soak
	}{
		{"memory (MiB)", func(s sample) int64 { return s.memory }, 1 << 20, 16 << 20, 256 << 20},
		{"goroutines", func(s sample) int64 { return s.goroutines }, 1, 64, 2000},
		{"open files", func(s sample) int64 { return s.files }, 1, 32, 512},
	} {
		median := func(part []sample) int64 {
			values := make([]int64, len(part))
			for i, sample := range part {
				values[i] = figure.of(sample)
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		early, late := median(samples[quarter:2*quarter]), median(samples[3*quarter:])
		if early == 0 && late == 0 {
			continue // not looked at
		}
		word := "level"
		switch {
		case !long && late > figure.bound:
			t.Errorf("%s: %d, want %d at the most", figure.name, late/figure.unit, figure.bound/figure.unit)
		case !long:
			word = "bounded"
		case late > early+early/10+figure.slack:
			word = "GROWS"
			t.Errorf("%s: %d in the second quarter, %d in the last", figure.name, early/figure.unit, late/figure.unit)
		}
		t.Logf("%-13s %6d in the second quarter, %6d in the last: %s", figure.name, early/figure.unit, late/figure.unit, word)
	}
}
