package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"tandem"
	"tandem/internal/store"
)

// banner is what serve says when it is ready: where it listens, what it keeps, what
// it allows, and what to type next. Plain text, at most 80 columns but for long values.
func (c *serveCommand) banner(address net.Addr, s *service) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	base := baseURL(address)
	fmt.Fprintf(&b, "tandem %s, %s mode\n\n", tandem.Version, c.Mode)
	line("listening", "%s  (docs: %s/docs)", base, base)
	if store.Memory(c.DB) {
		line("database", "in memory: nothing survives a stop, a 202 included")
	} else {
		line("database", "%s: a 202 is on disk", redact(c.DB))
	}
	for _, allowed := range c.allowed() {
		line("allowed", "%s", allowed)
	}
	if c.Mode == modeProduction {
		line("WARNING", "there are no API keys yet: whoever reaches this port may use it")
	}
	if s.made {
		line("secret", "%s", s.secret.Reveal())
		if store.Memory(c.DB) {
			line("", "signs every callback until the next start; to verify it:")
		} else {
			line("", "signs every callback; kept in the database, not shown again; to verify it:")
		}
		fmt.Fprintf(&b, "\ntandem sink --secret %s\n", s.secret.Reveal())
	}
	fmt.Fprintf(&b, "\n%s\n", c.tryIt(base))
	return b.String()
}

// allowed lists what the configuration permits beyond the strict policy.
func (c *serveCommand) allowed() []string {
	if c.Mode == modeDemo {
		return []string{
			"callbacks to private addresses and any port (never metadata services)",
			"/test-callback, a receiver to try callbacks with",
			"requests without API key, without rate limit",
		}
	}
	allowed := []string{"callbacks to public addresses, ports 80 and 443" + join(", ", c.AllowCallbackPort)}
	if len(c.AllowCallbackCIDR) > 0 {
		allowed = append(allowed, "callbacks to"+join(" ", c.AllowCallbackCIDR))
	}
	if len(c.AllowCallbackHost) > 0 {
		allowed = append(allowed, "callbacks to private addresses of"+join(" ", c.AllowCallbackHost))
	}
	if len(c.CORSOrigin) > 0 {
		allowed = append(allowed, "pages of"+join(" ", c.CORSOrigin))
	}
	return allowed
}

// join writes each value after a separator.
func join[T any](separator string, values []T) string {
	var b strings.Builder
	for _, value := range values {
		fmt.Fprint(&b, separator, value)
	}
	return b.String()
}

// tryIt is a command line that works when pasted.
func (c *serveCommand) tryIt(base string) string {
	if c.Mode != modeDemo {
		return fmt.Sprintf(`try it:
curl -X POST %s/sync -H 'Content-Type: application/json' \
  -d '{"data":{"name":"Ada"}}'`, base)
	}
	return fmt.Sprintf(`try it, then look at the history:
curl -X POST %s/async -H 'Content-Type: application/json' \
  -d '{"data":{"name":"Ada"},"callback_url":"%s/test-callback"}'
curl '%s/requests?limit=1'`, base, base, base)
}

// baseURL is how a program on this machine reaches the address: a name for the
// unspecified one, brackets around IPv6.
func baseURL(address net.Addr) string {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return "http://" + address.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}
