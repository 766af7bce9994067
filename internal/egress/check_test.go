package egress_test

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/egress"
)

func demoPolicy() egress.Policy { return egress.Policy{AllowPrivate: true, AnyPort: true} }

func newClient(t testing.TB, cfg egress.Config) *egress.Client {
	t.Helper()
	client, err := egress.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestCheckVectors(t *testing.T) {
	t.Parallel()
	strict, demo := newClient(t, egress.Config{}), newClient(t, egress.Config{Policy: demoPolicy()})
	seen := make(map[string]bool)
	for _, v := range egress.Vectors() {
		if seen[v.URL] {
			t.Errorf("vector %.80q stands there twice", v.URL)
		}
		seen[v.URL] = true
		if got := tandem.CodeOf(strict.Check(v.URL)); got != v.Strict {
			t.Errorf("strict: Check(%.80q) = %q, want %q (%s)", v.URL, got, v.Strict, v.Why)
		}
		if got := tandem.CodeOf(demo.Check(v.URL)); got != v.Demo {
			t.Errorf("demo: Check(%.80q) = %q, want %q (%s)", v.URL, got, v.Demo, v.Why)
		}
	}
}

// What is blocked must not be told apart by the caller, and the log must say why.
func TestCheckSaysOneThingToTheCallerAndTheReasonToTheLog(t *testing.T) {
	t.Parallel()
	client := newClient(t, egress.Config{})
	var message string
	for _, v := range egress.Vectors() {
		if v.Strict != tandem.CodeCallbackBlocked {
			continue
		}
		var e *tandem.Error
		if !errors.As(client.Check(v.URL), &e) {
			t.Fatalf("Check(%q) is no *tandem.Error", v.URL)
		}
		if message == "" {
			message = e.Message
		}
		if e.Message != message {
			t.Errorf("Check(%q) says %q, another says %q", v.URL, e.Message, message)
		}
		var refused *egress.Refused
		if !errors.As(e, &refused) || refused.Verdict.Allows() || refused.Verdict.Reason == "" || refused.Target == "" {
			t.Errorf("Check(%q): the cause is %v, want a *Refused with its reason", v.URL, e.Err)
		}
	}
	err := client.Check("http://user:hunter2@example.com/?token=hunter2")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Check repeats what may be secret: %v", err)
	}
}

func TestCheckHostsOptedIn(t *testing.T) {
	t.Parallel()
	client := newClient(t, egress.Config{Policy: egress.Policy{Hosts: []string{"Receiver.", "hooks.internal", "10.0.0.5"}}})
	for target, want := range map[string]tandem.Code{
		"http://receiver/":         "",
		"http://RECEIVER./x":       "",
		"http://hooks.internal/":   "",
		"http://10.0.0.5/":         "",
		"http://receiver2/":        tandem.CodeCallbackBlocked,
		"http://x.hooks.internal/": tandem.CodeCallbackBlocked,
		"http://10.0.0.6/":         tandem.CodeCallbackBlocked,
		"http://receiver:8080/":    tandem.CodeCallbackBlocked, // a host is opted in, not its ports
	} {
		if got := tandem.CodeOf(client.Check(target)); got != want {
			t.Errorf("Check(%s) = %q, want %q", target, got, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, v := range egress.Vectors() {
		f.Add(v.URL)
	}
	strict, demo := newClient(f, egress.Config{}), newClient(f, egress.Config{Policy: demoPolicy()})
	var policy egress.Policy
	f.Fuzz(func(t *testing.T, raw string) {
		strictErr, demoErr := strict.Check(raw), demo.Check(raw)
		for _, err := range []error{strictErr, demoErr} {
			if code := tandem.CodeOf(err); err != nil && code != tandem.CodeInvalidCallbackURL && code != tandem.CodeCallbackBlocked {
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

func BenchmarkCheck(b *testing.B) {
	for name, target := range map[string]string{
		"name":    "https://hooks.example.com/tandem/callback?tenant=42",
		"address": "http://8.8.8.8/callback",
		"IPv6":    "http://[2606:4700:4700::1111]/callback",
		"idna":    "http://bücher.example/callback",
	} {
		b.Run(name, func(b *testing.B) {
			client := newClient(b, egress.Config{})
			b.ReportAllocs()
			for b.Loop() {
				if err := client.Check(target); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
