package audit

import (
	"fmt"
	"net/netip"
)

// answerVectors are names that pass at submission; what they resolve to decides at the dial.
func answerVectors() []Vector {
	const public = "203.0.114.80" // just outside of TEST-NET-3
	const public6 = "2a00:1450::80"
	once := func(addresses ...string) [][]string { return [][]string{addresses} }
	private := make([]string, 24)
	for i := range private {
		private[i] = fmt.Sprintf("10.0.0.%d", i+1)
	}
	var all []Vector
	for _, row := range []struct {
		name, host, why  string
		production, demo Fate
		answers          [][]string
	}{
		{"loopback", "loopback.example", "loopback", stopped, called, once("127.0.0.1")},
		{"loopback-other", "loopback2.example", "another loopback address", stopped, called, once("127.8.8.8")},
		{"unspecified", "zero.example", "this machine", stopped, called, once("0.0.0.0")},
		{"this-network", "this.example", "this network", stopped, called, once("0.1.2.3")},
		{"private-a", "a.example", "private", stopped, called, once("10.0.0.1")},
		{"private-b", "b.example", "private", stopped, called, once("172.16.0.1")},
		{"private-c", "c.example", "private", stopped, called, once("192.168.0.1")},
		{"shared", "shared.example", "shared address space", stopped, called, once("100.64.0.1")},
		{"benchmark", "benchmark.example", "benchmarking", stopped, called, once("198.18.0.1")},
		{"documentation", "documentation.example", "documentation", stopped, called, once("203.0.113.80")},
		{"protocol", "protocol.example", "protocol assignments", stopped, called, once("192.0.0.1")},
		{"multicast", "multicast.example", "multicast", stopped, stopped, once("224.0.0.1")},
		{"reserved", "reserved.example", "reserved", stopped, stopped, once("240.0.0.1")},
		{"broadcast", "broadcast.example", "broadcast", stopped, stopped, once("255.255.255.255")},
		{"metadata", "metadata.example", "metadata", stopped, stopped, once("169.254.169.254")},
		{"metadata-alibaba", "alibaba.example", "Alibaba Cloud", stopped, stopped, once("100.100.100.200")},
		{"metadata-azure", "azure.example", "Azure", stopped, stopped, once("168.63.129.16")},
		{"metadata-oracle", "oracle.example", "Oracle Cloud Classic", stopped, stopped, once("192.0.0.192")},
		{"metadata-aws-6", "aws6.example", "AWS", stopped, stopped, once("fd00:ec2::254")},
		{"metadata-google-6", "google6.example", "Google Cloud", stopped, stopped, once("fd20:ce::254")},
		{"metadata-oracle-6", "oracle6.example", "Oracle Cloud", stopped, stopped, once("fd00:c1::a9fe:a9fe")},
		{"metadata-akamai-6", "akamai6.example", "Akamai", stopped, stopped, once("fd00:a9fe:a9fe::1")},
		{"metadata-mapped", "mapped-metadata.example", "mapped metadata", stopped, stopped, once("::ffff:169.254.169.254")},
		{"metadata-nat64", "nat64-metadata.example", "metadata behind NAT64", stopped, stopped, once("64:ff9b::a9fe:a9fe")},
		{"metadata-6to4", "6to4-metadata.example", "metadata behind 6to4", stopped, stopped, once("2002:a9fe:a9fe::1")},

		{"only-6", "only6.example", "AAAA alone", stopped, called, once("::1")},
		{"only-6-public", "only6-public.example", "AAAA alone, public", called, called, once(public6)},
		{"unspecified-6", "zero6.example", "this machine", stopped, called, once("::")},
		{"mapped", "mapped.example", "AAAA with a mapped address", stopped, called, once("::ffff:127.0.0.1")},
		{"mapped-public", "mapped-public.example", "AAAA with a mapped public address", called, called, once("::ffff:" + public)},
		{"unique-local", "ula.example", "unique-local", stopped, called, once("fd12::1")},
		{"link-local-6", "link.example", "link-local", stopped, stopped, once("fe80::1")},
		{"multicast-6", "multicast6.example", "multicast", stopped, stopped, once("ff02::1")},
		{"nat64", "nat64.example", "loopback behind NAT64", stopped, called, once("64:ff9b::7f00:1")},
		{"nat64-local", "nat64-local.example", "a private address behind the local NAT64", stopped, called, once("64:ff9b:1::a00:1")},
		{"6to4", "6to4.example", "loopback behind 6to4", stopped, called, once("2002:7f00:1::1")},
		{"teredo", "teredo.example", "Teredo", stopped, called, once("2001:0:7f00:1::1")},
		{"isatap", "isatap.example", "ISATAP to loopback", stopped, called, once("2a00:1450::5efe:127.0.0.1")},

		{"rebind", "rebind.example", "public when checked, loopback when dialled", stopped, called, [][]string{{public}, {"127.0.0.1"}}},
		{"rebind-private", "rebind-private.example", "public when checked, private when dialled", stopped, called, [][]string{{public}, {"10.0.0.1"}}},
		{"rebind-metadata", "rebind-metadata.example", "public when checked, metadata when dialled", stopped, stopped, [][]string{{public}, {"169.254.169.254"}}},
		{"rebind-6", "rebind6.example", "public when checked, loopback when dialled", stopped, called, [][]string{{public6}, {"::1"}}},
		{"rebind-family", "rebind-family.example", "A when checked, AAAA when dialled", stopped, called, [][]string{{public}, {"::1"}}},
		{"rebind-late", "rebind-late.example", "public three times", stopped, called, [][]string{{public}, {public}, {public}, {"127.0.0.1"}}},
		{"rebind-flip", "rebind-flip.example", "to and fro, and forbidden when dialled", stopped, called, [][]string{{"127.0.0.1"}, {public}, {"127.0.0.1"}}},
		{"rebind-alias", "rebind-alias.example", "public when checked, an alias of loopback when dialled", stopped, called, [][]string{{public}, {"localhost.", "127.0.0.1"}}},
		{"rebind-back", "rebind-back.example", "forbidden when checked, public when dialled: the dial decides", called, called, [][]string{{"127.0.0.1"}, {public}}},

		{"mixed-first", "mixed-first.example", "forbidden before public: the public one is called", called, called, once("169.254.169.254", public)},
		{"mixed-last", "mixed-last.example", "forbidden behind public", called, called, once(public, "169.254.169.254")},
		{"mixed-families", "mixed-families.example", "forbidden IPv6 with public IPv4", called, called, once("fd00:ec2::254", public)},
		{"mixed-families-4", "mixed-families4.example", "forbidden IPv4 with public IPv6", called, called, once("169.254.169.254", public6)},
		{"mixed-forbidden", "mixed-forbidden.example", "four addresses, all forbidden", stopped, called, once("127.0.0.1", "10.0.0.1", "::1", "fd12::1")},
		{"mixed-metadata", "mixed-metadata.example", "metadata of both families", stopped, stopped, once("169.254.169.254", "fd00:ec2::254")},
		{"many", "many.example", "24 private addresses", stopped, called, once(private...)},
		{"many-and-public", "many-public.example", "a public address behind many that are never called", called, called,
			once("224.0.0.1", "224.0.0.2", "224.0.0.3", "224.0.0.4", "240.0.0.1", "240.0.0.2", "169.254.1.1", "169.254.1.2", public)},
		{"same-twice", "twice.example", "the same address twice", stopped, called, once("127.0.0.1", "127.0.0.1")},

		{"alias", "alias.example", "an alias of loopback", stopped, called, once("alias2.example.", "127.0.0.1")},
		{"alias-chain", "chain.example", "a chain of aliases", stopped, called, once("c1.example.", "c2.example.", "c3.example.", "127.0.0.1")},
		{"alias-long", "long.example", "a long chain of aliases", stopped, called,
			once("l1.example.", "l2.example.", "l3.example.", "l4.example.", "l5.example.", "l6.example.", "l7.example.", "l8.example.", "10.0.0.1")},
		{"alias-localhost", "alias-localhost.example", "an alias of localhost", stopped, called, once("localhost.", "127.0.0.1")},
		{"alias-metadata", "alias-metadata.example", "an alias of a metadata service", stopped, stopped, once("metadata.google.internal.", "169.254.169.254")},
		{"alias-internal", "alias-internal.example", "an alias of a private name", stopped, called, once("db.internal.", "10.0.0.1")},
		{"alias-6", "alias6.example", "an alias of loopback, AAAA alone", stopped, called, once("alias6b.example.", "::1")},
		{"alias-mixed", "alias-mixed.example", "an alias of forbidden and public", called, called, once("alias-mixed2.example.", "169.254.169.254", public)},
		{"alias-public", "alias-public.example", "an alias of a public address", called, called, once("alias-public2.example.", public)},

		{"wildcard", "127.0.0.1.nip.io", "a service that answers with the address in the name", stopped, called, once("127.0.0.1")},
		{"wildcard-dashes", "10-0-0-1.sslip.io", "the same with dashes", stopped, called, once("10.0.0.1")},
		{"wildcard-metadata", "169.254.169.254.nip.io", "the same with metadata", stopped, stopped, once("169.254.169.254")},
		{"wildcard-hex", "a9fea9fe.nip.io", "the same in hexadecimal", stopped, stopped, once("169.254.169.254")},
		{"localtest", "localtest.me", "a public name of loopback", stopped, called, once("127.0.0.1", "::1")},
		{"split-horizon", "intranet.corp.example", "a name with a private address inside a company", stopped, called, once("10.20.30.40")},
		{"kubernetes", "kubernetes.default.svc", "the API of Kubernetes", stopped, called, once("10.96.0.1")},
		{"kubernetes-short", "kubernetes.default", "the API of Kubernetes", stopped, called, once("10.96.0.1")},
		{"consul", "vault.service.consul", "a service of Consul", stopped, called, once("10.1.1.1")},
		{"tailscale", "machine.tailnet.ts.net", "a machine of Tailscale", stopped, called, once("100.101.1.1")},
		{"international", "bücher-intern.example", "an international name", stopped, called, once("10.0.0.1")},
		{"public", "public.example", "a public address", called, called, once(public)},
		{"public-both", "public-both.example", "public addresses of both families", called, called, once(public, public6)},
	} {
		all = append(all, Vector{
			Name: "answer/" + row.name, Class: ClassAnswer, URL: "http://" + row.host + "/", Why: row.why,
			Production: row.production, Demo: row.demo, Answers: row.answers,
		})
	}
	return all
}

// redirectVectors are receivers that send the caller somewhere else.
func redirectVectors() []Vector {
	const metadata = "http://169.254.169.254/latest/meta-data/"
	var all []Vector
	add := func(name, why, receiver string) {
		all = append(all, Vector{
			Name: "redirect/" + name, Class: ClassRedirect, URL: "http://receiver.example/" + name, Why: why,
			Production: called, Demo: called, Receiver: receiver,
		})
	}
	answer := func(status, header string) string {
		return "HTTP/1.1 " + status + "\r\n" + header + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	}
	for code := 300; code <= 308; code++ {
		for _, target := range []struct{ name, url string }{
			{"metadata", metadata}, {"loopback", "http://127.0.0.1/"}, {"private", "http://10.0.0.1/"}, {"itself", "http://receiver.example/again"},
		} {
			add(fmt.Sprintf("%d-%s", code, target.name), "a redirect to "+target.url, answer(fmt.Sprintf("%d Elsewhere", code), "Location: "+target.url))
		}
	}
	for _, location := range []struct{ name, value string }{
		{"relative", "/latest/meta-data/"}, {"no-scheme", "//169.254.169.254/"}, {"decimal", "http://2852039166/"}, {"localhost", "http://localhost/"},
		{"loopback-6", "http://[::1]/"}, {"mapped", "http://[::ffff:169.254.169.254]/"}, {"user", "http://receiver.example@169.254.169.254/"},
		{"https", "https://169.254.169.254/"}, {"port", "http://127.0.0.1:6379/"}, {"file", "file:///etc/passwd"}, {"gopher", "gopher://127.0.0.1:6379/_FLUSHALL"},
		{"unix", "unix:///var/run/docker.sock"}, {"empty", ""}, {"broken", "http://[::1"},
	} {
		add("307-location-"+location.name, "a redirect that repeats the body, to "+location.value, answer("307 Temporary Redirect", "Location: "+location.value))
	}
	for _, other := range []struct{ name, status, header, why string }{
		{"200-refresh", "200 OK", "Refresh: 0; url=" + metadata, "a refresh beside success"},
		{"204-refresh", "204 No Content", "Refresh: 0;url=" + metadata, "a refresh beside success without content"},
		{"302-refresh", "302 Found", "Refresh: 0; url=" + metadata, "a refresh beside a redirect"},
		{"500-refresh", "500 Oops", "Refresh: 0; url=" + metadata, "a refresh beside an error"},
		{"200-location", "200 OK", "Location: " + metadata, "a location beside success"},
		{"201-location", "201 Created", "Location: " + metadata, "a location beside something new"},
		{"202-location", "202 Accepted", "Location: " + metadata, "a location beside what is accepted"},
		{"200-content-location", "200 OK", "Content-Location: " + metadata, "the location of the content"},
		{"200-link", "200 OK", "Link: <" + metadata + ">; rel=preload", "a link to load in advance"},
		{"200-alt-svc", "200 OK", `Alt-Svc: h2="169.254.169.254:80"; ma=3600`, "another service for the same origin"},
		{"421", "421 Misdirected Request", `Alt-Svc: h2="169.254.169.254:80"`, "a request for another connection"},
		{"401", "401 Unauthorized", `WWW-Authenticate: Bearer realm="` + metadata + `"`, "a realm to ask for a token"},
		{"407", "407 Proxy Authentication Required", "Proxy-Authenticate: Basic", "a request for proxy credentials"},
		{"305-proxy", "305 Use Proxy", "Location: http://169.254.169.254:80/", "a proxy to use"},
		{"302-two", "302 Found", "Location: http://receiver.example/\r\nLocation: " + metadata, "two locations"},
		{"302-no-location", "302 Found", "X: y", "a redirect to nowhere"},
		{"302-early", "103 Early Hints\r\nLink: <" + metadata + ">; rel=preload\r\n\r\nHTTP/1.1 302 Found", "Location: " + metadata, "a link in advance, then a redirect"},
		{"101", "101 Switching Protocols", "Connection: Upgrade\r\nUpgrade: h2c", "another protocol"},
	} {
		add(other.name, other.why, answer(other.status, other.header))
	}
	const page = `<meta http-equiv="refresh" content="0;url=` + metadata + `"><script>location="` + metadata + `"</script>`
	add("200-page", "a page that sends browsers on", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", len(page), page))
	return all
}

// ownVectors lead back to the deployment itself, by addresses that would be allowed otherwise.
func ownVectors() []Vector {
	own := netip.MustParseAddrPort("203.0.114.7:8000")
	everywhere := netip.MustParseAddrPort("0.0.0.0:8000")
	own6 := netip.MustParseAddrPort("[2a00:1450::7]:8000")
	once := func(addresses ...string) [][]string { return [][]string{addresses} }
	return []Vector{
		{Name: "own/address", Class: ClassOwn, URL: "http://203.0.114.7:8000/async", Why: "our own address", Production: blocked, Demo: called, Own: own},
		{Name: "own/mapped", Class: ClassOwn, URL: "http://[::ffff:203.0.114.7]:8000/async", Why: "our own address, mapped", Production: blocked, Demo: called, Own: own},
		{Name: "own/full-width", Class: ClassOwn, URL: "http://２０３.0.114.7:8000/async", Why: "our own address in full-width digits", Production: blocked, Demo: called, Own: own},
		{Name: "own/address-6", Class: ClassOwn, URL: "http://[2a00:1450::7]:8000/", Why: "our own address", Production: blocked, Demo: called, Own: own6},
		{Name: "own/name", Class: ClassOwn, URL: "http://own.example:8000/", Why: "a name of our own address", Production: stopped, Demo: called, Own: own, Answers: once("203.0.114.7")},
		{Name: "own/name-6", Class: ClassOwn, URL: "http://own6.example:8000/", Why: "a name of our own address", Production: stopped, Demo: called, Own: own6, Answers: once("2a00:1450::7")},
		{Name: "own/name-mapped", Class: ClassOwn, URL: "http://own-mapped.example:8000/", Why: "a name of our own address, mapped", Production: stopped, Demo: called, Own: own, Answers: once("::ffff:203.0.114.7")},
		{Name: "own/alias", Class: ClassOwn, URL: "http://own-alias.example:8000/", Why: "an alias of our own address", Production: stopped, Demo: called, Own: own, Answers: once("own.example.", "203.0.114.7")},
		{Name: "own/everywhere-loopback", Class: ClassOwn, URL: "http://127.0.0.1:8000/", Why: "we listen on every address", Production: blocked, Demo: called, Own: everywhere},
		{Name: "own/everywhere-loopback-6", Class: ClassOwn, URL: "http://[::1]:8000/", Why: "we listen on every address", Production: blocked, Demo: called, Own: everywhere},
		{Name: "own/everywhere-unspecified", Class: ClassOwn, URL: "http://0.0.0.0:8000/", Why: "we listen on every address", Production: blocked, Demo: called, Own: everywhere},
		{Name: "own/another-port", Class: ClassOwn, URL: "http://203.0.114.7/", Why: "another port of our address", Production: called, Demo: called, Own: own},
		{Name: "own/another-address", Class: ClassOwn, URL: "http://203.0.114.8:8000/", Why: "our port of another address", Production: called, Demo: called, Own: own},
	}
}
