package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"tandem/internal/app"
)

// healthCommand asks a server whether it is well. Without --url it finds the server by the server's own
// settings, from the same variables and configuration file.
type healthCommand struct {
	URL     string        `name:"url" placeholder:"URL" env:"TANDEM_HEALTH_URL" help:"The server, or the whole address of a check such as http://127.0.0.1:8000/livez (without a path: /readyz; default: the server of --listen on this machine)."`
	Listen  string        `default:"127.0.0.1:8000" placeholder:"HOST:PORT" env:"TANDEM_LISTEN" help:"Where the server listens, as given to serve (default: ${default}). One that listens on every address is asked at loopback."`
	TLSCert string        `placeholder:"FILE" env:"TANDEM_TLS_CERT" help:"The server's certificate: ask by HTTPS, and trust it under any name and beyond its dates. Others are trusted as by any client."`
	Config  configFile    `placeholder:"FILE" env:"TANDEM_CONFIG" help:"The server's YAML file, for --listen and --tls-cert."`
	Timeout time.Duration `default:"3s" help:"How long to wait for the answer."`
}

// Validate refuses what cannot be asked; kong calls it.
func (c *healthCommand) Validate() error {
	if err := app.ValidAddress(c.Listen); err != nil {
		return badArgument("", "--listen %s: %w", c.Listen, err)
	}
	if c.URL == "" {
		host, port, _ := net.SplitHostPort(c.Listen)
		if port == "0" {
			return badArgument("--url names the port that the server has",
				"--listen %s: any free port, which only the server knows", c.Listen)
		}
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "127.0.0.1"
			if ip.Is6() {
				host = "::1"
			}
		}
		c.URL = "http://" + net.JoinHostPort(host, port)
		if c.TLSCert != "" {
			c.URL = "https://" + net.JoinHostPort(host, port)
		}
	}
	address, err := url.Parse(c.URL)
	if err != nil || address.Host == "" || (address.Scheme != "http" && address.Scheme != "https") {
		return badArgument("", "--url %s: want http://HOST:PORT", app.Redact(c.URL))
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
	transport := &http.Transport{Proxy: nil, DisableKeepAlives: true}
	if c.TLSCert != "" {
		if transport.TLSClientConfig, err = trusting(c.TLSCert, address.Hostname()); err != nil {
			return fmt.Errorf("unhealthy: read --tls-cert: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address.Redacted(), err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
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

// trusting accepts the certificate in a file, whatever its names and dates: a health check asks whether
// the server is alive, at an address that certificates seldom name. Any other certificate has to be valid
// for the host of the URL, or for a name in the file: while a renewed file does not match its key, the
// server goes on with the previous certificate.
func trusting(file, host string) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var own *x509.Certificate
	for block, rest := pem.Decode(text); block != nil && own == nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if own, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
	}
	if own == nil {
		return nil, fmt.Errorf("there is no certificate in %s", file)
	}
	verify := func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		if leaf.Equal(own) {
			return nil
		}
		options := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool()}
		for _, further := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(further)
		}
		_, err := leaf.Verify(options)
		if err == nil {
			return nil
		}
		options.DNSName = ""
		named := func(name string) bool { return leaf.VerifyHostname(name) == nil }
		if _, elsewhere := leaf.Verify(options); elsewhere == nil && slices.ContainsFunc(own.DNSNames, named) {
			return nil
		}
		return fmt.Errorf("not the certificate in %s: %w", file, err)
	}
	return &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // verify does it
		VerifyConnection:   verify,
		MinVersion:         tls.VersionTLS12,
	}, nil
}
