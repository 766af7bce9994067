package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// healthCommand asks a server whether it is well.
type healthCommand struct {
	URL     string        `name:"url" default:"http://127.0.0.1:8000" env:"TANDEM_HEALTH_URL" help:"The server, or the whole address of a check such as http://127.0.0.1:8000/livez (without a path: /readyz)."`
	Timeout time.Duration `default:"3s" help:"How long to wait for the answer."`
}

// Validate refuses what cannot be asked; kong calls it.
func (c *healthCommand) Validate() error {
	address, err := url.Parse(c.URL)
	if err != nil || address.Host == "" || (address.Scheme != "http" && address.Scheme != "https") {
		return badArgument("", "--url %s: want http://HOST:PORT", redact(c.URL))
	}
	if c.Timeout <= 0 {
		return badArgument("", "--timeout %v: want more than 0", c.Timeout)
	}
	return nil
}

// Run prints one line; the exit code is 0 when the server answers 200.
func (c *healthCommand) Run(ctx context.Context, t *terminal) error {
	address, err := url.Parse(c.URL)
	if err != nil {
		return fmt.Errorf("read --url: %w", err)
	}
	if address.Path == "" || address.Path == "/" {
		address.Path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address.Redacted(), err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		if whole, ok := errors.AsType[*url.Error](err); ok {
			err = whole.Err // the rest would show the address once more, with its password
		}
		return fmt.Errorf("unhealthy: ask %s: %w", address.Redacted(), err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s answered %s", address.Redacted(), response.Status)
	}
	t.printf("healthy: %s answered %s\n", address.Redacted(), response.Status)
	return nil
}
