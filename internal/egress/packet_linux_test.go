package egress_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
)

// proxyAddress is what the environment of TestNoPacketLeaves names as proxy.
const proxyAddress = "10.9.9.9:3128"

// TestNoPacketLeaves fires every vector in a network where every address is this
// machine: in production, in demo mode, and with everything opted in. A vector that is
// refused begins no connection, to any address or port, and asks no name server before it
// must; one that is allowed arrives once, at an allowed address. The kernel counts the
// connections, and a canary on every address sees them.
//
// At the end the same vectors are fired without the guard, and do arrive: the counts can be trusted.
func TestNoPacketLeaves(t *testing.T) { //nolint:paralleltest // parallel outside of the namespace
	if os.Getenv(inNamespace) == "" {
		t.Parallel()
		output := runInNamespace(t,
			"HTTP_PROXY=http://"+proxyAddress, "HTTPS_PROXY=http://"+proxyAddress, "ALL_PROXY=socks5://"+proxyAddress,
			"http_proxy=http://"+proxyAddress, "https_proxy=http://"+proxyAddress, "all_proxy=socks5://"+proxyAddress,
			"NO_PROXY=example.org,.internal", "no_proxy=example.org,.internal")
		figures := 0
		for line := range strings.Lines(output) {
			if _, said, found := strings.Cut(line, "figures: "); found {
				t.Log(strings.TrimSpace(said))
				figures++
			}
		}
		if figures != 5 {
			t.Errorf("not everything was fired:\n%s", output)
		}
		return
	}
	if err := everyAddressIsLocal(); err != nil {
		t.Skipf("%s needs a network namespace of its own, with both families: %v", t.Name(), err)
	}
	vectors := audit.Vectors()
	r := &firingRange{names: newNameServer(t), canary: newEverywhere(t, vectors), texts: make(map[string]int)}
	r.names.others = []string{"203.0.114.80"}
	for _, v := range vectors {
		r.fire(t, "production", ofVector(egress.Policy{}, v), v, v.Production)
	}
	r.report(t, "production")
	for _, v := range vectors {
		r.fire(t, "demo", ofVector(demoPolicy(), v), v, v.Demo)
	}
	r.report(t, "demo")
	everything := optIn(t, vectors)
	for _, v := range vectors {
		fate := v.Demo // metadata stays refused
		if v.Class == audit.ClassOwn {
			fate = v.Production // and so do we ourselves
		}
		r.fire(t, "opted in", ofVector(everything, v), v, fate)
	}
	r.report(t, "everything opted in")
	r.closedPort(t)
	if len(r.texts) != 1 {
		t.Errorf("refusals can be told apart: %v", r.texts)
	}
	r.withoutGuard(t, vectors)
	r.throughProxy(t)
}

// optIn is a policy that allows all that a policy can allow.
func optIn(t *testing.T, vectors []audit.Vector) egress.Policy {
	t.Helper()
	policy := egress.Policy{AnyPort: true, CIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("::/0")}}
	for _, v := range vectors {
		u, err := url.Parse(v.URL)
		if err != nil {
			continue
		}
		if _, err := egress.NewDialer(egress.Policy{Hosts: []string{u.Hostname()}}, 0, nil); err == nil {
			policy.Hosts = append(policy.Hosts, u.Hostname())
		}
	}
	if len(policy.Hosts) < 100 {
		t.Fatalf("only %d hosts can be opted in", len(policy.Hosts))
	}
	return policy
}

// firingRange fires vectors and looks where they go.
type firingRange struct {
	names  *nameServer
	canary *everywhere
	texts  map[string]int // :: what a caller hears of a refusal → how often

	refused, arrived int // since the last report
}

func (r *firingRange) report(t *testing.T, mode string) {
	t.Helper()
	t.Logf("figures: %s: %d refused without a connection, %d arrived", mode, r.refused, r.arrived)
	r.refused, r.arrived = 0, 0
}

// prepare has names and receiver answer as the vector wants, and looks its name up as a
// guard that trusts a look-up of its own would.
func (r *firingRange) prepare(t *testing.T, v audit.Vector) {
	t.Helper()
	r.canary.answer.Store(&v.Receiver)
	if v.Answers == nil {
		return
	}
	u, err := url.Parse(v.URL)
	if err != nil {
		t.Fatal(err)
	}
	host, err := idna.Lookup.ToASCII(u.Hostname())
	if err != nil {
		t.Fatal(err)
	}
	r.names.forget(host + ".")
	r.names.answersWith(host+".", func(nth int) []string { return v.Answers[min(nth, len(v.Answers))-1] })
	for range len(v.Answers) - 1 {
		_, _ = r.names.resolver().LookupNetIP(t.Context(), "ip", host)
	}
}

// fire submits one vector, delivers it whatever came of that, and checks its fate.
func (r *firingRange) fire(t *testing.T, mode string, policy egress.Policy, v audit.Vector, fate audit.Fate) {
	t.Helper()
	complain := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s (%.100q): %s", mode, v.Name, v.URL, fmt.Sprintf(format, args...))
	}
	r.prepare(t, v)
	client, err := egress.New(egress.Config{Policy: policy, Resolver: r.names.resolver(),
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	opens, questions := activeOpens(t), r.names.questions()
	if got := tandem.CodeOf(client.Check(v.URL)); got != fate.Code() {
		complain("Check says %q, want it %s", got, fate)
	}
	if opened, asked := activeOpens(t)-opens, r.names.questions()-questions; opened+asked != 0 {
		complain("Check began %d connections and asked %d questions", opened, asked)
	}
	got := post(t, client, v.URL)
	opened, asked := activeOpens(t)-opens, r.names.questions()-questions
	arrivals := r.canary.await(t, opened)
	if fate != audit.FateCalled {
		if got.Outcome != tandem.OutcomeBlocked || got.StatusCode != 0 || got.RetryAfter != 0 {
			complain("Post = %+v, want it blocked", got)
		}
		if opened != 0 {
			complain("%d connections left, to %v", opened, arrivals)
		}
		if (asked > 0) != (fate == audit.FateStopped) {
			complain("%d questions to the name server", asked)
		}
		r.texts[got.Message]++
		r.refused++
		return
	}
	r.arrived++
	for _, a := range arrivals {
		if verdict := policy.Judge(a.to); !verdict.Allows() {
			complain("it arrived at %s: %s", a.to, verdict)
		}
	}
	if n := len(arrivals); n != 1 && (n != 2 || v.Answers == nil) { // both families may race
		complain("%d connections, want 1: %v", n, arrivals)
		return
	}
	u, err := url.Parse(v.URL)
	if err != nil {
		t.Fatal(err)
	}
	if u.Scheme == "https" { // the canary has no certificate
		if got.Outcome != tandem.OutcomeTLS {
			complain("Post = %+v, want a failed handshake", got)
		}
		return
	}
	if redirect := got.StatusCode >= 300 && got.StatusCode < 400; got.StatusCode == 0 ||
		redirect != (got.Outcome == tandem.OutcomeRedirect) {
		complain("Post = %+v", got)
	}
	requests := 0
	for _, a := range arrivals {
		if a.request == nil {
			continue
		}
		requests++
		if a.request.Method != http.MethodPost || !sameRequestLine(a.request.RequestURI, u.RequestURI()) ||
			a.body != `{"x":1}` || a.more != 0 {
			complain("%s %s with %q and %d bytes more arrived", a.request.Method, a.request.RequestURI, a.body, a.more)
		}
		for name := range a.request.Header {
			if name != "Content-Type" && name != "Content-Length" && name != "User-Agent" {
				complain("the header %s arrived", name)
			}
		}
	}
	if requests != 1 {
		complain("%d requests, want 1", requests)
	}
}

// sameRequestLine reports whether what was sent is what was written, perhaps with more of it percent-encoded.
func sameRequestLine(sent, written string) bool {
	isASCII := strings.IndexFunc(sent, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
	decoded, err1 := url.PathUnescape(sent)
	want, err2 := url.PathUnescape(written)
	return isASCII && err1 == nil && err2 == nil && decoded == want
}

// closedPort compares a refused address where somebody listens with one where nobody does: the
// caller must not be able to tell them apart.
func (r *firingRange) closedPort(t *testing.T) {
	t.Helper()
	const closed = "9" // no vector has it, so the canary is not there
	client := newClient(t, egress.Config{Policy: egress.Policy{Ports: []uint16{9}}, Resolver: r.names.resolver(),
		Log: slog.New(slog.DiscardHandler)})
	r.names.has("inside.example.", "10.0.0.1")
	for _, host := range []string{"10.0.0.1", "inside.example"} {
		opens := activeOpens(t)
		open, shut := post(t, client, "http://"+host+"/"), post(t, client, "http://"+net.JoinHostPort(host, closed)+"/")
		if open.Outcome != shut.Outcome || open.StatusCode != shut.StatusCode || open.Message != shut.Message ||
			open.RetryAfter != shut.RetryAfter || open.Interrupted != shut.Interrupted {
			t.Errorf("%s: an open port gives %+v, a closed one %+v", host, open, shut)
		}
		if opened := activeOpens(t) - opens; opened != 0 { // which is why the time tells nothing either
			t.Errorf("%s: %d connections", host, opened)
		}
	}
	// The same address answers where it is allowed, and nobody listens on the other port.
	allowed := newClient(t, egress.Config{Policy: demoPolicy(), Log: slog.New(slog.DiscardHandler)})
	open, shut := post(t, allowed, "http://10.0.0.1/"), post(t, allowed, "http://10.0.0.1:"+closed+"/")
	if open.Outcome != tandem.OutcomeDelivered || shut.Outcome != tandem.OutcomeConnect {
		t.Errorf("allowed: %+v and %+v, want an open and a closed port", open, shut)
	}
	r.canary.await(t, 1)
}

// withoutGuard shows that the canary and the kernel's count would see what the guard stops:
// net/http over a resolver that reads addresses as the C library does delivers all of it
// that TCP can reach.
func (r *firingRange) withoutGuard(t *testing.T, vectors []audit.Vector) {
	t.Helper()
	dialer := net.Dialer{Resolver: r.names.resolver()}
	dial := func(ctx context.Context, network, hostPort string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(hostPort)
		if err != nil {
			return nil, err
		}
		return dialer.DialContext(ctx, network, net.JoinHostPort(inetAton(host), port))
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: dial}
	defer transport.CloseIdleConnections()
	arrived, unreachable, notHTTP := 0, 0, 0
	for _, v := range vectors {
		if v.Production == audit.FateCalled {
			continue
		}
		r.prepare(t, v)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.URL, strings.NewReader(`{"x":1}`))
		if err != nil || request.URL.Scheme != "http" {
			notHTTP++
			continue
		}
		opens := activeOpens(t)
		answer, err := transport.RoundTrip(request)
		opened := activeOpens(t) - opens
		switch {
		case err == nil:
			answer.Body.Close()
			if n := len(r.canary.await(t, opened)); n == 0 {
				t.Errorf("%s: an answer came, but no connection was counted", v.Name)
			}
			arrived++
		case v.Production == audit.FateInvalid:
			notHTTP++
		case everyUnreachable(request.URL.Hostname(), v.Answers):
			unreachable++
		default:
			t.Errorf("%s (%q): without the guard it does not arrive, so nothing shows that the guard stops it: %v", v.Name,
				v.URL, err)
		}
	}
	t.Logf("figures: without the guard: %d of the refused arrive, %d go where no TCP connection can, "+
		"%d are nothing for net/http", arrived, unreachable, notHTTP)
	if arrived < 300 {
		t.Errorf("only %d vectors arrive without the guard", arrived)
	}
}

// inetAton reads a host as the C library does: one to four numbers, decimal, octal or
// hexadecimal, the last of which fills the bytes that are left. Other hosts stay as they are.
func inetAton(host string) string {
	parts := strings.Split(strings.TrimSuffix(strings.ToLower(host), "."), ".")
	var value uint64
	for i, part := range parts {
		base := 10
		if digits, isHex := strings.CutPrefix(part, "0x"); isHex {
			part, base = digits, 16
		} else if len(part) > 1 && part[0] == '0' {
			base = 8
		}
		number, err := strconv.ParseUint(part, base, 32)
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if err != nil || len(parts) > 4 || number >= 1<<bits {
			return host
		}
		value = value<<bits | number
	}
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}).String()
}

// everyUnreachable reports whether all addresses are multicast, broadcast or link-local.
func everyUnreachable(host string, answers [][]string) bool {
	texts := []string{host}
	if answers != nil {
		texts = answers[len(answers)-1]
	}
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		addr = addr.Unmap()
		if err != nil || !addr.IsMulticast() && addr != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
			(addr.Is4() || !addr.IsLinkLocalUnicast()) {
			return false
		}
	}
	return true
}

// throughProxy shows that the environment of this process would send a trusting client to a proxy.
func (r *firingRange) throughProxy(t *testing.T) {
	t.Helper()
	trusting := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://example.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := trusting.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if arrivals := r.canary.await(t, 1); arrivals[0].to.String() != proxyAddress {
		t.Errorf("a client that trusts the environment went to %s, want the proxy", arrivals[0].to)
	}
	t.Log("figures: the environment names a proxy, and a client that trusts it goes there")
}
