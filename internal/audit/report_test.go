package audit_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
)

// sampleReport has every outcome, and texts that are hard to lay out.
func sampleReport() *audit.Report {
	return &audit.Report{
		Schema: audit.Schema, Tool: "tandem/1 audit", URL: "https://tandem.example.com", Version: "1.0.0",
		Level: audit.LevelQuick, StartedAt: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), DurationSeconds: 61.5,
		RequestsSent: 187, MaxRequests: 400, RequestsPerSecond: 20,
		Summary: audit.Summary{Pass: 1, Fail: 1, Undecided: 1, Skipped: 1},
		Findings: []audit.Entry{
			{ID: "input-depth", Group: audit.GroupInput, Title: "Deep nesting is refused", Level: audit.LevelQuick,
				Outcome: audit.Pass, Evidence: []string{strings.Repeat("[", 300)}, Remediation: "lower it"},
			{ID: "headers-nosniff", Group: audit.GroupHeaders, Title: "Browsers must not guess types",
				Level: audit.LevelQuick, Outcome: audit.Fail,
				Evidence:    []string{"GET /docs → 200: <no> \"header\" & more, " + strings.Repeat("word ", 60)},
				Remediation: "pass the headers on, " + strings.Repeat("all ", 40)},
			{ID: "tls-versions", Group: audit.GroupTLS, Title: "Old TLS is refused", Level: audit.LevelQuick,
				Outcome: audit.Undecided, Evidence: []string{"needs an https:// URL"}, Remediation: "set it"},
			{ID: "breaker-opens", Group: audit.GroupBreaker, Title: "A receiver that fails is left alone",
				Level: audit.LevelFull, Outcome: audit.Skipped, Evidence: []string{"runs with --level full"},
				Remediation: "upgrade"},
		},
	}
}

// TestTableFits: no line is wider than asked for, nothing of the evidence is lost, and there are no escape codes.
func TestTableFits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		width := rapid.IntRange(40, 140).Draw(rt, "width")
		table := sampleReport().Table(width, nil)
		for line := range strings.Lines(table) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > width {
				rt.Errorf("%d columns, want at most %d: %s", n, width, line)
			}
		}
		if n := strings.Count(table, "["); n != 300 {
			rt.Errorf("%d of 300 brackets are in the table", n)
		}
		if strings.Contains(table, "\x1b") {
			rt.Error("an escape code without being asked for")
		}
	})
}

// TestTable: the outcome of every check, how to fix the failed one, and the sum.
func TestTable(t *testing.T) {
	t.Parallel()
	table := sampleReport().Table(100, nil)
	for _, want := range []string{
		"input validation\n  pass       input-depth               Deep nesting is refused\n",
		"  FAIL       headers-nosniff ", "  undecided  tls-versions ", "  skipped    breaker-opens ",
		"How to fix what failed\n  headers-nosniff\n    pass the headers on, all",
		"1 passed, 1 failed, 1 undecided, 1 left to --level full.\n187 requests sent", "An undecided check is no pass",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in the table:\n%s", want, table)
		}
	}
	if strings.Contains(table, "lower it") {
		t.Error("it says how to fix what passed")
	}
	painted := sampleReport().Table(100, func(_ audit.Outcome, word string) string {
		return "\x1b[1;31m" + word + "\x1b[0m"
	})
	if !strings.Contains(painted, "  \x1b[1;31mFAIL\x1b[0m       headers-nosniff") {
		t.Errorf("the outcome is not painted:\n%s", painted)
	}
	if diff := cmp.Diff(table, regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(painted, "")); diff != "" {
		t.Errorf("paint moves columns (-plain +painted):\n%s", diff)
	}
}

// TestJSON: the report can be read back, and says which form it has.
func TestJSON(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	if err := sampleReport().WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	var got audit.Report
	if err := json.Unmarshal(text.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sampleReport(), &got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if !strings.Contains(text.String(), `"schema": "tandem-audit/1"`) {
		t.Error("the form is not named")
	}
}

// TestJUnit: valid XML, whose counts agree with its cases.
func TestJUnit(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	if err := sampleReport().WriteJUnit(&text); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Skipped  int `xml:"skipped,attr"`
		Suites   []struct {
			Name     string `xml:"name,attr"`
			Tests    int    `xml:"tests,attr"`
			Failures int    `xml:"failures,attr"`
			Skipped  int    `xml:"skipped,attr"`
			Cases    []struct {
				Name    string  `xml:"name,attr"`
				Failure *string `xml:"failure"`
				Skipped *struct {
					Message string `xml:"message,attr"`
				} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	var tests, failures, skipped int
	for _, suite := range got.Suites {
		var failed, left int
		for _, test := range suite.Cases {
			if test.Failure != nil {
				failed++
			}
			if test.Skipped != nil {
				left++
			}
		}
		if suite.Tests != len(suite.Cases) || suite.Failures != failed || suite.Skipped != left {
			t.Errorf("suite %s says %d, %d, %d; it has %d, %d, %d", suite.Name, suite.Tests, suite.Failures,
				suite.Skipped, len(suite.Cases), failed, left)
		}
		tests, failures, skipped = tests+suite.Tests, failures+failed, skipped+left
	}
	if tests != 4 || failures != 1 || skipped != 2 || got.Tests != tests || got.Failures != failures ||
		got.Skipped != skipped {
		t.Errorf("%d tests, %d failures, %d skipped; says %d, %d, %d; want 4, 1, 2", tests, failures, skipped,
			got.Tests, got.Failures, got.Skipped)
	}
	if !strings.HasPrefix(text.String(), "<?xml") || !strings.Contains(text.String(), "&lt;no&gt;") {
		t.Error("no XML declaration, or text that is not escaped")
	}
}

// TestHostileDeployment: what is audited may lie. Its texts reach neither the terminal as they are nor grow
// the report, and the keys are in no form of it.
func TestHostileDeployment(t *testing.T) {
	t.Parallel()
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			w.Write([]byte(`{"status":"healthy","version":"\u001b[2J` + strings.Repeat("x", 600) + `"}`))
			return
		}
		w.Header().Set("RateLimit", "\u009b31m"+strings.Repeat("r", 600)) // a C1 control character is valid in a header
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte(`{"code":"\u001b[31m` + r.Header.Get("Authorization") + ` ` + strings.Repeat("y", 600) + `"}`))
	}))
	t.Cleanup(evil.Close)
	callerKey, secondKey, adminKey := tandem.NewToken().Reveal(), tandem.NewToken().Reveal(), tandem.NewToken().Reveal()
	report, err := audit.Run(t.Context(), audit.Config{
		URL: evil.URL, APIKey: callerKey, SecondKey: secondKey, AdminKey: adminKey, Rate: 2_000, Timeout: time.Second,
		Quiet: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := report.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteJUnit(&text); err != nil {
		t.Fatal(err)
	}
	text.WriteString(report.Table(100, nil))
	if strings.ContainsAny(text.String(), "\x1b\u009b") || strings.Contains(text.String(), `\u001b`) {
		t.Error("escape codes came through")
	}
	for _, key := range []string{callerKey, secondKey, adminKey} {
		if strings.Contains(text.String(), key) {
			t.Errorf("a key is in the report: %.20s…", key)
		}
	}
	if text.Len() > 200_000 {
		t.Errorf("%d bytes of report, want it bounded", text.Len())
	}
	if report.Summary.Pass > len(report.Findings)/2 {
		t.Errorf("%d of %d checks passed on a service that answers nonsense", report.Summary.Pass, len(report.Findings))
	}
}

// TestVectorsAreSafe: every callback URL that the audit hands in is one that production must refuse, or its own
// receiver; and one that is taken all the same is followed by few others.
func TestVectorsAreSafe(t *testing.T) {
	t.Parallel()
	strict, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(strict.Close)
	for _, c := range []struct {
		name        string
		flaw        double
		level       audit.Level
		only        []string
		least, most int
		want        audit.Outcome
	}{
		{"quick", double{}, audit.LevelQuick, []string{"ssrf"}, 120, 180, audit.Pass},
		{"full", double{}, audit.LevelFull, []string{"ssrf"}, 600, 1_000, audit.Pass},
		{"taken and dialled", double{before: takes("")}, audit.LevelFull, []string{"ssrf-metadata"}, 3, 3, audit.Fail},
		{"taken, and refused at the dial", double{before: takes(""), after: func(_ *front, _ *http.Request, a *reply) {
			a.Body = bytes.ReplaceAll(a.Body, []byte(`"outcome":"http_error"`), []byte(`"outcome":"blocked"`))
		}}, audit.LevelQuick, []string{"ssrf-metadata"}, 3, 3, audit.Pass},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := plain.start()
			cfg := d.ask(t, "")
			var mu sync.Mutex
			var handedIn []string
			c.flaw.instead = func(_ *front, _ http.ResponseWriter, r *http.Request) bool {
				if address := callbackOf(r); address != "" {
					mu.Lock()
					defer mu.Unlock()
					handedIn = append(handedIn, address)
				}
				return false
			}
			cfg.URL, _ = startFront(t, c.flaw, d.URL, cfg)
			cfg.Level, cfg.Only = c.level, c.only
			report, err := audit.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range report.Findings {
				if entry.Outcome != c.want {
					t.Errorf("%s: %s %q, want %s", entry.ID, entry.Outcome, entry.Evidence, c.want)
				}
			}
			handedIn = slices.Compact(slices.Sorted(slices.Values(handedIn)))
			if len(handedIn) < c.least || len(handedIn) > c.most {
				t.Errorf("%d callback URLs, want %d to %d", len(handedIn), c.least, c.most)
			}
			for _, address := range handedIn {
				if strict.Check(address) == nil && !strings.HasPrefix(address, cfg.CallbackURL) {
					t.Errorf("it hands in %s, which production calls", address)
				}
				if strings.Contains(address, "example.com") {
					t.Errorf("it hands in %s, which a careless deployment would call", address)
				}
			}
		})
	}
}
