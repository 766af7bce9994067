package load_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/load"
	"tandem/internal/receiver"
)

// TestCallbacksAreCountedExactly: 7 % of the callbacks never come, 3 % come twice, one is forged.
func TestCallbacksAreCountedExactly(t *testing.T) {
	t.Parallel()
	const n, forged = 1000, 501
	f := (&fake{
		callbacks: func(n int64) int {
			switch {
			case n%100 < 7:
				return 0
			case n%100 >= 97:
				return 2
			default:
				return 1
			}
		},
		damage: func(n int64, header http.Header) {
			if n == forged+10 {
				header.Set(tandem.HeaderWebhookSignature, "v1,AAAA")
			}
		},
	}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseAsync}, Requests: n, Drain: 2 * time.Second})
	phase := report.Phases[0]
	got := *phase.Callbacks
	got.BeforeAnswer = 0 // a callback may overtake its 202 here; TestCallbackBeforeAnswer makes sure that it does
	want := load.Callbacks{
		Expected: n, Delivered: n*93/100 - 1, Missing: n*7/100 + 1, Duplicate: n * 3 / 100, BadSignature: 1,
		MissingSampled: n*7/100 + 1, MissingByStatus: map[string]int64{"pending": n*7/100 + 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("callbacks (-want +got)\n%s", diff)
	}
	side := phase.Async
	if side.Sent != n || side.Accepted != n || side.Completed != want.Delivered || side.SuccessRatePercent != 92.9 ||
		len(side.Errors) != 0 {
		t.Errorf("side: %+v", side)
	}
	for name, latency := range map[string]*load.Latency{"end to end": side.EndToEnd, "processing": side.Processing,
		"delivery": side.DeliveryLag} {
		if latency == nil || latency.Count != want.Delivered {
			t.Errorf("%s: %+v, want one value for each of %d callbacks", name, latency, want.Delivered)
		}
	}
	if p := side.Processing.P50MS; p < 3.99 || p > 4.01 {
		t.Errorf("processing p50 %v, want the 4 ms that the callbacks say", p)
	}
	var sent, accepted, completed int64
	for _, step := range side.Series {
		sent, accepted, completed = sent+step.Sent, accepted+step.Accepted, completed+step.Completed
	}
	if sent != n || accepted != n || completed != want.Delivered {
		t.Errorf("the series adds up to %d sent, %d accepted, %d completed", sent, accepted, completed)
	}
	if phase.WallSeconds-phase.SendSeconds < 2 {
		t.Errorf("wall %v s, sending %v s: the drain of 2 s belongs to the former only", phase.WallSeconds, phase.SendSeconds)
	}
}

// TestCallbackBeforeAnswer: every callback comes before the 202.
func TestCallbackBeforeAnswer(t *testing.T) {
	t.Parallel()
	f := (&fake{early: true}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseAsync}, Requests: 50})
	want := load.Callbacks{Expected: 50, Delivered: 50, BeforeAnswer: 50}
	if diff := cmp.Diff(want, *report.Phases[0].Callbacks); diff != "" {
		t.Errorf("callbacks (-want +got)\n%s", diff)
	}
	if end := report.Phases[0].Async.EndToEnd; end == nil || end.Count != 50 {
		t.Errorf("end to end: %+v, want 50 values", end)
	}
}

// TestNoCallbacks: a server that never calls back. Everything is missing, and the report says so.
func TestNoCallbacks(t *testing.T) {
	t.Parallel()
	f := (&fake{callbacks: func(int64) int { return 0 }}).start(t)
	missing, err := load.ParseThreshold("async.missing==0")
	if err != nil {
		t.Fatal(err)
	}
	report := f.run(t, load.Config{
		Phases: []string{load.PhaseAsync}, Requests: 30, Drain: 10 * time.Millisecond, Thresholds: []load.Threshold{missing},
	})
	got := *report.Phases[0].Callbacks
	want := load.Callbacks{Expected: 30, Missing: 30, MissingSampled: 30, MissingByStatus: map[string]int64{"pending": 30}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("callbacks (-want +got)\n%s", diff)
	}
	side := report.Phases[0].Async
	if side.Accepted != 30 || side.Completed != 0 || side.CompletedPerSecond != 0 || side.SuccessRatePercent != 0 ||
		side.EndToEnd != nil {
		t.Errorf("side: %+v, want 30 accepted and nothing completed", side)
	}
	if len(report.Thresholds) != 1 || report.Thresholds[0].Pass || report.Thresholds[0].Value != 30 {
		t.Errorf("thresholds: %+v, want one that fails with 30", report.Thresholds)
	}
	var text strings.Builder
	if err := load.WriteText(&text, report); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "missing") {
		t.Errorf("the table does not speak of what is missing:\n%s", text.String())
	}
}

// TestLateCallbacks: callbacks of the first phase come during the second.
func TestLateCallbacks(t *testing.T) {
	t.Parallel()
	f := (&fake{callbacks: func(int64) int { return 0 }}).start(t)
	f.post = func(_ http.ResponseWriter, r *http.Request, n int64) bool {
		if r.URL.Path == "/sync" { // the second phase: now they come
			f.mu.Lock()
			urls := f.urls
			f.urls = nil
			f.mu.Unlock()
			for i, url := range urls {
				f.send(url, fmt.Sprint("req_", n, i), n, 1)
			}
		}
		return false
	}
	report := f.run(t, load.Config{Phases: []string{load.PhaseAsync, load.PhaseSync}, Requests: 10})
	got := *report.Phases[0].Callbacks
	got.MissingByStatus = nil
	want := load.Callbacks{Expected: 10, Missing: 10, Late: 10, MissingSampled: 10}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("callbacks (-want +got)\n%s", diff)
	}
	if report.Phases[1].Callbacks != nil {
		t.Errorf("the sync phase has callbacks: %+v", report.Phases[1].Callbacks)
	}
}

// TestInterrupted: a run that is stopped in the middle reports what it has.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := (&fake{post: func(_ http.ResponseWriter, r *http.Request, n int64) bool {
		if n < 20 {
			return false
		}
		cancel()
		<-r.Context().Done()
		return true
	}}).start(t)
	threshold, err := load.ParseThreshold("sync.errors==0")
	if err != nil {
		t.Fatal(err)
	}
	report, err := load.Run(ctx, load.Config{
		URL: f.url, Requests: 1000, Concurrency: 4, Drain: time.Hour, Thresholds: []load.Threshold{threshold},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Interrupted || len(report.Thresholds) != 0 || len(report.Phases) != 1 {
		t.Errorf("interrupted %t, %d thresholds, %d phases; want true, none, one", report.Interrupted, len(report.Thresholds),
			len(report.Phases))
	}
	// 3 callers may still have been reading one of the 19 answers.
	if side := report.Phases[0].Sync; side.Accepted < 16 || side.Accepted > 19 || side.Sent != side.Accepted ||
		len(side.Errors) != 0 {
		t.Errorf("%d accepted, %d sent, errors %v; want the 19 that were answered, and no error for those that were cut off",
			side.Accepted, side.Sent, side.Errors)
	}
}

// TestInterruptedDrain: an interruption does not wait for callbacks.
func TestInterruptedDrain(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := (&fake{callbacks: func(int64) int { return 0 }}).start(t)
	report, err := load.Run(ctx, load.Config{
		URL: f.url, Phases: []string{load.PhaseAsync}, Requests: 5, Concurrency: 4, Drain: time.Hour,
		Progress: func(p load.Progress) {
			if p.Draining {
				cancel()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Phases[0].Callbacks; !report.Interrupted || got.Expected != 5 || got.Missing != 5 {
		t.Errorf("interrupted %t, callbacks %+v", report.Interrupted, got)
	}
}

// TestErrorsByCategory: each kind of failure has its name and its number.
func TestErrorsByCategory(t *testing.T) {
	t.Parallel()
	f := (&fake{post: func(w http.ResponseWriter, r *http.Request, n int64) bool {
		switch n {
		case 1:
			<-r.Context().Done() // until the caller's timeout
		case 2:
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			conn.Close()
		case 3:
			w.WriteHeader(http.StatusTooManyRequests)
		case 4:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 5:
			http.Error(w, `{"code":"INVALID_INPUT","detail":"data is empty"}`, http.StatusBadRequest)
		case 6:
			http.Error(w, `{"code":"TASK_FAILED"}`, http.StatusBadGateway)
		case 7:
			fmt.Fprint(w, "hello")
		case 8:
			fmt.Fprint(w, `{"result":{}}`)
		default:
			return false
		}
		return true
	}}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseSync}, Requests: 20, Concurrency: 1,
		Timeout: 2 * time.Second})
	side := report.Phases[0].Sync
	want := map[string]int64{"timeout": 1, "connect": 1, "http_429": 1, "http_503": 1, "http_400": 1, "http_502": 1,
		"bad_body": 2}
	if diff := cmp.Diff(want, side.Errors); diff != "" {
		t.Errorf("errors (-want +got)\n%s", diff)
	}
	if side.Sent != 20 || side.Accepted != 12 || side.WorkFailed != 1 || side.SuccessRatePercent != 60 ||
		side.Response.Count != 12 {
		t.Errorf("side: %+v", side)
	}
	if warnings := strings.Join(report.Warnings, "\n"); !strings.Contains(warnings, "INVALID_INPUT: data is empty") {
		t.Errorf("the warnings do not quote the first http_400:\n%s", warnings)
	}
}

// TestRespectsRefusals: a run that respects refusals waits as it is told, and loses nothing.
func TestRespectsRefusals(t *testing.T) {
	t.Parallel()
	var last atomic.Int64
	f := (&fake{post: func(w http.ResponseWriter, _ *http.Request, n int64) bool {
		switch n {
		case 3:
			last.Store(time.Now().UnixNano())
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		case 4:
			if waited := time.Now().UnixNano() - last.Load(); waited < int64(time.Second) {
				t.Errorf("asked again after %v, want the second that Retry-After says", time.Duration(waited))
			}
		case 6: // nothing remains: the next request waits without having been refused
			last.Store(time.Now().UnixNano())
			w.Header().Set("RateLimit", `"post";r=0;t=1`)
		case 7:
			if waited := time.Now().UnixNano() - last.Load(); waited < int64(time.Second) {
				t.Errorf("the next came after %v, want the second that RateLimit says", time.Duration(waited))
			}
		}
		return false
	}}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseSync}, Requests: 10, Concurrency: 1,
		On429: load.On429Respect})
	side := report.Phases[0].Sync
	if side.Sent != 10 || side.Retried != 1 || side.Accepted != 10 || side.Errors["http_429"] != 1 ||
		side.SuccessRatePercent != 100 {
		t.Errorf("side: %+v, want 10 sent, one of them twice, and all accepted", side)
	}
	if side.Response.MaxMS < 1000 || side.Service.MaxMS >= 1000 {
		t.Errorf("response max %v ms, service max %v ms: the wait belongs to the former only", side.Response.MaxMS,
			side.Service.MaxMS)
	}
}

// TestRefusalsWithoutEnd: a service that wants to be left alone for longer than a run
// waits, or than a phase is long, is left alone, in all phases.
func TestRefusalsWithoutEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		after    string
		duration time.Duration
	}{"longer than is waited": {"3600", time.Hour}, "longer than the phase": {"60", 10 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := (&fake{post: func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
				w.Header().Set("Retry-After", test.after)
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}}).start(t)
			report := f.run(t, load.Config{
				Phases: []string{load.PhaseAsync, load.PhaseSync}, Duration: test.duration, Concurrency: 1,
				On429: load.On429Respect, Drain: time.Hour,
			})
			side := report.Phases[0].Async
			if side.Sent != 1 || side.Retried != 0 || side.Errors["http_503"] != 1 || report.Phases[0].Callbacks.Expected != 0 {
				t.Errorf("side: %+v, callbacks %+v", side, report.Phases[0].Callbacks)
			}
			if side := report.Phases[1].Sync; side.Sent != 0 || f.asked.Load() != 1 {
				t.Errorf("%d POSTs, want one: the service asks to be left alone", f.asked.Load())
			}
			if report.Valid || !strings.Contains(strings.Join(report.Warnings, "\n"), "left alone") {
				t.Errorf("valid %t, warnings %q: nothing was accepted, and why", report.Valid, report.Warnings)
			}
		})
	}
}

// TestPoll: where nobody can call us, results are seen by polling and nothing counts as delivered.
func TestPoll(t *testing.T) {
	t.Parallel()
	var polled atomic.Int64
	f := (&fake{callbacks: func(int64) int { return 0 }}).start(t)
	f.post = func(w http.ResponseWriter, _ *http.Request, n int64) bool {
		if n == 1 {
			polled.Store(time.Now().UnixNano())
		}
		w.Header().Set("Retry-After", "1")
		return false
	}
	f.polled = func(id string) {
		if early := polled.Load() + int64(time.Second) - time.Now().UnixNano(); id == "req_1" && early > 0 {
			t.Errorf("polled %v before the second that Retry-After says", time.Duration(early))
		}
	}
	progress := func(load.Progress) { // what was accepted is finished, but for the fifth
		f.mu.Lock()
		defer f.mu.Unlock()
		for id := range f.statuses {
			if id != "req_5" {
				f.statuses[id] = string(tandem.StatusCallbackFailed)
			}
		}
	}
	report := f.run(t, load.Config{
		Phases: []string{load.PhaseAsync}, Requests: 6, Concurrency: 2, Drain: 3 * time.Second,
		Callback: load.CallbackConfig{Poll: true}, Progress: progress,
	})
	want := load.Callbacks{Expected: 6, Polled: 5, Missing: 1, MissingSampled: 1,
		MissingByStatus: map[string]int64{"pending": 1}}
	if diff := cmp.Diff(want, *report.Phases[0].Callbacks); diff != "" {
		t.Errorf("callbacks (-want +got)\n%s", diff)
	}
	if side := report.Phases[0].Async; side.Completed != 5 || side.EndToEnd.Count != 5 || side.DeliveryLag != nil {
		t.Errorf("side: %+v", side)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, url := range f.urls {
		if !strings.HasPrefix(url, "https://tandem-load.invalid/") {
			t.Errorf("callback_url %s could reach somebody", url)
		}
	}
	if !strings.Contains(strings.Join(report.Warnings, "\n"), "tandem-load.invalid") ||
		report.Settings.Completion != "poll" {
		t.Errorf("the report does not say that it polled: %q", report.Warnings)
	}
}

// TestMisbehavingReceiver: what the receiver refuses on purpose is sent again and counts once.
func TestMisbehavingReceiver(t *testing.T) {
	t.Parallel()
	f := (&fake{callbacks: func(int64) int { return 20 }, breaker: load.BreakerHalfOpen}).start(t)
	report := f.run(t, load.Config{
		Phases: []string{load.PhaseAsync}, Requests: 20, Drain: 10 * time.Second,
		Callback: load.CallbackConfig{Behaviour: receiver.Behaviour{FailRate: 0.5}},
	})
	got := report.Phases[0].Callbacks
	if got.Delivered != 20 || got.Missing != 0 || got.Misbehaved == 0 {
		t.Errorf("callbacks %+v: want all delivered at last, after some that were refused on purpose", got)
	}
	if got.Redelivered == 0 || got.Redelivered > got.Misbehaved || got.Breaker != load.BreakerHalfOpen {
		t.Errorf("callbacks %+v: want some at a later try, and the breaker as the service tells", got)
	}
}

// TestPhases: the mixed phase keeps its ratio, a warm-up counts nowhere, and data may be one's own.
func TestPhases(t *testing.T) {
	t.Parallel()
	f := (&fake{}).start(t)
	var told []load.Progress
	report := f.run(t, load.Config{
		Requests: 40, SyncRatio: 0.25, Warmup: 50 * time.Millisecond, Drain: 10 * time.Second,
		Data: json.RawMessage(`{"name":"Ada"}`), Task: "echo", Complexity: 2,
		Progress: func(p load.Progress) {
			if p.Done {
				told = append(told, p)
			}
		},
	})
	var names []string
	for _, phase := range report.Phases {
		names = append(names, phase.Name)
	}
	if diff := cmp.Diff([]string{load.PhaseSync, load.PhaseAsync, load.PhaseMixed}, names); diff != "" {
		t.Errorf("phases (-want +got)\n%s", diff)
	}
	mixed := report.Phases[2]
	if mixed.Sync.Sent != 10 || mixed.Async.Sent != 30 || mixed.Callbacks.Delivered != 30 {
		t.Errorf("mixed: %d sync, %d async, %+v; want 10 and 30", mixed.Sync.Sent, mixed.Async.Sent, mixed.Callbacks)
	}
	if report.Phases[0].Async != nil || report.Phases[1].Sync != nil || report.Phases[0].Sync.Sent != 40 {
		t.Errorf("a phase has a side that it did not ask for, or counts the warm-up")
	}
	if len(told) != 4 || told[0].Phase != "warm-up" || told[3].Number != 3 || told[3].Sent != 40 ||
		told[3].Completed != 40 {
		t.Errorf("told of the ends of phases: %+v", told)
	}
	if report.Comparison == nil || report.Settings.DataBytes != 14 || !report.Settings.Signed ||
		report.Target.Version != "fake" || report.Target.MetricsRead {
		t.Errorf("comparison %v, settings %+v, target %+v", report.Comparison, report.Settings, report.Target)
	}
}

// TestCannotStart: what keeps a run from starting is one error with a hint.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "<html>")
	}))
	t.Cleanup(stranger.Close)
	secured := httptest.NewUnstartedServer(http.NotFoundHandler())
	// it complains of a caller who does not trust it
	secured.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secured.StartTLS()
	t.Cleanup(secured.Close)
	f := (&fake{}).start(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	for name, test := range map[string]struct {
		url, listen string
		want, hint  string
	}{
		"nobody listens":      {"http://" + nobody.Addr().String(), "", "connection refused", "is the service running"},
		"not tandem":          {stranger.URL, "", "is not a tandem service", "base URL"},
		"unknown certificate": {secured.URL, "", "certificate", "not trusted"},
		"plain, asked for TLS": {strings.Replace(f.url, "http:", "https:", 1), "", "HTTP response to HTTPS client",
			"http://"},
		"unknown name": {"http://tandem-load.invalid", "", "tandem-load.invalid", "name is not known"},
		"port in use":  {f.url, taken.Addr().String(), "address already in use", "--callback-port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load.Run(t.Context(),
				load.Config{URL: test.url, Requests: 1, Concurrency: 1, Callback: load.CallbackConfig{Listen: test.listen}})
			var start *load.StartError
			if !errors.As(err, &start) || !strings.Contains(err.Error(), test.want) || !strings.Contains(start.Hint, test.hint) {
				t.Errorf("%v (%+v), want a StartError with %q and the hint %q", err, start, test.want, test.hint)
			}
		})
	}
}

// TestServerUse: what the service says it has used, before and after.
func TestServerUse(t *testing.T) {
	t.Parallel()
	var reads atomic.Int64
	f := (&fake{metrics: func() string {
		n := reads.Add(1) // the first answer is that of the check before the run
		return fmt.Sprintf("# HELP x y\nprocess_cpu_seconds_total %d.5\nprocess_cpu_seconds_total_of_another "+
			"99\nprocess_resident_memory_bytes %de6\n", 10*n, 5-n)
	}}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseSync}, Requests: 5})
	phase := report.Phases[0]
	if !report.Target.MetricsRead || phase.Server == nil {
		t.Fatalf("target %+v, server %+v: want metrics", report.Target, phase.Server)
	}
	// A reading a second, of which there may be some on a busy machine: 10 s each.
	want := float64(10 * (reads.Load() - 2))
	if use := phase.Server; use.CPUSeconds != want || use.MaxMemoryBytes != 3e6 || use.CPUCores != want/phase.WallSeconds {
		t.Errorf("use %+v after %d readings, want %v s of CPU and 3 MB, the first that the phase saw", use, reads.Load(),
			want)
	}
}

// TestClockOffset: the clock of the service is an hour slow, and the delivery lag knows.
func TestClockOffset(t *testing.T) {
	t.Parallel()
	f := (&fake{skew: -time.Hour}).start(t)
	report := f.run(t, load.Config{Phases: []string{load.PhaseAsync}, Requests: 10, Drain: 10 * time.Second})
	if off := report.Target.ClockOffsetMS; off < -3_600_000-5000 || off > -3_600_000+5000 {
		t.Errorf("offset %v ms, want about -3,600,000", off)
	}
	if lag := report.Phases[0].Async.DeliveryLag; lag == nil || lag.MaxMS > 10_000 {
		t.Errorf("delivery lag %+v, want less than the hour between the clocks", lag)
	}
}

// TestReceiverAddress: a receiver on all addresses is named by one that the service can call.
func TestReceiverAddress(t *testing.T) {
	t.Parallel()
	f := (&fake{}).start(t)
	report := f.run(t, load.Config{
		Phases: []string{load.PhaseAsync}, Requests: 5, Drain: 10 * time.Second, Callback: load.CallbackConfig{Listen: ":0"},
	})
	if url := report.Settings.CallbackURL; !strings.HasPrefix(url, "http://127.0.0.1:") ||
		report.Phases[0].Callbacks.Delivered != 5 {
		t.Errorf("callbacks at %s: %+v", url, report.Phases[0].Callbacks)
	}
}

// TestPublicURL: the service is given the public address; the key is the end of its path.
func TestPublicURL(t *testing.T) {
	t.Parallel()
	f := (&fake{callbacks: func(int64) int { return 0 }}).start(t)
	report := f.run(t, load.Config{
		Phases: []string{load.PhaseAsync}, Requests: 2,
		Callback: load.CallbackConfig{PublicURL: "https://example.com/hooks/"},
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, url := range f.urls {
		if key, ok := strings.CutPrefix(url, "https://example.com/hooks/"); !ok || key == "" || strings.Contains(key, "/") {
			t.Errorf("callback URL %d is %s", i, url)
		}
	}
	if report.Settings.CallbackURL != "https://example.com/hooks" || len(f.urls) != 2 {
		t.Errorf("%d callbacks at %s", len(f.urls), report.Settings.CallbackURL)
	}
}

// TestInterruptedBeforeTheStart: there is a report, with nothing in it.
func TestInterruptedBeforeTheStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	report, err := load.Run(ctx, load.Config{URL: "http://127.0.0.1:1", Requests: 1, Concurrency: 1})
	if err != nil || !report.Interrupted || len(report.Phases) != 0 || report.Valid {
		t.Errorf("%+v, %v; want a report of nothing", report, err)
	}
}
