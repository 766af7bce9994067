package server

import (
	"net/http"
	"net/netip"

	"tandem/internal/store"
)

// ParseFilter reads the query of GET /requests.
func ParseFilter(raw string) (store.Filter, error) { return parseFilter(raw) }

// ClientOf says who asks, given whom the server trusts, the peer of the
// connection and X-Forwarded-For.
func ClientOf(trusted []netip.Prefix, peer string, forwarded ...string) netip.Addr {
	s := &server{cfg: Config{TrustedProxies: trusted}}
	return s.client(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": forwarded}})
}
