package audit

import "strings"

// schemeVectors ask for something else than HTTP.
func schemeVectors() []Vector {
	aims := []aim{
		{"http-capitals", "HTTP://example.com/", "http in capitals", called, called},
		{"https-mixed", "hTTpS://example.com/", "https in both cases", called, called},
		{"none", "example.com", "no scheme", invalid, invalid},
		{"relative", "//example.com/", "no scheme before two slashes", invalid, invalid},
		{"colon-first", "://example.com/", "an empty scheme", invalid, invalid},
		{"nested", "url:http://example.com/", "a scheme before the scheme", invalid, invalid},
		{"jar", "jar:http://example.com/x.jar!/", "a scheme before the scheme", invalid, invalid},
		{"view-source", "view-source:http://example.com/", "a scheme before the scheme", invalid, invalid},
		{"blob", "blob:http://example.com/x", "a scheme before the scheme", invalid, invalid},
		{"file", "file:///etc/passwd", "a file", invalid, invalid},
		{"file-host", "file://127.0.0.1/etc/passwd", "a file with a host", invalid, invalid},
		{"file-one-slash", "file:/etc/passwd", "a file with one slash", invalid, invalid},
		{"unix", "unix:///var/run/docker.sock", "a socket", invalid, invalid},
		{"http-unix", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "a socket", invalid, invalid},
		{"http-unix-colon", "http://unix:/var/run/docker.sock:/info", "a socket, as some clients write it", invalid, invalid},
		{"gopher", "gopher://example.com:6379/_FLUSHALL", "Redis by Gopher", invalid, invalid},
		{"dict", "dict://example.com:11211/stat", "memcached by DICT", invalid, invalid},
		{"javascript", "javascript:alert(1)", "a script", invalid, invalid},
		{"data", "data:text/plain,x", "the content itself", invalid, invalid},
		{"about", "about:blank", "a page of the browser", invalid, invalid},
		{"mailto", "mailto:a@example.com", "mail", invalid, invalid},
	}
	for _, scheme := range []string{
		"ftp", "ftps", "sftp", "tftp", "scp", "ssh", "telnet", "ldap", "ldaps", "smb", "nfs", "ws", "wss", "redis", "mongodb",
		"mysql", "postgres", "amqp", "imap", "pop3", "smtp", "rtsp", "rtmp", "netdoc", "php", "expect", "phar", "httpx", "h2c", "http2",
	} {
		aims = append(aims, aim{scheme, scheme + "://example.com/", "another scheme", invalid, invalid})
	}
	return ClassScheme.vectors(aims)
}

// shapeVectors are URLs that two parsers may read differently.
func shapeVectors() []Vector {
	const room = maxURL - len("http://example.com/")
	return ClassShape.vectors([]aim{
		{"empty", "", "nothing", invalid, invalid},
		{"path", "/callback", "a path", invalid, invalid},
		{"no-slashes", "http:example.com", "no slashes", invalid, invalid},
		{"one-slash", "http:/example.com", "one slash", invalid, invalid},
		{"three-slashes", "http:///example.com/", "three slashes: browsers read a host", invalid, invalid},
		{"four-slashes", "http:////example.com/", "four slashes", invalid, invalid},
		{"no-host", "http://", "no host", invalid, invalid},
		{"no-host-query", "http://?x=1", "no host before a query", invalid, invalid},
		{"no-host-fragment", "http://#x", "no host before a fragment", invalid, invalid},
		{"no-host-port", "http://:80/", "no host before a port", invalid, invalid},
		{"user", "http://user@example.com/", "a user name", invalid, invalid},
		{"password", "http://user:secret@example.com/", "a password", invalid, invalid},
		{"user-empty", "http://@example.com/", "an empty user name", invalid, invalid},
		{"password-empty", "http://:@example.com/", "an empty password", invalid, invalid},
		{"user-like-host", "http://example.com@127.0.0.1/", "a user name that looks like the host", invalid, invalid},
		{"user-like-host-port", "http://example.com:80@127.0.0.1/", "a user name and password that look like the host", invalid, invalid},
		{"user-like-forbidden", "http://127.0.0.1@example.com/", "a user name that looks forbidden", invalid, invalid},
		{"user-twice", "http://a@example.com@127.0.0.1/", "two at signs", invalid, invalid},
		{"user-encoded", "http://example.com%40127.0.0.1/", "an at sign in escapes", invalid, invalid},
		{"user-slash-encoded", "http://example.com%2f@127.0.0.1/", "a slash in escapes before an at sign", invalid, invalid},
		{"user-hash", "http://127.0.0.1#@example.com/", "the host before a fragment", blocked, called},
		{"user-hash-port", "http://127.0.0.1:80#@example.com/", "the host and port before a fragment", blocked, called},
		{"fragment-like-host", "http://example.com#@127.0.0.1/", "a fragment that looks like a host", called, called},
		{"query-like-host", "http://example.com?@127.0.0.1/", "a query that looks like a host", called, called},
		{"path-like-host", "http://example.com/@127.0.0.1/", "a path that looks like a host", called, called},
		{"path-url", "http://example.com/http://127.0.0.1/", "a URL in the path", called, called},
		{"query-before-at", "http://127.0.0.1?@example.com/", "the host before a query", blocked, called},
		{"semicolon-before-at", "http://127.0.0.1;@example.com/", "a semicolon before an at sign", invalid, invalid},
		{"backslash-at", "http://example.com\\@127.0.0.1/", "a backslash before an at sign", invalid, invalid},
		{"backslash-forbidden", "http://127.0.0.1\\@example.com/", "a backslash after the host", invalid, invalid},
		{"backslash-slashes", "http:\\\\127.0.0.1\\", "backslashes for slashes", invalid, invalid},
		{"backslash-mixed", "http:/\\127.0.0.1/", "a slash and a backslash", invalid, invalid},
		{"backslash-encoded", "http://example.com%5c@127.0.0.1/", "a backslash in escapes", invalid, invalid},
		{"slash-encoded", "http://example.com%2f.127.0.0.1/", "a slash in escapes", invalid, invalid},
		{"slash-full-width", "http://127.0.0.1／.example.com/", "a full-width slash", invalid, invalid},
		{"slash-like", "http://127.0.0.1⁄example.com/", "a fraction slash is a letter of a name", called, called},
		{"colon-full-width", "http://127.0.0.1：80/", "a full-width colon", invalid, invalid},
		{"hash-full-width", "http://127.0.0.1＃.example.com/", "a full-width number sign", invalid, invalid},
		{"question-full-width", "http://127.0.0.1？.example.com/", "a full-width question mark", invalid, invalid},
		{"at-full-width", "http://example.com＠127.0.0.1/", "a full-width at sign", invalid, invalid},
		{"care-of", "http://℀.example.com/", "a sign that becomes a/c", invalid, invalid},
		{"space-encoded", "http://127.0.0.1%20example.com/", "a space in escapes", invalid, invalid},
		{"tab-encoded", "http://127.0.0.1%09example.com/", "a tab in escapes", invalid, invalid},
		{"null-encoded", "http://example.com%00/", "a null byte in escapes", invalid, invalid},
		{"pipe", "http://127.0.0.1|example.com/", "a pipe", invalid, invalid},
		{"braces", "http://{127.0.0.1}/", "braces", invalid, invalid},
		{"angles", "<http://127.0.0.1/>", "angle brackets", invalid, invalid},
		{"template", "http://${jndi:ldap://127.0.0.1/x}/", "a template", invalid, invalid},
		{"comma-two", "http://example.com,http://127.0.0.1/", "two URLs", invalid, invalid},
		{"space-in-front", " http://example.com/", "a space in front", invalid, invalid},
		{"space-at-end", "http://example.com/ ", "a space at the end", invalid, invalid},
		{"space-in-host", "http://example.com /", "a space in the host", invalid, invalid},
		{"space-in-path", "http://example.com/a b", "a space in the path", invalid, invalid},
		{"space-two-urls", "http://example.com/ http://127.0.0.1/", "two URLs and a space", invalid, invalid},
		{"tab", "http://exam\tple.com/", "a tab in the host", invalid, invalid},
		{"tab-scheme", "ht\ttp://127.0.0.1/", "a tab in the scheme, which browsers drop", invalid, invalid},
		{"null", "http://example.com/\x00", "a null byte", invalid, invalid},
		{"escape", "http://example.com/\x1b[2J", "an escape sequence", invalid, invalid},
		{"delete", "http://example.com/\x7f", "a delete character", invalid, invalid},
		{"invalid-utf8", "http://example.com/\xff", "invalid UTF-8", invalid, invalid},
		{"overlong-utf8", "http://example.com/\xc0\xae", "a dot in two bytes", invalid, invalid},
		{"bad-escape", "http://example.com/%zz", "a bad escape", invalid, invalid},
		{"bad-escape-end", "http://example.com/%2", "half an escape", invalid, invalid},
		{"unicode-path", "http://example.com/ü?q=ü", "characters outside of ASCII", called, called},
		{"dots-path", "http://example.com/a/../../b?c=d&e=%26", "dots in the path", called, called},
		{"length-2048", "http://example.com/" + strings.Repeat("x", room), "2,048 bytes", called, called},
		{"length-2049", "http://example.com/" + strings.Repeat("x", room+1), "2,049 bytes", invalid, invalid},
	})
}

// smugglingVectors want a part of the URL to become a header or a request of its own. Those
// that are called arrive as one request with our headers alone.
func smugglingVectors() []Vector {
	return ClassSmuggling.vectors([]aim{
		{"path-crlf", "http://example.com/\r\nX-Evil: 1", "a line break in the path", invalid, invalid},
		{"path-lf", "http://example.com/\nHost: x", "a line feed in the path", invalid, invalid},
		{"path-cr", "http://example.com/\rX-Evil: 1", "a carriage return in the path", invalid, invalid},
		{"path-crlf-no-space", "http://example.com/\r\nX-Evil:1", "a line break without spaces", invalid, invalid},
		{"path-version", "http://example.com/ HTTP/1.1\r\nX-Evil:1\r\n\r\n", "the end of the request line", invalid, invalid},
		{"query-crlf", "http://example.com/?a=b\r\n\r\nPOST /", "a request in the query", invalid, invalid},
		{"fragment-crlf", "http://example.com/#\r\nX-Evil:1", "a line break in the fragment", invalid, invalid},
		{"host-crlf", "http://example.com\r\n/", "a line break in the host", invalid, invalid},
		{"host-crlf-header", "http://example.com\r\nX-Evil:1/", "a header in the host", invalid, invalid},
		{"port-crlf", "http://example.com:80\r\nX-Evil:1/", "a header in the port", invalid, invalid},
		{"scheme-crlf", "http\r\n://example.com/", "a line break in the scheme", invalid, invalid},
		{"vertical-tab", "http://example.com/\x0bX-Evil:1", "a vertical tab", invalid, invalid},
		{"form-feed", "http://example.com/\x0cX-Evil:1", "a form feed", invalid, invalid},
		{"host-encoded", "http://example.com%0d%0a/", "a line break in escapes in the host", invalid, invalid},
		{"host-encoded-header", "http://example.com%0d%0aX-Evil:%201/", "a header in escapes in the host", invalid, invalid},
		{"port-encoded", "http://example.com:80%0d%0aX-Evil:%201/", "a header in escapes in the port", invalid, invalid},
		{"zone-encoded", "http://[::1%25lo%0d%0aX-Evil:%201]/", "a header in escapes in a zone", invalid, invalid},
		{"path-encoded", "http://example.com/%0d%0aX-Evil:1", "a line break in escapes in the path", called, called},
		{"path-encoded-request", "http://example.com/%20HTTP/1.1%0d%0aHost:%20x%0d%0a%0d%0aGET%20/evil", "a request in escapes in the path", called, called},
		{"path-encoded-lf", "http://example.com/%0aX-Evil:1", "a line feed in escapes", called, called},
		{"path-encoded-twice", "http://example.com/%250d%250aX-Evil:1", "a line break escaped twice", called, called},
		{"query-encoded", "http://example.com/?a=%0d%0aX-Evil:%201", "a line break in escapes in the query", called, called},
		{"query-encoded-request", "http://example.com/?a=%0d%0a%0d%0aPOST%20/evil%20HTTP/1.1", "a request in escapes in the query", called, called},
		{"fragment-encoded", "http://example.com/#%0d%0aX-Evil:1", "a fragment is not sent", called, called},
		{"path-truncated", "http://example.com/\u010d\u010aX-Evil:1", "characters whose low bytes are a line break", called, called},
		{"query-truncated", "http://example.com/?a=\u560d\u560aX-Evil:1", "characters whose low bytes are a line break", called, called},
		{"path-next-line", "http://example.com/\u0085X-Evil:1", "the next line character", called, called},
		{"query-line-separator", "http://example.com/?a=\u2028X-Evil:1", "a line separator", called, called},
		{"query-colon", "http://example.com/?Host:169.254.169.254", "a query like a header", called, called},
		{"query-space-plus", "http://example.com/?a=b+HTTP/1.1", "a query like the end of a request line", called, called},
		{"empty-path-query", "http://example.com?a=b", "a query without a path", called, called},
		{"asterisk", "http://example.com/*", "an asterisk in the path", called, called},
	})
}

// portVectors are about ports.
func portVectors() []Vector {
	aims := []aim{
		{"80", "http://example.com:80/", "the port of http", called, called},
		{"443", "http://example.com:443/", "the port of https", called, called},
		{"https-80", "https://example.com:80/", "the port of http with https", called, called},
		{"https-442", "https://example.com:442/", "beside the port of https", blocked, called},
		{"https-444", "https://example.com:444/", "beside the port of https", blocked, called},
		{"address", "http://8.8.8.8:8080/", "an address and a port", blocked, called},
		{"address-6", "http://[2606:4700:4700::1111]:8080/", "an address and a port", blocked, called},
		{"65536", "http://example.com:65536/", "beyond the last port", invalid, invalid},
		{"65616", "http://example.com:65616/", "80 and 2^16", invalid, invalid},
		{"4294967376", "http://example.com:4294967376/", "80 and 2^32", invalid, invalid},
		{"18446744073709551696", "http://example.com:18446744073709551696/", "80 and 2^64", invalid, invalid},
		{"0", "http://example.com:0/", "port zero", invalid, invalid},
		{"00", "http://example.com:00/", "port zero twice", invalid, invalid},
		{"080", "http://example.com:080/", "a leading zero", invalid, invalid},
		{"0x50", "http://example.com:0x50/", "80 in hexadecimal", invalid, invalid},
		{"empty", "http://example.com:/", "no port after the colon", invalid, invalid},
		{"empty-6", "http://[::1]:/", "no port after the colon", invalid, invalid},
		{"negative", "http://example.com:-80/", "a negative port", invalid, invalid},
		{"plus", "http://example.com:+80/", "a sign", invalid, invalid},
		{"decimal", "http://example.com:80.0/", "a decimal point", invalid, invalid},
		{"name", "http://example.com:http/", "a port by name", invalid, invalid},
		{"two", "http://example.com:80:80/", "two ports", invalid, invalid},
		{"two-forbidden", "http://example.com:80:22/", "two ports, the second forbidden", invalid, invalid},
		{"two-6", "http://[::1]:80:80/", "two ports", invalid, invalid},
		{"full-width", "http://example.com:８０/", "full-width digits", invalid, invalid},
		{"encoded", "http://example.com:%38%30/", "digits in escapes", invalid, invalid},
		{"encoded-colon", "http://example.com%3a22/", "a colon in escapes", invalid, invalid},
		{"space", "http://example.com:80%20/", "a space in escapes", invalid, invalid},
	}
	for _, service := range []struct{ port, why string }{
		{"1", "the first port"}, {"21", "FTP"}, {"22", "SSH"}, {"23", "Telnet"}, {"25", "SMTP"}, {"53", "DNS"}, {"79", "beside the port of http"},
		{"81", "beside the port of http"}, {"110", "POP3"}, {"143", "IMAP"}, {"389", "LDAP"}, {"445", "SMB"}, {"2375", "Docker"}, {"2379", "etcd"},
		{"3306", "MySQL"}, {"5432", "PostgreSQL"}, {"6379", "Redis"}, {"6443", "Kubernetes"}, {"8080", "a proxy"}, {"9200", "Elasticsearch"},
		{"10250", "kubelet"}, {"11211", "memcached"}, {"27017", "MongoDB"}, {"65535", "the last port"},
	} {
		aims = append(aims, aim{service.port, "http://example.com:" + service.port + "/", service.why, blocked, called})
	}
	return ClassPort.vectors(aims)
}
