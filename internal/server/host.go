package server

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"tandem"
)

// ownHost lets through only requests whose Host names this server. A server without API keys trusts everyone who
// reaches it, and a web page can reach it under a name of its own that it points at this machine (DNS rebinding). The
// browser then believes that page and server are one origin, and only Host shows the difference. An
// address cannot be pointed elsewhere, so addresses always pass. So do requests without Host, which no browser sends.
// base is the host of Config.BaseURL.
func (s *server) ownHost(next http.Handler, base string) http.Handler {
	if s.cfg.Keys != nil {
		return next
	}
	own := map[string]bool{"localhost": true} // :: name → it is ours
	for _, name := range append([]string{base}, s.cfg.AllowedHosts...) {
		if name != "" {
			own[ownForm(name)] = true
		}
	}
	refuse := s.adapt(func(_ http.ResponseWriter, r *http.Request) error {
		return tandem.Errorf(tandem.CodeHostNotAllowed,
			"This server does not go by the name %q. The operator can allow it with --allowed-host.",
			shorten(hostName(r.Host)))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := hostName(r.Host)
		if _, err := netip.ParseAddr(name); err != nil && r.Host != "" && !own[ownForm(name)] {
			refuse(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownForm normalizes a name for comparison: lower case, without the final dot.
func ownForm(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// hostName is the name or the address in a Host header, without port and brackets.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// ValidHosts says what is wrong with a list for [Config].AllowedHosts.
func ValidHosts(names []string) error {
	for _, name := range names {
		if slices.Contains([]string{"", "."}, name) || strings.ContainsFunc(name, notInName) {
			return fmt.Errorf("%q: %w", name, errNoHost)
		}
	}
	return nil
}

var errNoHost = errors.New("want a host name such as tandem.example.com, without scheme and port")

// notInName reports characters that no host name has.
func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}
