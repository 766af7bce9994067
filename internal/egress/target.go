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

// blockedText is the one text for every forbidden target, at submission and after an attempt: callers must not be able
// to distinguish such targets.
const blockedText = "callback_url is not allowed: this server does not call that address, name or port"

// target is a permitted callback URL, as far as a check without a look-up goes.
type target struct {
	url  url.URL // with a canonical host; its fragment is never sent
	site Site
	path string // as in Receiver
}

// receiver is the receiver of an owner's call.
func (t *target) receiver(owner string) Receiver { return Receiver{t.site, owner, t.path} }

// parse reads a callback URL and judges it without a look-up. Its errors are *tandem.Error with CodeInvalidCallbackURL
// or CodeCallbackBlocked.
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

// goodURLs caches the targets of permitted URLs: most callers have one or two, and every request asks twice. A target
// depends on the URL and the policy only, and the policy never changes.
type goodURLs struct {
	mu      sync.Mutex         // guards targets
	targets map[string]*target // :: URL → target; at most maxGoodURLs
}

// parse is Policy.parse, cached.
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
		clear(c.good.targets) // simpler than an LRU, and URLs in use come back
	}
	c.good.targets[raw] = t
	return t, nil
}

// judgeHost judges a canonical host: addr if it is valid, a name otherwise.
func (p *Policy) judgeHost(host string, addr netip.Addr, port uint16) Verdict {
	if addr.IsValid() {
		return p.judge(netip.AddrPortFrom(addr, port), p.hostOptedIn(host))
	}
	return p.judgeName(host, port)
}

// unusable is the error of an uncallable URL.
func unusable(err error) *tandem.Error {
	return &tandem.Error{Code: tandem.CodeInvalidCallbackURL, Message: "callback_url " + err.Error(), Err: err}
}

// parseURL accepts an absolute http or https URL without anything ambiguous to parsers.
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
	case err != nil: // its text repeats the URL, and it may hold a password
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
	return u.EscapedPath() // net/url leaves RawPath empty when it would be the same
}

// percentEncode encodes the bytes of a path or a query not allowed by RFC 3986: proxies answer them with 400.
// Everything else stays unchanged, every %XX included, because receivers may compare or sign it. more are allowed
// characters beyond those of a path.
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

// portOf returns the port of a URL, or the default of its scheme.
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

// canonicalHost returns the one form of a host for policy and dial: an address in its usual form without IPv4-mapping,
// with addr valid; or a name in lower-case ASCII (IDNA) without a trailing dot. IPv4 addresses in the forms of some
// resolvers only (0x7f.1, 017700000001, 2130706433) are errors.
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

var errName = errors.New("must have a valid host name")

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
		// The same mapping as in net/http: it turns full-width digits and dots into plain ones.
		mapped, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", errName
		}
		name = mapped
	case upper:
		name = strings.ToLower(name)
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return "", errors.New("must have a host name of 1 to 253 bytes")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, notInNames) {
			return "", errName
		}
	}
	return name, nil
}

// notInNames reports whether no canonical name has a character.
func notInNames(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// endsInNumber reports whether the last label of a canonical name is a decimal, octal or hexadecimal number. Some
// resolvers read such a name as an IPv4 address (WHATWG URL, "ends in a number").
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	hex, isHex := strings.CutPrefix(last, "0x")
	if isHex {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}
