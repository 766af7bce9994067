package egress

import (
	"strings"

	"tandem"
)

// Vector is one way to aim a callback at something, and what [Client.Check] is to
// say of it. The tests of this package and the audit share the list.
type Vector struct {
	URL    string
	Why    string
	Strict tandem.Code // under the zero Policy; "" passes
	Demo   tandem.Code // under Policy{AllowPrivate: true, AnyPort: true}; "" passes
}

// Vectors returns the list. A vector that passes may still be refused at the dial,
// where its name has an address.
func Vectors() []Vector {
	var all []Vector
	for _, group := range [][]Vector{
		notationVectors(), nameVectors(), embeddingVectors(), metadataVectors(), shapeVectors(), portVectors(),
	} {
		all = append(all, group...)
	}
	return all
}

// The two refusals, short enough for a table.
const (
	invalid = tandem.CodeInvalidCallbackURL
	blocked = tandem.CodeCallbackBlocked
)

// notationVectors write loopback in every way that some parser understands.
func notationVectors() []Vector {
	return []Vector{
		{"http://127.0.0.1/", "loopback", blocked, ""},
		{"http://127.0.0.1./", "loopback with a trailing dot", blocked, ""},
		{"http://127.255.255.254/", "the end of loopback", blocked, ""},
		{"http://2130706433/", "decimal", invalid, invalid},
		{"http://017700000001/", "octal", invalid, invalid},
		{"http://0x7f000001/", "hexadecimal", invalid, invalid},
		{"http://0X7F000001/", "hexadecimal in capitals", invalid, invalid},
		{"http://0x7f.0.0.1/", "a hexadecimal part", invalid, invalid},
		{"http://0177.0.0.1/", "an octal part", invalid, invalid},
		{"http://127.0.0.01/", "a leading zero", invalid, invalid},
		{"http://127.1/", "two parts", invalid, invalid},
		{"http://127.0.1/", "three parts", invalid, invalid},
		{"http://0x7f.1/", "two parts, one hexadecimal", invalid, invalid},
		{"http://127.0.0.0x1/", "the last part hexadecimal", invalid, invalid},
		{"http://0/", "zero", invalid, invalid},
		{"http://0x/", "an empty hexadecimal number", invalid, invalid},
		{"http://1.2.3.4.5/", "five parts", invalid, invalid},
		{"http://127.0.0.256/", "a part out of range", invalid, invalid},
		{"http://99999999999/", "a number too large", invalid, invalid},
		{"http://0.0.0.0/", "unspecified", blocked, ""},
		{"http://[::]/", "unspecified, IPv6", blocked, ""},
		{"http://[::1]/", "loopback, IPv6", blocked, ""},
		{"http://[0:0:0:0:0:0:0:1]/", "loopback, IPv6, written out", blocked, ""},
		{"http://[0000:0000:0000:0000:0000:0000:0000:0001]/", "loopback, IPv6, with zeros", blocked, ""},
		{"http://[::1%25lo]/", "loopback with a zone", blocked, blocked},
		{"http://[fe80::1%25eth0]/", "link-local with a zone", blocked, blocked},
		{"http://[::ffff:127.0.0.1%25lo]/", "mapped with a zone", blocked, blocked},
		{"http://[2606:4700:4700::1111%25lo]/", "public with a zone", blocked, blocked},
		{"http://[::1%lo]/", "a zone that is not escaped", invalid, invalid},
		{"http://[::1/", "no closing bracket", invalid, invalid},
		{"http://[::1]x/", "text after the bracket", invalid, invalid},
		{"http://[127.0.0.1]/", "IPv4 in brackets", invalid, invalid},
		{"http://[localhost]/", "a name in brackets", invalid, invalid},
		{"http://::1/", "IPv6 without brackets", invalid, invalid},
		{"http://[v1.fe80::a]/", "IPvFuture", invalid, invalid},
		{"http://１２７.０.０.１/", "full-width digits", blocked, ""},
		{"http://127。0。0。1/", "ideographic full stops", blocked, ""},
		{"http://127．0．0．1/", "full-width full stops", blocked, ""},
		{"http://①②⑦.⓪.⓪.①/", "circled digits", blocked, ""},
		{"http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/", "mathematical digits", blocked, ""},
		{"http://127.0.0.1\u00ad/", "a soft hyphen", blocked, ""},
		{"http://0ⅹ7f000001/", "hexadecimal with a Roman numeral", invalid, invalid},
		{"http://%31%32%37.0.0.1/", "percent-encoded digits", invalid, invalid},
		{"http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1/", "percent-encoded full-width digits", blocked, ""},
		{"http://8.8.8.8/", "a public address", "", ""},
		{"http://[2606:4700:4700::1111]/", "a public address, IPv6", "", ""},
		{"http://224.0.0.1/", "multicast", blocked, blocked},
		{"http://240.0.0.1/", "reserved", blocked, blocked},
		{"http://255.255.255.255/", "broadcast", blocked, blocked},
		{"http://[ff02::1]/", "multicast, IPv6", blocked, blocked},
	}
}

// nameVectors are names that mean this machine or network, and names that do not.
func nameVectors() []Vector {
	return []Vector{
		{"http://localhost/", "this machine", blocked, ""},
		{"http://LOCALHOST./", "this machine, in capitals with a dot", blocked, ""},
		{"http://x.localhost/", "below localhost", blocked, ""},
		{"http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "circled letters", blocked, ""},
		{"http://ｌｏｃａｌｈｏｓｔ/", "full-width letters", blocked, ""},
		{"http://loc\u00adalhost/", "a soft hyphen inside", blocked, ""},
		{"http://localhost。/", "an ideographic full stop at the end", blocked, ""},
		{"http://receiver/", "a single label", blocked, ""},
		{"http://xn--nxasmq6b/", "a single label in Punycode", blocked, ""},
		{"http://printer.local/", "multicast DNS", blocked, ""},
		{"http://db.internal/", "a private top-level domain", blocked, ""},
		{"http://host.localdomain/", "the local domain", blocked, ""},
		{"http://router.home.arpa/", "the home network", blocked, ""},
		{"http://notlocalhost.example/", "not below localhost", "", ""},
		{"http://local.example.com/", "local, but not at the end", "", ""},
		{"http://127.0.0.1.example.com/", "a name that begins like an address", "", ""},
		{"http://example.com/", "a public name", "", ""},
		{"HTTPS://Example.COM./", "a public name in capitals with a dot", "", ""},
		{"http://bücher.example/", "an international name", "", ""},
		{"http://xn--bcher-kva.example/", "an international name in Punycode", "", ""},
		{"http://under_score.example.com/", "an underscore", "", ""},
		{"http://example..com/", "an empty label", invalid, invalid},
		{"http://.example.com/", "a dot in front", invalid, invalid},
		{"http://example.com../", "two dots at the end", invalid, invalid},
		{"http://./", "a dot alone", invalid, invalid},
		{"http://exa$mple.com/", "a character that no name has", invalid, invalid},
		{"http://exa,mple.com/", "a comma", invalid, invalid},
		{"http://" + strings.Repeat("a", 63) + ".com/", "a label of 63 bytes", "", ""},
		{"http://" + strings.Repeat("a", 64) + ".com/", "a label of 64 bytes", invalid, invalid},
		{"http://" + strings.Repeat("a.", 125) + "com/", "a name of 253 bytes", "", ""},
		{"http://" + strings.Repeat("a.", 125) + "comm/", "a name of 254 bytes", invalid, invalid},
		{"http://example.123/", "a numeric last label", invalid, invalid},
		{"http://example.0x1f/", "a hexadecimal last label", invalid, invalid},
		{"http://example.0xyz/", "a last label that only begins like a number", "", ""},
	}
}

// embeddingVectors hide loopback or a private address in an IPv6 address.
func embeddingVectors() []Vector {
	return []Vector{
		{"http://[::ffff:127.0.0.1]/", "mapped", blocked, ""},
		{"http://[::ffff:7f00:1]/", "mapped, in hexadecimal", blocked, ""},
		{"http://[::ffff:0:0]/", "mapped unspecified", blocked, ""},
		{"http://[::ffff:8.8.8.8]/", "mapped public: the public address itself", "", ""},
		{"http://[::127.0.0.1]/", "IPv4-compatible", blocked, ""},
		{"http://[::8.8.8.8]/", "IPv4-compatible, public", blocked, ""},
		{"http://[::ffff:0:127.0.0.1]/", "IPv4-translated", blocked, ""},
		{"http://[64:ff9b::7f00:1]/", "NAT64", blocked, ""},
		{"http://[64:ff9b::808:808]/", "NAT64, public", blocked, ""},
		{"http://[64:ff9b:1::7f00:1]/", "NAT64, local prefix", blocked, ""},
		{"http://[2002:7f00:1::]/", "6to4", blocked, ""},
		{"http://[2002:a00:1::1]/", "6to4, private", blocked, ""},
		{"http://[2001:0:7f00:1::1]/", "Teredo", blocked, ""},
		{"http://[2001:20::1]/", "ORCHIDv2", blocked, ""},
		{"http://[2001:10::1]/", "ORCHID", blocked, ""},
		{"http://[2a00:1450::5efe:127.0.0.1]/", "ISATAP", blocked, ""},
		{"http://[2a00:1450::200:5efe:10.0.0.1]/", "ISATAP, universal", blocked, ""},
		{"http://[2a00:1450::5efe:8.8.8.8]/", "ISATAP, public", "", ""},
		{"http://[fc00::1]/", "unique-local", blocked, ""},
		{"http://[fe80::1]/", "link-local", blocked, ""},
		{"http://[fec0::1]/", "site-local", blocked, ""},
		{"http://[5f00::1]/", "SRv6", blocked, ""},
		{"http://[3fff::1]/", "documentation", blocked, ""},
		{"http://[4000::1]/", "not given out", blocked, ""},
	}
}

// metadataVectors reach for the metadata services; none passes in any mode.
func metadataVectors() []Vector {
	var all []Vector
	for _, host := range []string{
		"169.254.169.254", "169.254.169.254.", "169.254.170.2", "169.254.0.23", "169.254.0.0", "169.254.255.255",
		"100.100.100.200", "192.0.0.192", "168.63.129.16",
		"[fd00:ec2::254]", "[fd00:ec2::23]", "[fd20:ce::254]", "[fd00:42::42]", "[fe80::a9fe:a9fe]",
		"[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::169.254.169.254]", "[::ffff:0:169.254.169.254]",
		"[64:ff9b::a9fe:a9fe]", "[64:ff9b::6464:64c8]",
		"[64:ff9b:1::a9fe:a9fe]", "[64:ff9b:1:a9fe:a9:fe00::]", "[64:ff9b:1:a9:fe:a9fe::]", "[64:ff9b:1::a9:fea9:fe00:0]",
		"[2002:a9fe:a9fe::]", "[2002:a9fe:a9fe::1]",
		"[2001:0:a9fe:a9fe::1]", "[2001:0:4136:e378:8000:63bf:5601:5601]",
		"[2a00:1450::5efe:169.254.169.254]", "[2a00:1450::200:5efe:a9fe:a9fe]", "[fe80::5efe:169.254.169.254]",
		"１６９.254.169.254", "169。254。169。254", "①⑥⑨.254.169.254",
		"metadata", "metadata.google.internal", "METADATA.Google.Internal.", "metadata.google.internal。", "x.metadata.google.internal",
		"metadata.goog", "metadata.azure.internal", "metadata.tencentyun.com", "metadata.platformequinix.com", "metadata.packet.net",
		"api.metadata.cloud.ibm.com", "instance-data", "instance-data.ec2.internal", "rancher-metadata", "ｍetadata.google.internal",
	} {
		all = append(all, Vector{"http://" + host + "/latest/meta-data/", "metadata", blocked, blocked})
	}
	for _, host := range []string{"2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0xa9.0xfe.0xa9.0xfe", "169.16689662", "425.510.425.510"} {
		all = append(all, Vector{"http://" + host + "/latest/meta-data/", "metadata in another notation", invalid, invalid})
	}
	return all
}

// shapeVectors are about schemes, user names and what else a URL may carry.
func shapeVectors() []Vector {
	const room = maxURL - len("http://example.com/")
	return []Vector{
		{"", "empty", invalid, invalid},
		{"/callback", "a path", invalid, invalid},
		{"example.com", "no scheme", invalid, invalid},
		{"//example.com/", "no scheme", invalid, invalid},
		{"http:example.com", "no slashes", invalid, invalid},
		{"http:/example.com", "one slash", invalid, invalid},
		{"http:///callback", "no host", invalid, invalid},
		{"http://", "no host", invalid, invalid},
		{"http://?x=1", "no host", invalid, invalid},
		{"http://:80/", "no host", invalid, invalid},
		{"ftp://example.com/", "another scheme", invalid, invalid},
		{"file:///etc/passwd", "another scheme", invalid, invalid},
		{"gopher://example.com:6379/_FLUSHALL", "another scheme", invalid, invalid},
		{"unix:///var/run/docker.sock", "another scheme", invalid, invalid},
		{"http+unix://%2Fvar%2Frun%2Fdocker.sock/", "another scheme", invalid, invalid},
		{"javascript:alert(1)", "another scheme", invalid, invalid},
		{"data:text/plain,x", "another scheme", invalid, invalid},
		{"http://user@example.com/", "a user name", invalid, invalid},
		{"http://user:secret@example.com/", "a password", invalid, invalid},
		{"http://@example.com/", "an empty user name", invalid, invalid},
		{"http://example.com@127.0.0.1/", "a user name that looks like the host", invalid, invalid},
		{"http://example.com%40127.0.0.1/", "an escaped at sign", invalid, invalid},
		{"http://127.0.0.1#@example.com/", "the host before a fragment", blocked, ""},
		{"http://example.com#@127.0.0.1/", "a fragment that looks like a host", "", ""},
		{"http://127.0.0.1?@example.com/", "the host before a query", blocked, ""},
		{"http://example.com\\@127.0.0.1/", "a backslash", invalid, invalid},
		{"http://example.com%2f.127.0.0.1/", "an escaped slash", invalid, invalid},
		{"http://example.com/\r\nX-Evil: 1", "a line break", invalid, invalid},
		{"http://example.com/\nHost: x", "a line feed", invalid, invalid},
		{"http://example.com/?a=b\r\n\r\nPOST /", "a line break in the query", invalid, invalid},
		{"http://example.com\r\n/", "a line break in the host", invalid, invalid},
		{"http://example.com%0d%0a/", "an escaped line break in the host", invalid, invalid},
		{"http://example.com/%0d%0aX-Evil:1", "an escaped line break in the path", "", ""},
		{"http://exam\tple.com/", "a tab", invalid, invalid},
		{"http://example.com /", "a space", invalid, invalid},
		{" http://example.com/", "a space in front", invalid, invalid},
		{"http://example.com/a b", "a space in the path", invalid, invalid},
		{"http://example.com/\x00", "a null byte", invalid, invalid},
		{"http://example.com/\x7f", "a delete character", invalid, invalid},
		{"http://example.com/\xff", "invalid UTF-8", invalid, invalid},
		{"http://example.com/%zz", "a bad escape", invalid, invalid},
		{"http://example.com/ü?q=ü", "characters outside of ASCII", "", ""},
		{"http://example.com/a/../../b?c=d&e=%26", "a path and a query", "", ""},
		{"http://example.com/" + strings.Repeat("x", room), "2,048 bytes", "", ""},
		{"http://example.com/" + strings.Repeat("x", room+1), "2,049 bytes", invalid, invalid},
	}
}

// portVectors are about ports.
func portVectors() []Vector {
	return []Vector{
		{"http://example.com:80/", "the port of http", "", ""},
		{"http://example.com:443/", "the port of https", "", ""},
		{"https://example.com:80/", "the port of http with https", "", ""},
		{"http://example.com:79/", "beside the port of http", blocked, ""},
		{"http://example.com:81/", "beside the port of http", blocked, ""},
		{"https://example.com:442/", "beside the port of https", blocked, ""},
		{"https://example.com:444/", "beside the port of https", blocked, ""},
		{"http://example.com:22/", "SSH", blocked, ""},
		{"http://example.com:25/", "SMTP", blocked, ""},
		{"http://example.com:6379/", "Redis", blocked, ""},
		{"http://example.com:65535/", "the last port", blocked, ""},
		{"http://example.com:65536/", "beyond the last port", invalid, invalid},
		{"http://example.com:65616/", "80 with an overflow", invalid, invalid},
		{"http://example.com:0/", "port zero", invalid, invalid},
		{"http://example.com:080/", "a leading zero", invalid, invalid},
		{"http://example.com:/", "no port after the colon", invalid, invalid},
		{"http://example.com:-80/", "a negative port", invalid, invalid},
		{"http://example.com:http/", "a port by name", invalid, invalid},
		{"http://example.com:80:80/", "two ports", invalid, invalid},
		{"http://example.com:８０/", "full-width digits", invalid, invalid},
	}
}
