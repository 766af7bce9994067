package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"tandem"
	"tandem/internal/load"
)

// demoCommand shows both ways of asking for work in one go, with real figures.
type demoCommand struct {
	Plain bool `help:"Plain lines, even on a terminal."`
}

// act is one part of the demo: one kind of work, asked for both ways.
type act struct {
	title    string
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
			title: "Work that waits: 200 ms each, as a call of another service would",
			html:  "demo-report.html", task: "sleep", amount: 4, requests: 2400,
			phases: []string{load.PhaseSync, load.PhaseAsync, load.PhaseMixed},
		},
		{
			title: "Work that computes: about 75 ms of one core each",
			html:  "demo-report-compute.html", task: "compute", amount: 1, requests: int64(50 * min(cores, 16)),
			phases: []string{load.PhaseSync, load.PhaseAsync},
		},
	}
}

const demoCallers = 64

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
	t.printf("tandem demo: the same work, asked for both ways (about 25 seconds)\n\n")
	t.printf("  server   %s, database in memory, %s\n", server.url, plural(cores, "core"))
	t.printf("  callers  %d, each sends its next request when the last is answered\n", demoCallers)
	for i, act := range acts {
		t.printf("\n%d. %s\n\n", i+1, act.title)
		report, err := measure(ctx, t, act.config(server.url, secret), c.Plain)
		if err != nil {
			return err
		}
		if err := load.WriteTable(t.out, report); err != nil {
			return err
		}
		if err := files[i].write(t, report); err != nil {
			return err
		}
		if err := verdict(ctx, report); err != nil {
			return err
		}
	}
	t.printf("\nNext: %s serve\nand open http://127.0.0.1:8000/docs\n", t.program)
	return nil
}

// config is the act as a run of the load generator.
func (a act) config(server string, secret tandem.Secret) load.Config {
	return load.Config{
		URL: server, Mode: modeDemo, Tool: "tandem " + tandem.Version,
		Phases: a.phases, Requests: a.requests, Concurrency: demoCallers, SyncRatio: 0.5,
		Task: a.task, Complexity: a.amount,
		Callback: load.CallbackConfig{Listen: "127.0.0.1:0"},
		Drain:    stagePatience, Timeout: stagePatience + time.Second, On429: load.On429Count,
		Secret: secret, Seed: uint64(rand.Uint32()),
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
