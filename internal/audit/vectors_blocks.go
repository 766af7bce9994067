package audit

import "net/netip"

// blockVectors are the ends of every special block, an address inside, and the neighbours just
// outside. The rows are not taken from the tables of the guard: they say once more what
// the IANA special-purpose registries say, and a test compares both.
func blockVectors() []Vector {
	var all []Vector
	seen := make(map[netip.Addr]bool)
	for _, row := range []struct {
		prefix, inside   string
		production, demo Fate // of the block
		before, after    Fate // of the neighbours in production; "" where the address space ends
	}{
		// Metadata.
		{"169.254.0.0/16", "169.254.1.1", blocked, blocked, called, called},
		{"100.100.100.200/32", "", blocked, blocked, blocked, blocked},
		{"192.0.0.192/32", "", blocked, blocked, blocked, blocked},
		{"168.63.129.16/32", "", blocked, blocked, called, called},
		{"fd00:ec2::/32", "fd00:ec2:1::1", blocked, blocked, blocked, blocked},
		{"fd20:ce::254/128", "", blocked, blocked, blocked, blocked},
		{"fd00:42::42/128", "", blocked, blocked, blocked, blocked},
		{"fd00:c1::a9fe:a9fe/128", "", blocked, blocked, blocked, blocked},
		{"fd00:a9fe:a9fe::1/128", "", blocked, blocked, blocked, blocked},
		{"fd00:100::100:200/128", "", blocked, blocked, blocked, blocked},
		{"fe80::a9fe:a9fe/128", "", blocked, blocked, blocked, blocked},
		// What no TCP connection reaches.
		{"224.0.0.0/4", "239.1.2.3", blocked, blocked, called, blocked},
		{"240.0.0.0/4", "250.1.2.3", blocked, blocked, blocked, ""},
		{"ff00::/8", "ff02::1", blocked, blocked, blocked, ""},
		{"fe80::/10", "fe80::1", blocked, blocked, blocked, blocked},
		// IPv4, as in the registry.
		{"0.0.0.0/8", "0.1.2.3", blocked, called, "", called},
		{"10.0.0.0/8", "10.1.2.3", blocked, called, called, called},
		{"100.64.0.0/10", "100.101.102.103", blocked, called, called, called},
		{"127.0.0.0/8", "127.1.2.3", blocked, called, called, called},
		{"172.16.0.0/12", "172.20.1.2", blocked, called, called, called},
		{"192.0.0.0/24", "192.0.0.10", blocked, called, called, called},
		{"192.0.2.0/24", "192.0.2.128", blocked, called, called, called},
		{"192.31.196.0/24", "192.31.196.128", blocked, called, called, called},
		{"192.52.193.0/24", "192.52.193.128", blocked, called, called, called},
		{"192.88.99.0/24", "192.88.99.1", blocked, called, called, called},
		{"192.168.0.0/16", "192.168.1.1", blocked, called, called, called},
		{"192.175.48.0/24", "192.175.48.1", blocked, called, called, called},
		{"198.18.0.0/15", "198.19.1.2", blocked, called, called, called},
		{"198.51.100.0/24", "198.51.100.128", blocked, called, called, called},
		{"203.0.113.0/24", "203.0.113.128", blocked, called, called, called},
		// Blocks of the registry within those.
		{"0.0.0.0/32", "", blocked, called, "", blocked},
		{"192.0.0.0/29", "192.0.0.1", blocked, called, called, blocked},
		{"192.0.0.8/32", "", blocked, called, blocked, blocked},
		{"192.0.0.9/32", "", blocked, called, blocked, blocked},
		{"192.0.0.10/32", "", blocked, called, blocked, blocked},
		{"192.0.0.170/31", "", blocked, called, blocked, blocked},
		{"192.88.99.2/32", "", blocked, called, blocked, blocked},
		{"255.255.255.255/32", "", blocked, blocked, blocked, ""},
		{"2001:1::1/128", "", blocked, called, blocked, blocked},
		{"2001:1::2/128", "", blocked, called, blocked, blocked},
		{"2001:1::3/128", "", blocked, called, blocked, blocked},
		// IPv6: outside of 2000::/3 the neighbours are refused as well.
		{"::/128", "", blocked, called, "", blocked},
		{"::1/128", "", blocked, called, blocked, blocked},
		{"::/96", "::1.2.3.4", blocked, called, "", blocked},
		{"::ffff:0:0:0/96", "::ffff:0:1.2.3.4", blocked, called, blocked, blocked},
		{"64:ff9b::/96", "64:ff9b::1.2.3.4", blocked, called, blocked, blocked},
		{"64:ff9b:1::/48", "64:ff9b:1:2::3", blocked, called, blocked, blocked},
		{"100::/64", "100::1:2", blocked, called, blocked, blocked},
		{"100:0:0:1::/64", "100:0:0:1::2", blocked, called, blocked, blocked},
		{"2001::/32", "2001:0:1:2:3:4:5:6", blocked, called, called, blocked},
		{"2001:2::/48", "2001:2::1:2", blocked, called, blocked, blocked},
		{"2001:3::/32", "2001:3:1::2", blocked, called, blocked, blocked},
		{"2001:4:112::/48", "2001:4:112::53", blocked, called, blocked, blocked},
		{"2001:10::/28", "2001:18::1", blocked, called, blocked, blocked},
		{"2001:20::/28", "2001:28::1", blocked, called, blocked, blocked},
		{"2001:30::/28", "2001:38::1", blocked, called, blocked, blocked},
		{"2001::/23", "2001:1::1", blocked, called, called, called},
		{"2001:db8::/32", "2001:db8:1::1", blocked, called, called, called},
		{"2002::/16", "2002:808:404::1", blocked, called, called, called},
		{"2620:4f:8000::/48", "2620:4f:8000::42", blocked, called, called, called},
		{"3fff::/20", "3fff:123::1", blocked, called, called, called},
		{"5f00::/16", "5f00:1::1", blocked, called, blocked, blocked},
		{"fc00::/7", "fd12:3456:789a::1", blocked, called, blocked, blocked},
		{"fec0::/10", "fec0::1", blocked, called, blocked, blocked},
		// The part of IPv6 that is allowed, seen from outside.
		{"2000::/3", "2a00:1450::1", called, called, blocked, blocked},
	} {
		prefix := netip.MustParsePrefix(row.prefix)
		first, last := prefix.Addr(), lastOf(prefix)
		add := func(addr netip.Addr, where string, production, demo Fate) {
			if !addr.IsValid() || seen[addr] {
				return // the space ends there, or another row has it
			}
			seen[addr] = true
			all = append(all, Vector{
				Name: string(ClassBlock) + "/" + row.prefix + "/" + where, Class: ClassBlock, URL: "http://" + bracketed(addr) + "/",
				Why: where + ": " + row.prefix, Production: production, Demo: demo,
			})
		}
		add(first, "first", row.production, row.demo)
		add(last, "last", row.production, row.demo)
		if row.inside != "" {
			add(netip.MustParseAddr(row.inside), "inside", row.production, row.demo)
		}
		for _, neighbour := range []struct {
			addr       netip.Addr
			where      string
			production Fate
		}{{first.Prev(), "before", row.before}, {last.Next(), "after", row.after}} {
			add(neighbour.addr, neighbour.where, neighbour.production, inDemo(neighbour.addr))
		}
	}
	return all
}

// inDemo is the fate in demo mode of the address beside a block.
func inDemo(addr netip.Addr) Fate {
	for _, prefix := range []string{"224.0.0.0/3", "fe80::/10", "ff00::/8"} {
		if netip.MustParsePrefix(prefix).Contains(addr) {
			return blocked
		}
	}
	return called
}

// lastOf returns the highest address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// bracketed writes an address as the host of a URL.
func bracketed(addr netip.Addr) string {
	if addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}
