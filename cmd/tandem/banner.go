package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/term"
)

// banner is what serve says when it is ready: where it listens, what it keeps, what
// it allows, and what to type next. Plain text, at most 80 columns but for long values.
func (c *serveCommand) banner(s *app.Service, program string) string {
	var p term.Page
	base := s.URL
	p.Linef("tandem %s, %s mode\n", tandem.Version, c.Mode)
	p.Factf("listening", "%s  (docs: %s/docs)", base, base)
	if sqlite.Memory(c.DB) {
		p.Factf("database", "in memory: nothing survives a stop, a 202 included")
	} else {
		p.Factf("database", "%s: a 202 is on disk", app.Redact(c.DB))
	}
	if c.ExternalURL != "" {
		p.Factf("external", "%s gets every submission", app.Redact(c.ExternalURL))
	} else {
		p.Factf("external", "simulated for submissions; --external-url names a real one")
	}
	if !c.config.RateLimit.IsZero() {
		p.Factf("limit", "%d POSTs per client in any %d s", c.config.RateLimit.Calls, c.config.RateLimit.Window/time.Second)
	}
	if !c.config.ReadLimit.IsZero() {
		p.Factf("limit", "%d GETs of data per client in any %d s", c.config.ReadLimit.Calls,
			c.config.ReadLimit.Window/time.Second)
	}
	if len(c.TrustedProxy) > 0 {
		p.Factf("proxies", "%s say who the client is", strings.TrimSpace(join(" ", c.TrustedProxy)))
	}
	for _, allowed := range c.allowed() {
		p.Factf("allowed", "%s", allowed)
	}
	if c.config.AsksForKeys() {
		p.Factf("keys", "%s; tandem keys lists, makes and revokes them", plural(s.Keys.Count(), "API key"))
	}
	switch production := c.Mode == app.Production; {
	case production && c.NoAuth:
		p.Factf("WARNING", "--no-auth: anyone who reaches this port can use it, and sees")
		p.Factf("", "everybody's requests, /stats and /metrics")
	case !production && !onlyThisMachine(s.Addr):
		p.Factf("WARNING", "others reach this port, and can have private addresses called")
	}
	if postgres.PlainText(c.DB) {
		p.Factf("WARNING", "what is said to the database may travel unencrypted; add")
		p.Factf("", "sslmode=verify-full and sslrootcert=FILE to its URL")
	}
	if s.NewSecret {
		if sqlite.Memory(c.DB) {
			p.Factf("secret", "signs callbacks until the next start")
		} else {
			p.Factf("secret", "signs callbacks; kept in the database, shown this once")
		}
		p.Linef("\nreceive callbacks and verify them:\n%s", sinkLines(program, s.Secret))
	}
	p.Linef("\n%s", c.tryIt(base))
	return p.String()
}

// sinkLines receive and verify what a secret signs. It is no argument: those every user of the machine can read.
func sinkLines(program string, secret tandem.Secret) string {
	return "TANDEM_SIGNING_SECRET=" + secret.Reveal() + " \\\n  " + program + " sink"
}

// allowed lists what the configuration permits beyond the strict policy.
func (c *serveCommand) allowed() []string {
	anyRate := ""
	if c.config.RateLimit.IsZero() {
		anyRate = ", without rate limit"
	}
	if c.Mode == app.Demo {
		return []string{
			"callbacks to private addresses, any port; no metadata services",
			"/test-callback, a receiver to try callbacks with",
			"requests without API key" + anyRate,
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
	if anyRate != "" {
		allowed = append(allowed, "requests"+anyRate)
	}
	return allowed
}

// onlyThisMachine reports whether nobody else can reach the address.
func onlyThisMachine(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// join writes each value after a separator.
func join[T any](separator string, values []T) string {
	var b strings.Builder
	for _, value := range values {
		fmt.Fprint(&b, separator, value)
	}
	return b.String()
}

// firstKey is the command line that makes a key for this configuration.
func (c *serveCommand) firstKey(program string) string {
	db := ""
	if c.DB != "file:tandem.db" && c.givenDB != os.Getenv("TANDEM_DB") {
		db = " --db " + app.Redact(c.givenDB)
	}
	return program + " keys create --name admin --scopes submit,read,admin" + db +
		"\n      and start again; or serve with --no-auth, and anyone who reaches the port may use it"
}

// tryIt is a command line that works when pasted.
func (c *serveCommand) tryIt(base string) string {
	if c.Mode != app.Demo {
		key := ""
		if c.config.AsksForKeys() {
			key = " \\\n  -H \"Authorization: Bearer $TANDEM_API_KEY\""
		}
		return fmt.Sprintf(`try it:
curl -X POST %s/sync -H 'Content-Type: application/json'%s \
  -d '{"data":{"n":1}}'`, base, key)
	}
	return fmt.Sprintf(`try it, then look at the history:
curl -X POST %s/async -H 'Content-Type: application/json' \
  -d '{"data":{"n":1},"callback_url":"%s/test-callback"}'
curl '%s/requests?limit=1'`, base, base, base)
}
