package load

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem"
	"tandem/internal/receiver"
	"tandem/internal/term"
)

const (
	probeTimeout = 10 * time.Second // of everything asked beside the load
	meterTimeout = 2 * time.Second  // of one reading of /metrics
	probes       = 5                // readings of the service's clock; the quickest counts
	maxPage      = 4 << 20          // bytes of an answer outside the load
	maxLookups   = 100              // requests with missing callbacks to look up
)

// StartError means a run could not start: the service is unusable, or no callback can be received.
type StartError struct {
	Err  error
	Hint string // advice
}

// Error returns the text of the cause.
func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// service is the target. One transport carries the load, another the requests beside it, so neither waits for the
// other's connections.
type service struct {
	base   string // without a slash at the end
	header http.Header
	load   *http.Transport
	aside  *http.Client
}

func newService(cfg *Config) *service {
	s := &service{
		base: strings.TrimRight(cfg.URL, "/"),
		header: http.Header{
			"Content-Type": {"application/json"},
			"User-Agent":   {cfg.Tool},
		},
		load:  newTransport(cfg, cfg.Concurrency, cfg.Timeout),
		aside: &http.Client{Transport: newTransport(cfg, 2, probeTimeout), Timeout: probeTimeout},
	}
	if cfg.APIKey != "" {
		s.header["Authorization"] = []string{"Bearer " + cfg.APIKey}
	}
	return s
}

// newTransport makes a transport with kept connections, without a proxy (it would be measured as well) and with
// HTTP/1.1 only: a caller is a connection.
func newTransport(cfg *Config, connections int, timeout time.Duration) *http.Transport {
	dial := cfg.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: min(timeout, probeTimeout)}).DialContext
	}
	return &http.Transport{
		DialContext:         dial,
		MaxIdleConns:        connections,
		MaxIdleConnsPerHost: connections,
		IdleConnTimeout:     time.Minute,
		TLSHandshakeTimeout: min(timeout, probeTimeout),
		DisableCompression:  true,
	}
}

func (s *service) close() {
	s.load.CloseIdleConnections()
	s.aside.CloseIdleConnections()
}

// get asks for a page beside the load.
func (s *service) get(ctx context.Context, path string) (status int, header http.Header, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, http.NoBody)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("make request: %w", err)
	}
	req.Header = s.header
	res, err := s.aside.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, maxPage))
	if err != nil {
		return 0, nil, nil, fmt.Errorf("read answer: %w", err)
	}
	return res.StatusCode, res.Header, body, nil
}

// read asks for a page of JSON beside the load.
func (s *service) read(ctx context.Context, path string, into any) (http.Header, error) {
	status, header, body, err := s.get(ctx, path)
	switch {
	case err != nil:
		return nil, err
	case status != http.StatusOK:
		return header, fmt.Errorf("%s answered %d", path, status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return header, fmt.Errorf("%s: %w", path, err)
	}
	return header, nil
}

// probe asks the service for its version and its time.
func (s *service) probe(ctx context.Context, target *Target) error {
	best := time.Duration(-1)
	for range probes {
		var health struct {
			Status    string        `json:"status"`
			Timestamp receiver.Time `json:"timestamp"`
			Version   string        `json:"version"`
		}
		asked := time.Now()
		status, _, body, err := s.get(ctx, "/healthz")
		trip := time.Since(asked)
		if err != nil {
			return s.unreachable(err)
		}
		if status == http.StatusUnauthorized || status == http.StatusForbidden {
			return &StartError{fmt.Errorf("%s/healthz answered %d", s.base, status), "give a key with --api-key"}
		}
		err = json.Unmarshal(body, &health)
		if err != nil || status != http.StatusOK || health.Version == "" || health.Timestamp.IsZero() {
			return &StartError{
				fmt.Errorf("%s is not a tandem service: GET /healthz answered %d without a version and a timestamp",
					s.base, status), "give the base URL of the API, such as http://127.0.0.1:8000",
			}
		}
		target.Version = term.Clean(health.Version, maxNote)
		if best >= 0 && trip >= best {
			continue
		}
		best = trip
		offset := health.Timestamp.Sub(asked.Add(trip / 2))
		// A clock in milliseconds is half of one slow on average.
		if health.Timestamp.Nanosecond()%int(time.Millisecond) == 0 {
			offset += time.Millisecond / 2
		}
		if offset.Abs() <= trip/2+time.Millisecond {
			offset = 0 // cannot be told from the same clock
		}
		target.ClockOffsetMS = float64(offset) / float64(time.Millisecond)
	}
	var stats stats
	if _, err := s.read(ctx, "/stats", &stats); err == nil {
		target.Mode = term.Clean(stats.System.Mode, maxNote)
	}
	_, err := s.processUse(ctx)
	target.MetricsRead = err == nil
	return nil
}

// stats is the part of /stats used here.
type stats struct {
	System struct {
		Mode string `json:"mode"`
	} `json:"system"`
	Callbacks struct {
		Domains map[string]struct {
			State string `json:"state"`
		} `json:"domains"`
	} `json:"callback_service"`
}

// unreachable explains why a service cannot be reached.
func (s *service) unreachable(err error) error {
	hint := "is the service running, and is the address right? See `tandem serve`"
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(x509.UnknownAuthorityError)):
		hint = "its certificate is not trusted by this machine"
	case errors.As(err, new(tls.RecordHeaderError)),
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "it does not speak TLS: try http:// instead of https://"
	case errors.As(err, new(*net.DNSError)):
		hint = "the name is not known: check the URL"
	}
	if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err // its text repeats the method and the URL
	}
	return &StartError{fmt.Errorf("reach %s: %w", s.base, err), hint}
}

// processUse is the usage of the service, by its own account.
type processUse struct {
	cpu    float64 // seconds
	memory int64   // bytes
}

// processUse reads two lines of /metrics. The end of ctx does not cut it off: the service would log an error.
func (s *service) processUse(ctx context.Context) (processUse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), meterTimeout)
	defer cancel()
	status, _, body, err := s.get(ctx, "/metrics")
	if err != nil {
		return processUse{}, err
	}
	cpu, okCPU := sample(body, "process_cpu_seconds_total")
	memory, okMemory := sample(body, "process_resident_memory_bytes")
	if status != http.StatusOK || !okCPU || !okMemory {
		return processUse{}, fmt.Errorf("/metrics answered %d without CPU time and memory", status)
	}
	return processUse{cpu, int64(memory)}, nil
}

// sample finds a metric without labels in the text format of Prometheus.
func sample(page []byte, name string) (float64, bool) {
	for line := range bytes.Lines(page) {
		if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(string(value)), 64)
			return number, err == nil
		}
	}
	return 0, false
}

// breaker asks for the state of the service's circuit breaker for a receiver; "": unknown.
func (s *service) breaker(ctx context.Context, receiver string) string {
	u, err := url.Parse(receiver)
	if err != nil {
		return ""
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	var stats stats
	if _, err := s.read(ctx, "/stats", &stats); err != nil {
		return ""
	}
	state := stats.Callbacks.Domains[strings.ToLower(net.JoinHostPort(u.Hostname(), port))].State
	if !slices.Contains([]string{BreakerClosed, BreakerOpen, BreakerHalfOpen}, state) {
		return ""
	}
	return state
}

// lookedUp is the part of a request in the history used here.
type lookedUp struct {
	Status           tandem.Status `json:"status"`
	ProcessingTimeMS float64       `json:"processing_time_ms"`
}

// lookup asks for the status of a request, and when to ask again.
func (s *service) lookup(ctx context.Context, id string) (found lookedUp, again time.Duration, err error) {
	header, err := s.read(ctx, "/requests/"+url.PathEscape(id), &found)
	if err != nil {
		found = lookedUp{}
	}
	return found, retryAfter(header, time.Now()), err
}

// retryAfter reads the pause requested by a service; 0: none.
func retryAfter(header http.Header, now time.Time) time.Duration {
	wait := time.Duration(0)
	if text := header.Get("Retry-After"); text != "" {
		if seconds, err := strconv.Atoi(text); err == nil {
			wait = time.Duration(min(max(seconds, 0), 1e6)) * time.Second
		} else if at, err := http.ParseTime(text); err == nil {
			wait = max(0, at.Sub(now))
		}
	}
	return max(wait, exhausted(header))
}

// exhausted reads RateLimit (the IETF draft): the time until the next allowed request; 0: now.
func exhausted(header http.Header) time.Duration {
	if remaining, reset, ok := rateLimit(header.Get("RateLimit")); ok && remaining == 0 {
		return time.Duration(min(reset, 1e6)) * time.Second
	}
	return 0
}

// rateLimit reads the first policy of `"post";r=49;t=12`.
func rateLimit(text string) (remaining, reset int, ok bool) {
	policy, _, _ := strings.Cut(text, ",")
	remaining, reset = -1, -1
	for parameter := range strings.SplitSeq(policy, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
		number, err := strconv.Atoi(value)
		switch {
		case err != nil || number < 0:
		case name == "r":
			remaining = number
		case name == "t":
			reset = number
		}
	}
	return remaining, reset, remaining >= 0 && reset >= 0
}
