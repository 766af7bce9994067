package egress_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
)

// fuzzPolicies are the policies that the targets below judge under. None needs the machine's addresses.
func fuzzPolicies() []egress.Policy {
	return []egress.Policy{
		{},
		demoPolicy(),
		{
			AnyPort: true, Own: []netip.AddrPort{netip.MustParseAddrPort("203.0.114.7:8000")},
			Hosts: []string{"receiver", "10.0.0.5"},
			CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("64:ff9b::/96"),
				netip.MustParsePrefix("fd00::/8")},
		},
	}
}

// FuzzCheck: whatever the URL, Check says one of its two codes, demo mode refuses nothing that
// production allows, and what passes is what net/url makes of it.
func FuzzCheck(f *testing.F) {
	for _, v := range audit.Vectors() {
		f.Add(v.URL)
	}
	strict, demo := newClient(f, egress.Config{}), newClient(f, egress.Config{Policy: demoPolicy()})
	var policy egress.Policy
	f.Fuzz(func(t *testing.T, raw string) {
		strictErr, demoErr := strict.Check(raw), demo.Check(raw)
		for _, err := range []error{strictErr, demoErr} {
			if code := tandem.CodeOf(err); err != nil && code != tandem.CodeInvalidCallbackURL &&
				code != tandem.CodeCallbackBlocked {
				t.Fatalf("Check(%q) = %v: not one of its two codes", raw, err)
			}
		}
		if demoErr != nil && strictErr == nil {
			t.Fatalf("Check(%q): strict passes what demo refuses: %v", raw, demoErr)
		}
		if strictErr != nil {
			return
		}
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatalf("Check passes %q, url.Parse says %v", raw, err)
		}
		if u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
			t.Fatalf("Check passes %q", raw)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !policy.Judge(netip.AddrPortFrom(addr, 80)).Allows() {
			t.Fatalf("Check passes the literal %s", addr)
		}
	})
}

// FuzzDialAgreesWithCheck: Check reads the URL, the dialer reads what net/http makes of it. They must
// come to the same verdict, or one of them is fooled.
func FuzzDialAgreesWithCheck(f *testing.F) {
	for _, v := range audit.Vectors() {
		f.Add(v.URL)
	}
	type judge struct {
		client *egress.Client
		dialer *egress.Dialer
	}
	var judges []judge
	for _, policy := range fuzzPolicies() {
		dialer, err := egress.NewDialer(policy, 0, nil)
		if err != nil {
			f.Fatal(err)
		}
		judges = append(judges, judge{newClient(f, egress.Config{Policy: policy}), dialer})
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return
		}
		// The dialer sees the host and the port only. net/http hides that a port is missing after its
		// colon, and makes another name of bytes that are no UTF-8.
		plain := u.Scheme + "://" + u.Host + "/"
		if len(plain) > 2048 || strings.HasSuffix(u.Host, ":") || !utf8.ValidString(plain) {
			return
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, plain, nil)
		if err != nil {
			return
		}
		dialled := ""
		stop := errors.New("far enough")
		dial := func(_ context.Context, _, hostPort string) (net.Conn, error) {
			dialled = hostPort
			return nil, stop
		}
		transport := &http.Transport{DialContext: dial, DialTLSContext: dial}
		answer, err := transport.RoundTrip(request)
		if err == nil {
			answer.Body.Close()
		}
		if !errors.Is(err, stop) {
			return // net/http has no connection for it
		}
		for i, j := range judges {
			checked, judged := j.client.Check(plain), j.dialer.Judge(dialled)
			if (checked == nil) != (judged == nil) {
				t.Errorf("policy %d: Check(%q) = %v, the dial of %q: %v", i, plain, checked, dialled, judged)
			}
		}
	})
}

// FuzzJudgeAgreesWithCheck: an address gets the same verdict written in a URL, in the moment of its
// dial, and mapped into IPv6.
func FuzzJudgeAgreesWithCheck(f *testing.F) {
	for _, block := range egress.Blocks() {
		f.Add(block.Prefix.Addr().AsSlice(), uint16(80))
		f.Add(last(block.Prefix).AsSlice(), uint16(443))
	}
	f.Add([]byte{203, 0, 114, 7}, uint16(8000))
	policies := fuzzPolicies()
	var clients []*egress.Client
	for _, policy := range policies {
		clients = append(clients, newClient(f, egress.Config{Policy: policy}))
	}
	f.Fuzz(func(t *testing.T, bytes []byte, port uint16) {
		addr, ok := netip.AddrFromSlice(bytes)
		if !ok || port == 0 {
			return
		}
		at := netip.AddrPortFrom(addr, port)
		for i, policy := range policies {
			if addr.Unmap() == netip.MustParseAddr("10.0.0.5") {
				continue // opted in as a host, which Judge does not see
			}
			verdict, checked := policy.Judge(at), clients[i].Check("http://"+at.String()+"/")
			if verdict.Allows() != (checked == nil) {
				t.Errorf("policy %d: Judge(%s) = %s, Check = %v", i, at, verdict, checked)
			}
			if addr.Is4() {
				mapped := netip.AddrPortFrom(netip.AddrFrom16(addr.As16()), port)
				if got := policy.Judge(mapped); got.Reason != verdict.Reason {
					t.Errorf("policy %d: Judge(%s) = %s, Judge(%s) = %s", i, at, verdict, mapped, got)
				}
			}
		}
	})
}
