package egress

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	// Roots for an image without any; the system's are used where it has them.
	_ "golang.org/x/crypto/x509roots/fallback"

	"tandem"
	"tandem/internal/limit"
	"tandem/internal/term"
)

const (
	maxAnswer       = 64 << 10               // bytes read of an answer's body, to keep its connection
	maxAnswerHeader = 64 << 10               // bytes of an answer's header, 1xx answers included
	maxReadOn       = 100 * time.Millisecond // for the body of an answer; its header decides
	maxIdle         = 1024                   // connections kept, all destinations together
	warnEvery       = 10 * time.Second       // between two warnings of a local fault
	maxRetryAfter   = 365 * 24 * time.Hour   // anything longer is a mistake
)

// Defaults of [Config].
const (
	DefaultTimeout         = 10 * time.Second
	DefaultHostConcurrency = 10
)

// Config of a [Client]. Zero fields take the defaults named; negative ones are errors.
type Config struct {
	Policy          Policy
	Timeout         time.Duration     // whole exchange, name look-up to the last byte read; DefaultTimeout
	ConnectTimeout  time.Duration     // name look-up and TCP connect; 3 s
	HostConcurrency int               // exchanges at once per destination; DefaultHostConcurrency
	BreakerFailures int               // failures in a row to open a destination's breaker; 5
	BreakerOpen     time.Duration     // how long it stays open before one probe; 60 s
	MaxDestinations int               // destinations remembered; the longest unused is forgotten; 10,000
	MaxWaiting      int               // calls waiting for a busy destination, all destinations together; 2,048
	Resolver        *net.Resolver     // looks up names; the pure-Go one with the system's settings
	RootCAs         *x509.CertPool    // trusted for https; the system's, or Mozilla's where it has none
	Certificates    []tls.Certificate // our own, for servers that ask who calls; none
	IdleTimeout     time.Duration     // how long an idle connection is kept; 30 s
	Log             *slog.Logger      // refusals with their true reason; slog.Default
}

// withDefaults fills the zero fields in.
func (cfg Config) withDefaults() (Config, error) {
	err := errors.Join(
		standard("HostConcurrency", &cfg.HostConcurrency, DefaultHostConcurrency),
		standard("BreakerFailures", &cfg.BreakerFailures, 5),
		standard("MaxDestinations", &cfg.MaxDestinations, 10_000),
		standard("MaxWaiting", &cfg.MaxWaiting, 2_048),
		standard("Timeout", &cfg.Timeout, DefaultTimeout),
		standard("ConnectTimeout", &cfg.ConnectTimeout, 3*time.Second),
		standard("BreakerOpen", &cfg.BreakerOpen, time.Minute),
		standard("IdleTimeout", &cfg.IdleTimeout, 30*time.Second),
	)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return cfg, err
}

// standard gives a field its default if it is zero.
func standard[T int | time.Duration](name string, field *T, value T) error {
	if *field < 0 {
		return fmt.Errorf("egress: %s is %v, want more than 0", name, *field)
	}
	*field = cmp.Or(*field, value)
	return nil
}

// Client calls strangers. Its methods may be called from any number of goroutines.
type Client struct {
	cfg       Config
	policy    *Policy // compiled; the dialer has the same one
	dialer    *Dialer
	transport *http.Transport
	good      goodURLs

	// mu guards the fields below and the fields of every destination. Nothing waits with it held.
	mu           sync.Mutex
	destinations *limit.Keyed[Site, *destination] // held once per permit and per waiting call
	refusals     *limit.Keyed[Receiver, *refusal] // receivers with failed answers; see maxRefusals
	waiting      int                              // calls waiting for a permit, in all; at most cfg.MaxWaiting
	warned       time.Time                        // last warning of a local fault
}

// New makes a client; it returns an error when cfg contradicts itself.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	// Ends before Timeout does, so a hanging look-up or connect is distinguished from a receiver without an answer.
	dialer, err := NewDialer(cfg.Policy, min(cfg.ConnectTimeout, cfg.Timeout-cfg.Timeout/4), cfg.Resolver)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg:          cfg,
		policy:       dialer.policy,
		dialer:       dialer,
		destinations: limit.NewKeyed[Site, *destination](cfg.MaxDestinations),
		refusals:     limit.NewKeyed[Receiver, *refusal](maxRefusals),
		good:         goodURLs{targets: make(map[string]*target)},
	}
	// HTTP/1.1 only: net/http leaves HTTP/2 off for a dialer of our own.
	c.transport = &http.Transport{
		Proxy:                  nil, // a proxy would dial for us, past the guard
		DialContext:            dialer.DialContext,
		DialTLSContext:         c.dialTLS,
		DisableCompression:     true, // nothing is ever unpacked
		MaxResponseHeaderBytes: maxAnswerHeader,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    cfg.HostConcurrency,
		IdleConnTimeout:        cfg.IdleTimeout,
	}
	return c, nil
}

// Close closes idle connections. Call it after the last exchange: to net/http a connection is idle as soon as its
// answer arrives, and Close would cut the answer off.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Check is the friendly check at submission, without DNS: it returns nil or a *tandem.Error with CodeInvalidCallbackURL
// or CodeCallbackBlocked. The message of a blocked one is always the same; its Err says why, for the log. The dial
// decides, and is at least as strict.
func (c *Client) Check(rawURL string) error {
	_, err := c.parse(rawURL)
	return err
}

// Result is how one exchange ended.
type Result struct {
	Outcome     tandem.Outcome // never OutcomeExpired; empty when Interrupted
	StatusCode  int            // 0: no answer
	RetryAfter  time.Duration  // delay of a 429 or 503, not clamped; 0: none
	StartedAt   time.Time      // UTC
	Duration    time.Duration
	Host        string      // host:port that was called; "" when policy refuses the URL
	Message     string      // for the caller: "" when delivered; the same words for every address that policy refuses
	Written     bool        // by Do: the whole request, so that the receiver may have it
	Interrupted bool        // ctx ended (not the timeout): the attempt does not count, not for a breaker either
	Reschedule  *Reschedule // not nil: it counts as no attempt (a failed probe, or a local fault)

	local     bool // it failed by a local fault
	connected bool // there was a connection, but no answer
	broken    bool // the answer broke off
}

// Call is an exchange of any kind, for [Permit.Do].
type Call struct {
	Method string
	Header http.Header
	Body   []byte

	// Read sees the answer while it comes in. An error says that the answer broke off, which counts as a failure.
	Read func(answer *http.Response) error
}

// Post makes the exchange and releases the permit. The status line decides: after a 2xx the receiver has the callback,
// even if the body of its answer never ends. At most 64 KiB of the body are read and discarded, for at most 100 ms.
// Post adds only the headers of HTTP/1.1. It reports redirects and does not follow them; it keeps no cookies.
//
// A kept connection may turn out closed before any byte of an answer: it is replaced once, within the same exchange.
// Post panics on a released permit.
func (p *Permit) Post(ctx context.Context, header http.Header, body []byte) Result {
	timed, cancel := context.WithTimeout(ctx, p.client.cfg.Timeout)
	defer cancel()
	header = header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	// This allows net/http to repeat a POST on a new connection when a kept one was closed. A nil header is not sent:
	// receivers of callbacks recognise repeats by the webhook-id.
	if _, given := header["Idempotency-Key"]; !given {
		header["Idempotency-Key"] = nil
	}
	return p.exchange(timed, ctx.Err, Call{Method: http.MethodPost, Header: header, Body: body,
		Read: func(answer *http.Response) error {
			// Read to the end so that the connection can be used again. It is worth a moment and no more; an error here
			// changes nothing.
			defer time.AfterFunc(maxReadOn, cancel).Stop()
			_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer)
			return nil
		}})
}

// Do makes an exchange of any kind and releases the permit. The deadline of ctx bounds it; Config.Timeout bounds only
// the connect and the TLS handshake. Do repeats nothing of which a byte was written. It panics on a released permit.
func (p *Permit) Do(ctx context.Context, call Call) Result {
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(info httptrace.WroteRequestInfo) { written.Store(info.Err == nil) },
	})
	call.Header = call.Header.Clone()
	// net/http would repeat a POST with this header when a kept connection breaks, although the service may have begun.
	// It looks for the canonical name only.
	if key, given := call.Header["Idempotency-Key"]; given {
		delete(call.Header, "Idempotency-Key")
		call.Header["idempotency-key"] = key
	}
	canceled := func() error {
		if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	}
	result := p.exchange(ctx, canceled, call)
	result.Written = written.Load()
	return result
}

// exchange makes an exchange and releases the permit. ctx bounds it; canceled says whether ctx ended before its time.
func (p *Permit) exchange(ctx context.Context, canceled func() error, call Call) (result Result) {
	if p.over {
		panic("egress: use of a released permit")
	}
	result.StartedAt, result.Host = time.Now().UTC(), p.receiver.Host
	// Always released: a lost permit would be lost for ever.
	defer func() { p.finish(&result) }()
	if p.refused != nil {
		p.client.refuse(&result, p.refused, "")
	} else if err := p.client.exchange(ctx, p.target, call, &result); err != nil {
		p.client.fail(ctx, canceled, p.target, err, &result)
	}
	result.Duration = time.Since(result.StartedAt)
	return result
}

// exchange fills in result, except for its times. An error says why there was no full answer.
func (c *Client) exchange(ctx context.Context, t *target, call Call, result *Result) error {
	request, err := http.NewRequestWithContext(ctx, call.Method, "", bytes.NewReader(call.Body))
	if err != nil {
		return err
	}
	request.URL = &t.url
	request.Header = call.Header

	// The transport alone, without an http.Client: no redirects, no cookies.
	answer, err := c.transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	classify(answer, result)
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return nil // no body follows, and no context ends the stream
	}
	err = call.Read(answer)
	result.broken = err != nil
	return err
}

// classify reads the outcome from an answer.
func classify(answer *http.Response, result *Result) {
	code := answer.StatusCode
	result.StatusCode = code
	result.Message = fmt.Sprintf("the receiver answered %03d", code)
	switch {
	case code >= 200 && code <= 299:
		result.Outcome, result.Message = tandem.OutcomeDelivered, ""
	case code >= 300 && code <= 399:
		result.Outcome = tandem.OutcomeRedirect
		result.Message += "; redirects are not followed"
	case code == http.StatusGone:
		result.Outcome = tandem.OutcomeGone
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		result.Outcome = tandem.OutcomeThrottled
		result.RetryAfter = RetryAfter(answer.Header.Get("Retry-After"), time.Now())
	default:
		result.Outcome = tandem.OutcomeHTTPError
	}
}

// RetryAfter reads the header of that name: seconds, or an HTTP date. Anything else, and a time in the past, is 0.
func RetryAfter(value string, now time.Time) time.Duration {
	if value != "" && strings.Trim(value, "0123456789") == "" {
		seconds, _ := strconv.ParseUint(value, 10, 64) // clamped to the largest number
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// fail says how an exchange without a full answer ended. The texts are fixed: an error's own text names addresses, and
// they are not for the caller.
func (c *Client) fail(ctx context.Context, canceled func() error, t *target, err error, result *Result) {
	var refused *Refused
	var handshake *handshakeError
	var lookup *net.DNSError
	var timeout net.Error
	var dial *net.OpError
	text := localFault(err)
	switch {
	case errors.As(err, &refused):
		c.refuse(result, refused, term.RedactURL(t.url.String()))
	case canceled() != nil:
		result.Interrupted = true
		result.Message = "interrupted"
	case text != "":
		result.local = true
		result.Outcome, result.Message = tandem.OutcomeConnect, text
		c.warnLocalFault(t.site.Host, text, err)
	case ctx.Err() != nil, errors.As(err, &handshake) && errors.Is(handshake.err, context.DeadlineExceeded):
		result.Outcome = tandem.OutcomeTimeout
		within := c.cfg.Timeout
		if deadline, given := ctx.Deadline(); given {
			within = deadline.Sub(result.StartedAt).Round(time.Millisecond)
		}
		result.Message = fmt.Sprintf("no answer within %v", within)
		result.connected = true // no connect takes so long to fail
	case errors.As(err, &handshake):
		result.Outcome, result.Message = tandem.OutcomeTLS, handshake.text()
	case errors.As(err, &lookup):
		result.Outcome, result.Message = tandem.OutcomeConnect, "the name could not be resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		result.Outcome, result.Message = tandem.OutcomeConnect, "connection refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		result.Outcome, result.Message = tandem.OutcomeConnect, fmt.Sprintf("no connection within %v", c.cfg.ConnectTimeout)
	default:
		result.Outcome, result.Message = tandem.OutcomeConnect, "no connection, or it broke before a full answer"
		result.connected = !errors.Is(err, errUnreachable) && (!errors.As(err, &dial) || dial.Op != "dial")
	}
}

// localFault describes a fault of this server itself, for any call; "": there is none.
func localFault(err error) string {
	var lookup *net.DNSError
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "this server has no file descriptor left for the call"
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		return "this server has no memory left for the call"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "this server has no local port left for the call"
	case errors.As(err, &lookup) && !lookup.IsNotFound:
		return "the name server of this server did not answer, or failed"
	default:
		return ""
	}
}

// warnLocalFault logs a local fault, not for every call.
func (c *Client) warnLocalFault(host, text string, err error) {
	c.mu.Lock()
	now := time.Now()
	quiet := now.Sub(c.warned) < warnEvery
	if !quiet {
		c.warned = now
	}
	c.mu.Unlock()
	if !quiet {
		c.cfg.Log.Warn("calls are postponed: "+text, "host", host, "error", err)
	}
}

// refuse notes a refusal of the guard: the true reason in the log, the one text for the caller.
func (c *Client) refuse(result *Result, refused error, shown string) {
	result.Outcome, result.Message = tandem.OutcomeBlocked, blockedText
	c.cfg.Log.Warn("call refused", "url", shown, "error", refused)
}

// dialTLS makes the connection for https. It does the handshake itself, because the errors of net/http's own cannot be
// distinguished from others by type.
func (c *Client) dialTLS(ctx context.Context, network, hostPort string) (net.Conn, error) {
	// net/http goes on dialling after the request has ended, so the bound is set here again.
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	plain, err := c.dialer.DialContext(ctx, network, hostPort)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		_ = plain.Close()
		return nil, fmt.Errorf("dial %s: %w", hostPort, err)
	}
	conn := tls.Client(plain, &tls.Config{
		ServerName:   host,
		RootCAs:      c.cfg.RootCAs,
		Certificates: c.cfg.Certificates,
		NextProtos:   []string{"http/1.1"},
		MinVersion:   tls.VersionTLS12,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		return nil, &handshakeError{err}
	}
	return conn, nil
}

// handshakeError is why a TLS handshake failed.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// text describes the fault for the owner of the receiver.
func (e *handshakeError) text() string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(e.err, &unknown):
		return "TLS: the certificate is signed by an unknown authority"
	case errors.As(e.err, &name):
		return "TLS: the certificate is for another name"
	case errors.As(e.err, &invalid) && invalid.Reason == x509.Expired:
		return "TLS: the certificate has expired or is not yet valid"
	case errors.As(e.err, &invalid):
		return "TLS: the certificate is not valid"
	default:
		return "TLS: the handshake did not succeed"
	}
}
