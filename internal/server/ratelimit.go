package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem"
	"tandem/internal/limit"
)

// How many clients each rate limit remembers one by one; more share. A table full of clients at
// 64 calls each takes about 80 MB, and as a rule far less.
const (
	addressesTracked = 65_536
	keysTracked      = 10_000 // as many as there can be
)

// allowance is the limit on one kind of call. API keys have a table of their own: strangers, who
// can have any number of addresses, cannot push a key out of it.
type allowance struct {
	name      string // "post" or "get", in the headers
	quota     limit.Quota
	policy    []string // value of RateLimit-Policy
	addresses *limit.Rate[netip.Addr]
	keys      *limit.Rate[string]
}

// newAllowance makes one; nil means that there is no limit.
func newAllowance(name string, quota limit.Quota) *allowance {
	if quota.IsZero() {
		return nil
	}
	return &allowance{
		name: name, quota: quota,
		policy: []string{`"` + name + `";q=` + strconv.Itoa(quota.Calls) + `;w=` +
			strconv.FormatInt(int64(quota.Window/time.Second), 10)},
		addresses: limit.NewRate[netip.Addr](quota, addressesTracked),
		keys:      limit.NewRate[string](quota, keysTracked),
	}
}

// allowanceFor is the limit that holds for a method.
func (s *server) allowanceFor(method string) *allowance {
	if method == http.MethodGet || method == http.MethodHead {
		return s.gets
	}
	return s.posts
}

// take asks for n calls of the sender of a request: of the API key that was found to be good,
// else of the address. A key that is wrong counts as none, so guessing costs its address.
func (a *allowance) take(key string, address netip.Addr, n int) limit.Verdict {
	if key != "" {
		return a.keys.TakeAll(key, time.Now(), n)
	}
	return a.addresses.TakeAll(limit.Network(address), time.Now(), n)
}

// limited lets a client through to next as often as the quota allows. It decides
// before anything of the body is read: a refusal has to be cheap. What net/http then
// drops of a small body, so that the connection can be used again, is its business; a
// large one ends the connection.
func (s *server) limited(next Handler) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := s.allow(w, r, 1); err != nil {
			return err
		}
		return next(w, r)
	}
}

// allow takes n calls of the client that asks, all of them or none; n = 0 only asks
// whether one is left. Every answer says what is left, in the headers of the IETF
// draft on RateLimit fields.
func (s *server) allow(w http.ResponseWriter, r *http.Request, n int) error {
	return s.charge(w, r, s.allowanceFor(r.Method), n)
}

// charge is allow for an allowance that need not be that of the method; nil allows everything.
func (s *server) charge(w http.ResponseWriter, r *http.Request, a *allowance, n int) error {
	if a == nil {
		return nil
	}
	verdict := a.take(keyOf(r), s.client(r), n)
	var buf [48]byte
	left := append(append(append(buf[:0], '"'), a.name...), `";r=`...)
	left = strconv.AppendInt(left, int64(verdict.Remaining), 10)
	left = strconv.AppendInt(append(left, `;t=`...), int64(wholeSeconds(verdict.Reset)), 10)
	header := w.Header()
	header["Ratelimit-Policy"] = a.policy // shared by every answer and never written to
	header["Ratelimit"] = []string{string(left)}
	if verdict.OK {
		return nil
	}
	kind := strings.ToUpper(a.name)
	message := fmt.Sprintf("At most %d %ss in any %d s are taken from one client. Try again after Retry-After.",
		a.quota.Calls, kind, a.quota.Window/time.Second)
	if n > 1 {
		message = fmt.Sprintf("Each entry of a batch counts as one %s, and of the %d in any %d s %d are left. Try again "+
			"after Retry-After, or send fewer.",
			kind, a.quota.Calls, a.quota.Window/time.Second, verdict.Remaining)
	}
	return &tandem.Error{Code: tandem.CodeRateLimited, Message: message, RetryAfter: verdict.Wait}
}

// wholeSeconds rounds up: who waits that long has waited long enough.
func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// client is the address of who asks: the peer of the connection or, when that is
// a trusted proxy, whom it speaks for. Proxies add to the right of
// X-Forwarded-For, so it is read from there, up to the first address that is no
// trusted proxy. What stands to the left of that is the client's own claim. The
// zero address, one client like any other, stands for a peer without one.
func (s *server) client(r *http.Request) netip.Addr {
	client, ok := parseHop(r.RemoteAddr)
	if !ok || !s.trusts(client) {
		return client
	}
	for _, line := range slices.Backward(r.Header["X-Forwarded-For"]) {
		for more := true; more; {
			var hop string
			line, hop, more = cutLast(line)
			if hop == "" {
				continue // an empty element of a list means nothing
			}
			address, ok := parseHop(hop)
			if !ok {
				return client // the proxy does not know either
			}
			if client = address; !s.trusts(client) {
				return client
			}
		}
	}
	return client
}

// cutLast takes the last element off a list.
func cutLast(list string) (rest, last string, more bool) {
	i := strings.LastIndexByte(list, ',')
	return list[:max(i, 0)], strings.TrimSpace(list[i+1:]), i >= 0
}

// trusts reports whether an address is a trusted proxy.
func (s *server) trusts(address netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(address) })
}

// parseHop reads an address with or without a port, as proxies write them. The
// result is in the one form that prefixes match: IPv4 as such, no zone.
func parseHop(text string) (netip.Addr, bool) {
	if full, err := netip.ParseAddrPort(text); err == nil {
		return full.Addr().Unmap().WithZone(""), true
	}
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	return address.Unmap().WithZone(""), err == nil
}

// ValidProxies refuses ranges that match nothing, and those that match
// everybody: then every caller could choose the address that it is counted under.
func ValidProxies(ranges []netip.Prefix) error {
	for _, p := range ranges {
		switch {
		case !p.IsValid():
			return errors.New("want address ranges such as 10.0.0.0/8")
		case p.Bits() == 0:
			return fmt.Errorf("%v: every caller would be a proxy", p)
		case p.Addr().Is4In6():
			return fmt.Errorf("%v: write it as an IPv4 range", p)
		}
	}
	return nil
}

// rateLimiting is what /stats says about the limits: on POST, and within it on GET.
type rateLimiting struct {
	RateFigures

	Reads RateFigures `json:"reads" doc:"The same of GET and --read-limit"`
}

// RateFigures are those of one limit, exported because the document is made from it; all zero while there is none.
type RateFigures struct {
	Enabled       bool  `json:"enabled" doc:"false: nobody is slowed down"`
	Limit         int   `json:"limit" minimum:"0" doc:"Calls of one client in any window"`
	WindowSeconds int64 `json:"window_seconds" minimum:"0" doc:"Length of the window"`
	Tracked       int   `json:"clients_tracked" minimum:"0" doc:"Addresses whose calls are remembered one by one"`
	Capacity      int   `json:"capacity" minimum:"0" doc:"The most of them; further addresses share allowances while all have called within the window"`
	Keys          int   `json:"keys_tracked" minimum:"0" doc:"API keys whose calls are remembered; addresses cannot push them out"`
	Allowed       int64 `json:"allowed" minimum:"0" doc:"Calls let through since the process started, each entry of a batch as one"`
	Limited       int64 `json:"limited" minimum:"0" doc:"Calls refused with 429 since the process started, each entry of a batch as one"`
}

func (s *server) rateLimiting(now time.Time) rateLimiting {
	return rateLimiting{s.posts.figures(now), s.gets.figures(now)}
}

func (a *allowance) figures(now time.Time) RateFigures {
	if a == nil {
		return RateFigures{}
	}
	addresses, keys := a.addresses.Stats(now), a.keys.Stats(now)
	return RateFigures{
		Enabled: true, Limit: a.quota.Calls, WindowSeconds: int64(a.quota.Window / time.Second),
		Tracked: addresses.Clients, Capacity: addresses.Capacity, Keys: keys.Clients,
		Allowed: addresses.Allowed + keys.Allowed, Limited: addresses.Limited + keys.Limited,
	}
}
