// Package load puts a tandem service under load and reports what it measured. It speaks HTTP only and measures a
// deployment from a client's side.
//
// run.go, phase.go and caller.go send the load; inbox.go and poll.go collect the results; recorder.go measures. Their
// product is a Report (report.go), also in JSON. judge.go and insight.go interpret its figures. view.go turns it into
// texts, tables and charts; text.go and html.go only draw that view. compare.go compares reports of several runs.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"tandem/internal/receiver"
	"tandem/internal/term"
)

const (
	maxNotes      = 10                    // kinds of errors, each with its first text in the report
	maxNote       = 300                   // characters of such a quotation, and of any text of the service
	latestLag     = 10 * time.Millisecond // of the generator itself, p99, in a valid run
	tolerableLag  = time.Millisecond      // the same; never too much below
	lagOfResponse = 0.1                   // the same, as a part of the median response time
	busyShare     = 0.9                   // of its cores: a closed loop with more measures itself
)

// run is a run under way.
type run struct {
	cfg     Config
	began   time.Time
	service *service
	recipe  *recipe
	inbox   *inbox  // gives the keys of async requests, and takes their callbacks
	poller  *poller // nil: callbacks come
	gate    gate
	report  *Report

	mu    sync.Mutex        // guards the field below
	notes map[string]string // :: category of an error → its first text
}

// now is the time on the run's monotonic clock.
func (r *run) now() time.Duration { return time.Since(r.began) }

// Run puts a service under load and reports the measurements. It identifies the service first; a failure of that, or of
// opening the receiver, is a [*StartError]. The end of ctx interrupts the run: the report has the measurements so far,
// is Interrupted, and no threshold is evaluated. Run returns when all it started has stopped.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure run: %w", err)
	}
	r := &run{cfg: cfg, began: time.Now(), service: newService(&cfg), notes: make(map[string]string)}
	r.report = &Report{
		Schema: SchemaVersion, Tool: cfg.Tool, StartedAt: r.began.UTC(), Mode: cfg.Mode,
		Target:   Target{URL: term.RedactURL(cfg.URL)},
		Settings: r.settings(),
	}
	defer r.service.close()
	if err := r.service.probe(ctx, &r.report.Target); err != nil {
		if ctx.Err() != nil {
			return r.finish(ctx, nil)
		}
		return nil, err
	}
	r.report.Generator.SharesMachine = sharesMachine(ctx, cfg.URL)
	closeInbox, err := r.openInbox(ctx)
	if err != nil {
		return nil, err
	}
	defer closeInbox()
	if r.recipe, err = r.service.recipe(&cfg, r.callbackBase()); err != nil {
		return nil, err
	}
	r.report.Settings.DataBytes = len(r.recipe.appendData(nil, 0))
	if cfg.Warmup > 0 {
		r.warmUp(ctx)
	}
	return r.finish(ctx, r.phases(ctx))
}

// warmUp puts the service under load without keeping the figures.
func (r *run) warmUp(ctx context.Context) {
	name := PhaseMixed
	if first := r.cfg.Phases[0]; !slices.ContainsFunc(r.cfg.Phases, func(other string) bool { return other != first }) {
		name = first
	}
	warm := r.newRunning(name, 0, 0, r.cfg.Warmup)
	warm.name = phaseWarmup
	warm.execute(ctx)
	r.mu.Lock()
	clear(r.notes)
	r.mu.Unlock()
}

// phases runs all phases and puts them into the report.
func (r *run) phases(ctx context.Context) []*running {
	var ran []*running
	generator := &r.report.Generator
	var busy, wall time.Duration
	for i, name := range r.cfg.Phases {
		if ctx.Err() != nil {
			break
		}
		p := r.newRunning(name, i+1, r.cfg.Requests, r.cfg.Duration)
		cpu, _ := usage()
		began := r.now()
		phase, missing := p.execute(ctx)
		after, _ := usage()
		busy, wall = busy+after-cpu, wall+r.now()-began
		r.examine(&phase, p, after-cpu)
		if phase.Callbacks != nil && ctx.Err() == nil {
			r.lookUp(ctx, phase.Callbacks, missing)
		}
		r.report.Phases = append(r.report.Phases, phase)
		ran = append(ran, p)
	}
	generator.CPUSeconds = busy.Seconds()
	if wall > 0 {
		generator.CPUShare = busy.Seconds() / wall.Seconds() / float64(runtime.NumCPU())
	}
	return ran
}

// lookUp asks for the status of requests with missing callbacks, and for the service's breaker for our receiver.
func (r *run) lookUp(ctx context.Context, callbacks *Callbacks, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if r.poller == nil && (len(missing) > 0 || callbacks.Misbehaved > 0) {
		callbacks.Breaker = r.service.breaker(ctx, r.report.Settings.CallbackURL)
	}
	if len(missing) == 0 {
		return
	}
	callbacks.MissingByStatus, callbacks.MissingSampled = make(map[string]int64), int64(len(missing))
	for _, id := range missing {
		found, _, err := r.service.lookup(ctx, id)
		if err != nil || found.Status == "" {
			found.Status = "unknown"
		}
		callbacks.MissingByStatus[term.Clean(string(found.Status), maxNote)]++
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// settings repeats the options for the report.
func (r *run) settings() Settings {
	cfg := &r.cfg
	settings := Settings{
		Requests: cfg.Requests, DurationSeconds: cfg.Duration.Seconds(), Concurrency: cfg.Concurrency,
		RatePerSecond: cfg.Rate, RampFromPerSecond: cfg.RampFrom, WarmupSeconds: cfg.Warmup.Seconds(),
		SyncRatio: cfg.SyncRatio, Task: cfg.Task, Complexity: cfg.Complexity,
		TimeoutSeconds: cfg.Timeout.Seconds(), DrainSeconds: cfg.Drain.Seconds(), Seed: cfg.Seed,
		On429: cfg.On429, Completion: "callback", Signed: !cfg.Secret.IsZero(),
		SinkFailRate: cfg.Callback.Behaviour.FailRate, SinkDelaySeconds: cfg.Callback.Behaviour.Delay.Seconds(),
	}
	if cfg.Callback.Poll {
		settings.Completion, settings.Signed = "poll", false
	}
	return settings
}

// openInbox opens the receiver of callbacks, unless results are polled for or there are none. The returned function
// closes it and waits for its end.
func (r *run) openInbox(ctx context.Context) (func(), error) {
	cfg := &r.cfg
	r.inbox = newInbox(time.Duration(r.report.Target.ClockOffsetMS*float64(time.Millisecond)),
		func(at time.Time) time.Duration { return at.Sub(r.began) })
	if cfg.Callback.Poll {
		r.poller = newPoller()
		return func() {}, nil
	}
	if !slices.ContainsFunc(cfg.Phases, func(name string) bool { return name != PhaseSync }) {
		return func() {}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.listenAddress())
	if err != nil {
		return nil, &StartError{fmt.Errorf("listen for callbacks: %w", err), "another port can be had with --callback-port"}
	}
	base := cfg.Callback.PublicURL
	if base == "" {
		if base, err = r.reachable(ctx, listener.Addr()); err != nil {
			return nil, errors.Join(err, listener.Close())
		}
	}
	r.report.Settings.CallbackURL = strings.TrimRight(base, "/")
	// A callback may hold the sent data, and another JSON library may write all of it as \u escapes, six bytes each.
	callbacks, err := receiver.New(receiver.Config{
		Secret: cfg.Secret, Behaviour: cfg.Callback.Behaviour, Seed: cfg.Seed, Count: r.inbox.count,
		MaxBody: receiver.DefaultMaxBody + 6*int64(len(cfg.Data)),
	})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var served sync.WaitGroup
	served.Go(func() { _ = receiver.Serve(serving, listener, callbacks) }) // without it callbacks are missing
	return func() {
		stop()
		served.Wait()
	}, nil
}

// listenAddress is the address for callbacks. Where no host is named: on the loopback interface when the service is on
// it and calls without a proxy, on all otherwise.
func (r *run) listenAddress() string {
	address := cmp.Or(r.cfg.Callback.Listen, ":0")
	if strings.HasPrefix(address, ":") && r.cfg.Callback.PublicURL == "" && isLoopback(r.cfg.URL) {
		return "127.0.0.1" + address
	}
	return address
}

// reachable is the service's way to the receiver: an unspecified address is replaced by our own one towards the
// service.
func (r *run) reachable(ctx context.Context, listening net.Addr) (string, error) {
	address, err := netip.ParseAddrPort(listening.String())
	if err != nil {
		return "", fmt.Errorf("read address of the receiver: %w", err)
	}
	if ip := address.Addr(); !ip.IsUnspecified() {
		return "http://" + netip.AddrPortFrom(ip.Unmap(), address.Port()).String(), nil
	}
	u, err := url.Parse(r.cfg.URL)
	if err != nil {
		return "", fmt.Errorf("read URL: %w", err)
	}
	port := u.Port()
	if port == "" {
		port = "80" // no packet is sent: any will do
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		err = fmt.Errorf("find an address for the service to call: %w", err)
		return "", &StartError{err, "give it with --callback-url"}
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return "", fmt.Errorf("read own address: %w", err)
	}
	return "http://" + net.JoinHostPort(host, fmt.Sprint(address.Port())), nil
}

// callbackBase is a callback_url up to its key.
func (r *run) callbackBase() string {
	if r.poller != nil {
		return pollBase
	}
	return r.report.Settings.CallbackURL + "/"
}

// isLoopback reports whether a URL's host is this machine by its name or number.
func isLoopback(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return ip.IsLoopback()
	}
	return u.Hostname() == "localhost"
}

// sharesMachine reports whether a URL's host is an address of this machine.
func sharesMachine(ctx context.Context, raw string) bool {
	if isLoopback(raw) {
		return true
	}
	u, err := url.Parse(raw)
	if err != nil {
		return false
	}
	ips, err := (&net.Resolver{}).LookupNetIP(ctx, "ip", u.Hostname())
	own, errOwn := net.InterfaceAddrs()
	if err != nil || errOwn != nil {
		return false
	}
	for _, address := range own {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Unmap() == prefix.Addr().Unmap() }) {
			return true
		}
	}
	return false
}
