package egress

import "net/netip"

// Block is a range of addresses outside the public Internet, in whole or in part.
type Block struct {
	Prefix netip.Prefix
	Name   string // as the registry calls it
	Source string // the document reserving it
}

// String names the block for the log.
func (b Block) String() string {
	return b.Prefix.String() + " " + b.Name + " (" + b.Source + ")"
}

// metadataBlocks hold the services with a machine's credentials. They are refused in every mode and cannot be opted in.
var metadataBlocks = []Block{
	{netip.MustParsePrefix("169.254.0.0/16"), "Link Local, metadata of most clouds", "RFC 3927"},
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata of Alibaba Cloud", "its manual"},
	{netip.MustParsePrefix("192.0.0.192/32"), "metadata of Oracle Cloud", "its manual"},
	{netip.MustParsePrefix("168.63.129.16/32"), "platform endpoint of Azure", "its manual"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata of AWS", "its manual"},
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata of Google Cloud", "its manual"},
	{netip.MustParsePrefix("fd00:42::42/128"), "metadata of Scaleway", "its manual"},
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), "metadata of Oracle Cloud", "its SDK"},
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), "metadata of Akamai, formerly Linode", "its manual"},
	{netip.MustParsePrefix("fd00:100::100:200/128"), "metadata of Alibaba Cloud", "its manual"},
	{netip.MustParsePrefix("fe80::a9fe:a9fe/128"), "metadata of OpenStack", "its manual"},
}

// neverBlocks cannot be the far end of a TCP connection to one machine: they name none, many, or one in a zone, and
// zones are refused. They are refused in every mode, too.
var neverBlocks = []Block{
	{netip.MustParsePrefix("224.0.0.0/4"), "Multicast", "RFC 5771"},
	{netip.MustParsePrefix("240.0.0.0/4"), "Reserved, limited broadcast included", "RFC 1112, RFC 919"},
	{netip.MustParsePrefix("ff00::/8"), "Multicast", "RFC 4291"},
	{netip.MustParsePrefix("fe80::/10"), "Link-Local Unicast", "RFC 4291"},
}

// specialBlocks4 is the whole IANA IPv4 Special-Purpose Address Registry: its globally reachable entries are anycast
// services and nobody's callback receiver.
var specialBlocks4 = []Block{
	{netip.MustParsePrefix("0.0.0.0/8"), "This network", "RFC 791"},
	{netip.MustParsePrefix("10.0.0.0/8"), "Private-Use", "RFC 1918"},
	{netip.MustParsePrefix("100.64.0.0/10"), "Shared Address Space", "RFC 6598"},
	{netip.MustParsePrefix("127.0.0.0/8"), "Loopback", "RFC 1122"},
	{netip.MustParsePrefix("172.16.0.0/12"), "Private-Use", "RFC 1918"},
	// Holds 192.0.0.0/29, .8, .9, .10, .170 and .171 of the registry.
	{netip.MustParsePrefix("192.0.0.0/24"), "IETF Protocol Assignments", "RFC 6890"},
	{netip.MustParsePrefix("192.0.2.0/24"), "Documentation (TEST-NET-1)", "RFC 5737"},
	{netip.MustParsePrefix("192.31.196.0/24"), "AS112-v4", "RFC 7535"},
	{netip.MustParsePrefix("192.52.193.0/24"), "AMT", "RFC 7450"},
	{netip.MustParsePrefix("192.88.99.0/24"), "Deprecated 6to4 Relay Anycast", "RFC 7526"},
	{netip.MustParsePrefix("192.168.0.0/16"), "Private-Use", "RFC 1918"},
	{netip.MustParsePrefix("192.175.48.0/24"), "Direct Delegation AS112 Service", "RFC 7534"},
	{netip.MustParsePrefix("198.18.0.0/15"), "Benchmarking", "RFC 2544"},
	{netip.MustParsePrefix("198.51.100.0/24"), "Documentation (TEST-NET-2)", "RFC 5737"},
	{netip.MustParsePrefix("203.0.113.0/24"), "Documentation (TEST-NET-3)", "RFC 5737"},
}

// globalUnicast6 is the only part of IPv6 assigned for the public Internet (RFC 4291, IANA IPv6 Global Unicast Address
// Assignments).
var globalUnicast6 = netip.MustParsePrefix("2000::/3")

// specialBlocks6 is the IANA IPv6 Special-Purpose Address Registry, with the ranges for embedded IPv4 addresses.
// Entries outside 2000::/3 would be refused anyway; here they get their names.
var specialBlocks6 = []Block{
	{netip.MustParsePrefix("::1/128"), "Loopback", "RFC 4291"},
	{netip.MustParsePrefix("::/128"), "Unspecified", "RFC 4291"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible, deprecated", "RFC 4291"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "IPv4-translated", "RFC 2765"},
	{netip.MustParsePrefix("64:ff9b::/96"), "IPv4-IPv6 Translation (NAT64)", "RFC 6052"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "IPv4-IPv6 Translation (NAT64), local", "RFC 8215"},
	{netip.MustParsePrefix("100::/64"), "Discard-Only", "RFC 6666"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "Dummy Prefix", "RFC 9780"},
	{netip.MustParsePrefix("2001::/32"), "Teredo", "RFC 4380"},
	{netip.MustParsePrefix("2001:2::/48"), "Benchmarking", "RFC 5180"},
	{netip.MustParsePrefix("2001:3::/32"), "AMT", "RFC 7450"},
	{netip.MustParsePrefix("2001:4:112::/48"), "AS112-v6", "RFC 7535"},
	{netip.MustParsePrefix("2001:10::/28"), "Deprecated ORCHID", "RFC 4843"},
	{netip.MustParsePrefix("2001:20::/28"), "ORCHIDv2", "RFC 7343"},
	{netip.MustParsePrefix("2001:30::/28"), "Drone Remote ID", "RFC 9374"},
	// Holds all of the above from Teredo on, and the anycast addresses 2001:1::1, ::2 and ::3.
	{netip.MustParsePrefix("2001::/23"), "IETF Protocol Assignments", "RFC 2928"},
	{netip.MustParsePrefix("2001:db8::/32"), "Documentation", "RFC 3849"},
	{netip.MustParsePrefix("2002::/16"), "6to4", "RFC 3056"},
	{netip.MustParsePrefix("2620:4f:8000::/48"), "Direct Delegation AS112 Service", "RFC 7534"},
	{netip.MustParsePrefix("3fff::/20"), "Documentation", "RFC 9637"},
	{netip.MustParsePrefix("5f00::/16"), "Segment Routing (SRv6) SIDs", "RFC 9602"},
	{netip.MustParsePrefix("fc00::/7"), "Unique-Local", "RFC 4193"},
	{netip.MustParsePrefix("fec0::/10"), "Site-Local, deprecated", "RFC 3879"},
}

// metadataNames resolve to metadata services inside some cloud. They and every name below them are refused in every
// mode; the addresses are refused as well, so this list need not be complete.
var metadataNames = []string{
	"metadata",
	"metadata.google.internal",
	"metadata.goog",
	"metadata.azure.internal",
	"metadata.tencentyun.com",
	"metadata.platformequinix.com",
	"metadata.packet.net",
	"api.metadata.cloud.ibm.com",
	"data-server",
	"instance-data",
	"instance-data.ec2.internal",
	"rancher-metadata",
}

// localNames are refused by a strict policy, with every name below them: they mean this machine
// or this network wherever they are resolved (RFC 6761, RFC 6762, RFC 8375).
var localNames = []string{"localhost", "localdomain", "local", "internal", "home.arpa"}

// find returns the first block of a table with addr in it. addr has no zone and is unmapped.
func find(table []Block, addr netip.Addr) (Block, bool) {
	for _, block := range table {
		if block.Prefix.Contains(addr) {
			return block, true
		}
	}
	return Block{}, false
}
