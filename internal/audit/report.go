package audit

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tandem/internal/term"
)

// Schema names the form of the JSON report. A breaking change gets another number.
const Schema = "tandem-audit/1"

// Report is the result of an audit.
type Report struct {
	Schema            string    `json:"schema"`
	Tool              string    `json:"tool"`
	URL               string    `json:"url"`     // without a password
	Version           string    `json:"version"` // of the deployment, as it says
	Level             Level     `json:"level"`
	StartedAt         time.Time `json:"started_at"` // UTC
	DurationSeconds   float64   `json:"duration_seconds"`
	RequestsSent      int       `json:"requests_sent"`
	MaxRequests       int       `json:"max_requests"`
	RequestsPerSecond int       `json:"max_requests_per_second"`
	Summary           Summary   `json:"summary"`
	Findings          []Entry   `json:"findings"` // in the order of the table; every check is there
}

// Summary counts the outcomes.
type Summary struct {
	Pass      int `json:"pass"`
	Fail      int `json:"fail"`
	Undecided int `json:"undecided"`
	Skipped   int `json:"skipped_by_level"`
}

// Entry is a check with its outcome.
type Entry struct {
	ID          string   `json:"id"`
	Group       Group    `json:"group"`
	Title       string   `json:"title"`
	Level       Level    `json:"level"`
	Outcome     Outcome  `json:"result"`
	Evidence    []string `json:"evidence"` // requests and answers, one exchange a line, without keys
	Remediation string   `json:"mend"`     // how to fix it
}

// entryOf is the entry of a check before its run.
func entryOf(check Check) Entry {
	return Entry{
		ID: check.ID, Group: check.Group, Title: check.Title, Level: check.Level, Remediation: check.Remediation,
		Outcome: Undecided, Evidence: []string{"the audit ended before it"},
	}
}

func (t *target) report(entries []Entry, started time.Time) *Report {
	r := &Report{
		Schema: Schema, Tool: t.cfg.Tool, URL: t.base.Redacted(), Version: t.version, Level: t.cfg.Level,
		StartedAt: started.UTC(), DurationSeconds: time.Since(started).Seconds(),
		RequestsSent: t.sent, MaxRequests: t.cfg.MaxRequests, RequestsPerSecond: t.cfg.Rate, Findings: entries,
	}
	for _, entry := range entries {
		switch entry.Outcome {
		case Pass:
			r.Summary.Pass++
		case Fail:
			r.Summary.Fail++
		case Skipped:
			r.Summary.Skipped++
		default:
			r.Summary.Undecided++
		}
	}
	return r
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("write JSON report: %w", err)
	}
	return nil
}

// The elements of a JUnit report: as little of the format as CI servers need.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		ClassName string        `xml:"classname,attr"`
		Failure   *junitMessage `xml:"failure,omitempty"`
		Skipped   *junitMessage `xml:"skipped,omitempty"`
		Output    string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes the report as JUnit XML: a suite per group. Undecided and skipped checks are skipped tests there,
// because the format has nothing else for them.
func (r *Report) WriteJUnit(w io.Writer) error {
	suites := junitSuites{
		Name: "tandem audit " + r.URL, Tests: len(r.Findings), Failures: r.Summary.Fail,
		Skipped: r.Summary.Undecided + r.Summary.Skipped, Time: fmt.Sprintf("%.3f", r.DurationSeconds),
	}
	for _, group := range r.groups() {
		suite := junitSuite{Name: string(group), Timestamp: r.StartedAt.Format("2006-01-02T15:04:05")}
		for _, entry := range r.Findings {
			if entry.Group != group {
				continue
			}
			test := junitCase{Name: entry.ID + ": " + entry.Title, ClassName: "tandem.audit." + string(group)}
			evidence := strings.Join(entry.Evidence, "\n")
			switch entry.Outcome {
			case Pass:
				test.Output = evidence
			case Fail:
				test.Failure = &junitMessage{Message: entry.Remediation, Text: evidence}
				suite.Failures++
			default:
				test.Skipped = &junitMessage{Message: string(entry.Outcome) + ": " + strings.Join(entry.Evidence, "; ")}
				suite.Skipped++
			}
			suite.Tests++
			suite.Cases = append(suite.Cases, test)
		}
		suites.Suites = append(suites.Suites, suite)
	}
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	if err := encoder.Encode(suites); err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// groups are the groups in the report, in order.
func (r *Report) groups() []Group {
	var groups []Group
	for _, entry := range r.Findings {
		if !slices.Contains(groups, entry.Group) {
			groups = append(groups, entry.Group)
		}
	}
	return groups
}

const (
	outcomeWidth = 11 // of the first column, with its gap
	idWidth      = 26 // of the second
)

// marks are the words of the first column.
// :: outcome → word
var marks = map[Outcome]string{Pass: "pass", Fail: "FAIL", Undecided: "undecided", Skipped: "skipped"}

// Table lays the report out for people, at most width characters wide: the findings, the remediations, and a summary.
// Paint, if there is one, colours the word for an outcome.
func (r *Report) Table(width int, paint func(Outcome, string) string) string {
	if paint == nil {
		paint = func(_ Outcome, word string) string { return word }
	}
	p := term.Page{Width: max(width, 40)}
	for _, group := range r.groups() {
		p.Linef("%s", strings.ReplaceAll(string(group), "-", " "))
		for _, entry := range r.Findings {
			if entry.Group == group {
				entry.write(&p, paint)
			}
		}
		p.Linef("")
	}
	if r.Summary.Fail > 0 {
		p.Linef("How to fix what failed")
		for _, entry := range r.Findings {
			if entry.Outcome == Fail {
				p.Linef("  %s", entry.ID)
				p.Paragraph("    ", entry.Remediation)
			}
		}
		p.Linef("")
	}
	p.Paragraph("", r.summary())
	if r.Summary.Undecided > 0 {
		p.Paragraph("", "An undecided check is no pass: see above for its needs.")
	}
	return p.String()
}

// summary is the last line but one.
func (r *Report) summary() string {
	s := r.Summary
	return fmt.Sprintf("%s, level %s: %d passed, %d failed, %d undecided, %d left to --level full. "+
		"%d requests sent, of at most %d at %d a second, in %.0f s.", r.URL, r.Level, s.Pass, s.Fail, s.Undecided,
		s.Skipped, r.RequestsSent, r.MaxRequests, r.RequestsPerSecond, r.DurationSeconds)
}

// write adds the lines of one check: outcome, id and title, and the evidence below.
func (e *Entry) write(p *term.Page, paint func(Outcome, string) string) {
	mark := marks[e.Outcome]
	lead, indent := "  "+paint(e.Outcome, mark)+strings.Repeat(" ", outcomeWidth-len(mark)), 2+outcomeWidth
	if p.Width < 80 { // no room for three columns
		indent = 4
		p.Linef("%s%s", lead, e.ID)
		p.Paragraph(strings.Repeat(" ", indent), e.Title)
	} else {
		p.Paragraph(fmt.Sprintf("%s%-*s", lead, idWidth, e.ID), e.Title)
	}
	for _, line := range e.Evidence {
		p.Paragraph(strings.Repeat(" ", indent)+"· ", line)
	}
}
