package audit

import (
	"fmt"
	"net/netip"
)

// metadataVectors reach for the metadata services of clouds; none passes in any mode.
func metadataVectors() []Vector {
	var aims []aim
	for _, service := range []struct{ name, host, why string }{
		{"aws", "169.254.169.254", "AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, Vultr, OpenStack, IBM, Huawei"},
		{"aws-dot", "169.254.169.254.", "with a trailing dot"},
		{"aws-http", "169.254.169.254:80", "with its port"},
		{"aws-ecs", "169.254.170.2", "credentials of AWS ECS tasks"},
		{"aws-eks", "169.254.170.23", "EKS Pod Identity"},
		{"aws-dns", "169.254.169.253", "resolver of AWS"},
		{"aws-time", "169.254.169.123", "time of AWS"},
		{"aws-6", "[fd00:ec2::254]", "AWS"},
		{"aws-6-long", "[fd00:0ec2:0:0:0:0:0:254]", "AWS, written out"},
		{"aws-6-capitals", "[FD00:EC2::254]", "AWS, in capitals"},
		{"aws-6-eks", "[fd00:ec2::23]", "EKS Pod Identity"},
		{"aws-6-dns", "[fd00:ec2::253]", "resolver of AWS"},
		{"aws-6-time", "[fd00:ec2::123]", "time of AWS"},
		{"aws-name", "instance-data", "AWS"},
		{"aws-name-long", "instance-data.ec2.internal", "AWS"},
		{"google-6", "[fd20:ce::254]", "Google Cloud"},
		{"google-name", "metadata.google.internal", "Google Cloud"},
		{"google-name-capitals", "METADATA.Google.Internal.", "Google Cloud, in capitals with a dot"},
		{"google-name-ideographic", "metadata.google.internal。", "Google Cloud, with an ideographic full stop"},
		{"google-name-full-width", "ｍetadata.google.internal", "Google Cloud, with a full-width letter"},
		{"google-name-soft-hyphen", "meta\u00addata.google.internal", "Google Cloud, with a soft hyphen"},
		{"google-name-below", "x.metadata.google.internal", "a name below it"},
		{"google-name-goog", "metadata.goog", "Google Cloud"},
		{"google-name-short", "metadata", "Google Cloud"},
		{"azure-wire", "168.63.129.16", "the platform of Azure"},
		{"azure-wire-port", "168.63.129.16:32526", "the platform of Azure, goal state"},
		{"azure-name", "metadata.azure.internal", "Azure"},
		{"alibaba", "100.100.100.200", "Alibaba Cloud"},
		{"alibaba-6", "[fd00:100::100:200]", "Alibaba Cloud"},
		{"oracle-classic", "192.0.0.192", "Oracle Cloud Classic"},
		{"oracle-6", "[fd00:c1::a9fe:a9fe]", "Oracle Cloud"},
		{"akamai-6", "[fd00:a9fe:a9fe::1]", "Akamai, formerly Linode"},
		{"scaleway", "169.254.42.42", "Scaleway"},
		{"scaleway-6", "[fd00:42::42]", "Scaleway"},
		{"openstack-6", "[fe80::a9fe:a9fe]", "OpenStack"},
		{"tencent", "169.254.0.23", "Tencent Cloud"},
		{"tencent-name", "metadata.tencentyun.com", "Tencent Cloud"},
		{"equinix-name", "metadata.platformequinix.com", "Equinix Metal"},
		{"packet-name", "metadata.packet.net", "Packet"},
		{"ibm-name", "api.metadata.cloud.ibm.com", "IBM Cloud"},
		{"cloudstack-name", "data-server", "Apache CloudStack"},
		{"rancher", "169.254.169.250", "Rancher"},
		{"rancher-name", "rancher-metadata", "Rancher"},
		{"link-local-first", "169.254.0.0", "the first link-local address"},
		{"link-local-last", "169.254.255.255", "the last link-local address"},
		{"mapped-long", "[0:0:0:0:0:ffff:a9fe:a9fe]", "mapped, written out"},
		{"mapped-zone", "[::ffff:169.254.169.254%25lo]", "mapped, with a zone"},
		{"6to4", "[2002:a9fe:a9fe::]", "6to4"},
		{"isatap-link-local", "[fe80::5efe:169.254.169.254]", "ISATAP, link-local"},
		{"full-width", "１６９.254.169.254", "full-width digits"},
		{"ideographic-dots", "169。254。169。254", "ideographic full stops"},
		{"circled", "①⑥⑨.254.169.254", "circled digits"},
		{"soft-hyphen", "169.254.169.254\u00ad", "a soft hyphen"},
	} {
		url := "http://" + service.host + "/latest/meta-data/"
		aims = append(aims, aim{service.name, url, service.why, blocked, blocked})
	}
	for _, notation := range []struct{ name, host string }{
		{"decimal", "2852039166"},
		{"decimal-overflow", "7147006462"},
		{"hex", "0xa9fea9fe"},
		{"octal", "025177524776"},
		{"octal-parts", "0251.0376.0251.0376"},
		{"octal-parts-zeros", "00251.00376.00251.00376"},
		{"hex-parts", "0xa9.0xfe.0xa9.0xfe"},
		{"two-parts", "169.16689662"},
		{"three-parts", "169.254.43518"},
		{"overflow-parts", "425.510.425.510"},
		{"mixed", "0xa9.254.0251.254"},
		{"alibaba-decimal", "1684301000"},
		{"azure-decimal", "2822734096"},
	} {
		url := "http://" + notation.host + "/latest/meta-data/"
		aims = append(aims, aim{"notation-" + notation.name, url, "metadata in another notation", invalid, invalid})
	}
	for _, cloud := range []struct{ name, address string }{
		{"aws", "169.254.169.254"}, {"alibaba", "100.100.100.200"}, {"azure", "168.63.129.16"},
		{"oracle", "192.0.0.192"},
	} {
		for _, e := range embeddings(netip.MustParseAddr(cloud.address).As4()) {
			url := "http://" + bracketed(e.address) + "/latest/meta-data/"
			if e.name == "mapped" { // netip writes it with dots; parsers take hexadecimal as well
				four := e.address.AsSlice()[12:]
				url = fmt.Sprintf("http://[::ffff:%x:%x]/latest/meta-data/", four[:2], four[2:])
			}
			name, why := embeddedCloud+cloud.name+"/"+e.name, cloud.address+" in IPv6: "+e.name
			aims = append(aims, aim{name, url, why, blocked, blocked})
		}
	}
	return ClassMetadata.vectors(aims)
}

// embeddedCloud begins the names of vectors that hide the metadata address of a cloud in IPv6.
const embeddedCloud = "embedded/"

// embedding is one way to carry an IPv4 address inside of an IPv6 address.
type embedding struct {
	name    string
	address netip.Addr
}

// embeddings carries an IPv4 address in every known way.
func embeddings(a [4]byte) []embedding {
	var all []embedding
	add := func(name, prefix string, at int, inner ...byte) {
		whole := netip.MustParseAddr(prefix).As16()
		copy(whole[at:], inner)
		all = append(all, embedding{name, netip.AddrFrom16(whole)})
	}
	add("mapped", "::ffff:0:0", 12, a[:]...)
	add("compatible", "::", 12, a[:]...)
	add("translated", "::ffff:0:0:0", 12, a[:]...)
	add("nat64", "64:ff9b::", 12, a[:]...)
	add("nat64-local-96", "64:ff9b:1::", 12, a[:]...)
	add("nat64-local-64", "64:ff9b:1::", 9, a[:]...)                   // RFC 6052: byte 8 stays zero
	add("nat64-local-56", "64:ff9b:1::", 7, a[0], 0, a[1], a[2], a[3]) // the same
	add("nat64-local-48", "64:ff9b:1::", 6, a[0], a[1], 0, a[2], a[3]) // the same
	add("6to4", "2002::1", 2, a[:]...)
	add("teredo-server", "2001::1", 4, a[:]...)
	add("teredo-client", "2001:0:4136:e378:8000:63bf::", 12, ^a[0], ^a[1], ^a[2], ^a[3]) // inverted
	add("isatap", "2a00:1450::5efe:0:0", 12, a[:]...)
	add("isatap-universal", "2a00:1450::200:5efe:0:0", 12, a[:]...)
	return all
}
