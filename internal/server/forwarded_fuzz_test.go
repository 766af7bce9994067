package server_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tandem/internal/server"
)

// FuzzForwardedFor holds X-Forwarded-For against those who write it: behind a
// trusted proxy nobody changes who they are by what they claim themselves, and
// without one nobody does at all.
func FuzzForwardedFor(f *testing.F) {
	for _, seed := range []string{
		"", "192.0.2.1", "192.0.2.1, 10.0.0.7", "10.0.0.7, 10.0.0.8", "192.0.2.1,,10.0.0.7,", "unknown",
		"unknown, 192.0.2.1", "[2001:db8::1]:443", "2001:db8::1",
		"::ffff:192.0.2.1", "::ffff:10.0.0.7", "fe80::1%eth0", "192.0.2.1:80", "192.0.2.1:80, " +
			"10.0.0.1:99999", "0x7f.1", "192.0.2.01", strings.Repeat("10.0.0.7, ", 1000),
	} {
		f.Add(seed, "203.0.113.9")
		f.Add("198.51.100.2", seed)
	}
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	proxy := netip.MustParseAddr("10.0.0.1")
	stranger := netip.MustParseAddr("198.51.100.1")
	f.Fuzz(func(t *testing.T, header, claim string) {
		if got := server.ClientOf(trusted, netip.AddrPortFrom(stranger, 1234).String(), claim, header); got != stranger {
			t.Fatalf("a stranger who says %q is %v", header, got)
		}
		peer := netip.AddrPortFrom(proxy, 1234).String()
		got := server.ClientOf(trusted, peer, header)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q is %v: not in the form that prefixes match", header, got)
		}
		if got != proxy && !strings.ContainsAny(header, "0123456789:") {
			t.Fatalf("%q is %v", header, got)
		}
		if slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(got) }) {
			return // nobody but proxies: what stands further left counts
		}
		for _, lines := range [][]string{{claim + "," + header}, {claim, header}} {
			if again := server.ClientOf(trusted, peer, lines...); again != got {
				t.Fatalf("%q is %v, but with the claim %q it is %v", header, got, claim, again)
			}
		}
	})
}
