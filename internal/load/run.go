package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"tandem/internal/term"
)

const (
	maxNotes        = 10                     // kinds of errors of which the report quotes the first
	maxNote         = 300                    // characters of such a quotation, and of any text of the service
	latestLag       = 10 * time.Millisecond  // of the generator itself, p99, in a run that is valid
	tolerableLag    = time.Millisecond       // the same, below which it is never too much
	lagOfResponse   = 0.1                    // the same, as a part of the median response time
	busyShare       = 0.9                    // of its cores: a closed loop that uses more measures itself
	shutdownTimeout = 500 * time.Millisecond // for callbacks that are being answered
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
	notes map[string]string // :: category of an error → what the first one said
}

// now is the time on the clock of the run, which nobody can set.
func (r *run) now() time.Duration { return time.Since(r.began) }

// Run puts a service under load and reports what came of it. It asks the
// service who it is first; when that fails, or the receiver cannot be opened, the error is a
// [*StartError]. When ctx ends, so does the run, and the report has what was measured until
// then: Interrupted, and no threshold evaluated. Run returns when all it started has stopped.
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

// finish completes the report.
func (r *run) finish(ctx context.Context, ran []*running) (*Report, error) {
	report := r.report
	for i, p := range ran {
		if callbacks := report.Phases[i].Callbacks; callbacks != nil {
			late := r.inbox.counters(p) // what came while later phases ran is in it
			late.MissingByStatus, late.MissingSampled, late.Breaker = callbacks.MissingByStatus, callbacks.MissingSampled, callbacks.Breaker
			*callbacks = late
		}
	}
	report.WallSeconds = r.now().Seconds()
	report.Generator.Cores = runtime.GOMAXPROCS(0)
	_, report.Generator.MaxMemoryBytes = usage()
	report.Interrupted = ctx.Err() != nil
	r.warn()
	measured := false
	for _, phase := range report.Phases {
		for _, side := range []*Side{phase.Sync, phase.Async} {
			measured = measured || side != nil && side.Accepted > 0
		}
	}
	if !measured {
		r.invalidf("nothing was measured: no request was accepted")
	}
	report.Valid = len(report.InvalidReasons) == 0
	report.Comparison = compare(report)
	report.Insights = insights(report)
	if report.Interrupted {
		return report, nil
	}
	for _, threshold := range r.cfg.Thresholds {
		result, err := threshold.Evaluate(report)
		if err != nil { // Validate has checked it: only a run that measured nothing gets here
			r.warnf("%v", err)
			result = ThresholdResult{Expression: threshold.Expression, Metric: threshold.Metric}
		}
		report.Thresholds = append(report.Thresholds, result)
	}
	return report, nil
}

// lookUp asks what has become of requests whose callbacks are missing, and whether the
// service holds callbacks back.
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
		callbacks.MissingByStatus[term.Clean(found.Status, maxNote)]++
	}
}

// note keeps what the first error of each category said.
func (r *run) note(a answer) {
	if a.category == "" || a.detail == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.notes[a.category]; !known && len(r.notes) < maxNotes {
		r.notes[a.category] = term.Clean(a.detail, maxNote)
	}
}

func (r *run) invalidf(format string, args ...any) {
	r.report.InvalidReasons = append(r.report.InvalidReasons, fmt.Sprintf(format, args...))
}

func (r *run) warnf(format string, args ...any) {
	r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
}

// examine decides whether a phase measured the service or the generator.
func (r *run) examine(phase *Phase, p *running, cpu time.Duration) {
	cores := runtime.GOMAXPROCS(0)
	switch reason := p.stopped.Load(); {
	case reason == nil:
	case errors.Is(*reason, errLeftAlone):
		r.warnf("%s: sending ended early: %v", phase.Name, *reason)
	default:
		r.invalidf("%s: sending ended early: %v", phase.Name, *reason)
	}
	if p.plan != nil {
		own := phase.OwnLag.P99MS
		r.report.Generator.LagP99MS = max(r.report.Generator.LagP99MS, own)
		if reason := tooLate(own, phase); reason != "" {
			r.invalidf("%s: %s", phase.Name, reason)
		}
		var planned, sent int64
		for _, side := range []*Side{phase.Sync, phase.Async} {
			if side != nil {
				planned, sent = planned+side.Planned, sent+side.Sent
			}
		}
		if sent < planned && p.stopped.Load() == nil {
			r.invalidf("%s: %d of %d planned requests were never sent, because as many as allowed were in flight until %v after the end: the rate is more than the service can do, and its response times are worse than those here",
				phase.Name, planned-sent, planned, r.cfg.Timeout)
		}
		if lag := phase.Lag.P99MS; lag > own+ms(latestLag) {
			r.warnf("%s: requests waited for one of %d places in flight (p99 %.0f ms); their response times hold that wait, their service times do not", phase.Name, r.cfg.Concurrency, lag)
		}
		return
	}
	if share := cpu.Seconds() / max(phase.WallSeconds, 1) / float64(cores); share >= busyShare { // of a shorter phase it says nothing
		r.invalidf("%s: the generator used %.0f %% of its %d cores, so it measured itself", phase.Name, 100*share, cores)
	}
}

// tooLate judges the generator's own lateness of a phase; "": it is in time.
func tooLate(own float64, phase *Phase) string {
	median := 0.0
	for _, side := range []*Side{phase.Sync, phase.Async} {
		if side != nil && side.Response.Count > 0 && (median == 0 || side.Response.P50MS < median) {
			median = side.Response.P50MS
		}
	}
	switch {
	case own > ms(latestLag):
		return fmt.Sprintf("the generator itself was late: p99 %.1f ms after the planned send", own)
	case own > ms(tolerableLag) && median > 0 && own > lagOfResponse*median:
		return fmt.Sprintf("the generator itself was late: p99 %.1f ms after the planned send, with a median response of %.1f ms", own, median)
	default:
		return ""
	}
}

// warn says what a reader has to know.
func (r *run) warn() {
	report := r.report
	async := report.asksAsync()
	if report.Generator.SharesMachine {
		r.warnf("The service runs on the generator's machine: they compete for its cores, and the figures of a machine of its own would be better.")
	}
	if text := starved(report); text != "" {
		r.warnf("%s", text)
	}
	if async && r.poller != nil {
		r.warnf("No callback could reach the generator: it asked for each result with GET /requests/{id}, at most %d times a second. End-to-end times are to the poll that saw the result. The service was given callback URLs at %s, which resolve nowhere and reach nobody; its own records will show them as failed.",
			int(time.Second/pollPace), strings.TrimPrefix(strings.TrimSuffix(pollBase, "/"), "https://"))
	}
	if async && r.poller == nil && r.cfg.Secret.IsZero() {
		r.warnf("No signing secret was given: the signatures of callbacks were not checked.")
	}
	if offset := report.Target.ClockOffsetMS; async && offset != 0 {
		r.warnf("The clock of the service differs from this one by %.1f ms; delivery lag is corrected by that.", offset)
	}
	var retried int64
	for _, phase := range report.Phases {
		for _, side := range []*Side{phase.Sync, phase.Async} {
			if side != nil {
				retried += side.Retried
			}
		}
	}
	if retried > 0 {
		r.warnf("%d refusals (429 or 503) were waited out as the service asked; response times hold the waiting, service times do not.", retried)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, category := range slices.Sorted(maps.Keys(r.notes)) {
		r.warnf("The first %s: %s", category, r.notes[category])
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// settings repeats what the run was asked to do.
func (r *run) settings() Settings {
	cfg := &r.cfg
	settings := Settings{
		Requests: cfg.Requests, DurationSeconds: cfg.Duration.Seconds(), Concurrency: cfg.Concurrency,
		RatePerSecond: cfg.Rate, RampFromPerSecond: cfg.RampFrom, WarmupSeconds: cfg.Warmup.Seconds(), SyncRatio: cfg.SyncRatio,
		Task: cfg.Task, Complexity: cfg.Complexity, TimeoutSeconds: cfg.Timeout.Seconds(), DrainSeconds: cfg.Drain.Seconds(),
		Seed: cfg.Seed, On429: cfg.On429, Completion: "callback", Signed: !cfg.Secret.IsZero(),
		SinkFailRate: cfg.Callback.Behaviour.FailRate, SinkDelaySeconds: cfg.Callback.Behaviour.Delay.Seconds(),
	}
	if cfg.Callback.Poll {
		settings.Completion, settings.Signed = "poll", false
	}
	return settings
}

// openInbox opens the receiver of callbacks, unless results are polled for or nobody asks for
// any. The function it returns closes it and waits until that has happened.
func (r *run) openInbox(ctx context.Context) (func(), error) {
	cfg := &r.cfg
	// A callback may hold the data that was sent, and another JSON library may write all of it as \u escapes,
	// which are six bytes each.
	receiver := ReceiverConfig{
		Secret: cfg.Secret, Behaviour: cfg.Callback.Behaviour, MaxBody: defaultMaxBody + 6*int64(len(cfg.Data)),
	}
	inbox, err := newInbox(receiver, cfg.Seed,
		func(at time.Time) time.Duration { return at.Sub(r.began) })
	if err != nil {
		return nil, err
	}
	inbox.offset = time.Duration(r.report.Target.ClockOffsetMS * float64(time.Millisecond))
	r.inbox = inbox
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
	server := &http.Server{
		Handler: inbox, ReadHeaderTimeout: probeTimeout,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // what a stranger sends wrong is counted, not printed
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends when the server is closed
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close() // what is left hangs on purpose
		}
		<-served
	}, nil
}

// listenAddress is where callbacks are awaited. Where no host is named: on the loopback
// interface when the service is on it and calls without a proxy, on all otherwise.
func (r *run) listenAddress() string {
	address := cmp.Or(r.cfg.Callback.Listen, ":0")
	if strings.HasPrefix(address, ":") && r.cfg.Callback.PublicURL == "" && isLoopback(r.cfg.URL) {
		return "127.0.0.1" + address
	}
	return address
}

// reachable is how the service reaches the receiver: an address that stands for
// all of them is replaced by the one from which the service is reached.
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
		return "", &StartError{fmt.Errorf("find the address that the service can call: %w", err), "give it with --callback-url"}
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return "", fmt.Errorf("read own address: %w", err)
	}
	return "http://" + net.JoinHostPort(host, fmt.Sprint(address.Port())), nil
}

// callbackBase is what stands before a key in a callback_url.
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
