package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/load"
	"tandem/internal/term"
)

// Bounds of the sink: it faces strangers.
const (
	sinkConnections = 1_024
	sinkMemory      = 100_000 // callbacks it can tell repeats of
	sinkFieldWidth  = 80      // characters shown of a text that a stranger sent
)

// sinkCommand receives callbacks.
type sinkCommand struct {
	Listen   string        `default:"127.0.0.1:9000" placeholder:"HOST:PORT" help:"Address to listen on (default: ${default})."`
	Secret   string        `placeholder:"whsec_…|@FILE" env:"TANDEM_SIGNING_SECRET" help:"Verify signatures with this secret."`
	Status   int           `placeholder:"N" help:"Answer with this status instead of 200."`
	FailRate float64       `placeholder:"0..1" help:"Misbehave for this share of the callbacks only, with status 500 unless --status, --hang or --redirect says how."`
	Delay    time.Duration `help:"Wait before each answer."`
	Hang     bool          `help:"Never answer."`
	Redirect string        `placeholder:"URL" help:"Answer 307 with this Location."`
	MaxBody  int64         `default:"1048576" placeholder:"BYTES" help:"Largest callback taken (default: ${default})."`

	secret tandem.Secret // Secret, read; zero: signatures are not checked
}

// Validate reads the secret and refuses what cannot work; kong calls it.
func (c *sinkCommand) Validate() error {
	if err := validAddress(c.Listen); err != nil {
		return badArgument("", "--listen %s: %w", c.Listen, err)
	}
	if c.MaxBody < 1 {
		return badArgument("", "--max-body %d: want at least 1", c.MaxBody)
	}
	if err := c.behaviour().Validate(); err != nil {
		return badArgument("", "%w", err)
	}
	var err error
	if c.secret, err = readSecret(c.Secret); err != nil {
		return badArgument("", "--secret: %w", err)
	}
	return nil
}

// behaviour collects the flags that say how to answer.
func (c *sinkCommand) behaviour() load.Behaviour {
	return load.Behaviour{Delay: c.Delay, FailRate: c.FailRate, Status: c.Status, Hang: c.Hang, Redirect: c.Redirect}
}

// Run receives until a signal comes, which is how a sink ends well, or until nothing can be printed any more.
func (c *sinkCommand) Run(ctx context.Context, t *terminal) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var printing sync.Mutex // one line at a time
	receiver, err := load.NewReceiver(load.ReceiverConfig{
		Secret:    c.secret,
		MaxKeys:   sinkMemory,
		MaxBody:   c.MaxBody,
		Behaviour: c.behaviour(),
		OnArrival: func(a load.Arrival) {
			printing.Lock()
			defer printing.Unlock()
			t.printf("%s\n", arrivalLine(a))
			if t.out.Err() != nil {
				stop()
			}
		},
	})
	if err != nil {
		return err
	}
	listener, err := listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	t.printf("receiving callbacks on http://%s, %s; Ctrl-C ends it\n", listener.Addr(), c.checking())
	err = serveHTTP(ctx, receiver, netutil.LimitListener(listener, sinkConnections))
	printing.Lock()
	defer printing.Unlock()
	t.printf("%s\n", countsLine(receiver.Counts()))
	return err
}

// checking says whether a good signature means anything.
func (c *sinkCommand) checking() string {
	if c.secret.IsZero() {
		return "signatures are NOT checked (no --secret)"
	}
	return "signatures are checked"
}

// arrivalLine says in one line what came and what it was answered.
func arrivalLine(a load.Arrival) string {
	signature := "unchecked"
	switch {
	case a.Signature != nil:
		signature = "BAD (" + a.Signature.Error() + ")"
	case a.Checked:
		signature = "ok"
	}
	what := fmt.Sprintf("%s %s attempt %d/%d", printable(a.ID), printable(a.Callback.Type), a.Callback.Metadata.Attempt, a.Callback.Metadata.MaxAttempts)
	if a.Malformed != nil {
		what = printable(a.ID) + " not a callback: " + a.Malformed.Error()
	}
	if a.Duplicate {
		what += " (repeat)"
	}
	answer := strconv.Itoa(a.Status)
	if a.Status == 0 {
		answer = "none"
	}
	return fmt.Sprintf("%s %s, signature %s, answer %s",
		a.At.Format("15:04:05.000"), what, term.Clean(signature, sinkFieldWidth), answer)
}

// countsLine sums up.
func countsLine(c load.Counts) string {
	return fmt.Sprintf("%d received: %d delivered, %d repeats, %d with a bad signature, %d malformed, %d refused on purpose",
		c.Received, c.Delivered, c.Duplicates, c.BadSignature, c.Malformed, c.Misbehaved)
}

// printable is the text of a stranger as one word; "-" for none.
func printable(text string) string {
	return strings.ReplaceAll(cmp.Or(term.Clean(text, sinkFieldWidth), "-"), " ", "_")
}

// listen opens a TCP address; its error is one clear line.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		if refused, ok := errors.AsType[*net.OpError](err); ok {
			err = refused.Err // the rest repeats the address
		}
		return nil, &failure{
			code: exitCannotRun,
			err:  fmt.Errorf("listen on %s: %w", address, err),
			hint: "--listen names another address; port 0 takes any free port",
		}
	}
	return listener, nil
}

// serveHTTP serves a small handler of our own until ctx ends; what hangs then is cut.
func serveHTTP(ctx context.Context, handler http.Handler, listener net.Listener) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", listener.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-running.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(grace) == nil {
			return nil
		}
		return server.Close() // a hanging answer: it is meant to hang, not to keep us
	})
	return g.Wait()
}
