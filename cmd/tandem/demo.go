package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/load"
	"tandem/internal/server"
	"tandem/internal/store"
)

const (
	demoCallers  = 32              // connections, each sending its next request when the last is answered
	demoPatience = 3 * time.Minute // for one trial, its callbacks included: computing has the lowest priority, and the machine may be busy
)

// demoCommand shows both ways of asking for work in one go, with real figures.
type demoCommand struct{}

// trial is one kind of work, asked for in one way.
type trial struct {
	task       string
	complexity int
	requests   int
	mode       tandem.Mode
}

// figures are what a trial measured.
type figures struct {
	response []time.Duration // of every request, sending to the last byte of the answer; sorted
	answered time.Duration   // first request sent to last answer
	finished time.Duration   // first request sent to last result: the answer, or the callback
	counts   load.Counts     // async only
}

// Run starts a server and a receiver on free ports and runs the trials. Exit
// code 0 says that every callback came, signed.
func (c *demoCommand) Run(ctx context.Context, t *terminal) error {
	cores := runtime.GOMAXPROCS(0)
	computing := 60 * min(cores, 16) // about 75 ms of one core each
	trials := []trial{
		{"sleep", 4, 400, tandem.ModeSync},
		{"sleep", 4, 400, tandem.ModeAsync},
		{"compute", 1, computing, tandem.ModeSync},
		{"compute", 1, computing, tandem.ModeAsync},
	}
	stage, err := openStage(ctx, t)
	if err != nil {
		return err
	}
	t.printf("tandem demo: the same work, asked for both ways (about 15 seconds)\n\n")
	t.printf("  server    %s, database in memory, %s\n", stage.server, plural(cores, "core"))
	t.printf("  receiver  %s, verifies the signature of every callback\n", stage.receiver)
	t.printf("  callers   %d, each sends its next request when the last is answered\n\n", demoCallers)

	var results []figures
	err = stage.run(ctx, t, func(ctx context.Context) error {
		for _, trial := range trials {
			measured, err := stage.try(ctx, trial)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", trial.task, trial.mode, err)
			}
			t.printf("  %-8s %-6s %4d requests  %5.1f s\n", trial.task, trial.mode, trial.requests, measured.finished.Seconds())
			results = append(results, measured)
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	t.printf("\n%s\n%s", demoTable(results), demoMeaning(results))
	for _, measured := range results {
		if c := measured.counts; c.Missing() > 0 || c.BadSignature > 0 || c.Malformed > 0 || c.Unknown > 0 {
			return &failure{code: exitCheckFailed, err: fmt.Errorf("callbacks are missing or wrong: %+v", c)}
		}
	}
	t.printf("\nNext: %s serve\nand open http://127.0.0.1:8000/docs\n", t.program)
	return nil
}

// stage is the scenery: a real server and a receiver on free ports of this
// machine, in this process.
type stage struct {
	server   string // base URL
	receiver string // base URL
	secret   tandem.Secret
	service  *service
	play     func(context.Context) error   // serves the receiver
	current  atomic.Pointer[load.Receiver] // of the trial that runs
	client   *http.Client
}

// openStage opens both listeners and the service; nothing runs yet. After an
// error nothing is left open.
func openStage(ctx context.Context, t *terminal) (*stage, error) {
	s := &stage{
		secret: tandem.NewSecret(),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: demoCallers}},
	}
	incoming, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.receiver = baseURL(incoming.Addr())
	s.play = func(ctx context.Context) error { return serveHTTP(ctx, http.HandlerFunc(s.receive), incoming) }
	listener, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, incoming.Close())
	}
	s.server = baseURL(listener.Addr())
	s.service, err = openService(ctx, parts{
		store:  store.Config{URL: ":memory:"},
		egress: egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}},
		engine: engine.Config{TaskTimeout: demoPatience},
		server: server.Config{Mode: modeDemo, TestCallback: true, TaskTimeout: demoPatience},
		secret: s.secret,
		log:    slog.New(slog.NewTextHandler(t.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, listener)
	if err != nil {
		return nil, errors.Join(err, incoming.Close())
	}
	return s, nil
}

// receive hands a callback to the receiver of the trial that runs.
func (s *stage) receive(w http.ResponseWriter, r *http.Request) {
	receiver := s.current.Load()
	if receiver == nil {
		http.NotFound(w, r)
		return
	}
	receiver.ServeHTTP(w, r)
}

// run does work while server and receiver are up, and returns when both have stopped.
func (s *stage) run(ctx context.Context, t *terminal, work func(context.Context) error) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return s.service.run(running, t.halt) })
	g.Go(func() error { return s.play(running) })
	g.Go(func() error {
		defer stop()
		defer s.client.CloseIdleConnections()
		if err := s.ready(running); err != nil {
			return err
		}
		return work(running)
	})
	return g.Wait()
}

// ready returns when the server says so.
func (s *stage) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if status, _, err := s.send(ctx, http.MethodGet, "/readyz", nil); err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", context.Cause(ctx))
		}
	}
}

// send makes one request and reads the whole answer.
func (s *stage) send(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("send request: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return response.StatusCode, answer, nil
}

// try runs one trial: every caller takes the next request until none is left.
func (s *stage) try(ctx context.Context, trial trial) (figures, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoPatience, fmt.Errorf("not finished after %v", demoPatience))
	defer cancel()
	receiver, err := load.NewReceiver(load.ReceiverConfig{Secret: s.secret})
	if err != nil {
		return figures{}, err
	}
	s.current.Store(receiver)
	measured := figures{response: make([]time.Duration, trial.requests)}
	var next atomic.Int64
	start := time.Now()
	g, calling := errgroup.WithContext(ctx)
	for range demoCallers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= trial.requests {
					return nil
				}
				var err error
				if measured.response[i], err = s.call(calling, trial, receiver, i); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return figures{}, err
	}
	measured.answered = time.Since(start)
	waitErr := receiver.Wait(ctx) // at once for sync, which expects nothing
	measured.finished = time.Since(start)
	measured.counts = receiver.Counts()
	slices.Sort(measured.response)
	if waitErr != nil && measured.counts.Received == 0 {
		return figures{}, waitErr
	}
	return measured, nil
}

// call makes request number i of a trial and returns its response time.
func (s *stage) call(ctx context.Context, trial trial, receiver *load.Receiver, i int) (time.Duration, error) {
	order := map[string]any{"data": map[string]int{"number": i}, "task": trial.task, "complexity": trial.complexity}
	path, want := "/sync", http.StatusOK
	if trial.mode == tandem.ModeAsync {
		path, want = "/async", http.StatusAccepted
		key := fmt.Sprintf("%s-%d", trial.task, i)
		if err := receiver.Expect(key); err != nil {
			return 0, err
		}
		order["callback_url"] = s.receiver + "/" + key
	}
	body, err := json.Marshal(order)
	if err != nil {
		return 0, fmt.Errorf("encode request: %w", err)
	}
	start := time.Now()
	status, answer, err := s.send(ctx, http.MethodPost, path, body)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	if status != want {
		return 0, fmt.Errorf("answered %d: %.200s", status, answer)
	}
	return took, nil
}

// demoTable lays the figures out, one column per trial, 78 characters wide.
func demoTable(results []figures) string {
	var b strings.Builder
	row := func(name string, cell func(figures) string) {
		fmt.Fprintf(&b, "  %-24s", name)
		for _, measured := range results {
			fmt.Fprintf(&b, "%13s", cell(measured))
		}
		b.WriteByte('\n')
	}
	callbacks := func(cell func(load.Counts) string) func(figures) string {
		return func(f figures) string {
			if f.counts.Expected == 0 {
				return "-"
			}
			return cell(f.counts)
		}
	}
	fmt.Fprintf(&b, "  %-24s%26s%26s\n", "", "sleep: waits 200 ms", "compute: ~75 ms of CPU")
	fmt.Fprintf(&b, "  %-24s%13s%13s%13s%13s\n", "", "sync", "async", "sync", "async")
	row("response time p50", func(f figures) string { return milliseconds(f.percentile(50)) })
	row("response time p99", func(f figures) string { return milliseconds(f.percentile(99)) })
	row("accepted per second", func(f figures) string { return rate(len(f.response), f.answered) })
	row("completed per second", func(f figures) string { return rate(f.completed(), f.finished) })
	row("callbacks received", callbacks(func(c load.Counts) string { return fmt.Sprintf("%d of %d", c.Delivered, c.Expected) }))
	row("  signature verified", callbacks(func(c load.Counts) string { return fmt.Sprint(c.Received - c.BadSignature) }))
	row("  repeated / missing", callbacks(func(c load.Counts) string { return fmt.Sprintf("%d / %d", c.Duplicates, c.Missing()) }))
	return b.String()
}

// completed counts the requests whose result has reached the caller.
func (f figures) completed() int {
	if f.counts.Expected > 0 {
		return int(f.counts.Delivered)
	}
	return len(f.response)
}

// percentile is the smallest response time that p percent do not exceed (nearest rank).
func (f figures) percentile(p int) time.Duration {
	rank := (len(f.response)*p + 99) / 100
	return f.response[max(rank, 1)-1]
}

// completedPerSecond is counted from the first request to the last result.
func (f figures) completedPerSecond() float64 { return float64(f.completed()) / f.finished.Seconds() }

// demoMeaning says in words what the four columns of figures show.
func demoMeaning(results []figures) string {
	sleepSync, sleepAsync, computeSync, computeAsync := results[0], results[1], results[2], results[3]
	var b strings.Builder
	fmt.Fprintf(&b, `  Async answers as soon as the request is accepted (%s instead of %s);
  the result follows in a callback. Accepting costs no disk write here, because
  the database is in memory: with a file, it does.
`, milliseconds(sleepAsync.percentile(50)), milliseconds(sleepSync.percentile(50)))
	fmt.Fprintf(&b, `  Work that waits: async completed %.1f times as much per second, because the
  same %d callers do not wait and so keep more of it going at once.
`, sleepAsync.completedPerSecond()/sleepSync.completedPerSecond(), demoCallers)
	fmt.Fprintf(&b, "  Work that computes: async completed %.2f times as much per second.\n",
		computeAsync.completedPerSecond()/computeSync.completedPerSecond())
	b.WriteString("  The cores are the limit either way, and async makes them no faster.\n")
	return b.String()
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// rate is a number per second, without decimals once they say nothing.
func rate(n int, d time.Duration) string {
	perSecond := float64(n) / d.Seconds()
	if perSecond < 100 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
