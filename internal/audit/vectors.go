package audit

import (
	_ "embed" // vectors.txt
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tandem"
)

// maxURL is the length of the longest accepted callback URL, in bytes.
const maxURL = 2048

// Vector is one way to aim a callback at something, and the callback's required fate. The audit submits the vectors to
// deployments; the tests of package egress try them on the guard itself.
//
// A vector is a URL with at most one of Answers, Receiver and Own; some of [ClassOwn] have both Answers and Own.
type Vector struct {
	Name       string // unique, stable: class/what
	Class      Class
	URL        string
	Why        string // the trick, or the reason to allow it
	Production Fate   // in production mode, with nothing opted in
	Demo       Fate   // in demo mode

	// The addresses of the name in URL: one entry per look-up, the last for all later ones, with a time to live of 0. A
	// text with a dot at its end is a CNAME; the rest belongs to it.
	Answers [][]string
	// The answer of the receiver at URL, from the status line to the last byte. No part of it may cause another call.
	Receiver string
	// Where the deployment itself listens: URL leads there, its port is allowed and nobody may call it.
	Own netip.AddrPort

	Basic bool // the quick audit always tries it; of the others it takes a sample
}

// Class groups vectors by their trick.
type Class string

// The classes.
const (
	ClassNotation  Class = "notation"  // an address in the form of some parser
	ClassName      Class = "name"      // names for this machine or network
	ClassBlock     Class = "block"     // the ends of every special block, and their neighbours
	ClassEmbedding Class = "embedding" // IPv4 inside IPv6
	ClassMetadata  Class = "metadata"  // the metadata services of clouds
	ClassScheme    Class = "scheme"    // other schemes
	ClassShape     Class = "shape"     // other parts of a URL: user names, backslashes, missing parts
	ClassSmuggling Class = "smuggling" // line breaks, to inject headers or requests
	ClassPort      Class = "port"      // ports
	ClassAnswer    Class = "answer"    // answers of DNS: Answers
	ClassRedirect  Class = "redirect"  // answers of a receiver: Receiver
	ClassOwn       Class = "own"       // our own listening address: Own
)

// Fate is the required outcome of a callback to a [Vector].
type Fate string

// The fates. Only FateCalled allows a connection to the target of URL: such a vector is submitted only to a deployment
// in a network of ours.
const (
	FateInvalid Fate = "invalid" // refused at submission with CodeInvalidCallbackURL, and by the dial
	FateBlocked Fate = "blocked" // refused at submission with CodeCallbackBlocked, and by the dial
	FateStopped Fate = "stopped" // accepted at submission, where no name is looked up; the dial refuses
	FateCalled  Fate = "called"  // allowed, once, at an allowed address and with our headers alone
)

// Code is the code of the refusal at submission; "": there is none.
func (f Fate) Code() tandem.Code {
	switch f {
	case FateInvalid:
		return tandem.CodeInvalidCallbackURL
	case FateBlocked:
		return tandem.CodeCallbackBlocked
	default:
		return ""
	}
}

// Vectors returns the list, always in the same order.
func Vectors() []Vector {
	return slices.Concat(
		listed(ClassNotation), listed(ClassName), nameLengths(), blockVectors(), listed(ClassEmbedding),
		listed(ClassMetadata), hiddenMetadata(), listed(ClassScheme), otherSchemes(), listed(ClassShape), urlLengths(),
		listed(ClassSmuggling), listed(ClassPort), servicePorts(), listed(ClassAnswer), redirectVectors(), listed(ClassOwn),
	)
}

// vectorText is the table of all vectors, except computed ones; it begins with a description of its form.
//
//go:embed vectors.txt
var vectorText string

// fates are the letters of vectorText.
// :: letter → fate
var fates = map[byte]Fate{'I': FateInvalid, 'B': FateBlocked, 'S': FateStopped, 'C': FateCalled}

// rows returns the lines of one section of a table, split into columns.
func rows(table, section string) [][]string {
	_, text, _ := strings.Cut(table, "\n== "+section+"\n")
	text, _, _ = strings.Cut(text, "\n== ")
	text = strings.NewReplacer("\n    ", " ", "\n  ", "  ").Replace(text)
	var all [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		columns := slices.DeleteFunc(strings.Split(line, "  "), func(column string) bool { return column == "" })
		for i := range columns {
			columns[i] = strings.TrimPrefix(columns[i], " ")
		}
		all = append(all, columns)
	}
	return all
}

// listed returns the vectors of one class of vectorText. It panics where a URL or an address is malformed.
func listed(class Class) []Vector {
	var all []Vector
	for _, row := range rows(vectorText, string(class)) {
		address := row[2]
		if address[0] == '"' {
			var err error
			if address, err = strconv.Unquote(address); err != nil {
				panic(fmt.Sprintf("vector %s: %v", row[0], err))
			}
		}
		v := class.vector(row[0], address, row[3], row[1])
		for _, more := range row[4:] {
			if answers, found := strings.CutPrefix(more, "dns: "); found {
				for answer := range strings.SplitSeq(answers, " | ") {
					v.Answers = append(v.Answers, strings.Fields(answer))
				}
			} else {
				v.Own = netip.MustParseAddrPort(strings.TrimPrefix(more, "own: "))
			}
		}
		all = append(all, v)
	}
	return all
}

// vector makes one; the first letter is its fate in production, the second in demo mode.
func (c Class) vector(name, address, why, letters string) Vector {
	return Vector{
		Name: string(c) + "/" + name, Class: c, URL: address, Why: why,
		Production: fates[letters[0]], Demo: fates[letters[1]], Basic: strings.HasSuffix(letters, "*"),
	}
}

// nameLengths are the longest DNS names, and names one byte longer.
func nameLengths() []Vector {
	long := strings.Repeat("a.", 125)
	return []Vector{
		ClassName.vector("label-63", "http://"+strings.Repeat("a", 63)+".com/", "a label of 63 bytes", "CC"),
		ClassName.vector("label-64", "http://"+strings.Repeat("a", 64)+".com/", "a label of 64 bytes", "II"),
		ClassName.vector("name-253", "http://"+long+"com/", "a name of 253 bytes", "CC"),
		ClassName.vector("name-254", "http://"+long+"comm/", "a name of 254 bytes", "II"),
	}
}

// urlLengths are the longest accepted URL, and one a byte longer.
func urlLengths() []Vector {
	longest := "http://example.com/" + strings.Repeat("x", maxURL-len("http://example.com/"))
	return []Vector{
		ClassShape.vector("length-2048", longest, "2,048 bytes", "CC"),
		ClassShape.vector("length-2049", longest+"x", "2,049 bytes", "II"),
	}
}

// blockVectors are both ends of every special block, an address inside, and the neighbours just outside.
func blockVectors() []Vector {
	var all []Vector
	seen := make(map[netip.Addr]bool)
	for _, row := range rows(vectorText, string(ClassBlock)) {
		prefix, fate, beside := netip.MustParsePrefix(row[0]), row[1], row[2]
		first, last := prefix.Addr(), lastOf(prefix)
		inside, _ := netip.ParseAddr(row[3]) // not valid where there is none
		plain := strings.TrimSuffix(fate, "*")
		for _, v := range []struct {
			where string
			addr  netip.Addr
			fates string
		}{
			{"first", first, plain},
			{"last", last, plain},
			{"inside", inside, fate},
			{"before", first.Prev(), beside[:1] + inDemo(first.Prev())},
			{"after", last.Next(), beside[1:] + inDemo(last.Next())},
		} {
			if v.addr.IsValid() && !seen[v.addr] { // else the address space ends there, or another row has it
				seen[v.addr] = true
				address := "http://" + bracketed(v.addr) + "/"
				all = append(all, ClassBlock.vector(row[0]+"/"+v.where, address, v.where+": "+row[0], v.fates))
			}
		}
	}
	return all
}

// inDemo is the letter for the fate in demo mode of an address beside a block.
func inDemo(addr netip.Addr) string {
	for _, prefix := range []string{"224.0.0.0/3", "fe80::/10", "ff00::/8"} {
		if netip.MustParsePrefix(prefix).Contains(addr) {
			return "B"
		}
	}
	return "C"
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

// hiddenMetadata are the metadata addresses of clouds inside IPv6 addresses. The quick audit tries all of them.
func hiddenMetadata() []Vector {
	var all []Vector
	for _, cloud := range []struct{ name, address string }{
		{"aws", "169.254.169.254"}, {"alibaba", "100.100.100.200"}, {"azure", "168.63.129.16"}, {"oracle", "192.0.0.192"},
	} {
		for _, e := range embeddings(netip.MustParseAddr(cloud.address).As4()) {
			address := "http://" + bracketed(e.address) + "/latest/meta-data/"
			if e.name == "mapped" { // netip writes it with dots; parsers take hexadecimal as well
				four := e.address.AsSlice()[12:]
				address = fmt.Sprintf("http://[::ffff:%x:%x]/latest/meta-data/", four[:2], four[2:])
			}
			why := cloud.address + " in IPv6: " + e.name
			all = append(all, ClassMetadata.vector("embedded/"+cloud.name+"/"+e.name, address, why, "BB*"))
		}
	}
	return all
}

// embedding is one way to carry an IPv4 address inside an IPv6 address.
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

func otherSchemes() []Vector {
	var all []Vector
	for _, scheme := range []string{
		"ftp", "ftps", "sftp", "tftp", "scp", "ssh", "telnet", "ldap", "ldaps", "smb", "nfs", "ws", "wss", "redis",
		"mongodb", "mysql", "postgres", "amqp", "imap", "pop3", "smtp", "rtsp", "rtmp", "netdoc", "php", "expect", "phar",
		"httpx", "h2c", "http2",
	} {
		all = append(all, ClassScheme.vector(scheme, scheme+"://example.com/", "another scheme", "II"))
	}
	return all
}

// servicePorts are ports where something else than a callback receiver listens, and neighbours of 80 and 443.
func servicePorts() []Vector {
	var all []Vector
	for _, service := range []struct{ port, why string }{
		{"1", "the first port"}, {"21", "FTP"}, {"22", "SSH"}, {"23", "Telnet"}, {"25", "SMTP"}, {"53", "DNS"},
		{"79", "beside the port of http"}, {"81", "beside the port of http"}, {"110", "POP3"}, {"143", "IMAP"},
		{"389", "LDAP"}, {"445", "SMB"}, {"2375", "Docker"}, {"2379", "etcd"}, {"3306", "MySQL"}, {"5432", "PostgreSQL"},
		{"6379", "Redis"}, {"6443", "Kubernetes"}, {"8080", "a proxy"}, {"9200", "Elasticsearch"}, {"10250", "kubelet"},
		{"11211", "memcached"}, {"27017", "MongoDB"}, {"65535", "the last port"},
	} {
		all = append(all, ClassPort.vector(service.port, "http://example.com:"+service.port+"/", service.why, "BC"))
	}
	return all
}

// redirectVectors are receivers with a redirect as their answer.
func redirectVectors() []Vector {
	const metadata = "http://169.254.169.254/latest/meta-data/"
	var all []Vector
	add := func(name, why, status, header, body string) {
		v := ClassRedirect.vector(name, "http://receiver.example/"+name, why, "CC")
		v.Receiver = "HTTP/1.1 " + status + "\r\n" + header + "\r\nContent-Length: " + strconv.Itoa(len(body)) +
			"\r\nConnection: close\r\n\r\n" + body
		all = append(all, v)
	}
	for code := 300; code <= 308; code++ {
		for _, to := range []struct{ name, url string }{
			{"metadata", metadata}, {"loopback", "http://127.0.0.1/"}, {"private", "http://10.0.0.1/"},
			{"itself", "http://receiver.example/again"},
		} {
			name := strconv.Itoa(code) + "-" + to.name
			add(name, "a redirect to "+to.url, strconv.Itoa(code)+" Elsewhere", "Location: "+to.url, "")
		}
	}
	for _, to := range []struct{ name, url string }{
		{"relative", "/latest/meta-data/"}, {"no-scheme", "//169.254.169.254/"}, {"decimal", "http://2852039166/"},
		{"localhost", "http://localhost/"}, {"loopback-6", "http://[::1]/"}, {"mapped", "http://[::ffff:169.254.169.254]/"},
		{"user", "http://receiver.example@169.254.169.254/"}, {"https", "https://169.254.169.254/"},
		{"port", "http://127.0.0.1:6379/"}, {"file", "file:///etc/passwd"}, {"gopher", "gopher://127.0.0.1:6379/_FLUSHALL"},
		{"unix", "unix:///var/run/docker.sock"}, {"empty", ""}, {"broken", "http://[::1"},
	} {
		add("307-location-"+to.name, "a redirect that repeats the body, to "+to.url, "307 Temporary Redirect",
			"Location: "+to.url, "")
	}
	const early = "103 Early Hints\r\nLink: <" + metadata + ">; rel=preload\r\n\r\nHTTP/1.1 302 Found"
	const page = `<meta http-equiv="refresh" content="0;url=` + metadata + `"><script>location="` + metadata + `"</script>`
	for _, r := range []struct{ name, why, status, header, body string }{
		{"200-refresh", "a refresh beside success", "200 OK", "Refresh: 0; url=" + metadata, ""},
		{"204-refresh", "a refresh beside success without content", "204 No Content", "Refresh: 0;url=" + metadata, ""},
		{"302-refresh", "a refresh beside a redirect", "302 Found", "Refresh: 0; url=" + metadata, ""},
		{"500-refresh", "a refresh beside an error", "500 Oops", "Refresh: 0; url=" + metadata, ""},
		{"200-location", "a location beside success", "200 OK", "Location: " + metadata, ""},
		{"201-location", "a location beside something new", "201 Created", "Location: " + metadata, ""},
		{"202-location", "a location beside what is accepted", "202 Accepted", "Location: " + metadata, ""},
		{"200-content-location", "the location of the content", "200 OK", "Content-Location: " + metadata, ""},
		{"200-link", "a link to load in advance", "200 OK", "Link: <" + metadata + ">; rel=preload", ""},
		{
			"200-alt-svc", "another service for the same origin", "200 OK",
			`Alt-Svc: h2="169.254.169.254:80"; ma=3600`, "",
		},
		{
			"421", "a request for another connection", "421 Misdirected Request",
			`Alt-Svc: h2="169.254.169.254:80"`, "",
		},
		{
			"401", "a realm to ask for a token", "401 Unauthorized",
			`WWW-Authenticate: Bearer realm="` + metadata + `"`, "",
		},
		{
			"407", "a request for proxy credentials", "407 Proxy Authentication Required",
			"Proxy-Authenticate: Basic", "",
		},
		{"305-proxy", "a proxy to use", "305 Use Proxy", "Location: http://169.254.169.254:80/", ""},
		{
			"302-two", "two locations", "302 Found",
			"Location: http://receiver.example/\r\nLocation: " + metadata, "",
		},
		{"302-no-location", "a redirect to nowhere", "302 Found", "X: y", ""},
		{"302-early", "a link in advance, then a redirect", early, "Location: " + metadata, ""},
		{"101", "another protocol", "101 Switching Protocols", "Connection: Upgrade\r\nUpgrade: h2c", ""},
		{"200-page", "a page that sends browsers on", "200 OK", "Content-Type: text/html", page},
	} {
		add(r.name, r.why, r.status, r.header, r.body)
	}
	return all
}
