package egress_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tandem/internal/audit"
	"tandem/internal/egress"
)

// last returns the highest address of a prefix.
func last(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// The tables of the package and the vectors are two lists: what one calls special the other must
// call special, with the ends of every block and the neighbours just outside.
func TestBlocksAndVectorsAgree(t *testing.T) {
	t.Parallel()
	var strict egress.Policy
	vectors := make(map[netip.Addr]audit.Vector)
	prefixes := make(map[netip.Prefix]bool)
	for _, v := range audit.Vectors() {
		if v.Class != audit.ClassBlock {
			continue
		}
		addr := netip.MustParseAddr(strings.Trim(strings.TrimPrefix(v.URL, "http:"), "/[]"))
		vectors[addr] = v
		at := strings.LastIndexByte(v.Name, '/')
		prefixes[netip.MustParsePrefix(strings.TrimPrefix(v.Name[:at], "block/"))] = true
		got := strict.Judge(netip.AddrPortFrom(addr, 80))
		switch {
		case v.Production == audit.FateCalled && got.Reason == egress.ReasonPublic,
			v.Production == audit.FateBlocked && v.Demo == audit.FateCalled && got.Reason == egress.ReasonSpecial,
			v.Production == audit.FateBlocked && v.Demo == audit.FateBlocked &&
				(got.Reason == egress.ReasonMetadata || got.Reason == egress.ReasonNever):
		default:
			t.Errorf("%s: Judge(%s) = %s, want it %s and in demo mode %s", v.Name, addr, got, v.Production, v.Demo)
		}
	}
	blocks := egress.Blocks()
	for _, block := range blocks {
		if !prefixes[block.Prefix] {
			t.Errorf("block %s has no vector", block)
		}
		if block.Prefix != block.Prefix.Masked() || block.Name == "" || block.Source == "" {
			t.Errorf("block %s: incomplete, or has bits behind its prefix", block)
		}
		first, end := block.Prefix.Addr(), last(block.Prefix)
		for _, addr := range []netip.Addr{first, end, first.Prev(), end.Next()} {
			if _, found := vectors[addr]; addr.IsValid() && !found {
				t.Errorf("block %s: no vector for %s", block, addr)
			}
		}
	}
	for prefix := range prefixes {
		held := slices.ContainsFunc(blocks, func(b egress.Block) bool {
			return b.Prefix.Overlaps(prefix) && b.Prefix.Bits() <= prefix.Bits()
		})
		if !held && prefix != netip.MustParsePrefix("2000::/3") {
			t.Errorf("%s is in no block", prefix)
		}
	}
	// A block inside another one changes no verdict, but it is the one that is named.
	for addr, want := range map[string]string{
		"2001:2::1": "Benchmarking", "2001:3::1": "AMT", "2001:4:112::1": "AS112-v6", "2001:11::1": "Deprecated ORCHID",
		"2001:21::1": "ORCHIDv2", "2001:31::1": "Drone", "2001::8.8.8.8": "Teredo", "2001:100::": "IETF",
		"::1": "Loopback", "::2": "compatible",
		"100::1": "Discard", "100:0:0:1::1": "Dummy", "5f00::1": "SRv6", "fc00::1": "Unique-Local", "fec0::1": "Site-Local",
		"64:ff9b:1::1": "local", "::ffff:0:8.8.8.8": "translated", "64:ff9b::8.8.8.8": "NAT64", "fe80::1": "Link-Local",
		"::": "Unspecified",
	} {
		if got := strict.Judge(netip.AddrPortFrom(netip.MustParseAddr(addr), 80)); !strings.Contains(got.Detail, want) {
			t.Errorf("Judge(%s) = %s, want it to name %s", addr, got, want)
		}
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	demo := egress.Policy{AllowPrivate: true, AnyPort: true}
	own := egress.Policy{
		Own: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8000"), netip.MustParseAddrPort("203.0.114.7:8443"),
			netip.MustParseAddrPort("127.0.0.1:9000")},
		AnyPort: true, CIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/7"), netip.MustParsePrefix("127.0.0.0/8"),
			netip.MustParsePrefix("::1/128")},
	}
	ownDemo := egress.Policy{AllowPrivate: true, AnyPort: true, Own: own.Own}
	opted := egress.Policy{CIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
		netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("169.0.0.0/8"), netip.MustParsePrefix("2002::/16"),
	}}
	own64 := egress.Policy{
		Own: own.Own, AnyPort: true, CIDRs: []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"),
			netip.MustParsePrefix("64:ff9b:1::/48")},
	}
	ports := egress.Policy{Ports: []uint16{8443}}
	for _, c := range []struct {
		name   string
		policy *egress.Policy
		at     string
		want   egress.Reason
	}{
		{"demo: loopback", &demo, "127.0.0.1:1", egress.ReasonDemo},
		{"demo: private", &demo, "10.0.0.1:80", egress.ReasonDemo},
		{"demo: unspecified counts as loopback", &demo, "0.0.0.0:80", egress.ReasonDemo},
		{"demo: unspecified IPv6", &demo, "[::]:80", egress.ReasonDemo},
		{"demo: unique-local", &demo, "[fd00::1]:80", egress.ReasonDemo},
		{"demo: mapped loopback", &demo, "[::ffff:127.0.0.1]:80", egress.ReasonDemo},
		{"demo: metadata", &demo, "169.254.169.254:80", egress.ReasonMetadata},
		{"demo: mapped metadata", &demo, "[::ffff:169.254.169.254]:80", egress.ReasonMetadata},
		{"demo: multicast", &demo, "239.255.255.255:80", egress.ReasonNever},
		{"demo: reserved", &demo, "240.0.0.0:80", egress.ReasonNever},
		{"demo: zone", &demo, "[fe80::1%eth0]:80", egress.ReasonZone},
		{"demo: port zero", &demo, "127.0.0.1:0", egress.ReasonPort},

		{"own: unspecified means loopback", &own, "127.0.0.1:8000", egress.ReasonOwn},
		{"own: all of loopback", &own, "127.9.9.9:8000", egress.ReasonOwn},
		{"own: IPv6 loopback", &own, "[::1]:8000", egress.ReasonOwn},
		{"own: connecting to unspecified", &own, "0.0.0.0:8000", egress.ReasonOwn},
		{"own: another port", &own, "127.0.0.1:8001", egress.ReasonOptedIn},
		{"own: somebody else on our port", &own, "8.8.8.8:8000", egress.ReasonPublic},
		{"own: a public address of ours", &own, "203.0.114.7:8443", egress.ReasonOwn},
		{"own: its neighbour", &own, "203.0.114.8:8443", egress.ReasonPublic},
		{"own: a loopback listener seen through unspecified", &own, "0.0.0.0:9000", egress.ReasonOwn},
		{"own: demo mode may call itself", &ownDemo, "127.0.0.1:8000", egress.ReasonDemo},

		{"opted in: first", &opted, "10.1.0.0:80", egress.ReasonOptedIn},
		{"opted in: last", &opted, "10.1.255.255:80", egress.ReasonOptedIn},
		{"opted in: before", &opted, "10.0.255.255:80", egress.ReasonSpecial},
		{"opted in: after", &opted, "10.2.0.0:80", egress.ReasonSpecial},
		{"opted in: mapped", &opted, "[::ffff:10.1.0.1]:80", egress.ReasonOptedIn},
		{"opted in: the port still counts", &opted, "10.1.0.1:8080", egress.ReasonPort},
		{"opted in: metadata inside the prefix", &opted, "169.254.169.254:80", egress.ReasonMetadata},
		{"opted in: metadata inside the IPv6 prefix", &opted, "[fd00:ec2::254]:80", egress.ReasonMetadata},
		{"opted in: NAT64 to the Internet", &opted, "[64:ff9b::8.8.8.8]:80", egress.ReasonOptedIn},
		{"opted in: NAT64 to what is opted in", &opted, "[64:ff9b::10.1.0.1]:80", egress.ReasonOptedIn},
		{"opted in: NAT64 to private", &opted, "[64:ff9b::10.0.0.1]:80", egress.ReasonSpecial},
		{"opted in: NAT64 to metadata", &opted, "[64:ff9b::169.254.169.254]:80", egress.ReasonMetadata},
		{"opted in: 6to4 to private", &opted, "[2002:a00:1::1]:80", egress.ReasonSpecial},
		{"opted in: NAT64 to our own address", &own64, "[64:ff9b::203.0.114.7]:8443", egress.ReasonOwn},
		{"opted in: NAT64 to the neighbour of our own address", &own64, "[64:ff9b::203.0.114.8]:8443", egress.ReasonOptedIn},
		{"opted in: local NAT64 to our own address", &own64, "[64:ff9b:1::203.0.114.7]:8443", egress.ReasonOwn},
		{"opted in: metadata of Oracle", &opted, "[fd00:c1::a9fe:a9fe]:80", egress.ReasonMetadata},
		{"opted in: metadata of Akamai", &opted, "[fd00:a9fe:a9fe::1]:80", egress.ReasonMetadata},
		{"opted in: metadata of Alibaba", &opted, "[fd00:100::100:200]:80", egress.ReasonMetadata},
		{"opted in: local NAT64", &opted, "[64:ff9b:1::8.8.8.8]:80", egress.ReasonOptedIn},
		{"opted in: local NAT64 to metadata", &opted, "[64:ff9b:1::169.254.169.254]:80", egress.ReasonMetadata},

		{"ports: added", &ports, "8.8.8.8:8443", egress.ReasonPublic},
		{"ports: before it", &ports, "8.8.8.8:8442", egress.ReasonPort},
		{"ports: after it", &ports, "8.8.8.8:8444", egress.ReasonPort},
		{"ports: 443", &ports, "8.8.8.8:443", egress.ReasonPublic},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := c.policy.Judge(netip.MustParseAddrPort(c.at)); got.Reason != c.want {
				t.Errorf("Judge(%s) = %s, want %s", c.at, got, c.want)
			}
		})
	}
	if got := demo.Judge(netip.AddrPort{}); got.Allows() || got.Reason != egress.ReasonInvalid {
		t.Errorf("Judge of no address = %s, want invalid", got)
	}
	if (egress.Verdict{}).Allows() {
		t.Error("the zero Verdict allows")
	}
}

func TestPolicyThatContradictsItself(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		policy egress.Policy
		want   string // "" means no error
	}{
		{"metadata by address", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}},
			"cannot be allowed"},
		{"the whole metadata block", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")}},
			"cannot be allowed"},
		{"more than the metadata block", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/15")}}, ""},
		{"multicast", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("224.1.0.0/16")}}, "cannot be allowed"},
		{"mapped", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, "write it as IPv4"},
		{"no prefix", egress.Policy{CIDRs: []netip.Prefix{{}}}, "not a prefix"},
		{"metadata by name", egress.Policy{Hosts: []string{"Metadata.Google.Internal."}}, "metadata"},
		{"no name", egress.Policy{Hosts: []string{""}}, "host name"},
		{"a name and a port", egress.Policy{Hosts: []string{"a:80"}}, "without scheme, port or brackets"},
		{"an address and a port", egress.Policy{Hosts: []string{"10.0.0.1:80"}}, "without scheme, port or brackets"},
		{"an address in brackets", egress.Policy{Hosts: []string{"[fd00::1]"}}, "without scheme, port or brackets"},
		{"a URL", egress.Policy{Hosts: []string{"http://hooks.example.com"}}, "without scheme, port or brackets"},
		{"an address with a zone", egress.Policy{Hosts: []string{"fe80::1%eth0"}}, "zone"},
		{"metadata by the address of a host", egress.Policy{Hosts: []string{"169.254.169.254"}}, "cannot be allowed"},
		{"metadata by the mapped address of a host", egress.Policy{Hosts: []string{"::ffff:169.254.169.254"}},
			"cannot be allowed"},
		{"link-local by the address of a host", egress.Policy{Hosts: []string{"fe80::1"}}, "cannot be allowed"},
		{"link-local", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("fe80::/64")}}, "cannot be allowed"},
		{"below a metadata name", egress.Policy{Hosts: []string{"x.metadata.google.internal"}}, "metadata"},
		{"an address in another notation", egress.Policy{Hosts: []string{"0x7f.1"}}, "IPv4"},
		{"names and prefixes", egress.Policy{Hosts: []string{"Receiver", "10.0.0.1", "fd00::1"},
			CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := egress.New(egress.Config{Policy: c.policy})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("New = %v, want an error with %q", err, c.want)
			}
		})
	}
}
