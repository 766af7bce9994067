package egress_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tandem"
	"tandem/internal/egress"
)

// postAs makes one exchange for an API key, which must find a permit at once.
func postAs(t *testing.T, client *egress.Client, key, url string) egress.Result {
	t.Helper()
	permit, err := client.Reserve(t.Context(), url, key)
	if err != nil {
		t.Fatalf("Reserve(%s) for %s: %v", url, key, err)
	}
	return permit.Post(t.Context(), nil, nil)
}

// heldUntil is when a call of a key may be made; zero: now.
func heldUntil(t *testing.T, client *egress.Client, key, url string) time.Time {
	t.Helper()
	r, err := client.Receiver(url, key)
	if err != nil {
		t.Fatal(err)
	}
	return client.HeldUntil(r)
}

// brokenPaths answers 500 below /broken and 200 elsewhere.
func brokenPaths(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/callback/broken") {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func TestEachSchemeHasItsOwnBreaker(t *testing.T) {
	t.Parallel()
	target := receiver(t, brokenPaths)
	client := newClient(t, demo())
	secure := strings.Replace(target, "http:", "https:", 1)
	for range 5 {
		if got := postAs(t, client, "a", secure); got.Outcome != tandem.OutcomeTLS {
			t.Fatalf("TLS to a plain port: %+v", got)
		}
	}
	if heldUntil(t, client, "a", secure).IsZero() || heldUntil(t, client, "b", secure).IsZero() {
		t.Error("https is called although it has failed five times in a row")
	}
	if got := postAs(t, client, "b", target); got.Outcome != tandem.OutcomeDelivered {
		t.Errorf("http at the same port: %+v", got)
	}
	if found := client.Failing(10); len(found) != 1 || found[0].Scheme != "https" {
		t.Errorf("published to other nodes: %+v, want https only", found)
	}
}

// Answers 5xx hold back what got them: a path of a key, or a key whose paths fail one after the other.
func TestAnswersHoldBackNobodyElse(t *testing.T) {
	t.Parallel()
	target := receiver(t, brokenPaths)
	client := newClient(t, demo())
	for range 5 {
		postAs(t, client, "a", target+"/broken?n=1")
	}
	if heldUntil(t, client, "a", target+"/broken?n=2").IsZero() {
		t.Error("a path that answered 500 five times in a row is called again")
	}
	for _, other := range []struct{ key, url string }{
		{"a", target + "/well"}, {"b", target + "/broken"}, {"", target + "/broken"},
	} {
		if until := heldUntil(t, client, other.key, other.url); !until.IsZero() {
			t.Errorf("%s of key %q is held back until %v", other.url, other.key, until)
		}
	}
	if seen := only(t, client); seen.State != "open" || seen.FailureCount != 5 || seen.RetryAt.IsZero() {
		t.Errorf("destination = %+v, want it shown open with 5 failures", seen)
	}
	if found := client.Failing(10); len(found) != 0 {
		t.Errorf("published to other nodes: %+v, want nothing", found)
	}

	for n := range 5 { // each callback has a URL of its own
		postAs(t, client, "c", fmt.Sprint(target, "/broken/", n))
	}
	if heldUntil(t, client, "c", target+"/broken/5").IsZero() {
		t.Error("five paths of a key failed in a row, and another one is called")
	}
	if until := heldUntil(t, client, "b", target+"/broken/5"); !until.IsZero() {
		t.Errorf("another key is held back until %v", until)
	}
}

// A path that hangs says nothing about a host that answers others.
func TestHangingPathHoldsBackNoOther(t *testing.T) {
	t.Parallel()
	hanging := hang(t)
	target := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/hang") {
			hanging(w, r)
		}
	})
	cfg := demo()
	cfg.Timeout, cfg.BreakerOpen, cfg.BreakerFailures = 50*time.Millisecond, time.Hour, 2
	client := newClient(t, cfg)
	if got := postAs(t, client, "b", target); got.Outcome != tandem.OutcomeDelivered {
		t.Skipf("the machine is too busy: %+v", got)
	}
	for range 2 {
		if got := postAs(t, client, "a", target+"/hang"); got.Outcome != tandem.OutcomeTimeout {
			t.Fatalf("%+v, want a timeout", got)
		}
	}
	if heldUntil(t, client, "a", target+"/hang").IsZero() {
		t.Error("the path that hangs is called again")
	}
	if until := heldUntil(t, client, "b", target); !until.IsZero() {
		t.Errorf("another path is held back until %v", until)
	}
}

// When a dead host may be probed, the keys take turns: the one that failed last comes last.
func TestProbesGoInTurn(t *testing.T) {
	t.Parallel()
	target := closedPort(t)
	cfg := demo()
	cfg.BreakerFailures, cfg.BreakerOpen = 1, 2*time.Second
	client := newClient(t, cfg)
	postAs(t, client, "a", target) // opens the breaker
	for range 20 {
		rescheduledAs(t, client, "a", target)
	}
	opened := only(t, client).RetryAt
	if b := rescheduledAs(t, client, "b", target); b.Until.Sub(opened) > egress.TurnWait {
		t.Errorf("b comes back %v after the breaker is half-open, behind the calls of a", b.Until.Sub(opened))
	}
	until(t, opened)
	if a := rescheduledAs(t, client, "a", target); a.Until.Sub(opened) < egress.TurnWait {
		t.Errorf("a comes back %v after the breaker is half-open, before b had its turn", a.Until.Sub(opened))
	}
	probe := postAs(t, client, "b", target)
	if probe.Reschedule == nil || probe.Outcome != tandem.OutcomeConnect {
		t.Errorf("a probe in vain: %+v, want it to use up no attempt", probe)
	}
	rescheduledAs(t, client, "b", target)
	opened = only(t, client).RetryAt
	if a := heldUntil(t, client, "a", target); a.After(opened) {
		t.Errorf("a may probe %v after b has", a.Sub(opened))
	}
}

func rescheduledAs(t *testing.T, client *egress.Client, key, url string) *egress.Reschedule {
	t.Helper()
	permit, err := client.Reserve(t.Context(), url, key)
	var later *egress.Reschedule
	if !errors.As(err, &later) {
		if permit != nil {
			permit.Release()
		}
		t.Fatalf("Reserve(%s) for %s = %v, want a *Reschedule", url, key, err)
	}
	return later
}

// The first call of each key, of however many that wait, comes back when it is its turn.
func TestEachKeyComesBackForItsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := newClient(t, demo())
		retryAt := time.Now().Add(time.Minute)
		client.MarkFailing(egress.Destination{
			Site: egress.Site{Scheme: "http", Host: "a.example:80"}, FailureCount: 5, RetryAt: retryAt,
		})
		for i, key := range []string{"a", "b", "c"} {
			for n := range 10_000 {
				late := rescheduledAs(t, client, key, "http://a.example/").Until.Sub(retryAt)
				turn := time.Duration(i) * egress.TurnWait
				if n == 0 && (late < turn || late > turn+egress.TurnWait) || late < 0 {
					t.Fatalf("call %d of %s comes back %v after the breaker is half-open, its turn is after %v",
						n, key, late, turn)
				}
			}
		}
	})
}

// What hinders us ourselves is no failure of the receiver: it is reported as our own, and costs no attempt.
func TestLocalFault(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}:         "file descriptor",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENFILE)}:         "file descriptor",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENOBUFS)}:        "memory",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENOMEM)}:         "memory",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}: "local port",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}:  "",
		&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}:   "",
		&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}:                      "",
		&net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving"}}:             "name server",
		&net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true}}:   "name server",
		&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}:       "",
		fmt.Errorf("dial: %w", context.DeadlineExceeded):                                    "",
		fmt.Errorf("read: %w", io.ErrUnexpectedEOF):                                         "",
	} {
		if got := egress.LocalFault(err); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%v: %q, want it to name the %q", err, got, want)
		}
	}
	dead := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}}
	for _, tt := range []struct {
		name     string
		resolver *net.Resolver
		trouble  bool
	}{
		{"the name server is dead", &dead, true},
		{"there is no such name", newNameServer(t).resolver(), false},
	} {
		cfg := demo()
		cfg.Resolver = tt.resolver
		client := newClient(t, cfg)
		got := post(t, client, "http://hooks.example/")
		if (got.Reschedule != nil) != tt.trouble || got.Outcome != tandem.OutcomeConnect ||
			strings.Contains(got.Message, "this server") != tt.trouble {
			t.Errorf("%s: %+v, rescheduled: %v", tt.name, got, got.Reschedule)
		}
		if seen := only(t, client); (seen.FailureCount == 0) != tt.trouble {
			t.Errorf("%s: %d failures of the destination", tt.name, seen.FailureCount)
		}
		if until := heldUntil(t, client, "", "http://hooks.example/"); until.IsZero() == tt.trouble {
			t.Errorf("%s: held until %v", tt.name, until)
		}
	}
}

// An outage is in the log once, with its cause, and so is its end; trouble of our own is logged as such.
func TestOutageIsLogged(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	target := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	var log bytes.Buffer
	cfg := demo()
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	client := newClient(t, cfg)
	for range 3 {
		post(t, client, target)
	}
	host := only(t, client).Host // before there are others
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") ||
		!strings.Contains(got, "host="+host) ||
		!strings.Contains(got, "outcome=http_error status_code=502 error=\"the receiver answered 502\"") {
		t.Errorf("the log of an outage: %s", got)
	}
	log.Reset()
	for code, want := range map[int]int{http.StatusTooManyRequests: 0, http.StatusServiceUnavailable: 1} {
		post(t, client, receiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		if got := strings.Count(log.String(), "\n"); got != want {
			t.Errorf("%d lines about a receiver that answers %d, want %d", got, code, want)
		}
		log.Reset()
	}
	well.Store(true)
	for range 3 {
		post(t, client, target)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=INFO") ||
		!strings.Contains(got, "host="+host) {
		t.Errorf("the log of its end: %s", got)
	}
}

// Room says for how many parked calls there is room, at a site or at one path of a key.
func TestRoom(t *testing.T) {
	t.Parallel()
	target := receiver(t, brokenPaths)
	client := newClient(t, demo())
	site, path := strings.TrimSuffix(target, "/callback"), target+"/broken"
	room := func(destination, key string, want int) {
		t.Helper()
		if n := client.Room(destination, key); n != want {
			t.Errorf("room for %d calls of key %q at %s, want %d", n, key, destination, want)
		}
	}
	room(site, "a", 20) // nothing is known of it
	for range 5 {
		postAs(t, client, "a", path)
	}
	room(path, "a", 0)
	room(site, "a", 20)
	room(path, "b", 20)
	_, err := client.Reserve(t.Context(), path, "a")
	if later, ok := errors.AsType[*egress.Reschedule](err); !ok || !later.Held || later.Destination != path {
		t.Errorf("rescheduled with %+v, want it held at %s", err, path)
	}
}
