package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Policy decides about addresses. The zero value is the strict one.
type Policy struct {
	AllowPrivate bool     // demo mode: everything but metadata and addresses without TCP
	Ports        []uint16 // allowed besides 80 and 443
	AnyPort      bool     // demo mode

	// Opted in (--allow-callback-cidr, --allow-callback-host). The addresses of a name in Hosts may be private.
	// Metadata stays refused, and of CIDRs our own addresses as well.
	CIDRs []netip.Prefix
	Hosts []string // in any case

	// Our own listening addresses, refused unless AllowPrivate; an unspecified address means every local one.
	Own []netip.AddrPort
}

// Reason is the kind of a [Verdict], short and stable enough for a metric's label.
type Reason string

// The reasons to allow.
const (
	ReasonPublic  Reason = "public"   // part of the public Internet
	ReasonOptedIn Reason = "opted_in" // Policy.CIDRs or Policy.Hosts
	ReasonDemo    Reason = "demo"     // Policy.AllowPrivate
)

// The reasons to refuse.
const (
	ReasonMetadata  Reason = "metadata"  // a cloud's metadata service; no opt-in helps
	ReasonNever     Reason = "never"     // multicast, broadcast, reserved; no opt-in helps
	ReasonZone      Reason = "zone"      // an address with a zone, as fe80::1%eth0
	ReasonOwn       Reason = "own"       // our own listening address
	ReasonSpecial   Reason = "special"   // private, loopback or another special block
	ReasonLocalName Reason = "localname" // a name for this machine or network
	ReasonPort      Reason = "port"      // not an allowed port
	ReasonInvalid   Reason = "invalid"   // not a callable address or name
)

// Verdict is the decision of a [Policy] about an address or a name. The zero Verdict refuses.
type Verdict struct {
	Reason Reason
	Detail string // the block, name or port; for the log, never for the caller
}

// Allows reports whether the address may be called.
func (v Verdict) Allows() bool {
	return v.Reason == ReasonPublic || v.Reason == ReasonOptedIn || v.Reason == ReasonDemo
}

// String is the verdict as the log shows it.
func (v Verdict) String() string {
	if v.Detail == "" {
		return string(v.Reason)
	}
	return string(v.Reason) + ": " + v.Detail
}

// Refused is the error of a forbidden target. It is for the log: callers get the same text for all of them.
type Refused struct {
	Target  string // host:port or address:port
	Verdict Verdict
}

// Error names the target and the reason.
func (r *Refused) Error() string { return fmt.Sprintf("refuse %s: %s", r.Target, r.Verdict) }

// Judge decides about one address and port, without a name look-up. It asks for the machine's addresses only for a port
// of ours with an unspecified address in Own.
func (p *Policy) Judge(at netip.AddrPort) Verdict { return p.judge(at, false) }

// judge is Judge for an address to which a host of Policy.Hosts may have resolved. The order is the policy: first
// blocks without opt-in, then the opt-ins, then the tables.
func (p *Policy) judge(at netip.AddrPort, hostOptedIn bool) Verdict {
	addr := at.Addr()
	if !addr.IsValid() {
		return Verdict{ReasonInvalid, "no address"}
	}
	// Prefix.Contains is false for every zoned address, so the tables would let it pass.
	if addr.Zone() != "" {
		return Verdict{ReasonZone, addr.String()}
	}
	addr = addr.Unmap()
	inner := embedded(addr)
	all := slices.Concat(inner, []netip.Addr{addr})
	for _, a := range all {
		if block, found := find(metadataBlocks, a); found {
			return Verdict{ReasonMetadata, block.String()}
		}
	}
	if block, found := find(neverBlocks, addr); found {
		return Verdict{ReasonNever, block.String()}
	}
	if !p.portAllowed(at.Port()) {
		return Verdict{ReasonPort, fmt.Sprint(at.Port())}
	}
	if p.AllowPrivate {
		return Verdict{Reason: ReasonDemo}
	}
	for _, a := range all {
		if p.isOwn(a, at.Port()) {
			return Verdict{ReasonOwn, at.String()}
		}
	}
	outer := p.judgeTables(addr, hostOptedIn)
	if !outer.Allows() || nat64Local.Contains(addr) {
		// An opted-in local NAT64 prefix allows all its addresses: the position of the IPv4 address in it is unknown.
		return outer
	}
	// An opted-in translation prefix opens the IPv4 Internet behind it, not the private addresses behind it.
	for _, a := range inner {
		if verdict := p.judgeTables(a, hostOptedIn); !verdict.Allows() {
			return verdict
		}
	}
	return outer
}

// judgeTables is the strict decision about any address but metadata.
func (p *Policy) judgeTables(addr netip.Addr, hostOptedIn bool) Verdict {
	if hostOptedIn {
		return Verdict{ReasonOptedIn, "host"}
	}
	for _, prefix := range p.CIDRs {
		if prefix.Contains(addr) {
			return Verdict{ReasonOptedIn, prefix.String()}
		}
	}
	table := specialBlocks4
	if addr.Is6() {
		table = specialBlocks6
	}
	if block, found := find(table, addr); found {
		return Verdict{ReasonSpecial, block.String()}
	}
	if addr.Is6() && !globalUnicast6.Contains(addr) {
		return Verdict{ReasonSpecial, "not in " + globalUnicast6.String()}
	}
	return Verdict{Reason: ReasonPublic}
}

// judgeName decides about a canonical name (see canonicalHost) without looking it up.
func (p *Policy) judgeName(name string, port uint16) Verdict {
	if top, found := within(name, metadataNames); found {
		return Verdict{ReasonMetadata, top}
	}
	switch {
	case !p.portAllowed(port):
		return Verdict{ReasonPort, fmt.Sprint(port)}
	case p.AllowPrivate:
		return Verdict{Reason: ReasonDemo}
	case p.hostOptedIn(name):
		return Verdict{ReasonOptedIn, name}
	}
	if top, found := within(name, localNames); found {
		return Verdict{ReasonLocalName, top}
	}
	if strings.IndexByte(name, '.') < 0 {
		return Verdict{ReasonLocalName, "a single label"}
	}
	return Verdict{Reason: ReasonPublic}
}

func (p *Policy) portAllowed(port uint16) bool {
	return port != 0 && (port == 80 || port == 443 || p.AnyPort || slices.Contains(p.Ports, port))
}

// hostOptedIn takes a canonical host: a name, or an address in its usual form.
func (p *Policy) hostOptedIn(host string) bool { return slices.Contains(p.Hosts, host) }

// isOwn reports whether a call to addr and port would reach ourselves. It asks for the machine's addresses each time,
// because they change, and only for a port of ours.
func (p *Policy) isOwn(addr netip.Addr, port uint16) bool {
	for _, own := range p.Own {
		ownAddr := own.Addr().Unmap()
		switch {
		case own.Port() != port:
		case ownAddr.WithZone("") == addr:
			return true
		// Connecting to 0.0.0.0 or :: reaches this machine.
		case addr.IsUnspecified() && (ownAddr.IsLoopback() || ownAddr.IsUnspecified()):
			return true
		case ownAddr.IsUnspecified() && isLocal(addr):
			return true
		}
	}
	return false
}

// isLocal reports whether addr belongs to this machine, or might because the machine does not say.
func isLocal(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	locals, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, local := range locals {
		prefix, err := netip.ParsePrefix(local.String())
		if err != nil || prefix.Addr().Unmap().WithZone("") == addr {
			return true
		}
	}
	return false
}

// compile checks a policy and returns it with canonical hosts and masked prefixes, as the decisions need it.
func (p *Policy) compile() (*Policy, error) {
	compiled := *p
	compiled.Hosts, compiled.CIDRs = nil, nil
	for _, host := range p.Hosts {
		canonical, err := hostToAllow(host)
		if err != nil {
			return nil, fmt.Errorf("allowed callback host %q: %w", host, err)
		}
		compiled.Hosts = append(compiled.Hosts, canonical)
	}
	for _, prefix := range p.CIDRs {
		switch {
		case !prefix.IsValid():
			return nil, fmt.Errorf("allowed callback CIDR %v: not a prefix", prefix)
		case prefix.Addr().Is4In6():
			return nil, fmt.Errorf("allowed callback CIDR %v: write it as IPv4", prefix)
		}
		for _, block := range slices.Concat(metadataBlocks, neverBlocks) {
			if block.Prefix.Bits() <= prefix.Bits() && block.Prefix.Contains(prefix.Addr()) {
				return nil, fmt.Errorf("allowed callback CIDR %v: %v cannot be allowed", prefix, block)
			}
		}
		compiled.CIDRs = append(compiled.CIDRs, prefix.Masked())
	}
	return &compiled, nil
}

// hostToAllow returns the canonical form of a host to opt in.
func hostToAllow(host string) (string, error) {
	canonical, addr, err := canonicalHost(host)
	switch {
	case err != nil && strings.ContainsAny(host, ":/@[]"):
		return "", errors.New("want a name or an address alone, without scheme, port or brackets")
	case err != nil:
		return "", err
	case addr.Zone() != "":
		return "", errors.New("an address with a zone cannot be allowed")
	}
	if _, found := within(canonical, metadataNames); found {
		return "", errors.New("metadata services cannot be allowed")
	}
	if block, found := find(slices.Concat(metadataBlocks, neverBlocks), addr); found {
		return "", fmt.Errorf("%v cannot be allowed", block)
	}
	return canonical, nil
}

// within finds the name in names that equals name or is a parent domain of it.
func within(name string, names []string) (string, bool) {
	for _, top := range names {
		rest, found := strings.CutSuffix(name, top)
		if found && (rest == "" || strings.HasSuffix(rest, ".")) {
			return top, true
		}
	}
	return "", false
}

// embedded returns the IPv4 addresses reachable through an IPv6 address by a transition mechanism; most have none.
// NAT64 with an operator's own prefix cannot be recognised.
func embedded(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	at := func(i, j, k, l int) netip.Addr { return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}) }
	last := at(12, 13, 14, 15)
	switch {
	case translated96.Contains(addr), nat64.Contains(addr):
		return []netip.Addr{last}
	case compatible.Contains(addr):
		if addr == netip.IPv6Unspecified() || addr == netip.IPv6Loopback() {
			return nil // nothing embedded: these are themselves
		}
		return []netip.Addr{last}
	case nat64Local.Contains(addr):
		// The prefix may be used as a /48, /56, /64 or /96 (RFC 6052, section 2.2).
		return []netip.Addr{at(6, 7, 9, 10), at(7, 9, 10, 11), at(9, 10, 11, 12), last}
	case sixToFour.Contains(addr):
		return []netip.Addr{at(2, 3, 4, 5)}
	case teredo.Contains(addr):
		client := netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
		return []netip.Addr{at(4, 5, 6, 7), client}
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP (RFC 5214), any prefix
		return []netip.Addr{last}
	}
	return nil
}

// The prefixes of the transition mechanisms.
var (
	compatible   = netip.MustParsePrefix("::/96")
	translated96 = netip.MustParsePrefix("::ffff:0:0:0/96")
	nat64        = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local   = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour    = netip.MustParsePrefix("2002::/16")
	teredo       = netip.MustParsePrefix("2001::/32")
)
