package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"tandem/internal/egress"
	"tandem/internal/engine"
)

// maxExternalDelay bounds the simulator: longer would only be a call that times out.
const maxExternalDelay = time.Minute

// external says what submissions are passed on to, its client aside.
func (c *serveCommand) external() engine.External {
	return engine.External{URL: c.ExternalURL, MinDelay: c.delay[0], MaxDelay: c.delay[1], Timeout: c.ExternalTimeout}
}

// externalCalls says how the external service is called. Its address comes from the
// operator, so it may be private and have any port; metadata services stay refused. It has
// a breaker, and as many calls at once as there are slots for them.
func (c *serveCommand) externalCalls() egress.Config {
	return egress.Config{
		Policy:  egress.Policy{AllowPrivate: true, AnyPort: true},
		Timeout: c.ExternalTimeout, ConnectTimeout: min(c.ExternalTimeout, 3*time.Second), HostConcurrency: c.IOWorkers,
	}
}

// validExternal reads the flags about the external service.
func (c *serveCommand) validExternal() error {
	var err error
	if c.delay, err = parseDelay(c.ExternalDelay); err != nil {
		return badArgument("", "--external-delay %s: %w", c.ExternalDelay, err)
	}
	if c.ExternalTimeout < time.Millisecond || c.ExternalTimeout > engine.MaxExternalTimeout {
		return badArgument("", "--external-timeout %v: want %v to %v", c.ExternalTimeout, time.Millisecond, engine.MaxExternalTimeout)
	}
	if c.ExternalURL == "" {
		return nil
	}
	client, err := egress.New(c.externalCalls())
	if err != nil {
		return fmt.Errorf("set up calls of the external service: %w", err)
	}
	defer client.Close()
	if err := client.Check(c.ExternalURL); err != nil {
		why := cmp.Or(errors.Unwrap(err), err) // the error itself speaks of a callback
		return badArgument("want the address of the service, such as https://crm.example.com/submissions", "--external-url %s: %w", redact(c.ExternalURL), why)
	}
	return nil
}

// parseDelay reads 120ms or 70ms-150ms.
func parseDelay(text string) (delay [2]time.Duration, err error) {
	shortest, longest, ranged := strings.Cut(text, "-")
	if !ranged {
		longest = shortest
	}
	for i, part := range []string{shortest, longest} {
		if delay[i], err = parseDuration(part); err != nil {
			return delay, errors.New("want a time such as 120ms, or a range such as 70ms-150ms")
		}
	}
	if delay[0] < 0 || delay[1] < delay[0] || delay[1] > maxExternalDelay {
		return delay, fmt.Errorf("want 0 to %v, the shorter time first", maxExternalDelay)
	}
	return delay, nil
}
