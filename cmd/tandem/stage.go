package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
)

const (
	// stagePatience is for computing: it has a low priority, and the machine may be busy.
	stagePatience = 3 * time.Minute
	// stageHostConcurrency is more than the default, because all callbacks go to one receiver.
	stageHostConcurrency = 64
)

// stageCommand is the server of `tandem demo` and `tandem load --demo-mode`: in memory, on a free
// port, and in a process of its own, so that what it uses and what the generator uses can be told apart.
// It says its address on standard output and lives until its standard input ends,
// which is also what happens when whoever started it dies.
type stageCommand struct {
	SigningSecret string `env:"TANDEM_SIGNING_SECRET" required:"" help:"Signs callbacks."`
}

// Run serves. Signals are for whoever started it: Ctrl-C reaches both.
func (c *stageCommand) Run(ctx context.Context, t *terminal) error {
	secret, err := readSecret(c.SigningSecret)
	if err != nil {
		return badArgument("", "--signing-secret: %w", err)
	}
	listener, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	service, err := openService(ctx, parts{
		store:  store.Config{URL: ":memory:"},
		egress: egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}, HostConcurrency: stageHostConcurrency},
		engine: engine.Config{TaskTimeout: stagePatience},
		server: server.Config{Mode: modeDemo, TestCallback: true, TaskTimeout: stagePatience},
		secret: secret,
		log:    slog.New(slog.DiscardHandler), // what matters to a run is in its report
	}, listener)
	if err != nil {
		return err
	}
	t.printf("%s\n", baseURL(listener.Addr()))
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return service.run(running, running.Done()) }) // nothing is worth a grace
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
	return s, s.ready(ctx)
}

// ready returns when the server says so.
func (s *stage) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("ask the server: %w", err)
		}
		if response, err := client.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", context.Cause(ctx))
		}
	}
}

// close ends the server and waits for it. What it held was in memory, and has been reported.
func (s *stage) close() {
	s.stdin.Close()
	s.cmd.Process.Kill() //nolint:errcheck // an error means that it has ended already
	s.cmd.Wait()         //nolint:errcheck // it was killed, and says so
}
