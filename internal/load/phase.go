package load

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	phaseWarmup      = "warm-up"
	progressEvery    = 100 * time.Millisecond
	closeAfter       = 100 * time.Millisecond // delay of a step's end, for late records
	meterEvery       = time.Second
	interruptedDrain = 500 * time.Millisecond
	reconnectPause   = 50 * time.Millisecond // of a closed loop's caller without a connection
	maxTries         = 10                    // of one refused request
	maxHeeded        = 2 * time.Minute       // a longer requested pause ends the phase
	defaultHeeded    = time.Second           // after a refusal without a pause
)

// errLeftAlone ends a phase under On429Respect.
var errLeftAlone = errors.New("the service asks to be left alone for longer than the phase can wait")

// running is a phase while it runs. Times are on the clock of the run.
type running struct {
	run    *run
	name   string
	number int       // from 1; 0: warm-up
	share  float64   // of sync requests, 0..1
	plan   *schedule // open loop; nil: closed
	limit  int64     // closed loop: requests; 0: length decides
	length time.Duration

	began   time.Duration
	step    time.Duration // of the series
	sync    *series       // nil when no request is sync
	async   *series       // nil when no request is async; its last recorder is for results
	results *recorder     // of callbacks or polls

	firstNumber uint64    // guarded by inbox.mu
	callbacks   Callbacks // guarded by inbox.mu

	turn  chan struct{} // of an open loop: one token; its holder waits for the next planned send
	due   int64         // guarded by turn: number of the next planned send
	taken atomic.Int64  // closed loop: requests begun

	stopped    atomic.Pointer[error] // why no further request is sent
	draining   atomic.Bool
	lastAnswer atomic.Int64 // when the last answer came
	lastResult atomic.Int64 // when the last result came
}

// newRunning prepares a phase with a number of requests or a length.
func (r *run) newRunning(name string, number int, requests int64, length time.Duration) *running {
	p := &running{
		run: r, name: name, number: number, limit: requests, length: length, step: time.Second,
		turn: make(chan struct{}, 1),
	}
	switch name {
	case PhaseSync:
		p.share = 1
	case PhaseAsync:
		p.share = 0
	default:
		p.share = r.cfg.SyncRatio
	}
	if r.cfg.Rate > 0 {
		plan := newSchedule(cmp.Or(r.cfg.RampFrom, r.cfg.Rate), r.cfg.Rate, requests, length)
		p.plan, p.length = &plan, plan.length
	}
	if steps := int(math.Ceil(p.length.Seconds() / maxSeriesSteps)); steps > 1 {
		p.step = time.Duration(steps) * time.Second
	}
	recorders := make([]*recorder, 2*min(r.cfg.Concurrency, maxRecorders)+1)
	for i := range recorders {
		recorders[i] = newRecorder()
	}
	half := len(recorders) / 2
	if p.share > 0 {
		p.sync = newSeries(recorders[:half])
	}
	if p.share < 1 {
		p.async = newSeries(recorders[half:])
		p.results = recorders[len(recorders)-1]
	}
	return p
}

// isSync decides for request k, evenly: of the first n requests, n·share are sync.
func (p *running) isSync(k int64) bool {
	return math.Floor(float64(k+1)*p.share) > math.Floor(float64(k)*p.share)
}

// turnOf is the next request to send.
type turnOf struct {
	k       int64
	planned time.Duration
	ready   time.Duration // when the caller was free
}

// take waits for the next request. It is not ok when there is none.
func (p *running) take(ctx context.Context) (next turnOf, ok bool) {
	next.ready = p.run.now()
	if p.plan == nil {
		over := p.length > 0 && next.ready-p.began >= p.length
		if over || ctx.Err() != nil || p.stopped.Load() != nil {
			return next, false
		}
		next.k, next.planned = p.taken.Add(1)-1, next.ready
		return next, p.limit == 0 || next.k < p.limit
	}
	// The holder of the turn waits for the plan, the others for the turn: requests begin in the order of the plan, and the
	// waiting caller itself sends, without a switch of goroutines.
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if p.due >= p.plan.count || p.stopped.Load() != nil || p.run.now() > p.end() {
		return next, false
	}
	next.k, next.planned = p.due, p.began+p.plan.at(p.due)
	if !waitUntil(ctx, p.run.began.Add(next.planned), p.run.cfg.sleep) {
		return next, false
	}
	p.due++
	return next, true
}

// end is the end of sending: for an open loop a request's timeout after its plan, to send the requests held back by a
// stall.
func (p *running) end() time.Duration {
	switch {
	case p.plan != nil:
		return p.began + p.length + p.run.cfg.Timeout
	case p.length > 0:
		return p.began + p.length
	default:
		return math.MaxInt64
	}
}

// work sends one request after the other until there is no next one.
func (p *running) work(ctx context.Context, worker int) {
	c := p.run.service.newCaller(ctx, p.run.cfg.Timeout)
	defer c.close()
	for {
		next, ok := p.take(ctx)
		if !ok {
			return
		}
		category := p.send(ctx, c, worker, next)
		if category == "connect" && p.plan == nil && !pause(ctx, reconnectPause) {
			return
		}
	}
}

// send carries out one request, with retries after refusals, and returns the category of its error.
func (p *running) send(ctx context.Context, c *caller, worker int, next turnOf) string {
	r := p.run
	side, prototype, want := p.sync, r.recipe.sync, http.StatusOK
	var key []byte
	var number uint64
	if !p.isSync(next.k) {
		side, prototype, want = p.async, r.recipe.async, http.StatusAccepted
		var err error
		if number, err = r.inbox.expect(next.planned); err != nil {
			p.stop(err)
			return ""
		}
		key = r.inbox.appendKey(nil, number)
	}
	body := r.recipe.body(next.k, key)
	recorder := side.recorders[worker%min(r.cfg.Concurrency, maxRecorders)]
	heed := r.cfg.On429 == On429Respect
	var a answer
	for try := 1; ; try++ {
		if heed && !r.gate.pass(ctx, r, p.end()) {
			p.stop(errLeftAlone)
			break
		}
		sent := r.now()
		a = c.post(prototype, body, want)
		ended := r.now()
		if ctx.Err() != nil && a.category != "" {
			a.category = "" // cut off by ourselves: it counts nowhere
			break
		}
		if a.id != "" && key != nil {
			r.inbox.answered(number, a.id)
		}
		p.record(recorder, next, a, try, sent, ended)
		if !heed || !r.gate.heed(a, ended) || try == maxTries {
			break
		}
	}
	switch {
	case key == nil:
	case a.id == "":
		r.inbox.refused(number)
	case r.poller != nil:
		r.poller.add(watched{number: number, id: a.id, planned: next.planned, due: r.now() + a.poll})
	}
	return a.category
}

// record counts a finished request.
func (p *running) record(r *recorder, next turnOf, a answer, try int, sent, ended time.Duration) {
	storeMax(&p.lastAnswer, ended)
	p.run.note(a)
	r.mu.Lock()
	defer r.mu.Unlock()
	arrived := p.stepOf(ended)
	if try == 1 {
		r.sent++
		r.stepLocked(p.stepOf(next.planned)).Sent++
		if p.plan != nil {
			r.observeLocked(dialLag, sent-next.planned)
			r.observeLocked(dialOwnLag, sent-max(next.planned, next.ready))
		}
	} else {
		r.retried++
	}
	if a.workFailed {
		r.workFailed++
	}
	if a.category != "" {
		r.errors[a.category]++
		r.stepLocked(arrived).Errors++
		return
	}
	r.accepted++
	r.stepLocked(arrived).Accepted++
	r.observeLocked(dialResponse, ended-next.planned)
	if p.service() {
		r.observeLocked(dialService, ended-sent)
	}
	if open := r.openLocked(arrived); open != nil {
		addTo(&open.response, ended-next.planned)
	}
	if p.isSync(next.k) {
		storeMax(&p.lastResult, ended)
		r.completed++
		r.stepLocked(arrived).Completed++
		r.observeLocked(dialProcessing, a.processing)
	}
}

// service reports whether service times differ from response times.
func (p *running) service() bool { return p.plan != nil || p.run.cfg.On429 == On429Respect }

// landed records the result of a callback or a poll.
func (p *running) landed(l landing) {
	storeMax(&p.lastResult, l.at)
	r := p.results
	r.mu.Lock()
	defer r.mu.Unlock()
	number := p.stepOf(l.at)
	if l.failed {
		r.workFailed++
	} else {
		r.completed++
	}
	r.stepLocked(number).Completed++
	r.observeLocked(dialEndToEnd, l.endToEnd)
	r.observeLocked(dialProcessing, l.processing)
	if p.run.poller == nil {
		r.observeLocked(dialDelivery, l.delivery)
	}
	if open := r.openLocked(number); open != nil {
		addTo(&open.endToEnd, l.endToEnd)
	}
}

func (p *running) stepOf(at time.Duration) int { return int(max(0, at-p.began) / p.step) }

// stop ends the sending, with a reason for the report.
func (p *running) stop(err error) { p.stopped.CompareAndSwap(nil, &err) }

// storeMax raises a time to a later one.
func storeMax(to *atomic.Int64, at time.Duration) {
	for {
		old := to.Load()
		if int64(at) <= old || to.CompareAndSwap(old, int64(at)) {
			return
		}
	}
}

// gate holds requests back during a pause requested by the service.
type gate struct{ until atomic.Int64 }

// heed closes the gate for the pause in an answer, and reports whether it refused the request.
func (g *gate) heed(a answer, ended time.Duration) bool {
	if a.refused && a.wait == 0 {
		a.wait = defaultHeeded
	}
	if a.wait > 0 {
		storeMax(&g.until, ended+a.wait)
	}
	return a.refused
}

// pass waits until the gate is open. It is false if that would be after the end or too long, or if ctx ends.
func (g *gate) pass(ctx context.Context, r *run, end time.Duration) bool {
	for {
		until := time.Duration(g.until.Load())
		switch now := r.now(); {
		case ctx.Err() != nil:
			return false
		case now >= until:
			return true
		case until > end || until-now > maxHeeded || !pause(ctx, until-now):
			return false
		}
	}
}

// execute runs the phase to the end of its drain. It returns its report, and ids of some requests without a callback,
// when everything it started has stopped.
func (p *running) execute(ctx context.Context) (Phase, []string) {
	r := p.run
	meter := r.newMeter(ctx)
	p.began = r.now()
	if p.plan != nil {
		p.began += 5 * time.Millisecond // time for every worker to start
	}
	p.lastAnswer.Store(int64(p.began))
	p.lastResult.Store(int64(p.began))
	r.inbox.begin(p)

	aside, over := context.WithCancel(context.WithoutCancel(ctx))
	defer over()
	var watchers, workers sync.WaitGroup
	watchers.Go(func() { p.watch(aside) })
	watchers.Go(func() { meter.run(aside) })
	if r.poller != nil && p.async != nil {
		watchers.Go(func() { r.poller.run(aside, p) })
	}
	for worker := range r.cfg.Concurrency {
		workers.Go(func() { p.work(ctx, worker) })
	}
	workers.Wait()
	p.draining.Store(true)
	p.drain(ctx)
	drained := r.now()
	var ids []string
	if p.async != nil {
		ids = r.inbox.end()
	}
	use := meter.finish(ctx)
	over()
	watchers.Wait()
	return p.report(ctx, use, drained), ids
}

// drain waits for callbacks.
func (p *running) drain(ctx context.Context) {
	if p.async == nil {
		return
	}
	timeout := p.run.cfg.Drain
	if ctx.Err() != nil {
		timeout = min(timeout, interruptedDrain)
		ctx = context.WithoutCancel(ctx)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.run.inbox.allIn():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// watch closes the steps of the series and reports the progress.
func (p *running) watch(ctx context.Context) {
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.progress(false)
		case <-ctx.Done():
			p.progress(true)
			return
		}
	}
}

func (p *running) progress(done bool) {
	r := p.run
	now := r.now()
	closed := p.stepOf(now - closeAfter)
	progress := Progress{
		Phase: p.name, Number: p.number, Phases: len(r.cfg.Phases),
		Elapsed: max(0, now-p.began), Planned: p.limit, Duration: p.length,
		Draining: p.draining.Load(), Done: done,
	}
	if p.plan != nil {
		progress.Planned = p.plan.count
	}
	for _, side := range []*series{p.sync, p.async} {
		if side == nil {
			continue
		}
		side.closeBefore(closed)
		side.addTotals(&progress)
	}
	p.lastStep(&progress, closed-1)
	if p.async != nil {
		progress.Outstanding = r.inbox.outstanding()
		if done { // the open ones count as missing now
			progress.Outstanding = r.inbox.counters(p).Missing
		}
	}
	if r.cfg.Progress != nil {
		r.cfg.Progress(progress)
	}
}

// lastStep fills in the figures of the last finished step; before the first, of all so far.
func (p *running) lastStep(progress *Progress, last int) {
	// The percentiles are of the side with most answers: percentiles of two sides cannot be combined.
	most, answers := int64(-1), int64(0)
	for _, side := range []*series{p.async, p.sync} {
		if side == nil {
			continue
		}
		n := side.answersIn(max(last, 0))
		answers += n
		if n <= most {
			continue
		}
		most = n
		step := side.look(0)
		if last >= 0 {
			step = side.closed[last]
		}
		progress.P50MS, progress.P99MS = step.P50MS, step.P99MS
	}
	if last >= 0 {
		progress.PerSecond = float64(answers) / p.step.Seconds()
	} else if seconds := progress.Elapsed.Seconds(); seconds > 0 {
		progress.PerSecond = float64(progress.Accepted+progress.Errors) / seconds
	}
}

// report makes the phase's part of the report. Nobody writes to its recorders any more.
func (p *running) report(ctx context.Context, use *ServerUse, drained time.Duration) Phase {
	sending := time.Duration(p.lastAnswer.Load()) - p.began
	wall := max(sending, time.Duration(p.lastResult.Load())-p.began)
	phase := Phase{Name: p.name, Loop: "closed", SendSeconds: sending.Seconds(), Server: use}
	if p.plan != nil {
		phase.Loop = "open"
	}
	if p.async != nil {
		callbacks := p.run.inbox.counters(p)
		phase.Callbacks = &callbacks
		if callbacks.Missing > 0 {
			wall = drained - p.began
		}
	}
	phase.WallSeconds = wall.Seconds()
	if use != nil && wall > 0 {
		use.CPUCores = use.CPUSeconds / wall.Seconds()
	}
	lags := newRecorder()
	var syncPlanned, planned int64
	if p.plan != nil && ctx.Err() == nil {
		planned = p.plan.count
		syncPlanned = int64(math.Floor(float64(planned) * p.share))
	}
	sideOf := func(s *series, planned int64) *Side {
		if s == nil {
			return nil
		}
		side, all := s.side(int(p.step/time.Second), p.service(), sending, wall)
		side.Planned = max(side.Sent, planned)
		lags.merge(all)
		return side
	}
	phase.Sync = sideOf(p.sync, syncPlanned)
	phase.Async = sideOf(p.async, planned-syncPlanned)
	phase.Lag = latencyOf(lags.dials[dialLag])
	phase.OwnLag = latencyOf(lags.dials[dialOwnLag])
	return phase
}
