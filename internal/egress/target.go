package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"tandem"
)

// maxURL bounds a callback URL, in bytes.
const maxURL = 2048

// blockedText is all that a caller hears about a target that policy refuses, at
// submission and after a try alike: what it is must not be told apart.
const blockedText = "callback_url is not allowed: this server does not call that address, name or port"

// target is a callback URL that may be called, as far as can be told without a look-up.
type target struct {
	url  url.URL // with a canonical host; its fragment is never sent
	site Site
	path string // as in Receiver
}

// receiver is whom a call for an owner goes to.
func (t *target) receiver(owner string) Receiver { return Receiver{t.site, owner, t.path} }

// parse reads a callback URL and judges what can be judged without a look-up. Its
// errors are *tandem.Error with CodeInvalidCallbackURL or CodeCallbackBlocked.
func (p *Policy) parse(raw string) (*target, error) {
	u, err := parseURL(raw)
	if err != nil {
		return nil, unusable(err)
	}
	host, addr, err := canonicalHost(u.Hostname())
	if err != nil {
		return nil, unusable(err)
	}
	port, err := portOf(u)
	if err != nil {
		return nil, unusable(err)
	}
	t := &target{site: Site{u.Scheme, net.JoinHostPort(host, strconv.Itoa(int(port)))}}
	if verdict := p.judgeHost(host, addr, port); !verdict.Allows() {
		return nil, &tandem.Error{
			Code: tandem.CodeCallbackBlocked, Message: blockedText,
			Err: &Refused{Target: t.site.Host, Verdict: verdict},
		}
	}
	t.url = *u
	t.url.RawPath, t.url.RawQuery = percentEncode(rawPath(u), ""), percentEncode(u.RawQuery, "?")
	if addr.Is6() {
		host = "[" + host + "]"
	}
	if written := u.Port(); written != "" {
		host += ":" + written
	}
	t.url.Host = host
	t.path = "/" + strings.TrimPrefix(t.url.EscapedPath(), "/")
	t.path = t.path[:min(len(t.path), maxPath)]
	return t, nil
}

// maxGoodURLs bounds [goodURLs]; of the longest URLs they take 1 MB.
const maxGoodURLs = 256

// goodURLs remembers what was made of URLs that may be called: most callers have one or
// two, and every request asks twice. What is made of a URL depends on the policy alone, which never changes.
type goodURLs struct {
	mu      sync.Mutex         // guards targets
	targets map[string]*target // :: URL → target; at most maxGoodURLs
}

// parse is that of the policy, with a memory.
func (c *Client) parse(raw string) (*target, error) {
	c.good.mu.Lock()
	t, known := c.good.targets[raw]
	c.good.mu.Unlock()
	if known {
		return t, nil
	}
	t, err := c.policy.parse(raw)
	if err != nil {
		return nil, err
	}
	c.good.mu.Lock()
	defer c.good.mu.Unlock()
	if len(c.good.targets) >= maxGoodURLs {
		clear(c.good.targets) // simpler than to know which was asked for last, and those in use come back
	}
	c.good.targets[raw] = t
	return t, nil
}

// judgeHost judges a canonical host, which is addr if that is valid and a name otherwise.
func (p *Policy) judgeHost(host string, addr netip.Addr, port uint16) Verdict {
	if addr.IsValid() {
		return p.judge(netip.AddrPortFrom(addr, port), p.hostOptedIn(host))
	}
	return p.judgeName(host, port)
}

// unusable is the error of a URL that nobody could call.
func unusable(err error) *tandem.Error {
	return &tandem.Error{Code: tandem.CodeInvalidCallbackURL, Message: "callback_url " + err.Error(), Err: err}
}

// parseURL accepts an absolute http or https URL without anything that one
// parser could read differently from another.
func parseURL(raw string) (*url.URL, error) {
	if raw == "" || len(raw) > maxURL {
		return nil, fmt.Errorf("must have 1 to %d bytes", maxURL)
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c == 0x7f || c == '\\' {
			return nil, errors.New("must not contain spaces, control characters or backslashes")
		}
	}
	if !utf8.ValidString(raw) {
		return nil, errors.New("must be valid UTF-8")
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil: // its text repeats the URL, which may hold a password
		return nil, errors.New("cannot be parsed as a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("must start with http:// or https://")
	case u.Opaque != "" || u.Host == "":
		return nil, errors.New("must name a host")
	case u.User != nil:
		return nil, errors.New("must not contain a user name or password")
	}
	return u, nil
}

// rawPath is the path of a URL as it was written.
func rawPath(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.EscapedPath() // net/url keeps no RawPath that would be the same
}

// percentEncode encodes the bytes of a path or a query that RFC 3986 does not allow there: proxies
// answer them with 400. Everything else stays as it is, every %XX included, because receivers may
// compare or sign it. more is what may stand there beside the characters of a path.
func percentEncode(written, more string) string {
	const allowed = "-._~!$&'()*+,;=:@/" // besides letters and digits
	const hex = "0123456789ABCDEF"
	var encoded []byte // nil: the same so far
	for i := range len(written) {
		c := written[i]
		isEscape := c == '%' && i+2 < len(written) && isHex(written[i+1]) && isHex(written[i+2])
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', isEscape,
			strings.IndexByte(allowed, c) >= 0, strings.IndexByte(more, c) >= 0:
			if encoded != nil {
				encoded = append(encoded, c)
			}
		default:
			if encoded == nil {
				encoded = append(make([]byte, 0, len(written)+16), written[:i]...)
			}
			encoded = append(encoded, '%', hex[c>>4], hex[c&15])
		}
	}
	if encoded == nil {
		return written
	}
	return string(encoded)
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// portOf returns the port that a URL names or its scheme implies.
func portOf(u *url.URL) (uint16, error) {
	written := u.Port()
	if written == "" {
		if strings.HasSuffix(u.Host, ":") {
			return 0, errors.New("must have a port after the colon, or no colon")
		}
		if u.Scheme == "https" {
			return 443, nil
		}
		return 80, nil
	}
	return parsePort(written)
}

// parsePort reads a port in its only form: decimal, without zeros in front.
func parsePort(written string) (uint16, error) {
	port, err := strconv.ParseUint(written, 10, 16)
	if err != nil || port == 0 || written[0] == '0' {
		return 0, errors.New("must have a port from 1 to 65535")
	}
	return uint16(port), nil
}

// canonicalHost returns the one form of a host that the policy compares and the
// dial uses: an address in its usual form without IPv4-mapping, with addr valid;
// or a name in lower-case ASCII (IDNA) without a trailing dot. Forms that some
// resolver reads as an IPv4 address and others as a name (0x7f.1, 017700000001,
// 2130706433) are errors.
func canonicalHost(host string) (canonical string, addr netip.Addr, err error) {
	if strings.IndexByte(host, ':') >= 0 {
		addr, err = netip.ParseAddr(host)
		if err != nil {
			return "", netip.Addr{}, errors.New("must have a valid IPv6 address in its brackets")
		}
		if addr.Zone() == "" { // a zone stays to be seen and refused; Unmap could drop it
			addr = addr.Unmap()
		}
		return addr.String(), addr, nil
	}
	name, err := canonicalName(host)
	if err != nil {
		return "", netip.Addr{}, err
	}
	if endsInNumber(name) {
		addr, err = netip.ParseAddr(name)
		if err != nil {
			return "", netip.Addr{}, errors.New("must write an IPv4 address as four decimal numbers")
		}
	}
	return name, addr, nil
}

// canonicalName maps a host name to lower-case ASCII and checks its labels.
func canonicalName(name string) (string, error) {
	var upper, foreign bool
	for i := range len(name) {
		c := name[i]
		upper = upper || 'A' <= c && c <= 'Z'
		foreign = foreign || c >= utf8.RuneSelf
	}
	switch {
	case foreign:
		// The same mapping as in net/http, which turns full-width digits and dots into plain ones.
		mapped, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", errors.New("must have a valid host name")
		}
		name = mapped
	case upper:
		name = strings.ToLower(name)
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return "", errors.New("must have a host name of 1 to 253 bytes")
	}
	label := 0 // bytes of the label so far
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.' && label > 0 && name[i-1] != '-':
			label = 0
			continue
		case c == '-' && label == 0: // such names are never looked up
			return "", errors.New("must have a valid host name")
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return "", errors.New("must have a valid host name")
		}
		if label > 63 {
			return "", errors.New("must have a valid host name")
		}
	}
	if label == 0 || name[len(name)-1] == '-' {
		return "", errors.New("must have a valid host name")
	}
	return name, nil
}

// endsInNumber reports whether the last label of a canonical name is a decimal,
// octal or hexadecimal number, which makes the name an IPv4 address to some
// resolvers (WHATWG URL, "ends in a number").
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	hex, isHex := strings.CutPrefix(last, "0x")
	if isHex {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// redact returns a URL without what may be secret in it, for the log.
func redact(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if u.RawQuery != "" {
		shown.RawQuery = "redacted"
	}
	return shown.String()
}
