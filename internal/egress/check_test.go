package egress_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/audit"
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

// ofVector is a policy for the deployment that a vector is about.
func ofVector(policy egress.Policy, v audit.Vector) egress.Policy {
	if v.Own.IsValid() {
		policy.Own, policy.Ports = []netip.AddrPort{v.Own}, []uint16{v.Own.Port()}
	}
	return policy
}

func TestCheckVectors(t *testing.T) {
	t.Parallel()
	for _, v := range audit.Vectors() {
		strict := newClient(t, egress.Config{Policy: ofVector(egress.Policy{}, v)})
		if got := tandem.CodeOf(strict.Check(v.URL)); got != v.Production.Code() {
			t.Errorf("production: %s: Check(%.80q) = %q, want it %s", v.Name, v.URL, got, v.Production)
		}
		demo := newClient(t, egress.Config{Policy: ofVector(demoPolicy(), v)})
		if got := tandem.CodeOf(demo.Check(v.URL)); got != v.Demo.Code() {
			t.Errorf("demo: %s: Check(%.80q) = %q, want it %s", v.Name, v.URL, got, v.Demo)
		}
	}
}

// What is remembered of good URLs is bounded, and changes no answer: a client that has been
// asked before says what a new one says.
func TestCheckRemembers(t *testing.T) {
	t.Parallel()
	const good = 1000
	var urls []string
	for _, v := range audit.Vectors() {
		if !v.Own.IsValid() {
			urls = append(urls, v.URL)
		}
	}
	for i := range good {
		urls = append(urls, fmt.Sprintf("https://hooks.example.com/%d", i))
	}
	client := newClient(t, egress.Config{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for i := range 3 * len(urls) {
				url := urls[i/3] // three times each: found out, remembered, and perhaps forgotten by then
				want := tandem.CodeOf(newClient(t, egress.Config{}).Check(url))
				if got := tandem.CodeOf(client.Check(url)); got != want {
					t.Errorf("Check(%.80q) = %q, a new client says %q", url, got, want)
				}
			}
		})
	}
	asking.Wait()
	if n := client.Remembered(); n == 0 || n > 256 {
		t.Errorf("%d URLs are remembered, want 1 to 256", n)
	}
}

// The list is long, complete, without repeats and always the same: the audit counts on it.
func TestVectorsAreWellFormed(t *testing.T) {
	t.Parallel()
	fates := []audit.Fate{audit.FateInvalid, audit.FateBlocked, audit.FateStopped, audit.FateCalled}
	vectors := audit.Vectors()
	if len(vectors) < 400 {
		t.Errorf("%d vectors, want at least 400", len(vectors))
	}
	same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(vectors, audit.Vectors(), same); diff != "" {
		t.Errorf("the list changes:\n%s", diff)
	}
	names, urls, classes := make(map[string]bool), make(map[string]bool), make(map[audit.Class]int)
	for _, v := range vectors {
		if names[v.Name] || urls[v.URL] {
			t.Errorf("%s (%.80q) stands there twice", v.Name, v.URL)
		}
		names[v.Name], urls[v.URL] = true, true
		classes[v.Class]++
		if !strings.HasPrefix(v.Name, string(v.Class)+"/") || strings.ContainsAny(v.Name, " \r\n") || v.Why == "" {
			t.Errorf("%s: its name or reason is not complete", v.Name)
		}
		if !slices.Contains(fates, v.Production) || !slices.Contains(fates, v.Demo) {
			t.Errorf("%s: its fate is %q, %q in demo mode", v.Name, v.Production, v.Demo)
		}
		if v.Demo != audit.FateCalled && v.Production != v.Demo {
			t.Errorf("%s: refused in demo mode, and %s in production", v.Name, v.Production)
		}
		if (v.Production == audit.FateStopped || v.Demo == audit.FateStopped) && v.Answers == nil {
			t.Errorf("%s: nothing can be stopped at the dial without a look-up", v.Name)
		}
	}
	if len(classes) != 12 {
		t.Errorf("classes: %v", classes)
	}
}

// What is blocked must not be told apart by the caller, and the log must say why.
func TestCheckSaysOneThingToTheCallerAndTheReasonToTheLog(t *testing.T) {
	t.Parallel()
	var message string
	for _, v := range audit.Vectors() {
		if v.Production != audit.FateBlocked {
			continue
		}
		client := newClient(t, egress.Config{Policy: ofVector(egress.Policy{}, v)})
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
	err := newClient(t, egress.Config{}).Check("http://user:hunter2@example.com/?token=hunter2")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Check repeats what may be secret: %v", err)
	}
}

func TestCheckHostsOptedIn(t *testing.T) {
	t.Parallel()
	client := newClient(t, egress.Config{Policy: egress.Policy{Hosts: []string{"Receiver.", "hooks.internal",
		"10.0.0.5"}}})
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
