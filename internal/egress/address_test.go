package egress_test

import (
	"net/netip"
	"strings"
	"testing"

	"tandem/internal/egress"
)

// blockRows has every block with what lies just outside of it. An empty neighbour means that the
// address space ends there.
var blockRows = []struct {
	prefix        string
	reason        egress.Reason // of its first and last address
	before, after egress.Reason
}{
	// metadata
	{"169.254.0.0/16", egress.ReasonMetadata, egress.ReasonPublic, egress.ReasonPublic},
	{"100.100.100.200/32", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	{"192.0.0.192/32", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	{"168.63.129.16/32", egress.ReasonMetadata, egress.ReasonPublic, egress.ReasonPublic},
	{"fd00:ec2::/32", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fd20:ce::254/128", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fd00:42::42/128", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fe80::a9fe:a9fe/128", egress.ReasonMetadata, egress.ReasonSpecial, egress.ReasonSpecial},
	// never
	{"224.0.0.0/4", egress.ReasonNever, egress.ReasonPublic, egress.ReasonNever},
	{"240.0.0.0/4", egress.ReasonNever, egress.ReasonNever, ""},
	{"ff00::/8", egress.ReasonNever, egress.ReasonSpecial, ""},
	// IPv4
	{"0.0.0.0/8", egress.ReasonSpecial, "", egress.ReasonPublic},
	{"10.0.0.0/8", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"100.64.0.0/10", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"127.0.0.0/8", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"172.16.0.0/12", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.0.0.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.0.2.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.31.196.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.52.193.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.88.99.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.168.0.0/16", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"192.175.48.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"198.18.0.0/15", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"198.51.100.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"203.0.113.0/24", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	// IPv6: outside of 2000::/3 every neighbour is refused as well
	{"::1/128", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"::/128", egress.ReasonSpecial, "", egress.ReasonSpecial},
	{"::/96", egress.ReasonSpecial, "", egress.ReasonSpecial},
	{"::ffff:0:0:0/96", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"64:ff9b::/96", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"64:ff9b:1::/48", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"100::/64", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"100:0:0:1::/64", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001::/32", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonSpecial},
	{"2001:2::/48", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001:3::/32", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001:4:112::/48", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001:10::/28", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001:20::/28", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001:30::/28", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"2001::/23", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"2001:db8::/32", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"2002::/16", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"2620:4f:8000::/48", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"3fff::/20", egress.ReasonSpecial, egress.ReasonPublic, egress.ReasonPublic},
	{"5f00::/16", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fc00::/7", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fe80::/10", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonSpecial},
	{"fec0::/10", egress.ReasonSpecial, egress.ReasonSpecial, egress.ReasonNever},
	// the part of IPv6 that is allowed, seen from outside
	{"2000::/3", egress.ReasonPublic, egress.ReasonSpecial, egress.ReasonSpecial},
}

// last returns the highest address of a prefix.
func last(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

func TestPolicyRefusesEveryBlockAndNotItsNeighbours(t *testing.T) {
	t.Parallel()
	var strict egress.Policy
	for _, row := range blockRows {
		prefix := netip.MustParsePrefix(row.prefix)
		for _, c := range []struct {
			addr netip.Addr
			want egress.Reason
		}{
			{prefix.Addr(), row.reason}, {last(prefix), row.reason},
			{prefix.Addr().Prev(), row.before}, {last(prefix).Next(), row.after},
		} {
			if row.prefix == "2000::/3" && c.addr == last(prefix) {
				// The last address of 2000::/3 is its own public end; 3fff::/20 ends before it.
				c.want = egress.ReasonPublic
			}
			if !c.addr.IsValid() {
				if c.want != "" {
					t.Errorf("%s: the address space ends here, but the row expects %s", row.prefix, c.want)
				}
				continue
			}
			if got := strict.Judge(netip.AddrPortFrom(c.addr, 80)); got.Reason != c.want {
				t.Errorf("%s: Judge(%s) = %s, want %s", row.prefix, c.addr, got, c.want)
			}
		}
	}
}

// The rows above and the tables of the package are two lists: they must name the same blocks.
func TestEveryBlockHasARow(t *testing.T) {
	t.Parallel()
	rows := make(map[string]bool)
	for _, row := range blockRows {
		rows[row.prefix] = true
	}
	var strict egress.Policy
	blocks := egress.Blocks()
	for _, block := range blocks {
		if !rows[block.Prefix.String()] {
			t.Errorf("block %s has no row", block)
		}
		if block.Prefix != block.Prefix.Masked() || block.Name == "" || block.Source == "" {
			t.Errorf("block %s: incomplete, or has bits behind its prefix", block)
		}
	}
	if want := len(blockRows) - 1; len(blocks) != want { // all rows but 2000::/3
		t.Errorf("%d blocks, %d rows", len(blocks), want)
	}
	// A block inside another one changes no verdict, but it is the one that is named.
	for addr, want := range map[string]string{
		"2001:2::1": "Benchmarking", "2001:3::1": "AMT", "2001:4:112::1": "AS112-v6", "2001:11::1": "Deprecated ORCHID",
		"2001:21::1": "ORCHIDv2", "2001:31::1": "Drone", "2001::8.8.8.8": "Teredo", "2001:100::": "IETF", "::1": "Loopback", "::2": "compatible",
		"100::1": "Discard", "100:0:0:1::1": "Dummy", "5f00::1": "SRv6", "fc00::1": "Unique-Local", "fec0::1": "Site-Local",
		"64:ff9b:1::1": "local", "::ffff:0:8.8.8.8": "translated", "64:ff9b::8.8.8.8": "NAT64", "fe80::1": "Link-Local", "::": "Unspecified",
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
		Own:     []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8000"), netip.MustParseAddrPort("203.0.114.7:8443"), netip.MustParseAddrPort("127.0.0.1:9000")},
		AnyPort: true, CIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/7"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
	ownDemo := egress.Policy{AllowPrivate: true, AnyPort: true, Own: own.Own}
	opted := egress.Policy{CIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
		netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("169.0.0.0/8"), netip.MustParsePrefix("2002::/16"),
	}}
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
		{"metadata by address", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}}, "cannot be allowed"},
		{"the whole metadata block", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")}}, "cannot be allowed"},
		{"more than the metadata block", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/15")}}, ""},
		{"multicast", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("224.1.0.0/16")}}, "cannot be allowed"},
		{"mapped", egress.Policy{CIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, "write it as IPv4"},
		{"no prefix", egress.Policy{CIDRs: []netip.Prefix{{}}}, "not a prefix"},
		{"metadata by name", egress.Policy{Hosts: []string{"Metadata.Google.Internal."}}, "metadata"},
		{"no name", egress.Policy{Hosts: []string{""}}, "host name"},
		{"an address in another notation", egress.Policy{Hosts: []string{"0x7f.1"}}, "IPv4"},
		{"names and prefixes", egress.Policy{Hosts: []string{"Receiver", "10.0.0.1", "fd00::1"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}, ""},
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
