package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/receiver"
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
	if err := app.ValidAddress(c.Listen); err != nil {
		return badArgument("", "--listen %s: %w", c.Listen, err)
	}
	if c.MaxBody < 1 {
		return badArgument("", "--max-body %d: want at least 1", c.MaxBody)
	}
	if err := c.behaviour().Validate(); err != nil {
		return badArgument("", "%w", err)
	}
	var err error
	if c.secret, err = app.ReadSecret(c.Secret); err != nil {
		return badArgument("", "--secret: %w", err)
	}
	return nil
}

// behaviour collects the flags that say how to answer.
func (c *sinkCommand) behaviour() receiver.Behaviour {
	return receiver.Behaviour{
		Delay: c.Delay, FailRate: c.FailRate, Status: c.Status, Hang: c.Hang, Redirect: c.Redirect,
	}
}

// Run receives until a signal comes, which is how a sink ends well, or until nothing can be printed any more.
func (c *sinkCommand) Run(ctx context.Context, t *terminal) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var printing sync.Mutex // one line at a time
	sink, err := receiver.New(receiver.Config{
		Secret:    c.secret,
		MaxKeys:   sinkMemory,
		MaxBody:   c.MaxBody,
		Behaviour: c.behaviour(),
		OnArrival: func(a receiver.Arrival) {
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
	listener, err := app.Listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	t.printf("receiving callbacks on http://%s, %s; Ctrl-C ends it\n", listener.Addr(), c.checking())
	err = receiver.Serve(ctx, netutil.LimitListener(listener, sinkConnections), sink)
	printing.Lock()
	defer printing.Unlock()
	t.printf("%s\n", countsLine(sink.Counts()))
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
func arrivalLine(a receiver.Arrival) string {
	signature := "unchecked"
	switch {
	case a.Signature != nil:
		signature = "BAD (" + a.Signature.Error() + ")"
	case a.Checked:
		signature = "ok"
	}
	what := fmt.Sprintf("%s %s attempt %d/%d", printable(a.ID), printable(a.Callback.Type),
		a.Callback.Metadata.Attempt, a.Callback.Metadata.MaxAttempts)
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
func countsLine(c receiver.Counts) string {
	return fmt.Sprintf(
		"%d received: %d delivered, %d repeats, %d with a bad signature, %d malformed, %d refused on purpose",
		c.Received, c.Delivered, c.Duplicates, c.BadSignature, c.Malformed, c.Misbehaved)
}

// printable is the text of a stranger as one word; "-" for none.
func printable(text string) string {
	return strings.ReplaceAll(cmp.Or(term.Clean(text, sinkFieldWidth), "-"), " ", "_")
}
