package egress_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tandem"
	"tandem/internal/egress"
)

// later returns the *Reschedule of a Reserve that must not get a permit.
func later(t *testing.T, client *egress.Client, url string) *egress.Reschedule {
	t.Helper()
	permit, err := client.Reserve(t.Context(), url, "")
	var later *egress.Reschedule
	if !errors.As(err, &later) {
		if permit != nil {
			permit.Release()
		}
		t.Fatalf("Reserve(%s) = %v, %v, want a *Reschedule", url, permit, err)
	}
	return later
}

// waiters starts calls of Reserve one after the other and collects what they get,
// in the order in which they get it. For synctest bubbles.
type waiters struct {
	client *egress.Client

	mu      sync.Mutex // guards the fields below
	served  []string   // names, in order
	permits map[string]*egress.Permit
	errs    map[string]error
}

func (w *waiters) start(ctx context.Context, name, url string) { w.startFor(ctx, "", name, url) }

// startFor is start for an API key.
func (w *waiters) startFor(ctx context.Context, key, name, url string) {
	go func() {
		permit, err := w.client.Reserve(ctx, url, key)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.served = append(w.served, name)
		if w.permits == nil {
			w.permits, w.errs = make(map[string]*egress.Permit), make(map[string]error)
		}
		w.permits[name], w.errs[name] = permit, err
	}()
	synctest.Wait() // so that the next one stands behind it
}

// permit and err are what the named call got.
func (w *waiters) permit(name string) *egress.Permit {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.permits[name]
}

func (w *waiters) err(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.errs[name]
}

func (w *waiters) got() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(w.served)
}

const someURL, otherURL = "http://a.example/", "http://b.example/"

func TestPermitsAreBoundedAndServedInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.HostConcurrency = 2
		client := newClient(t, cfg)
		first, second := reserve(t, client, someURL), reserve(t, client, "http://A.example:80/another/path")
		w := &waiters{client: client}
		for _, name := range []string{"1", "2", "3"} {
			w.start(t.Context(), name, someURL)
		}
		if got := w.got(); got != "[]" {
			t.Fatalf("served %s while both permits are taken", got)
		}
		if seen := only(t, client); seen.Host != "a.example:80" || seen.InFlight != 2 || seen.Waiting != 3 ||
			seen.State != "closed" {
			t.Errorf("destination = %+v", seen)
		}
		second.Release()
		second.Release() // does nothing
		if got := w.got(); got != "[1]" {
			t.Errorf("served %s after one permit came back, want [1]", got)
		}
		first.Release()
		if got := w.got(); got != "[1 2]" {
			t.Errorf("served %s after another came back, want [1 2]", got)
		}
		w.permit("1").Release()
		if got := w.got(); got != "[1 2 3]" {
			t.Errorf("served %s, want [1 2 3]", got)
		}
		// Another scheme is another destination, and so is another port.
		w.start(t.Context(), "4", "https://a.example:80/")
		w.start(t.Context(), "5", "https://a.example/")
		if got := w.got(); got != "[1 2 3 4 5]" {
			t.Errorf("served %s, want [1 2 3 4 5]", got)
		}
		for _, name := range []string{"2", "3", "4", "5"} {
			w.permit(name).Release()
		}
		for _, seen := range client.Destinations(10) {
			if seen.InFlight != 0 || seen.Waiting != 0 || seen.FailureCount != 0 {
				t.Errorf("at the end: %+v", seen)
			}
		}
	})
}

func TestWaitingCallsCanLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.HostConcurrency = 1
		client := newClient(t, cfg)
		permit := reserve(t, client, someURL)
		w := &waiters{client: client}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		w.start(ctx, "leaves", someURL)
		w.start(t.Context(), "stays", someURL)
		cancel(gone)
		if got := w.got(); got != "[leaves]" || !errors.Is(w.err("leaves"), gone) {
			t.Errorf("served %s, %v; want the cause of the one that leaves", got, w.err("leaves"))
		}
		if seen := only(t, client); seen.Waiting != 1 {
			t.Errorf("destination = %+v, want one waiting", seen)
		}
		permit.Release()
		if got := w.got(); got != "[leaves stays]" {
			t.Errorf("served %s", got)
		}
		// The permit comes free in the moment in which the waiting call leaves: it must not be lost.
		permit = w.permit("stays")
		for range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			next := &waiters{client: client}
			next.start(ctx, "next", someURL)
			cancel()
			permit.Release()
			next.got()
			if next.err("next") == nil {
				next.permit("next").Release()
			}
			permit = reserve(t, client, someURL)
		}
		permit.Release()
	})
}

// One destination may take at most half of the waiting permits that are free.
func TestWaitingPlacesAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.HostConcurrency, cfg.MaxWaiting = 1, 8
		client := newClient(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		w := &waiters{client: client}
		total := 0
		for i, want := range []int{3, 2, 1, 1, 1, 0, 0} {
			url := fmt.Sprintf("http://%d.example/", i)
			// The permit stays taken while the others are filled.
			permit := reserve(t, client, url)
			n := 0
			for ; ; n++ {
				w.start(ctx, fmt.Sprint(url, n), url)
				if w.got() != "[]" {
					break
				}
			}
			w.mu.Lock()
			w.served = nil
			w.mu.Unlock()
			if n != want {
				t.Errorf("destination %d holds %d waiting calls, want %d", i, n, want)
			}
			total += n
			defer permit.Release()
		}
		if total != 8 {
			t.Errorf("%d calls wait, want MaxWaiting", total)
		}
		cancel()
		synctest.Wait()
	})
}

// A rescheduled call comes back when those before it are through, and a crowd of them not all at once.
func TestRescheduleTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.HostConcurrency, cfg.MaxWaiting, cfg.MaxDestinations = 1, 1, 1
		client := newClient(t, cfg)
		permit, reserved := reserve(t, client, someURL), time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		w := &waiters{client: client}
		w.start(ctx, "waits", someURL)
		for range 50 {
			if wait := time.Until(later(t, client, someURL).Until); wait < 100*time.Millisecond || wait > 200*time.Millisecond {
				t.Errorf("rescheduled for %v, want 100 ms and some jitter", wait)
			}
		}
		// The longer nothing moves, the later they come back: thousands of calls to a
		// host that hangs would else be asking all the time.
		for _, hung := range []time.Duration{8 * time.Second, 20 * time.Second, 40 * time.Second} {
			until(t, reserved.Add(hung))
			least := min(hung, 30*time.Second)
			if wait := time.Until(later(t, client, someURL).Until); wait < least || wait > least*5/4 {
				t.Errorf("after %v rescheduled for %v, want %v and some jitter", hung, wait, least)
			}
		}
		cancel()
		synctest.Wait()
		permit.Release()
		reserve(t, client, otherURL).Release() // none of them holds the destination any more
	})
}

// Calls rescheduled for one reason do not delay calls rescheduled for another.
func TestReschedulesStartAnewAfterRecovery(t *testing.T) {
	t.Parallel()
	var healthy atomic.Bool
	target, _ := rawReceiver(t, func(_ context.Context, conn net.Conn) {
		if healthy.Load() {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	cfg := demo()
	cfg.HostConcurrency, cfg.MaxWaiting, cfg.BreakerFailures, cfg.BreakerOpen = 1, 1, 1, time.Second
	client := newClient(t, cfg)
	post(t, client, target)
	probe := only(t, client).RetryAt
	for range 5_000 { // their times reach five seconds ahead, on a machine that is not too busy
		if time.Until(probe) < 300*time.Millisecond {
			break
		}
		later(t, client, target)
	}
	healthy.Store(true)
	until(t, probe.Add(time.Millisecond))
	permit := reserve(t, client, target)
	probing := time.Until(later(t, client, target).Until)
	if got := permit.Post(t.Context(), nil, nil); got.Outcome != tandem.OutcomeDelivered {
		t.Fatalf("Post = %+v", got)
	}
	defer reserve(t, client, target).Release()
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if permit, err := client.Reserve(ctx, target, ""); err == nil {
			permit.Release()
		}
	})
	defer waiting.Wait()
	defer cancel()
	for only(t, client).Waiting < 1 {
		until(t, time.Now().Add(time.Millisecond))
	}
	if busy := time.Until(later(t, client, target).Until); probing > 3*time.Second || busy > time.Second {
		t.Errorf("rescheduled for %v while probing and %v when busy, want 1 to 2 s and 100 ms", probing, busy)
	}
}

// A crowd rescheduled by a slow destination comes back at its pace, not at once.
func TestReschedulesAreSpread(t *testing.T) {
	t.Parallel()
	const slow = 50 * time.Millisecond
	begun := time.Now() // what the machine takes for all this comes on top of every wait
	target := receiver(t, func(http.ResponseWriter, *http.Request) { <-time.After(slow) })
	cfg := demo()
	cfg.HostConcurrency, cfg.MaxWaiting = 1, 1
	client := newClient(t, cfg)
	post(t, client, target)
	defer reserve(t, client, target).Release()
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if permit, err := client.Reserve(ctx, target, ""); err == nil {
			permit.Release()
		}
	})
	defer waiting.Wait()
	defer cancel()
	for only(t, client).Waiting < 1 {
		until(t, time.Now().Add(time.Millisecond))
	}
	start := time.Now()
	const crowd = 10_000
	perSecond := make(map[int]int)
	for range crowd {
		wait := later(t, client, target).Until.Sub(start)
		if wait < 100*time.Millisecond || wait > 61*time.Second+3*time.Since(begun) {
			t.Fatalf("rescheduled for %v, want at most a minute and a little", wait)
		}
		perSecond[int(wait.Seconds())]++
	}
	// 20 exchanges a second and twice as many that come back, then what is left
	// evenly over a minute: some 7,600 / 60 more.
	for second, n := range perSecond {
		if n > 400 {
			t.Errorf("%d come back in second %d", n, second)
		}
	}
}

func TestDestinationsRememberedAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := demo()
		cfg.MaxDestinations = 2
		client := newClient(t, cfg)
		a, b := reserve(t, client, someURL), reserve(t, client, otherURL)
		if wait := time.Until(later(t, client, "http://c.example/").Until); wait < time.Second || wait > 2*time.Second {
			t.Errorf("rescheduled for %v while every destination is in use", wait)
		}
		a.Release()
		c := reserve(t, client, "http://c.example/") // in permit of a
		if all := client.Destinations(10); len(all) != 2 || all[0].Host != "c.example:80" || all[1].Host != "b.example:80" {
			t.Errorf("destinations = %+v, want c and b", all)
		}
		c.Release()
		b.Release()
		for i := range 100 {
			reserve(t, client, fmt.Sprintf("http://%d.example/", i)).Release()
		}
		if all := client.Destinations(10); len(all) != 2 || all[0].Host != "99.example:80" {
			t.Errorf("destinations = %+v, want the last two", all)
		}
		if all := client.Destinations(1); len(all) != 1 {
			t.Errorf("Destinations(1) = %+v", all)
		}
		if all := client.Destinations(0); len(all) != 0 {
			t.Errorf("Destinations(0) = %+v", all)
		}
	})
}

// Policy refuses the URL by now: a permit at once, no destination, and Post says it.
func TestReserveOfWhatPolicyRefuses(t *testing.T) {
	t.Parallel()
	cfg := demo()
	cfg.Policy = egress.Policy{}
	client := newClient(t, cfg)
	for _, url := range []string{"http://127.0.0.1/", "http://localhost/", "nonsense", ""} {
		permit := reserve(t, client, url)
		if got := permit.Post(t.Context(), nil, nil); got.Outcome != tandem.OutcomeBlocked || !got.Outcome.Permanent() ||
			got.Message == "" {
			t.Errorf("%q: Post = %+v, want it blocked", url, got)
		}
		permit.Release()
		reserve(t, client, url).Release()
	}
	if all := client.Destinations(10); len(all) != 0 {
		t.Errorf("destinations = %+v, want none", all)
	}
}

func TestPostTwicePanics(t *testing.T) {
	t.Parallel()
	client := newClient(t, demo())
	permit := reserve(t, client, closedPort(t))
	permit.Post(t.Context(), nil, nil)
	defer func() {
		if recover() == nil {
			t.Error("the second Post went through")
		}
	}()
	permit.Post(t.Context(), nil, nil)
}

func TestBreakerOpensAndRecovers(t *testing.T) {
	t.Parallel()
	var healthy atomic.Bool
	probe := make(chan struct{})
	target, connections := rawReceiver(t, func(ctx context.Context, conn net.Conn) {
		if !healthy.Load() {
			return // closes
		}
		select {
		case <-probe:
		case <-ctx.Done():
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	const open = 200 * time.Millisecond
	cfg := demo()
	cfg.BreakerOpen = open
	client := newClient(t, cfg)
	for n := range 5 {
		if seen := client.Destinations(1); n > 0 && (seen[0].State != "closed" || seen[0].FailureCount != n) {
			t.Fatalf("after %d failures: %+v", n, seen)
		}
		if got := post(t, client, target); got.Outcome != tandem.OutcomeConnect {
			t.Fatalf("Post = %+v", got)
		}
	}
	opened := time.Now()
	seen := only(t, client)
	if seen.State != "open" || seen.FailureCount != 5 || seen.RetryAt.Sub(opened) > open || seen.RetryAt.Before(opened) {
		t.Fatalf("after 5 failures: %+v", seen)
	}
	for range 3 {
		if later := later(t, client, target); later.Until.Before(seen.RetryAt) ||
			later.Until.After(seen.RetryAt.Add(3*time.Second)) {
			t.Errorf("rescheduled until %v, want soon after %v", later.Until, seen.RetryAt)
		}
	}
	if n := connections.Load(); n != 5 {
		t.Errorf("%d connections, want 5: an open breaker makes none", n)
	}

	// A probe that fails opens it again.
	until(t, seen.RetryAt.Add(time.Millisecond))
	if seen := only(t, client); seen.State != "half-open" || !seen.RetryAt.IsZero() {
		t.Errorf("after its time: %+v", seen)
	}
	if got := post(t, client, target); got.Outcome != tandem.OutcomeConnect {
		t.Fatalf("Post = %+v", got)
	}
	if seen = only(t, client); seen.State != "open" || seen.FailureCount != 6 {
		t.Errorf("after a probe that failed: %+v", seen)
	}

	// One probe at a time; an unused one makes room for the next.
	until(t, seen.RetryAt.Add(time.Millisecond))
	healthy.Store(true)
	unused := reserve(t, client, target)
	if wait := time.Until(later(t, client, target).Until); wait < 900*time.Millisecond || wait > 3*time.Second {
		t.Errorf("rescheduled for %v while the probe is out, want 1 to 2 s", wait)
	}
	unused.Release()
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	if got := reserve(t, client, target).Post(interrupted, nil, nil); !got.Interrupted {
		t.Errorf("Post = %+v, want it interrupted", got)
	}
	permit := reserve(t, client, target)
	later(t, client, target)
	close(probe)
	if got := permit.Post(t.Context(), nil, nil); got.Outcome != tandem.OutcomeDelivered {
		t.Fatalf("Post = %+v", got)
	}
	if seen := only(t, client); seen.State != "closed" || seen.FailureCount != 0 || seen.LastFailure.IsZero() {
		t.Errorf("after a probe that went well: %+v", seen)
	}
	post(t, client, target)
}

func TestBreakersAreCounted(t *testing.T) {
	t.Parallel()
	target, _ := rawReceiver(t, func(context.Context, net.Conn) {}) // closes
	for open, want := range map[time.Duration]map[string]int{
		time.Hour:        {"closed": 1, "half-open": 0, "open": 1},
		time.Microsecond: {"closed": 1, "half-open": 1, "open": 0},
	} {
		cfg := demo()
		cfg.BreakerFailures, cfg.BreakerOpen = 1, open
		client := newClient(t, cfg)
		if got := post(t, client, target); got.Outcome != tandem.OutcomeConnect {
			t.Fatalf("Post = %+v", got)
		}
		reserve(t, client, someURL).Release()
		until(t, time.Now().Add(time.Millisecond))
		if got := client.Breakers(); !maps.Equal(got, want) {
			t.Errorf("open for %v: breakers %v, want %v", open, got, want)
		}
	}
}

// Those that wait for a permit when the breaker opens must not wait on.
func TestWaitingCallsAreRescheduledWhenTheBreakerOpens(t *testing.T) {
	t.Parallel()
	cfg := demo()
	cfg.HostConcurrency, cfg.BreakerFailures = 1, 1
	client := newClient(t, cfg)
	target := closedPort(t)
	permit := reserve(t, client, target)
	const crowd = 20
	errs := make(chan error, crowd)
	for range crowd {
		go func() {
			permit, err := client.Reserve(t.Context(), target, "")
			if err == nil {
				permit.Release()
			}
			errs <- err
		}()
	}
	for only(t, client).Waiting < crowd {
		until(t, time.Now().Add(time.Millisecond))
	}
	permit.Post(t.Context(), nil, nil)
	var latest time.Time
	for range crowd {
		var later *egress.Reschedule
		if err := <-errs; !errors.As(err, &later) {
			t.Fatalf("Reserve = %v, want a *Reschedule", err)
		}
		if wait := time.Until(later.Until); wait < 59*time.Second || wait > 64*time.Second {
			t.Errorf("rescheduled for %v, want a minute and some jitter", wait)
		}
		if later.Until.After(latest) {
			latest = later.Until
		}
	}
	if seen := only(t, client); seen.Waiting != 0 || seen.InFlight != 0 ||
		latest.Before(seen.RetryAt.Add(100*time.Millisecond)) {
		t.Errorf("destination = %+v, the last comes back at %v: want them spread", seen, latest)
	}
}

// Answers below 500 and what we break off ourselves say nothing bad about the host.
func TestFailuresInARow(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	target := receiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	client := newClient(t, demo())
	for _, c := range []struct{ status, failures int }{
		{500, 1}, {503, 2}, {502, 3}, {500, 4}, {404, 0}, {500, 1}, {429, 0}, {500, 1}, {302, 0}, {500, 1}, {410, 0},
		{500, 1}, {500, 2}, {500, 3}, {500, 4}, {200, 0}, {500, 1}, {500, 2}, {500, 3}, {500, 4},
	} {
		status.Store(int64(c.status))
		post(t, client, target)
		if seen := only(t, client); seen.FailureCount != c.failures || seen.State != "closed" {
			t.Errorf("after %d: %+v, want %d failures", c.status, seen, c.failures)
		}
	}
	reserve(t, client, target).Release() // tells nothing, and does not break the row
	post(t, client, target)
	if seen := only(t, client); seen.State != "open" || seen.FailureCount != 5 {
		t.Errorf("after 5 in a row: %+v", seen)
	}
}

// A destination that hangs with all its permits taken and calls waiting costs another nothing.
func TestHangingDestinationDelaysNoOther(t *testing.T) {
	t.Parallel()
	hanging := receiver(t, hang(t))
	good := receiver(t, func(http.ResponseWriter, *http.Request) {})
	cfg := demo()
	cfg.Timeout = time.Minute
	client := newClient(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for range 30 {
		running.Go(func() {
			if permit, err := client.Reserve(ctx, hanging, ""); err == nil {
				permit.Post(ctx, nil, nil)
			}
		})
	}
	for {
		if all := client.Destinations(1); len(all) == 1 && all[0].InFlight == 10 && all[0].Waiting == 20 {
			break
		}
		until(t, time.Now().Add(time.Millisecond))
	}
	for range 20 {
		if got := post(t, client, good); got.Outcome != tandem.OutcomeDelivered || got.Duration > 20*time.Second {
			t.Errorf("Post to the good one = %+v", got)
		}
	}
}
