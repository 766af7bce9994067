package audit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// certificateLeft is how long a certificate must still hold.
const certificateLeft = 14 * 24 * time.Hour

func tlsChecks() []Check {
	https := []Need{NeedTLS}
	return []Check{
		{
			ID: "tls-in-use", Group: GroupTLS,
			Title: "Nobody on the way can read along",
			Level: LevelQuick, Remediation: "serve over TLS, or put a proxy before it that does",
			Run: checkTLSInUse,
		},
		{
			ID: "tls-versions", Group: GroupTLS,
			Title: "TLS 1.0 and 1.1 are refused",
			Level: LevelQuick, Needs: https, Remediation: "set the proxy's lowest version to TLS 1.2",
			Run: checkTLSVersions,
		},
		{
			ID: "tls-certificate", Group: GroupTLS,
			Title: "The certificate holds for two more weeks",
			Level: LevelQuick, Needs: https, Remediation: "renew it, and let that be automatic",
			Run: checkCertificate,
		},
		{
			ID: "tls-hsts", Group: GroupTLS,
			Title: "Browsers that were here over TLS come back over TLS",
			Level: LevelQuick, Needs: https,
			Remediation: "let the proxy that ends TLS add Strict-Transport-Security, or serve with --tls-cert",
			Run:         checkHSTS,
		},
	}
}

var maxAge = regexp.MustCompile(`(?i)\bmax-age="?(\d+)`)

func checkHSTS(ctx context.Context, t *Target) Finding {
	var v verdict
	const leastAge = 180 * 24 * 3600 // seconds
	for _, o := range []Order{
		{Path: "/livez"}, {Path: "/docs"}, {Path: "/requests?limit=1"}, {Path: "/audit-no-such-path"},
	} {
		a := t.send(ctx, o)
		value := a.Header.Get("Strict-Transport-Security")
		age := 0
		if found := maxAge.FindStringSubmatch(value); found != nil {
			age, _ = strconv.Atoi(found[1]) // digits that are too many for a number are no age
		}
		v.expect(a, age >= leastAge, "Strict-Transport-Security is "+oneLine(cmp.Or(value, "missing")))
	}
	return v.finding()
}

func checkTLSInUse(_ context.Context, t *Target) Finding {
	var v verdict
	switch {
	case t.base.Scheme == "https":
		v.passf("%s", t.base)
	case publicHost(t.base.Hostname()):
		v.failf("%s is no https", t.base)
	default:
		v.doubtf("%s is on a private address: audit the address that callers use", t.base)
	}
	return v.finding()
}

// dial opens a connection of our own, counted like a request.
func (t *Target) dial(ctx context.Context) (net.Conn, error) {
	if err := t.spend(ctx); err != nil {
		return nil, err
	}
	port := t.base.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[t.base.Scheme]
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return t.cfg.Dial(ctx, "tcp", net.JoinHostPort(t.base.Hostname(), port))
}

// handshake opens a TLS connection in versions from the lowest to the highest, and closes it.
func (t *Target) handshake(ctx context.Context, lowest, highest uint16) (tls.ConnectionState, error) {
	conn, err := t.dial(ctx)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{ServerName: t.base.Hostname(), RootCAs: t.cfg.RootCAs, MinVersion: lowest, MaxVersion: highest})
	err = secure.HandshakeContext(ctx)
	return secure.ConnectionState(), err
}

func checkTLSVersions(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		_, err := t.handshake(ctx, version, version)
		var alert tls.AlertError
		switch {
		case err == nil:
			v.failf("%s is spoken", tls.VersionName(version))
		case errors.As(err, &alert), strings.Contains(err.Error(), "protocol version"), errors.Is(err, io.EOF):
			v.passf("%s: %s", tls.VersionName(version), oneLine(err.Error()))
		default:
			v.doubtf("%s: %s", tls.VersionName(version), oneLine(err.Error()))
		}
	}
	return v.finding()
}

func checkCertificate(ctx context.Context, t *Target) Finding {
	var v verdict
	state, err := t.handshake(ctx, tls.VersionTLS12, tls.VersionTLS13)
	if err != nil {
		v.doubtf("%s", oneLine(err.Error()))
		return v.finding()
	}
	until := state.PeerCertificates[0].NotAfter
	if time.Until(until) < certificateLeft {
		v.failf("it ends on %s", until.UTC().Format(time.DateOnly))
	} else {
		v.passf("it is trusted and ends on %s", until.UTC().Format(time.DateOnly))
	}
	return v.finding()
}

func limitChecks() []Check {
	caller := []Need{NeedCaller}
	return []Check{
		{
			ID: "limit-announced-body", Group: GroupLimits,
			Title: "A body that is announced too large is not read",
			Level: LevelQuick, Needs: caller,
			Remediation: "lower serve --max-data; " +
				"let the proxy not buffer first (proxy_request_buffering off) or limit it too",
			Run: checkAnnouncedBody,
		},
		{
			ID: "limit-streamed-body", Group: GroupLimits,
			Title: "A body without a length is not read to its end",
			Level: LevelQuick, Needs: caller, Remediation: "lower serve --max-data",
			Run: checkStreamedBody,
		},
		{
			ID: "limit-header", Group: GroupLimits,
			Title: "A huge header is refused",
			Level: LevelQuick, Remediation: "limit the size of headers in the proxy, too",
			Run: checkHugeHeader,
		},
		{
			ID: "limit-page", Group: GroupLimits,
			Title: "A page of the history is bounded",
			Level: LevelQuick, Needs: caller, Remediation: fixReport,
			Run: checkPage,
		},
		{
			ID: "limit-methods", Group: GroupLimits,
			Title:       "No path takes a method that it does not have",
			Level:       LevelQuick,
			Remediation: "turn TRACE off in the proxy, and let it pass methods on as they are",
			Run:         checkMethods,
		},
		{
			ID: "limit-slow-client", Group: GroupLimits,
			Title: "A header that never ends is cut off",
			Level: LevelFull, Remediation: "set client_header_timeout or its like in the proxy",
			Run: checkSlowClient,
		},
	}
}

// flow is a body that counts how much of it was wanted. net/http may go on reading it for a moment
// after the answer has come.
type flow struct {
	size  int64
	taken atomic.Int64
}

// Read gives out spaces: they are JSON, as far as it goes.
func (f *flow) Read(p []byte) (int, error) {
	n := min(int64(len(p)), f.size-f.taken.Load())
	if n <= 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = ' '
	}
	f.taken.Add(n)
	return int(n), nil
}

// checkAnnouncedBody announces 64 MiB to every route that takes JSON and waits for leave to send them. When it is
// given, it breaks off.
func checkAnnouncedBody(ctx context.Context, t *Target) Finding {
	var v verdict
	const announced = 64 << 20
	for _, op := range t.writes() {
		if op.admin() || !op.JSON {
			continue
		}
		wanted := &stopper{}
		a := t.send(ctx, Order{
			Method: op.Method, Path: op.target(unknownID), Stream: wanted, Length: announced,
			Header: map[string]string{"Expect": "100-continue"},
		})
		if wanted.asked.Load() {
			v.failf("%s: the deployment asked for the body", a.Sent)
		} else {
			v.expect(a, a.Status >= 400 && a.Status < 500, "want 413")
		}
	}
	return v.finding()
}

// stopper is a body that ends the request as soon as somebody wants it.
type stopper struct{ asked atomic.Bool }

// Read notes that the body is wanted.
func (s *stopper) Read([]byte) (int, error) {
	s.asked.Store(true)
	return 0, errors.New("broken off by the audit")
}

// checkStreamedBody sends more than any --max-data allows in the full audit, and more than the
// default in the quick one.
func checkStreamedBody(ctx context.Context, t *Target) Finding {
	var v verdict
	size := int64(1 << 20)
	if t.cfg.Level == LevelFull {
		size = 17 << 20
	}
	body := &flow{size: size}
	a := t.send(ctx, Order{Method: http.MethodPost, Path: "/sync", Stream: body, Length: -1})
	switch {
	case a.Status == http.StatusRequestEntityTooLarge:
		v.passf("%s", a)
	case a.Err != nil && body.taken.Load() > 0 && body.taken.Load() < size:
		v.passf("%s: cut off after %d bytes at most", a.Sent, body.taken.Load())
	case a.Err != nil:
		v.expect(a, false, "")
	case t.cfg.Level == LevelFull:
		v.failf("%s: %d bytes were read", a, size)
	default:
		v.doubtf("%s: %d bytes were read; --level full tells whether there is any limit", a, size)
	}
	return v.finding()
}

func checkHugeHeader(ctx context.Context, t *Target) Finding {
	var v verdict
	a := t.send(ctx, Order{Path: "/healthz", Header: map[string]string{"X-Audit": strings.Repeat("x", 128<<10)}})
	a.Sent = "GET /healthz with 128 KiB of header"
	if a.Err != nil && !errors.Is(a.Err, errBudget) && ctx.Err() == nil {
		v.passf("%s: the connection was cut", a.Sent)
		return v.finding()
	}
	v.expect(a, a.Status >= 400 && a.Status < 500, "want 431")
	return v.finding()
}

// checkPage asks every list for more than it may give.
func checkPage(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.lists(func(operation) bool { return true }) {
		for _, p := range op.Queries {
			for _, value := range map[string][]string{
				"limit": {"100000", "0", "-1"}, "offset": {"1000000000"},
			}[p.Name] {
				a := t.send(ctx, Order{Path: op.Path + "?" + p.Name + "=" + value})
				v.expect(a, a.refused(), "want a refusal as bad input")
			}
		}
	}
	return v.finding()
}

// checkMethods tries on every path the methods that the document does not list there, and two that nobody has.
func checkMethods(ctx context.Context, t *Target) Finding {
	var v verdict
	have := map[string][]string{} // :: path → methods
	for _, op := range t.operations {
		have[op.Path] = append(have[op.Path], op.Method)
	}
	methods := []string{http.MethodTrace, "BREW", http.MethodDelete}
	if t.cfg.Level == LevelFull {
		methods = append(methods, http.MethodPut, http.MethodPatch, http.MethodPost, http.MethodConnect, "PROPFIND",
			"DEBUG", "get", "TRACK")
	}
	for _, path := range slices.Sorted(maps.Keys(have)) {
		for _, method := range methods {
			if slices.Contains(have[path], method) {
				continue
			}
			a := t.send(ctx, Order{Method: method, Path: operation{Path: path}.target(unknownID)})
			v.expect(a, a.Status >= 400 && a.Status < 500 || a.Status == http.StatusNotImplemented, "want 405")
		}
	}
	return v.finding()
}

// checkSlowClient begins a header and then says nothing more.
func checkSlowClient(ctx context.Context, t *Target) Finding {
	var v verdict
	conn, err := t.dial(ctx)
	if err == nil && t.base.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: t.base.Hostname(), RootCAs: t.cfg.RootCAs, MinVersion: tls.VersionTLS12})
		if err = secure.HandshakeContext(ctx); err != nil {
			conn.Close()
		}
		conn = secure
	}
	if err != nil {
		v.doubtf("%s", oneLine(err.Error()))
		return v.finding()
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	began := time.Now()
	if err := conn.SetDeadline(began.Add(t.cfg.Patience)); err != nil {
		v.doubtf("%s", oneLine(err.Error()))
		return v.finding()
	}
	if _, err := fmt.Fprintf(conn, "POST /sync HTTP/1.1\r\nHost: %s\r\nX-Audit: ", t.base.Host); err != nil {
		v.doubtf("%s", oneLine(err.Error()))
		return v.finding()
	}
	_, err = io.Copy(io.Discard, io.LimitReader(conn, 64<<10))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		v.failf("half a header kept its connection for %v", t.cfg.Patience)
	} else {
		v.passf("half a header was cut off after %v", time.Since(began).Round(100*time.Millisecond))
	}
	return v.finding()
}

// publicHost reports whether a host is one of the Internet, as far as can be told without a look-up.
func publicHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsGlobalUnicast() && !addr.IsPrivate()
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	for _, local := range []string{"localhost", "localdomain", "local", "internal", "home.arpa"} {
		if strings.HasSuffix("."+host, "."+local) {
			return false
		}
	}
	return strings.Contains(host, ".")
}
