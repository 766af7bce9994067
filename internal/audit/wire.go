package audit

import (
	"bytes"
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
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// certificateLeft is how long a certificate must still hold.
const certificateLeft = 14 * 24 * time.Hour

var maxAge = regexp.MustCompile(`(?i)\bmax-age="?(\d+)`)

// strictTransport is the rule for HSTS: half a year at least.
func strictTransport(a answer) string {
	value := a.Header.Get("Strict-Transport-Security")
	age := 0
	if found := maxAge.FindStringSubmatch(value); found != nil {
		age, _ = strconv.Atoi(found[1]) // 0 out of range
	}
	if age < 180*24*3600 {
		return "Strict-Transport-Security is " + oneLine(cmp.Or(value, "missing"))
	}
	return ""
}

func checkTLSInUse(_ context.Context, t *target, v *verdict) {
	switch {
	case t.base.Scheme == "https":
		v.passf("%s", t.base)
	case publicHost(t.base.Hostname()):
		v.failf("%s is not https", t.base)
	default:
		v.doubtf("%s is on a private address: audit the address that callers use", t.base)
	}
}

// dial opens a connection of our own, counted like a request.
func (t *target) dial(ctx context.Context) (net.Conn, error) {
	if err := t.spend(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return t.cfg.Dial(ctx, "tcp", net.JoinHostPort(t.base.Hostname(), portOf(t.base)))
}

// portOf is the port of a URL, or the default of its scheme.
func portOf(u *url.URL) string {
	return cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// dialTLS opens a TLS connection in versions from the lowest to the highest.
func (t *target) dialTLS(ctx context.Context, lowest, highest uint16) (*tls.Conn, error) {
	plain, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, &tls.Config{
		ServerName: t.base.Hostname(), RootCAs: t.cfg.RootCAs, MinVersion: lowest, MaxVersion: highest,
	})
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	return conn, nil
}

func checkTLSVersions(ctx context.Context, t *target, v *verdict) {
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		conn, err := t.dialTLS(ctx, version, version)
		name := tls.VersionName(version)
		var alert tls.AlertError
		switch {
		case err == nil:
			_ = conn.Close()
			v.failf("%s is spoken", name)
		case errors.As(err, &alert), strings.Contains(err.Error(), "protocol version"), errors.Is(err, io.EOF):
			v.passf("%s: %s", name, oneLine(err.Error()))
		default:
			v.doubtf("%s: %s", name, oneLine(err.Error()))
		}
	}
}

func checkCertificate(ctx context.Context, t *target, v *verdict) {
	conn, err := t.dialTLS(ctx, tls.VersionTLS12, tls.VersionTLS13)
	if err != nil {
		v.doubtf("%s", oneLine(err.Error()))
		return
	}
	defer func() { _ = conn.Close() }()
	until := conn.ConnectionState().PeerCertificates[0].NotAfter
	if time.Until(until) < certificateLeft {
		v.failf("it ends on %s", until.UTC().Format(time.DateOnly))
	} else {
		v.passf("it is trusted and ends on %s", until.UTC().Format(time.DateOnly))
	}
}

// spaces is a body of blanks, valid JSON so far. It counts the bytes read; net/http may go on reading for a moment
// after the answer.
type spaces struct {
	size  int64
	taken atomic.Int64
}

// Read returns blanks.
func (s *spaces) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.size-s.taken.Load())
	if n <= 0 {
		return 0, io.EOF
	}
	copy(p, bytes.Repeat([]byte(" "), int(n)))
	s.taken.Add(n)
	return int(n), nil
}

// stopper is a body for ending the request at its first read.
type stopper struct{ asked atomic.Bool }

// Read fails.
func (s *stopper) Read([]byte) (int, error) {
	s.asked.Store(true)
	return 0, errors.New("broken off by the audit")
}

// checkAnnouncedBody announces 64 MiB to every JSON route and waits for permission to send them. With the permission,
// it breaks off.
func checkAnnouncedBody(ctx context.Context, t *target, v *verdict) {
	const announced = 64 << 20
	for _, op := range t.writes() {
		if op.admin() || !op.JSON {
			continue
		}
		body := &stopper{}
		p := probe{Method: op.Method, Path: op.target(unknownID), Stream: body, Length: announced}
		a := t.send(ctx, p.with("Expect", "100-continue"))
		if body.asked.Load() {
			v.failf("%s: the deployment asked for the body", a.Sent)
		} else {
			v.expect(a, a.blamed(), "want 413")
		}
	}
}

// checkStreamedBody sends more than any --max-data allows in the full audit, more than the default in the quick one.
func checkStreamedBody(ctx context.Context, t *target, v *verdict) {
	body := &spaces{size: 1 << 20}
	if t.cfg.Level == LevelFull {
		body.size = 17 << 20
	}
	a := t.send(ctx, probe{Method: http.MethodPost, Path: "/sync", Stream: body, Length: -1})
	taken := body.taken.Load()
	switch {
	case a.Status == http.StatusRequestEntityTooLarge:
		v.passf("%s", a)
	case a.Err != nil && taken > 0 && taken < body.size:
		v.passf("%s: cut off after %d bytes at most", a.Sent, taken)
	case a.Err != nil:
		v.doubtf("%s", a)
	case t.cfg.Level == LevelFull:
		v.failf("%s: %d bytes were read", a, body.size)
	default:
		v.doubtf("%s: %d bytes were read; --level full tells whether there is any limit", a, body.size)
	}
}

func checkHugeHeader(ctx context.Context, t *target, v *verdict) {
	p := probe{Path: "/healthz", Shown: "GET /healthz with 128 KiB of header"}
	a := t.send(ctx, p.with("X-Audit", strings.Repeat("x", 128<<10)))
	if a.Err != nil && !errors.Is(a.Err, errBudget) && ctx.Err() == nil {
		v.passf("%s: the connection was cut", a.Sent)
		return
	}
	v.expect(a, a.blamed(), "want 431")
}

// hugePages ask every list for more than it may give.
func hugePages(t *target) (all []probe) {
	values := map[string][]string{"limit": {"100000", "0", "-1"}, "offset": {"1000000000"}}
	for _, op := range t.lists(isAnyList) {
		for _, p := range op.Queries {
			for _, value := range values[p.Name] {
				all = append(all, probe{Path: op.Path + "?" + p.Name + "=" + value})
			}
		}
	}
	return all
}

// strangeMethods try the unlisted methods of every path, and two unknown ones.
func strangeMethods(t *target) (all []probe) {
	have := make(map[string][]string) // :: path → methods
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
			if !slices.Contains(have[path], method) {
				all = append(all, probe{Method: method, Path: operation{Path: path}.target(unknownID)})
			}
		}
	}
	return all
}

// checkSlowClient begins a header and then sends nothing more.
func checkSlowClient(ctx context.Context, t *target, v *verdict) {
	began := time.Now()
	cutOff, err := t.halfHeader(ctx)
	switch {
	case err != nil:
		v.doubtf("%s", oneLine(err.Error()))
	case cutOff:
		v.passf("half a header was cut off after %v", time.Since(began).Round(100*time.Millisecond))
	default:
		v.failf("half a header kept its connection for %v", t.cfg.Timeout)
	}
}

// halfHeader sends half a header and reports whether the connection ends before the time is up.
func (t *target) halfHeader(ctx context.Context) (cutOff bool, err error) {
	var conn net.Conn
	if t.base.Scheme == "https" {
		conn, err = t.dialTLS(ctx, tls.VersionTLS12, 0)
	} else {
		conn, err = t.dial(ctx)
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(t.cfg.Timeout)); err != nil {
		return false, err
	}
	if _, err := fmt.Fprintf(conn, "POST /sync HTTP/1.1\r\nHost: %s\r\nX-Audit: ", t.base.Host); err != nil {
		return false, err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(conn, 64<<10))
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout(), nil
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
