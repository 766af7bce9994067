package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/load"
)

// demoCommand shows both ways of asking for work in one go, with real figures.
type demoCommand struct {
	Plain bool `help:"Plain lines, even on a terminal."`
}

// act is one part of the demo: one kind of work, asked for both ways.
type act struct {
	title    string
	short    string // in the summary
	html     string // where its charts go
	task     string
	amount   int // complexity
	requests int64
	phases   []string
}

// demoActs are a kind of work that gains from async and one that does not. The numbers of
// requests make each phase last a few seconds; computing takes as long on every machine.
func demoActs(cores int) []act {
	return []act{
		{
			title: "Work that waits: 200 ms each, as a call of another service would", short: "work that waits",
			html: "demo-report.html", task: "sleep", amount: 4, requests: 2400,
			phases: []string{load.PhaseSync, load.PhaseAsync, load.PhaseMixed},
		},
		{
			title: "Work that computes: about 75 ms of one core each", short: "work that computes",
			html: "demo-report-compute.html", task: taskCompute, amount: 1, requests: int64(40 * min(cores, 16)),
			phases: []string{load.PhaseSync, load.PhaseAsync},
		},
	}
}

const (
	demoCallers = 64
	taskCompute = "compute"

	// Computing has a low priority, so on a machine that is busy with other programs it may take
	// several times as long. What one computation takes is tried first.
	demoIdle     = 300 * time.Millisecond // up to this the machine counts as idle
	demoBusiest  = 3 * time.Second        // beyond, comparing makes no sense
	demoPatience = time.Minute            // for an answer, and for callbacks; some ten times what is expected
)

// Run starts a server on a free port and runs the acts. Exit code 0 says that every
// callback came, signed.
func (c *demoCommand) Run(ctx context.Context, t *terminal) error {
	cores := runtime.GOMAXPROCS(0)
	acts := demoActs(cores)
	files := make([]reports, len(acts))
	for i, act := range acts {
		var err error
		if files[i], err = openReports("", act.html); err != nil {
			return err
		}
	}
	secret := tandem.NewSecret()
	server, err := openStage(ctx, secret)
	if err != nil {
		return err
	}
	defer server.close()
	t.printf("tandem demo: the same work, asked for both ways (about 20 seconds)\n\n")
	t.printf("  server   %s, database in memory, %s\n", server.url, plural(cores, "core"))
	t.printf("  callers  %d, each sends its next request when the last is answered\n", demoCallers)
	var summary [][]string
	for i, act := range acts {
		t.printf("\n%d. %s\n\n", i+1, act.title)
		config := act.config(server.url, secret)
		if act.task == taskCompute {
			busy, err := act.fit(ctx, &config, cores)
			if err != nil {
				return err
			}
			t.printf("%s", busy)
			if config.Requests == 0 {
				continue
			}
		}
		report, err := measure(ctx, t, config, c.Plain)
		if err != nil {
			return err
		}
		if err := files[i].write(report); err != nil {
			return err
		}
		if err := load.WriteText(t.out, report); err != nil {
			return err
		}
		files[i].name(t)
		if err := verdict(ctx, report); err != nil {
			return demoFailure(err)
		}
		summary = append(summary, []string{"  " + act.short, inShort(report.Comparison)})
		if config.Requests < act.requests {
			summary = append(summary, []string{"", "(on a busy machine)"})
		}
	}
	t.printf("\nIn short, with async:\n")
	t.table([]int{-21}, summary)
	t.printf("\nNext: %s serve\nand open http://127.0.0.1:8000/docs\n", t.program)
	return nil
}

// fit tries one computation on each core and asks for no more of them than this machine does in a few
// seconds; 0: it is too busy. It returns what to tell about that, nothing on an idle machine.
func (a act) fit(ctx context.Context, config *load.Config, cores int) (string, error) {
	try := *config
	try.Phases, try.Timeout = []string{load.PhaseSync}, demoBusiest
	try.Requests, try.Concurrency = int64(cores), cores
	report, err := load.Run(ctx, try)
	if err != nil {
		return "", err
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	side := report.Phases[0].Sync
	took := time.Duration(side.Response.MaxMS * float64(time.Millisecond))
	if side.Accepted < try.Requests {
		took = demoBusiest
	}
	config.Requests = fitting(config.Requests, took)
	switch {
	case config.Requests == 0:
		return fmt.Sprintf("  left out: this machine is busy with other programs. Computing gives way to\n  them, and one "+
			"computation did not end within %v. Try again when it is idle.\n", demoBusiest), nil
	case took > demoIdle:
		return fmt.Sprintf("  this machine is busy with other programs: one computation took %v,\n  so there are fewer "+
			"of them\n\n", took.Round(10*time.Millisecond)), nil
	default:
		return "", nil
	}
}

// fitting is how many of the requests there is time for when one takes that long; 0: not even
// for the few that a comparison needs.
func fitting(requests int64, took time.Duration) int64 {
	const few = 8
	switch {
	case took >= demoBusiest:
		return 0
	case took <= demoIdle:
		return requests
	default:
		return max(few, int64(float64(requests)*float64(demoIdle)/float64(took)))
	}
}

// inShort is the comparison in one line.
func inShort(c *load.Comparison) string {
	if c == nil {
		return "no comparison"
	}
	times := func(ratio float64) string {
		if ratio < 9.95 {
			return fmt.Sprintf("%.1f×", ratio)
		}
		return fmt.Sprintf("%.0f×", ratio)
	}
	text := "callers are free " + times(c.ResponseP50Ratio) + " sooner"
	if c.ResponseP50Ratio < 1.1 {
		text = "callers are kept as long"
	}
	switch {
	case c.SameCompletion:
		return text + ", and as much gets done"
	case c.CompletedRatio > 0:
		return text + ", and " + times(c.CompletedRatio) + " as much gets done"
	default:
		return text
	}
}

// demoFailure says what to do about a demo that did not go well: nobody but this program took part.
func demoFailure(err error) error {
	if failed, ok := errors.AsType[*failure](err); ok && failed.code == exitCheckFailed {
		return &failure{code: exitCheckFailed, err: failed.err,
			hint: "other programs may keep this machine busy: try again when it is idle"}
	}
	return err
}

// config is the act as a run of the load generator.
func (a act) config(server string, secret tandem.Secret) load.Config {
	return load.Config{
		URL: server, Mode: app.Demo, Tool: "tandem " + tandem.Version,
		Phases: a.phases, Requests: a.requests, Concurrency: demoCallers, SyncRatio: 0.5,
		Task: a.task, Complexity: a.amount,
		Callback: load.CallbackConfig{Listen: "127.0.0.1:0"},
		Drain:    demoPatience, Timeout: demoPatience, On429: load.On429Count,
		Secret: secret, Seed: uint64(rand.Uint32()),
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
