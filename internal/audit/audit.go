// Package audit is the security suite for a deployment of tandem, wherever it runs: a table of checks. Each sends HTTP
// requests and reports the answers, as a stranger, a caller or an operator. The operations come from the deployment's
// own OpenAPI document. All inside knowledge is data: the open paths, and the attack vectors.
//
// It promises to be safe to run against production. It sends one request at a time, at most [Config].Rate a second and
// [Config].MaxRequests in all, and honours Retry-After. It deletes nothing. It asks for a handful of `echo` tasks and a
// few submissions, and at the full level for at most 40 `compute` tasks; they take turns with other work. Forbidden
// actions of strangers and foreign pages are tried with empty bodies and unknown ids. Forbidden callback URLs are
// submitted to be refused; a check stops after a few acceptances. An undecided check says so and is no pass.
//
// cmd/tandem calls it: [Checks] is the list, [Run] carries it out, [Report] is the result.
package audit

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"tandem"
	"tandem/internal/receiver"
	"tandem/internal/term"
)

// Level says how much is asked.
type Level string

// The levels. The full one includes the quick one, and tries every vector instead of a sample.
const (
	LevelQuick Level = "quick"
	LevelFull  Level = "full"
)

// Group is the subject of a check.
type Group string

// The groups, in the order of the report.
const (
	GroupRate     Group = "rate-limiting"
	GroupSSRF     Group = "ssrf"
	GroupInput    Group = "input-validation"
	GroupErrors   Group = "error-handling"
	GroupAuth     Group = "authentication"
	GroupTenants  Group = "tenant-isolation"
	GroupHeaders  Group = "headers"
	GroupCORS     Group = "cors"
	GroupTLS      Group = "tls"
	GroupLimits   Group = "limits"
	GroupBreaker  Group = "breaker"
	GroupServices Group = "statistics-and-health"
)

// Need is a precondition of a check.
type Need string

// The needs.
const (
	NeedCaller    Need = "--api-key (the deployment asks for one)"
	NeedKey       Need = "--api-key"
	NeedSecondKey Need = "--second-api-key"
	NeedStats     Need = "--admin-key (to read /stats)"
	NeedReceiver  Need = "--receiver and --callback-url"
	NeedTLS       Need = "an https:// URL"
)

// Outcome is how a check ended.
type Outcome string

// The outcomes. Only a fail makes the audit fail, and an undecided check is no pass.
const (
	Pass      Outcome = "pass"
	Fail      Outcome = "fail"
	Undecided Outcome = "undecided"
	Skipped   Outcome = "skipped-by-level"
)

// Check is one line of the table.
type Check struct {
	ID          string // stable
	Group       Group
	Title       string // the rule
	Level       Level
	Needs       []Need
	Remediation string // advice after a failure

	run checkFunc

	// stage orders the checks. The later ones look back at all answers, open a breaker, or use up a rate limit.
	stage int
}

// checkFunc asks a deployment and records the answers.
type checkFunc func(ctx context.Context, t *target, v *verdict)

// Config describes an audit. Zero fields take the defaults named.
type Config struct {
	URL         string          // base of the deployment: http or https, host, maybe a path
	Level       Level           // LevelQuick
	Only        []string        // groups and ids of checks to run; empty: all
	APIKey      string          // an ordinary caller's; "": none
	SecondKey   string          // another tenant's; ""
	AdminKey    string          // one that may read /stats; ""
	Secret      tandem.Secret   // verifies the signature of callbacks; zero: only their form is looked at
	Receiver    *receiver.Hooks // served by the caller at CallbackURL; nil: there is none
	CallbackURL string          // how the deployment reaches Receiver
	OtherURL    string          // where Receiver is served as well, at a port that nobody opted in; ""
	MaxRequests int             // requests in all; quick 2,000, full 5,000
	Rate        int             // requests per second; 50
	Timeout     time.Duration   // for a callback, a slow answer or the end of a connection; 20 s
	Quiet       time.Duration   // wait before the audit concludes the absence of something; 3 s
	RootCAs     *x509.CertPool  // trusted for https; the system's
	Tool        string          // name and version, for the report and the User-Agent; "tandem audit"
	Dial        DialFunc        // how the deployment is reached; a net.Dialer
	Progress    func(string)    // gets the current step; nil: nobody
}

// DialFunc opens a connection, as net.Dialer does.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// Validate reports a fault in terms of the flags.
func (cfg Config) Validate() error {
	if _, err := parseBase(cfg.URL); err != nil {
		return fmt.Errorf("url %s: %w", term.RedactURL(cfg.URL), err)
	}
	if cfg.Level != "" && cfg.Level != LevelQuick && cfg.Level != LevelFull {
		return fmt.Errorf("level %q: want %s or %s", cfg.Level, LevelQuick, LevelFull)
	}
	if (cfg.Receiver == nil) != (cfg.CallbackURL == "") {
		return errors.New("a receiver and its callback URL come together")
	}
	if cfg.CallbackURL != "" {
		if _, err := parseBase(cfg.CallbackURL); err != nil {
			return fmt.Errorf("callback URL %s: %w", term.RedactURL(cfg.CallbackURL), err)
		}
	}
	for _, key := range []string{cfg.APIKey, cfg.SecondKey, cfg.AdminKey} {
		if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return errors.New("an API key has printable ASCII characters only")
		}
	}
	_, err := selected(cfg.Only)
	return err
}

// parseBase reads the address of a service.
func parseBase(text string) (*url.URL, error) {
	base, err := url.Parse(text)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.User != nil ||
		base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("want http://HOST:PORT or https://HOST, without user, query and fragment")
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	return base, nil
}

func (cfg Config) withDefaults() Config {
	cfg.Level = cmp.Or(cfg.Level, LevelQuick)
	cfg.MaxRequests = cmp.Or(cfg.MaxRequests, map[Level]int{LevelQuick: 2_000, LevelFull: 5_000}[cfg.Level])
	cfg.Rate = cmp.Or(cfg.Rate, 50)
	cfg.Timeout = cmp.Or(cfg.Timeout, 20*time.Second)
	cfg.Quiet = cmp.Or(cfg.Quiet, 3*time.Second)
	cfg.Tool = cmp.Or(cfg.Tool, "tandem audit")
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	return cfg
}

// selected returns the checks with these names or groups; all of them without names.
func selected(names []string) ([]Check, error) {
	all := Checks()
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(c Check) bool { return c.ID == name || string(c.Group) == name }) {
			return nil, fmt.Errorf("there is no check or group %q", name)
		}
	}
	return slices.DeleteFunc(all, func(c Check) bool {
		return !slices.Contains(names, c.ID) && !slices.Contains(names, string(c.Group))
	}), nil
}

// Run audits. It returns an error when the deployment cannot be reached, is no tandem, or refuses a given key, or when
// ctx ends; the report then covers the part so far, and is nil if nothing was asked.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the audit: %w", err)
	}
	cfg = cfg.withDefaults()
	checks, err := selected(cfg.Only)
	if err != nil {
		return nil, err
	}
	t, err := newTarget(cfg)
	if err != nil {
		return nil, err
	}
	defer t.close()
	started := time.Now()
	if err := t.identify(ctx); err != nil {
		return nil, err
	}
	entries := make([]Entry, len(checks))
	order := make([]int, len(checks))
	for i, check := range checks {
		entries[i], order[i] = entryOf(check), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return checks[a].stage - checks[b].stage })
	for _, i := range order {
		if ctx.Err() != nil {
			break
		}
		cfg.Progress(checks[i].ID)
		outcome, evidence := t.decide(ctx, checks[i])
		if ctx.Err() != nil {
			break // its evidence is incomplete
		}
		entries[i].Outcome, entries[i].Evidence = outcome, evidence
	}
	report := t.report(entries, started)
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// decide runs a check if its needs are met. The evidence holds no keys.
func (t *target) decide(ctx context.Context, check Check) (Outcome, []string) {
	if check.Level == LevelFull && t.cfg.Level != LevelFull {
		return Skipped, []string{"runs with --level full"}
	}
	var missing []string
	for _, need := range check.Needs {
		if !t.has(need) {
			missing = append(missing, string(need))
		}
	}
	if missing != nil {
		return Undecided, []string{"needs " + strings.Join(missing, " and ")}
	}
	var v verdict
	check.run(ctx, t, &v)
	outcome, evidence := v.outcome()
	for i, line := range evidence {
		evidence[i] = t.redact(line)
	}
	return outcome, evidence
}

// has reports whether a need is met.
func (t *target) has(need Need) bool {
	switch need {
	case NeedCaller:
		return t.open || t.cfg.APIKey != ""
	case NeedKey:
		return t.cfg.APIKey != ""
	case NeedSecondKey:
		return t.cfg.SecondKey != ""
	case NeedStats:
		return t.statsOpen || t.cfg.AdminKey != ""
	case NeedReceiver:
		return t.cfg.Receiver != nil
	case NeedTLS:
		return t.base.Scheme == "https"
	default:
		return false
	}
}

// verdict collects the evidence of a check, one exchange a line. One failure decides it; one doubt keeps it from
// passing.
type verdict struct{ failed, doubts, passed, skipped []string }

// judge applies a rule to an answer. A missing answer decides nothing.
func (v *verdict) judge(a answer, r rule) {
	if a.Err != nil {
		v.doubtf("%s", a)
	} else if wrong := r(a); wrong != "" {
		v.failf("%s: %s", a, wrong)
	} else {
		v.passf("%s", a)
	}
}

// expect is judge for a known condition.
func (v *verdict) expect(a answer, ok bool, wrong string) {
	v.judge(a, must(func(answer) bool { return ok }, wrong))
}

func (v *verdict) failf(format string, args ...any) {
	v.failed = append(v.failed, fmt.Sprintf(format, args...))
}

func (v *verdict) doubtf(format string, args ...any) {
	v.doubts = append(v.doubts, fmt.Sprintf(format, args...))
}

func (v *verdict) passf(format string, args ...any) {
	v.passed = append(v.passed, fmt.Sprintf(format, args...))
}

// empty reports whether there is no evidence so far.
func (v *verdict) empty() bool { return v.failed == nil && v.doubts == nil && v.passed == nil }

// mostShown bounds the lines of failures of one check in a report.
const mostShown = 5

// outcome is the result, with its evidence.
func (v *verdict) outcome() (Outcome, []string) {
	switch {
	case v.skipped != nil:
		return Skipped, v.skipped
	case v.failed != nil:
		return Fail, shortList(v.failed, mostShown)
	case v.doubts != nil:
		return Undecided, shortList(v.doubts, 3)
	case v.passed != nil:
		return Pass, shortList(v.passed, 2)
	default:
		return Undecided, []string{"nothing was asked"}
	}
}

// shortList keeps the first different lines, and counts the others.
func shortList(lines []string, most int) []string {
	lines = slices.Compact(lines)
	if len(lines) <= most {
		return lines
	}
	return append(slices.Clone(lines[:most]), fmt.Sprintf("and %d more", len(lines)-most))
}
