package main_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"tandem"
	"tandem/internal/load"
)

// generate runs the load generator against a server and returns the report of its one phase.
func generate(b *testing.B, config load.Config) load.Phase {
	b.Helper()
	config.Drain, config.Timeout = time.Minute, time.Minute
	report, err := load.Run(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	phase := report.Phases[0]
	if c := phase.Callbacks; c != nil && (c.Missing > 0 || c.BadSignature > 0) {
		b.Errorf("%d callbacks missing, %d with a bad signature", c.Missing, c.BadSignature)
	}
	return phase
}

// BenchmarkSecurity: what the settings of production cost beside those of demo mode, on the
// same kind of file: the rate limit, and the rules for callbacks with what they let through. Pairs of
// runs in turn, the order of each pair turned round; callbacks are signed in both.
func BenchmarkSecurity(b *testing.B) {
	for b.Loop() {
		// :: figure → production ÷ demo, one per pair
		ratios := map[string][]float64{}
		for round := range rounds {
			measured := map[string]map[string]float64{}
			modes := []string{"demo", "production"}
			if round%2 == 1 {
				modes[0], modes[1] = modes[1], modes[0]
			}
			for _, mode := range modes {
				measured[mode] = securityRun(b, mode)
			}
			for name, value := range measured["production"] {
				ratios[name] = append(ratios[name], value/measured["demo"][name])
			}
		}
		for _, name := range []string{"sync CPU per request", "async CPU per request", "sync completed/s", "async accepted/s", "async completed/s"} {
			reachedf(b, "production ÷ demo: "+name, "no bound", "%.2f (rounds %.2f)", median(ratios[name]), ratios[name])
		}
	}
}

// securityRun takes the figures of one mode.
func securityRun(b *testing.B, mode string) map[string]float64 {
	b.Helper()
	receiver, err := freeAddress()
	if err != nil {
		b.Fatal(err)
	}
	_, port, err := net.SplitHostPort(receiver)
	if err != nil {
		b.Fatal(err)
	}
	secret := tandem.NewSecret()
	db, key := filepath.Join(b.TempDir(), "tandem.db"), ""
	args := []string{"serve", "--listen", "127.0.0.1:0", "--mode", mode, "--db", db, "--callback-host-concurrency", "64"}
	if mode == "production" { // with a key, which is looked up, kept with the request, and signs for it
		key, _ = tandemKeys(b, db, "create", "--plain", "--name", "load", "--scopes", "submit,read,admin")
		text, _ := tandemKeys(b, db, "rotate-signing", "--plain", "load", "--overlap", "0s")
		if secret, err = tandem.ParseSecret(text); err != nil {
			b.Fatal(err)
		}
		args = append(args, "--rate-limit", "1000000/60s", "--read-limit", "1000000/60s", "--allow-callback-cidr", "127.0.0.0/8", "--allow-callback-port", port)
	}
	p := start(b, []string{"TANDEM_SIGNING_SECRET=" + secret.Reveal()}, args...)
	p.awaitReady(b)
	defer p.kill()
	figures := map[string]float64{}
	for _, name := range []string{load.PhaseSync, load.PhaseAsync} {
		phase := generate(b, load.Config{
			URL: p.url, Phases: []string{name}, Requests: 30_000, Concurrency: 64, Task: "echo",
			Callback: load.CallbackConfig{Listen: receiver}, Secret: secret, APIKey: key,
		})
		side := phase.Sync
		if name == load.PhaseAsync {
			side = phase.Async
			figures["async accepted/s"] = side.AcceptedPerSecond
		}
		figures[name+" completed/s"] = side.CompletedPerSecond
		figures[name+" CPU per request"] = phase.Server.CPUSeconds / float64(side.Completed)
	}
	return figures
}
