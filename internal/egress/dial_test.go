package egress_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
)

// Whatever Check refuses for its host, the dial refuses too: with net/http in
// between, which maps names in its own way, and with the host as it is written.
func TestDialRefusesWhateverCheckRefuses(t *testing.T) {
	t.Parallel()
	names := newNameServer(t) // knows no name: a refusal must not need an answer
	for _, mode := range []struct {
		name   string
		policy egress.Policy
	}{{"strict", egress.Policy{}}, {"demo", demoPolicy()}} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, egress.Config{Policy: mode.policy})
			dialer, err := egress.NewDialer(mode.policy, 0, names.resolver())
			if err != nil {
				t.Fatal(err)
			}
			transport := &http.Transport{DialContext: dialer.DialContext}
			defer transport.CloseIdleConnections()
			dialled := 0
			for _, v := range audit.Vectors() {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.URL, nil)
				if err != nil || request.URL.Scheme != "http" || strings.HasSuffix(request.URL.Host, ":") {
					continue // net/http has no connection for it, or hides that a port is missing
				}
				if client.Check("http://"+request.URL.Host+"/") == nil {
					continue // allowed, or refused for what the dial does not see
				}
				answer, err := transport.RoundTrip(request)
				if err == nil {
					answer.Body.Close()
					t.Errorf("%q (%s): an answer came", v.URL, v.Why)
					continue
				}
				var refused *egress.Refused
				if !errors.As(err, &refused) && strings.Contains(err.Error(), "dial ") {
					t.Errorf("%q (%s): %v, want it refused before any dial", v.URL, v.Why, err)
				}
				if refused != nil {
					dialled++
				}
			}
			if want := map[string]int{"strict": 400, "demo": 150}[mode.name]; dialled < want {
				t.Errorf("only %d vectors came as far as the dial, want at least %d", dialled, want)
			}
			if n := names.questions(); n != 0 {
				t.Errorf("%d look-ups for what is refused without", n)
			}
		})
	}
}

// The same for every end of every block, and for a Permit whose URL policy refuses.
func TestDialRefusesEveryBlock(t *testing.T) {
	t.Parallel()
	dialer, err := egress.NewDialer(egress.Policy{}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range egress.Blocks() {
		for _, addr := range []netip.Addr{block.Prefix.Addr(), last(block.Prefix)} {
			conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(addr.String(), "80"))
			if err == nil {
				conn.Close()
			}
			if _, refused := errors.AsType[*egress.Refused](err); !refused {
				t.Errorf("DialContext(%s) = %v, want it refused", addr, err)
			}
		}
	}
	for _, address := range []string{"", "example.com", "example.com:http", "example.com:0", "example.com:080",
		"example.com:+80", "example.com:65616", "-example.com:80", ":80"} {
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if err == nil {
			conn.Close()
		}
		if _, refused := errors.AsType[*egress.Refused](err); !refused {
			t.Errorf("DialContext(%q) = %v, want it refused", address, err)
		}
	}
}

// A name is public when it is checked and means this machine when it is dialled.
func TestRebinding(t *testing.T) {
	t.Parallel()
	names := newNameServer(t)
	names.answersWith("rebind.example.", func(nth int) []string {
		if nth == 1 {
			return []string{"203.0.114.1", "2a00::1"}
		}
		return []string{"127.0.0.1", "::1"}
	})
	trap := newCanary(t, "127.0.0.1", 0)
	client := newClient(t, egress.Config{
		Policy: egress.Policy{AnyPort: true}, Resolver: names.resolver(), Log: slog.New(slog.DiscardHandler),
	})
	target := fmt.Sprintf("http://rebind.example:%d/", trap.port())
	if err := client.Check(target); err != nil {
		t.Fatal(err)
	}
	first, err := names.resolver().LookupHost(t.Context(), "rebind.example") // what a check with DNS would see
	if err != nil || len(first) != 2 || first[0] == "127.0.0.1" {
		t.Fatalf("the first look-up: %v, %v", first, err)
	}
	if got := post(t, client, target); got.Outcome != tandem.OutcomeBlocked || got.StatusCode != 0 {
		t.Errorf("Post = %+v, want it blocked", got)
	}
	trap.mustBeQuiet(t)
}

func TestNamesThatResolveToForbiddenAddresses(t *testing.T) {
	t.Parallel()
	names := newNameServer(t)
	trap := newCanary(t, "127.0.0.1", 0)
	names.has("private.example.", "127.0.0.1")
	names.has("only6.example.", "::1")
	names.has("mapped.example.", "::ffff:127.0.0.1")
	names.has("chain.example.", "chain2.example.")
	names.has("chain2.example.", "chain3.example.")
	names.has("chain3.example.", "127.0.0.1")
	names.has("metadata.example.", "169.254.169.254")
	names.has("many.example.", "127.0.0.1", "10.0.0.1", "::1", "169.254.169.254")
	names.has("unspecified.example.", "0.0.0.0")
	names.has("hooks.internal.", "169.254.169.254")
	var log bytes.Buffer
	client := newClient(t, egress.Config{
		Policy: egress.Policy{AnyPort: true, Hosts: []string{"hooks.internal"}}, Resolver: names.resolver(),
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	messages := make(map[string]bool)
	for _, name := range []string{
		"private", "only6", "mapped", "chain", "metadata", "many", "unspecified",
	} {
		got := post(t, client, fmt.Sprintf("http://%s.example:%d/?token=hunter2", name, trap.port()))
		if got.Outcome != tandem.OutcomeBlocked {
			t.Errorf("%s: Post = %+v, want it blocked", name, got)
		}
		messages[got.Message] = true
	}
	got := post(t, client, fmt.Sprintf("http://hooks.internal:%d/", trap.port()))
	if got.Outcome != tandem.OutcomeBlocked {
		t.Errorf("an opted-in name that means metadata: Post = %+v, want it blocked", got)
	}
	// Refused without a look-up, after Check: the policy may have changed since then.
	got = post(t, client, fmt.Sprintf("http://127.0.0.1:%d/", trap.port()))
	messages[got.Message] = true
	if got.Outcome != tandem.OutcomeBlocked || len(messages) != 1 {
		t.Errorf("Post = %+v; the messages can be told apart: %v", got, messages)
	}
	trap.mustBeQuiet(t)
	if text := log.String(); !strings.Contains(text, "127.0.0.0/8") || strings.Contains(text, "hunter2") {
		t.Errorf("the log must name the block and keep the query out:\n%s", text)
	}
	if all := client.Destinations(20); len(all) != 8 || all[0].FailureCount != 0 {
		t.Errorf("refusals must not count as failures: %+v", all)
	}
}

// Of several addresses only the allowed ones are dialled.
func TestMixedAnswers(t *testing.T) {
	t.Parallel()
	names := newNameServer(t)
	trap := newCanary(t, "127.0.0.1", 0)
	allowed, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(trap.port())))
	if err != nil {
		t.Skipf("127.0.0.2 is not to be had here: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != fmt.Sprintf("mixed.example:%d", trap.port()) {
			w.WriteHeader(http.StatusMisdirectedRequest)
		}
	}))
	server.Listener.Close()
	server.Listener = allowed
	server.Start()
	defer server.Close()
	names.has("mixed.example.", "127.0.0.1", "::1", "127.0.0.2")
	client := newClient(t, egress.Config{
		Policy:   egress.Policy{AnyPort: true, CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}},
		Resolver: names.resolver(), Log: slog.New(slog.DiscardHandler),
	})
	target := fmt.Sprintf("http://mixed.example:%d/", trap.port())
	if got := post(t, client, target); got.Outcome != tandem.OutcomeDelivered {
		t.Errorf("Post = %+v, want it delivered to the allowed address", got)
	}
	server.Close()
	client.Close()
	// A refusal is final; the allowed address may come back.
	if got := post(t, client, target); got.Outcome != tandem.OutcomeConnect {
		t.Errorf("Post = %+v, want a connect error", got)
	}
	trap.mustBeQuiet(t)
}

func TestHostOptedIn(t *testing.T) {
	t.Parallel()
	names := newNameServer(t)
	names.has("hooks.internal.", "127.0.0.1")
	names.has("other.example.", "127.0.0.1")
	target := receiver(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	_, port, _ := strings.Cut(strings.TrimPrefix(target, "http://"), ":")
	client := newClient(t, egress.Config{
		Policy: egress.Policy{AnyPort: true, Hosts: []string{"hooks.internal"}}, Resolver: names.resolver(),
		Log: slog.New(slog.DiscardHandler),
	})
	if got := post(t, client, "http://HOOKS.internal.:"+port); got.Outcome != tandem.OutcomeDelivered {
		t.Errorf("opted in: Post = %+v, want it delivered", got)
	}
	if got := post(t, client, "http://other.example:"+port); got.Outcome != tandem.OutcomeBlocked {
		t.Errorf("another name for the same address: Post = %+v, want it blocked", got)
	}
}

// A proxy from the environment would make the connection for us. Not parallel: it
// sets the environment, which net/http reads once.
func TestNoProxyFromEnvironment(t *testing.T) { //nolint:paralleltest // it sets the environment
	proxy := newCanary(t, "127.0.0.1", 0)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://"+proxy.listener.Addr().String())
	}
	names := newNameServer(t)
	names.has("hooks.example.", "127.0.0.1")
	target := receiver(t, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := strings.Cut(strings.TrimPrefix(target, "http://"), ":")
	cfg := demo()
	cfg.Resolver = names.resolver()
	if got := post(t, newClient(t, cfg), "http://hooks.example:"+port); got.Outcome != tandem.OutcomeDelivered {
		t.Errorf("Post = %+v, want it delivered", got)
	}
	proxy.mustBeQuiet(t)
}
