package audit_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/internal/audit"
	"tandem/internal/egress"
	"tandem/internal/limit"
	"tandem/internal/server"
	"tandem/internal/tandemtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// auditTwin runs one check against a twin with a flaw.
func auditTwin(t *testing.T, id, flaw string) audit.Entry {
	t.Helper()
	check := findCheck(t, id)
	quota := 5_000
	if check.Group == audit.GroupRate {
		quota = 100
	}
	receiver, callbackURL := startReceiver(t)
	w := newTwin(t, flaw, quota, callbackURL)
	cfg := audit.Config{
		URL: w.url, Level: audit.LevelFull, Only: []string{id}, APIKey: callerKey, SecondKey: secondKey, AdminKey: adminKey, Secret: w.secret,
		Receiver: receiver, CallbackURL: callbackURL, Rate: 2_000, Patience: 5 * time.Second, Settle: 500 * time.Millisecond,
	}
	if check.Group == audit.GroupTLS {
		secure(t, &cfg, w, flaw)
	}
	return onlyEntry(t, cfg)
}

func findCheck(t *testing.T, id string) audit.Check {
	t.Helper()
	for _, check := range audit.Checks() {
		if check.ID == id {
			return check
		}
	}
	t.Fatalf("no check %s", id)
	return audit.Check{}
}

func onlyEntry(t *testing.T, cfg audit.Config) audit.Entry {
	t.Helper()
	report, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 1 {
		t.Fatalf("%d findings, want 1", len(report.Findings))
	}
	return report.Findings[0]
}

// secure puts TLS before a twin.
func secure(t *testing.T, cfg *audit.Config, handler http.Handler, flaw string) {
	t.Helper()
	if flaw == "tls-in-use" { // plain http under a public name
		at := strings.TrimPrefix(cfg.URL, "http://")
		cfg.URL = "http://tandem.example.com"
		cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at)
		}
		return
	}
	days := 90
	if flaw == "tls-certificate" {
		days = 3
	}
	lowest := uint16(tls.VersionTLS12)
	if flaw == "tls-versions" {
		lowest = tls.VersionTLS10
	}
	certificate := tandemtest.NewCertificate(t, 1, time.Now().AddDate(0, 0, days))
	front := httptest.NewUnstartedServer(handler)
	front.TLS = &tls.Config{Certificates: []tls.Certificate{certificate.Certificate}, MinVersion: lowest}
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // refused handshakes: that is the point
	front.StartTLS()
	t.Cleanup(front.Close)
	cfg.URL, cfg.RootCAs = front.URL, certificate.Pool
}

// TestEveryCheckFindsItsFlaw: each check fails on the twin that has what it looks for, and passes
// on the twin that has not. A check without a flaw in the twin cannot pass this test.
func TestEveryCheckFindsItsFlaw(t *testing.T) {
	t.Parallel()
	for _, check := range audit.Checks() {
		t.Run(check.ID, func(t *testing.T) {
			t.Parallel()
			if got := auditTwin(t, check.ID, check.ID); got.Outcome != audit.Fail {
				t.Errorf("with the flaw: %s, want fail\n%s", got.Outcome, strings.Join(got.Evidence, "\n"))
			}
			if got := auditTwin(t, check.ID, ""); got.Outcome != audit.Pass {
				t.Errorf("without the flaw: %s, want pass\n%s", got.Outcome, strings.Join(got.Evidence, "\n"))
			}
		})
	}
}

// TestHeldBackCallbackCostsNothing: a breaker that opens, and uses up the attempts of what it holds back.
func TestHeldBackCallbackCostsNothing(t *testing.T) {
	t.Parallel()
	got := auditTwin(t, "breaker-opens", holdingBackCosts)
	if evidence := strings.Join(got.Evidence, "\n"); got.Outcome != audit.Fail || !strings.Contains(evidence, "used up 1 attempts") {
		t.Errorf("%s, want fail\n%s", got.Outcome, evidence)
	}
}

// TestBreakerOfTwoNodes: each counts its own failures, so it takes more of them until one opens.
func TestBreakerOfTwoNodes(t *testing.T) {
	t.Parallel()
	got := auditTwin(t, "breaker-opens", twoNodes)
	if evidence := strings.Join(got.Evidence, "\n"); got.Outcome != audit.Pass || !strings.Contains(evidence, "after 9 callbacks") {
		t.Errorf("%s, want pass after 9 callbacks\n%s", got.Outcome, evidence)
	}
}

// mustPass are the checks that a deployment passes today, in demo mode on loopback and without keys.
var mustPass = []string{
	"ssrf-metadata", "ssrf-notation", "ssrf-redirect", "ssrf-oracle", "input-json", "input-duplicate-names", "input-depth", "input-types", "input-media-type",
	"input-query", "input-path", "input-injection", "error-problems", "error-markup", "error-request-id", "error-5xx", "error-internals", "callback-signed",
	"headers-nosniff", "headers-no-store", "headers-pages", "headers-banner", "cors-origin", "cors-preflight", "cors-cross-site-post", "limit-announced-body", "limit-streamed-body",
	"limit-header", "limit-page", "limit-methods", "health-open", "health-details",
}

// mustPassProduction are those that production mode adds.
var mustPassProduction = []string{"ssrf-private", "ssrf-port", "ssrf-own-address", "rate-limit-announced", "rate-limit-reads", "rate-limit-forwarded-for", "rate-limit-enforced", "headers-security-txt"}

// mustPassTLS are those that need a certificate, and those about headers and limits, which HTTP/2 has in another way.
var mustPassTLS = []string{
	"tls-in-use", "tls-versions", "tls-certificate", "headers-nosniff", "headers-no-store", "headers-pages", "headers-banner", "cors-cross-site-post",
	"limit-announced-body", "limit-streamed-body", "limit-header", "limit-methods", "limit-slow-client", "rate-limit-batch", "error-problems",
}

// TestRealService: what the real service promises today passes, in demo mode and as in production.
func TestRealService(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		want []string
		cfg  func(receiver string) tandemtest.Config
	}{
		{"demo", mustPass, func(string) tandemtest.Config { return tandemtest.Config{} }},
		{"production", slices.Concat(mustPass, mustPassProduction), func(receiver string) tandemtest.Config {
			return tandemtest.Config{
				Strict: true, Egress: egress.Config{Policy: receiverOnly(t, receiver)},
				Server: server.Config{
					Mode: "production", RateLimit: limit.Quota{Calls: 190, Window: time.Minute}, ReadLimit: limit.Quota{Calls: 5_000, Window: time.Minute},
					SecurityContact: "mailto:security@example.com",
				},
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			receiver, callbackURL := startReceiver(t)
			s := tandemtest.Start(t, c.cfg(callbackURL))
			report, err := audit.Run(t.Context(), audit.Config{URL: s.URL, Only: c.want, Secret: s.Secret, Receiver: receiver, CallbackURL: callbackURL, Rate: 2_000})
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Findings) != len(c.want) {
				t.Errorf("%d findings, want %d", len(report.Findings), len(c.want))
			}
			for _, entry := range report.Findings {
				if entry.Outcome != audit.Pass {
					t.Errorf("%s: %s, want pass\n%s", entry.ID, entry.Outcome, strings.Join(entry.Evidence, "\n"))
				}
			}
		})
	}
}

// TestRealServiceOverTLS: so does it over HTTP/2 with a certificate of its own, also what only the full audit asks.
func TestRealServiceOverTLS(t *testing.T) {
	t.Parallel()
	pair := tandemtest.NewCertificate(t, 1, time.Now().AddDate(0, 0, 90))
	certFile, keyFile := pair.Write(t, t.TempDir())
	certificate, err := server.LoadCertificate(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := tandemtest.Start(t, tandemtest.Config{RootCAs: pair.Pool, Server: server.Config{Certificate: certificate, RateLimit: limit.Quota{Calls: 1_000, Window: time.Minute}}})
	report, err := audit.Run(t.Context(), audit.Config{URL: s.URL, RootCAs: pair.Pool, Level: audit.LevelFull, Only: mustPassTLS, Rate: 2_000, Patience: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != len(mustPassTLS) {
		t.Errorf("%d findings, want %d", len(report.Findings), len(mustPassTLS))
	}
	for _, entry := range report.Findings {
		if entry.Outcome != audit.Pass {
			t.Errorf("%s: %s, want pass\n%s", entry.ID, entry.Outcome, strings.Join(entry.Evidence, "\n"))
		}
	}
}

// TestDemoModeIsNotSafe: the audit says what demo mode allows.
func TestDemoModeIsNotSafe(t *testing.T) {
	t.Parallel()
	s := tandemtest.Start(t, tandemtest.Config{})
	report, err := audit.Run(t.Context(), audit.Config{URL: s.URL, Only: []string{"ssrf-own-address", "rate-limit-enforced"}, Rate: 2_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range report.Findings {
		if entry.Outcome != audit.Fail {
			t.Errorf("%s: %s, want fail\n%s", entry.ID, entry.Outcome, strings.Join(entry.Evidence, "\n"))
		}
	}
}

// TestRunRefuses what is no tandem, what does not answer, and a key that is refused.
func TestRunRefuses(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	w := newTwin(t, "", 5_000, "")
	for _, c := range []struct {
		name, want string
		cfg        audit.Config
	}{
		{"no tandem", "is no tandem", audit.Config{URL: other.URL}},
		{"nobody", "reach http://", audit.Config{URL: strings.TrimSuffix(tandemtest.Refusing(t), "/callback")}},
		{"a wrong key", "the deployment refuses --api-key", audit.Config{URL: w.url, APIKey: "tdm_wrong"}},
		{"no address", "want http://HOST:PORT", audit.Config{URL: "localhost:8000"}},
		{"a password in the address", "want http://HOST:PORT", audit.Config{URL: "http://user:hunter2@127.0.0.1"}},
		{"an unknown check", `no check or group "nonsense"`, audit.Config{URL: w.url, Only: []string{"nonsense"}}},
		{"a receiver without an address", "come together", audit.Config{URL: w.url, Receiver: audit.NewReceiver()}},
		{"a key with a line break", "printable ASCII", audit.Config{URL: w.url, APIKey: "tdm_\nx"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := audit.Run(t.Context(), c.cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "tdm_")) {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

// TestUndecided: what is missing leaves a check undecided, never passed.
func TestUndecided(t *testing.T) {
	t.Parallel()
	w := newTwin(t, "", 5_000, "")
	report, err := audit.Run(t.Context(), audit.Config{URL: w.url, Only: []string{"ssrf-redirect", "tenant-list", "tls-versions", "input-json", "stats-count", "limit-slow-client"}, Rate: 2_000})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"ssrf-redirect": "--receiver", "tenant-list": "--second-api-key", "tls-versions": "https", "input-json": "--api-key", "stats-count": "--admin-key", "limit-slow-client": "--level full",
	}
	for _, entry := range report.Findings {
		outcome := audit.Undecided
		if entry.ID == "limit-slow-client" {
			outcome = audit.Skipped
		}
		if entry.Outcome != outcome || !strings.Contains(strings.Join(entry.Evidence, " "), want[entry.ID]) {
			t.Errorf("%s: %s %q, want %s naming %s", entry.ID, entry.Outcome, entry.Evidence, outcome, want[entry.ID])
		}
	}
	if report.Summary.Undecided != 5 || report.Summary.Skipped != 1 {
		t.Errorf("summary %+v, want 5 undecided and 1 skipped", report.Summary)
	}
}

// TestBudget: no more requests go out than were allowed, and what could not be asked is undecided.
func TestBudget(t *testing.T) {
	t.Parallel()
	w := newTwin(t, "", 5_000, "")
	report, err := audit.Run(t.Context(), audit.Config{URL: w.url, APIKey: callerKey, Only: []string{"input-validation"}, MaxRequests: 8, Rate: 2_000})
	if err != nil {
		t.Fatal(err)
	}
	if report.RequestsSent != 8 {
		t.Errorf("%d requests sent, want 8", report.RequestsSent)
	}
	if last := report.Findings[len(report.Findings)-1]; last.Outcome != audit.Undecided || !strings.Contains(last.Evidence[0], "as many requests as it may") {
		t.Errorf("%s: %s %q, want undecided for want of requests", last.ID, last.Outcome, last.Evidence)
	}
}

// TestPace: requests leave no faster than they may.
func TestPace(t *testing.T) {
	t.Parallel()
	w := newTwin(t, "", 5_000, "")
	began := time.Now()
	report, err := audit.Run(t.Context(), audit.Config{URL: w.url, APIKey: callerKey, Only: []string{"input-path"}, Rate: 50})
	if err != nil {
		t.Fatal(err)
	}
	least := time.Duration(report.RequestsSent-1) * time.Second / 50
	if took := time.Since(began); report.RequestsSent < 10 || took < least {
		t.Errorf("%d requests in %v, want at least %v", report.RequestsSent, took, least)
	}
}

// TestOrder: what opens a breaker, looks back or uses the rate limit up comes last, in this order,
// wherever it stands in the table.
func TestOrder(t *testing.T) {
	t.Parallel()
	receiver, callbackURL := startReceiver(t)
	w := newTwin(t, "", 5_000, callbackURL)
	var order []string
	_, err := audit.Run(t.Context(), audit.Config{
		URL: w.url, APIKey: callerKey, Receiver: receiver, CallbackURL: callbackURL, Rate: 2_000,
		Only:     []string{"rate-limit-enforced", "callback-signed", "error-5xx", "breaker-opens", "health-open"},
		Progress: func(doing string) { order = append(order, doing) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "callback-signed health-open breaker-opens error-5xx rate-limit-enforced"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
}

// TestRetryAfter: a deployment that asks for a pause gets it, and the check is decided after it.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	w := newTwin(t, "", 5_000, "")
	var refused atomic.Bool
	busy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sync" && !refused.Swap(true) {
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.ServeHTTP(rw, r)
	}))
	t.Cleanup(busy.Close)
	began := time.Now()
	entry := onlyEntry(t, audit.Config{URL: busy.URL, APIKey: callerKey, Only: []string{"input-depth"}, Rate: 2_000})
	if entry.Outcome != audit.Pass {
		t.Errorf("%s %q, want pass", entry.Outcome, entry.Evidence)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it took %v, want at least the second that was asked for", took)
	}
}

// TestAuditAfterAnother: calls of the audit before run out as fast as those of this one come, so that what is
// left stays the same for a while. That is no flaw.
func TestAuditAfterAnother(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"rate-limit-forwarded-for", "rate-limit-batch"} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			w := newTwin(t, "", 5_000, "")
			var posts atomic.Int64
			steady := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost && posts.Add(1) <= 3 {
					rw.Header().Set("RateLimit-Policy", `"post";q=50;w=60`)
					rw.Header().Set("RateLimit", `"post";r=19;t=1`)
					rw.WriteHeader(http.StatusUnprocessableEntity)
					return
				}
				w.ServeHTTP(rw, r)
			}))
			t.Cleanup(steady.Close)
			entry := onlyEntry(t, audit.Config{
				URL: steady.URL, APIKey: callerKey, Level: audit.LevelFull, Only: []string{id}, Rate: 2_000, Settle: 10 * time.Millisecond,
			})
			if entry.Outcome != audit.Pass {
				t.Errorf("%s %q, want pass", entry.Outcome, entry.Evidence)
			}
		})
	}
}

// TestInterrupted: what was found before the end is in the report.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	w := newTwin(t, "", 5_000, "")
	ctx, cancel := context.WithCancel(t.Context())
	report, err := audit.Run(ctx, audit.Config{URL: w.url, APIKey: callerKey, Only: []string{"input-validation"}, Rate: 2_000, Progress: func(doing string) {
		if doing == "input-depth" {
			cancel()
		}
	}})
	if err == nil || report == nil {
		t.Fatalf("report %v, error %v; want both", report, err)
	}
	if first := report.Findings[0]; first.Outcome != audit.Pass {
		t.Errorf("%s: %s, want pass", first.ID, first.Outcome)
	}
	if last := report.Findings[len(report.Findings)-1]; last.Outcome != audit.Undecided {
		t.Errorf("%s: %s, want undecided", last.ID, last.Outcome)
	}
}

// TestChecksAreSound: ids are unique and stable in form, and every check says how to mend what it finds.
func TestChecksAreSound(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, check := range audit.Checks() {
		switch {
		case seen[check.ID]:
			t.Errorf("%s is there twice", check.ID)
		case check.ID != strings.ToLower(check.ID) || strings.ContainsAny(check.ID, " _"):
			t.Errorf("%s is not kebab-case", check.ID)
		case check.Title == "" || check.Mend == "" || check.Run == nil || check.Group == "":
			t.Errorf("%s is not complete", check.ID)
		case check.Level != audit.LevelQuick && check.Level != audit.LevelFull:
			t.Errorf("%s has level %q", check.ID, check.Level)
		}
		seen[check.ID] = true
	}
	if len(seen) < 40 {
		t.Errorf("%d checks, want at least 40", len(seen))
	}
}
