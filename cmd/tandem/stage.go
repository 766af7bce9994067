package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/app"
)

const (
	// stageTimeout is for computing: it has a low priority, and the machine may be busy.
	stageTimeout = 3 * time.Minute
	// stageHostConcurrency is more than the default, because all callbacks go to one receiver.
	stageHostConcurrency = 64
)

// stageCommand is the server of `tandem demo` and `tandem load --demo-mode`: in memory, on a free
// port, and in a process of its own, so that what it uses and what the generator uses can be told apart.
// It says its address on standard output once it is ready, and lives until its standard input ends,
// which is also what happens when its parent dies.
type stageCommand struct {
	SigningSecret string `env:"TANDEM_SIGNING_SECRET" required:"" help:"Signs callbacks."`
}

// Run serves. Signals are for its parent: Ctrl-C reaches both.
func (c *stageCommand) Run(ctx context.Context, t *terminal) error {
	secret, err := app.ReadSecret(c.SigningSecret)
	if err != nil {
		return badArgument("", "--signing-secret: %w", err)
	}
	cfg := app.Preset(app.Demo)
	cfg.Listen, cfg.SigningSecret, cfg.Compute = "127.0.0.1:0", secret, computeProcess()
	cfg.TaskTimeout, cfg.CallbackHostConcurrency = stageTimeout, stageHostConcurrency
	cfg.MaxQueuePerKey = cfg.MaxQueue       // there is one client
	cfg.Log = slog.New(slog.DiscardHandler) // what matters to a run is in its report
	service, err := app.Open(ctx, cfg)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return service.Run(running, running.Done()) }) // nothing is worth a grace
	select {
	case <-service.Ready():
		t.printf("%s\n", service.URL)
	case <-running.Done():
	}
	_, err = io.Copy(io.Discard, t.in)
	stop()
	return errors.Join(err, g.Wait())
}

// stage is a running stageCommand.
type stage struct {
	url   string
	cmd   *exec.Cmd
	stdin io.Closer // its end is the end of the server
}

// openStage starts the server and returns when it is ready.
func openStage(ctx context.Context, secret tandem.Secret) (_ *stage, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	s := &stage{cmd: exec.CommandContext(context.WithoutCancel(ctx), program, "stage")} //nolint:gosec // ourselves
	s.cmd.Env = append(os.Environ(), "TANDEM_SIGNING_SECRET="+secret.Reveal())
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	s.cmd.Stderr = os.Stderr // why it ended, if it did not mean to
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("start a server: it ended before it was ready: %w", err)
	}
	s.url = strings.TrimSpace(line)
	return s, nil
}

// close ends the server and waits for it. What it held was in memory, and has been reported.
func (s *stage) close() {
	s.stdin.Close()
	s.cmd.Process.Kill() //nolint:errcheck // an error means that it has ended already
	s.cmd.Wait()         //nolint:errcheck // it was killed, and says so
}
