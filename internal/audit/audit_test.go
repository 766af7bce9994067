package audit_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/audit"
	"tandem/internal/keys"
	"tandem/internal/limit"
	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
)

// TestUnbrokenDeployment: production mode passes every check that a plain connection can decide, at both levels.
func TestUnbrokenDeployment(t *testing.T) {
	t.Parallel()
	for level, limits := range map[audit.Level]func(*app.Config){ // used up last, and with room for what comes before
		audit.LevelQuick: limits(300, 2_000), audit.LevelFull: limits(990, 5_000),
	} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			d := (&variant{change: limits}).start()
			cfg := d.ask(t, d.URL)
			cfg.Level = level
			report, err := audit.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range report.Findings {
				want := audit.Pass
				switch {
				case entry.Group == audit.GroupTLS:
					want = audit.Undecided
				case level == audit.LevelQuick &&
					(entry.Level == audit.LevelFull || strings.HasSuffix(entry.ID, "-enforced")):
					want = audit.Skipped
				case entry.ID == "rate-limit-reads-enforced":
					want = audit.Undecided // more than an audit tries
				}
				if entry.Outcome != want {
					t.Errorf("%s: %s, want %s\n%s", entry.ID, entry.Outcome, want, strings.Join(entry.Evidence, "\n"))
				}
			}
			t.Logf("%d requests, %.1f s", report.RequestsSent, report.DurationSeconds)
		})
	}
}

// TestLimitsAreUsedUp: small ones are, at both of them, and everything that counts is refused then.
func TestLimitsAreUsedUp(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"rate-limit-enforced", "rate-limit-reads-enforced"} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			d := tight.start()
			cfg := d.ask(t, d.URL)
			cfg.Only = []string{id}
			if entry := onlyEntry(t, cfg); entry.Outcome != audit.Pass {
				t.Errorf("%s, want pass\n%s", entry.Outcome, strings.Join(entry.Evidence, "\n"))
			}
		})
	}
}

// TestBreakerOfTwoNodes: each counts its own failures, so it takes more of them until one opens.
func TestBreakerOfTwoNodes(t *testing.T) {
	t.Parallel()
	entry := auditDouble(t, double{
		check: "breaker-opens", level: audit.LevelFull, deploy: &variant{change: func(cfg *app.Config) {
			cfg.BreakerFailures = 9
			cfg.CallbackBackoff = time.Minute // retries would count as well
		}},
		after: func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == "/nodes" {
				a.Body = []byte(`[{"id":"a"},{"id":"b"}]`)
			}
		},
	})
	if evidence := strings.Join(entry.Evidence, "\n"); entry.Outcome != audit.Pass ||
		!strings.Contains(evidence, "after 9 callbacks") {
		t.Errorf("%s, want pass after 9 callbacks\n%s", entry.Outcome, evidence)
	}
}

// TestBreakerOfASlowDeployment: a callback that comes too late hides failures, so what comes after it proves nothing.
func TestBreakerOfASlowDeployment(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	paths, fourth := map[string]int{}, make(chan struct{})
	slow := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			nth, known := paths[r.URL.Path]
			if !known {
				nth = len(paths) + 1
				paths[r.URL.Path] = nth
				if nth == 4 {
					close(fourth)
				}
			}
			mu.Unlock()
			if nth == 3 {
				select {
				case <-fourth:
				case <-r.Context().Done():
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
	entry := auditDouble(t, double{check: "breaker-opens", level: audit.LevelFull, deploy: tireless, receive: slow})
	if evidence := strings.Join(entry.Evidence, "\n"); entry.Outcome != audit.Undecided ||
		!strings.Contains(evidence, "too slow to tell") {
		t.Errorf("%s, want undecided because it is slow\n%s", entry.Outcome, evidence)
	}
}

// TestFindingsNameTheFlag: what is wrong because a flag is off is fixed by that flag.
func TestFindingsNameTheFlag(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id, flag string
		deploy   *variant
	}{
		{"rate-limit-announced", "--rate-limit", careless},
		{"rate-limit-enforced", "--rate-limit", careless},
		{"rate-limit-reads", "--read-limit", careless},
		{"rate-limit-reads-enforced", "--read-limit", careless},
		{"headers-security-txt", "--security-contact", careless},
		{"auth-required", "--no-auth", open},
		{"ssrf-private", "--mode production", careless},
		{"ssrf-port", "--allow-callback-port", careless},
		{"ssrf-own-address", "--mode production", careless},
		{"ssrf-arrival", "--allow-callback-cidr", careless},
		{"cors-origin", "--cors-origin", careless},
		{"cors-preflight", "--cors-origin", careless},
	} {
		t.Run(c.id, func(t *testing.T) {
			t.Parallel()
			d := c.deploy.start()
			cfg := d.ask(t, d.URL)
			cfg.Only = []string{c.id}
			entry := onlyEntry(t, cfg)
			if entry.Outcome != audit.Fail {
				t.Errorf("%s, want fail\n%s", entry.Outcome, strings.Join(entry.Evidence, "\n"))
			}
			if !strings.Contains(entry.Remediation, c.flag) || strings.Contains(entry.Remediation, "upgrade") {
				t.Errorf("it says %q, want %s", entry.Remediation, c.flag)
			}
		})
	}
}

// TestForeignHostIsRefused: by its name where there are no API keys, else for want of one.
func TestForeignHostIsRefused(t *testing.T) {
	t.Parallel()
	for want, deploy := range map[string]*variant{"421 HOST_NOT_ALLOWED": open, "401 UNAUTHENTICATED": plain} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			d := deploy.start()
			cfg := d.ask(t, d.URL)
			cfg.Only, cfg.Level = []string{"cors-rebinding"}, audit.LevelFull
			entry := onlyEntry(t, cfg)
			if evidence := strings.Join(entry.Evidence, "\n"); entry.Outcome != audit.Pass ||
				!strings.Contains(evidence, want) {
				t.Errorf("%s, want pass with %s\n%s", entry.Outcome, want, evidence)
			}
		})
	}
}

// TestSecondKeyThatOnlyReads: what either key may send goes out with the first then.
func TestSecondKeyThatOnlyReads(t *testing.T) {
	t.Parallel()
	d := plain.start()
	cfg := d.ask(t, d.URL)
	reader, err := d.Keys.Create(t.Context(), keys.NewKey{Name: "reader", Scopes: []tandem.Scope{tandem.ScopeRead}})
	if err != nil {
		t.Fatal(err)
	}
	cfg.SecondKey, cfg.Only = reader.Token.Reveal(), []string{"ssrf-metadata"}
	if entry := onlyEntry(t, cfg); entry.Outcome != audit.Pass {
		t.Errorf("%s, want pass\n%s", entry.Outcome, strings.Join(entry.Evidence, "\n"))
	}
}

// TestHiddenDocument: where there is none, the audit asks for what every tandem has, and says so.
func TestHiddenDocument(t *testing.T) {
	t.Parallel()
	d := plain.start()
	cfg := d.ask(t, "")
	cfg.URL, _ = startFront(t, double{instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path == "/openapi.json" && say(w, http.StatusNotFound, "text/plain", "")
	}}, d.URL, cfg)
	cfg.Only = []string{"api-document", "auth-required"}
	report, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if first, second := report.Findings[0], report.Findings[1]; first.Outcome != audit.Pass ||
		second.Outcome != audit.Undecided {
		t.Errorf("auth-required: %s, api-document: %s; want pass and undecided\n%s", first.Outcome, second.Outcome,
			strings.Join(first.Evidence, "\n"))
	}
}

// mustPassTLS are those that need a certificate, and those about headers and limits, which HTTP/2 has in another way.
var mustPassTLS = []string{
	"tls-in-use", "tls-versions", "tls-certificate", "headers-nosniff", "headers-no-store", "headers-pages",
	"headers-banner", "cors-cross-site-post",
	"limit-announced-body", "limit-streamed-body", "limit-header", "limit-methods", "limit-slow-client",
	"rate-limit-batch", "error-problems",
}

// TestRealServiceOverTLS: so does it over HTTP/2 with a certificate of its own, also what only the full audit asks.
func TestRealServiceOverTLS(t *testing.T) {
	t.Parallel()
	pair := tandemtest.NewCertificate(t, 1, time.Now().AddDate(0, 0, 90))
	certFile, keyFile := pair.Write(t, t.TempDir())
	cfg := app.Preset(app.Demo)
	cfg.TLSCert, cfg.TLSKey = certFile, keyFile
	cfg.RateLimit = limit.Quota{Calls: 1_000, Window: time.Minute}
	s := tandemtest.Start(t, cfg)
	report, err := audit.Run(t.Context(), audit.Config{
		URL: s.URL, RootCAs: pair.Pool, Level: audit.LevelFull, Only: mustPassTLS, Rate: 2_000, Timeout: 15 * time.Second,
	})
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

// TestRunRefuses what is no tandem, what does not answer, and a key that is refused.
func TestRunRefuses(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	w := plain.start()
	for _, c := range []struct {
		name, want string
		cfg        audit.Config
	}{
		{"no tandem", "is no tandem", audit.Config{URL: other.URL}},
		{"nobody", "reach http://", audit.Config{URL: strings.TrimSuffix(tandemtest.Refusing(t), "/callback")}},
		{"a wrong key", "the deployment refuses --api-key", audit.Config{URL: w.URL, APIKey: "tdm_wrong"}},
		{"no address", "want http://HOST:PORT", audit.Config{URL: "localhost:8000"}},
		{"a password in the address", "want http://HOST:PORT", audit.Config{URL: "http://user:hunter2@127.0.0.1"}},
		{"an unknown check", `no check or group "nonsense"`, audit.Config{URL: w.URL, Only: []string{"nonsense"}}},
		{"a receiver without an address", "come together", audit.Config{URL: w.URL, Receiver: new(receiver.Hooks)}},
		{"a key with a line break", "printable ASCII", audit.Config{URL: w.URL, APIKey: "tdm_\nx"}},
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
	w := plain.start()
	report, err := audit.Run(t.Context(), audit.Config{
		URL: w.URL, Rate: 2_000,
		Only: []string{
			"ssrf-redirect", "tenant-list", "tls-versions", "input-json", "stats-count", "limit-slow-client",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"ssrf-redirect": "--receiver", "tenant-list": "--second-api-key", "tls-versions": "https",
		"input-json": "--api-key", "stats-count": "--admin-key", "limit-slow-client": "--level full",
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
	d := plain.start()
	cfg := d.ask(t, d.URL)
	cfg.Only, cfg.MaxRequests = []string{"input-validation"}, 12
	report, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if report.RequestsSent != 12 {
		t.Errorf("%d requests sent, want 12", report.RequestsSent)
	}
	if last := report.Findings[len(report.Findings)-1]; last.Outcome != audit.Undecided ||
		!strings.Contains(last.Evidence[0], "as many requests as it may") {
		t.Errorf("%s: %s %q, want undecided for want of requests", last.ID, last.Outcome, last.Evidence)
	}
}

// TestPace: requests leave no faster than they may.
func TestPace(t *testing.T) {
	t.Parallel()
	d := plain.start()
	cfg := d.ask(t, d.URL)
	cfg.Only, cfg.Rate = []string{"input-json"}, 50
	began := time.Now()
	report, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	least := time.Duration(report.RequestsSent-1) * time.Second / 50
	if took := time.Since(began); report.RequestsSent < 10 || took < least {
		t.Errorf("%d requests in %v, want at least %v", report.RequestsSent, took, least)
	}
}

// TestOrder: what looks back, opens a breaker or uses the rate limit up comes last, in this order,
// wherever it stands in the table.
func TestOrder(t *testing.T) {
	t.Parallel()
	d := (&variant{change: limits(100, 100_000)}).start()
	cfg := d.ask(t, d.URL)
	cfg.Level = audit.LevelFull
	cfg.Only = []string{"rate-limit-enforced", "callback-signed", "error-5xx", "breaker-opens", "health-open"}
	var order []string
	cfg.Progress = func(doing string) { order = append(order, doing) }
	_, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := "callback-signed health-open error-5xx breaker-opens rate-limit-enforced"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
}

// TestRetryAfter: a deployment that asks for a pause gets it, and the check is decided after it.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	d := plain.start()
	var refused atomic.Bool
	cfg := d.ask(t, "")
	cfg.URL, _ = startFront(t, double{instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/sync" || refused.Swap(true) {
			return false
		}
		w.Header().Set("Retry-After", "1")
		return say(w, http.StatusServiceUnavailable, "text/plain", "")
	}}, d.URL, cfg)
	cfg.Only = []string{"input-depth"}
	began := time.Now()
	entry := onlyEntry(t, cfg)
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
			d := plain.start()
			var posts atomic.Int64
			cfg := d.ask(t, "")
			cfg.URL, _ = startFront(t, double{instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost || posts.Add(1) > 3 {
					return false
				}
				w.Header().Set("RateLimit-Policy", `"post";q=50;w=60`)
				w.Header().Set("RateLimit", `"post";r=19;t=1`)
				return say(w, http.StatusUnprocessableEntity, "application/problem+json", "{}")
			}}, d.URL, cfg)
			cfg.Level, cfg.Only, cfg.Quiet = audit.LevelFull, []string{id}, 10*time.Millisecond
			entry := onlyEntry(t, cfg)
			if entry.Outcome != audit.Pass {
				t.Errorf("%s %q, want pass", entry.Outcome, entry.Evidence)
			}
		})
	}
}

// TestInterrupted: what was found before the end is in the report.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	d := plain.start()
	cfg := d.ask(t, d.URL)
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Only = []string{"input-validation"}
	cfg.Progress = func(doing string) {
		if doing == "input-depth" {
			cancel()
		}
	}
	report, err := audit.Run(ctx, cfg)
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

// TestChecksAreSound: ids are unique and stable in form, and every check says how to fix what it
// finds, without asking for an upgrade.
func TestChecksAreSound(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, check := range audit.Checks() {
		switch {
		case seen[check.ID]:
			t.Errorf("%s is there twice", check.ID)
		case check.ID != strings.ToLower(check.ID) || strings.ContainsAny(check.ID, " _"):
			t.Errorf("%s is not kebab-case", check.ID)
		case check.Title == "" || check.Remediation == "" || check.Group == "":
			t.Errorf("%s is not complete", check.ID)
		case strings.Contains(check.Remediation, "upgrade"):
			t.Errorf("%s: %q", check.ID, check.Remediation)
		case check.Level != audit.LevelQuick && check.Level != audit.LevelFull:
			t.Errorf("%s has level %q", check.ID, check.Level)
		}
		seen[check.ID] = true
	}
	if len(seen) < 40 {
		t.Errorf("%d checks, want at least 40", len(seen))
	}
}
