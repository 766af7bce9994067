package load

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"tandem/internal/term"
)

// pageFiles are what the HTML report is made of.
//
//go:embed page/report.html page/report.css page/report.js third_party/uplot/uPlot.iife.min.js third_party/uplot/uPlot.min.css
var pageFiles embed.FS

// maxSteps bounds the rows of the table of seconds; longer runs have several seconds in one.
const maxSteps = 60

// page is what the template of the HTML report shows.
type page struct {
	Report   *Report
	Policy   string // Content-Security-Policy: nothing is fetched, and no script runs but ours
	Style    template.CSS
	Script   template.JS
	Cards    []card
	Findings []string
	Choices  []string
	Facts    []fact
	Sections []section
	Charts   []chart
	Settings []fact
	Work     string
	Failures []string
	Machine  string

	Both                 bool   // both ways ran
	Interrupted, Invalid string // why the figures are to be read with care; ""
}

// card is a figure that sums the run up.
type card struct {
	Title, Value, Detail string
	Bad                  bool // it needs attention
}

// section is one exchange in pictures and tables.
type section struct {
	ID, Title   string
	Both        bool // there are two sides to compare
	HasSync     bool
	HasAsync    bool
	Groups      []groupOfFigures
	Charts      []chart
	Percentiles []percentiles
	Steps       []stepRow
	StepSeconds int
}

// percentiles is a line of the table of distributions.
type percentiles struct {
	Label, Count, P50, P90, P95, P99, P999, Max string
}

// stepRow is a line of the table of seconds: rates, and the worst percentiles of the seconds in it.
type stepRow struct {
	Second                                      int
	SyncRate, SyncP50, SyncP99                  string
	AcceptedRate, AcceptP50, AcceptP99          string
	CompletedRate, ResultP50, ResultP99, Errors string
}

// WriteHTML writes the report as one page that holds all it needs: it fetches nothing, and can be
// mailed, printed and read without a network.
func WriteHTML(w io.Writer, r *Report) error {
	p, err := makePage(r)
	if err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	layout, err := template.New("report.html").Funcs(template.FuncMap{"together": term.NoBreak}).
		ParseFS(pageFiles, "page/report.html")
	if err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	if err := layout.Execute(w, p); err != nil {
		return fmt.Errorf("write HTML: %w", err)
	}
	return nil
}

// makePage puts together what the page shows.
func makePage(r *Report) (*page, error) {
	r = r.filled()
	p := &page{Report: r, Facts: facts(r), Failures: failures(r), Machine: describeGenerator(r), Settings: settingsOf(r), Work: nameWork(r)}
	if r.Interrupted {
		p.Interrupted = interruptedText
	}
	if !r.Valid {
		p.Invalid = invalidText(r)
	}
	p.Findings, p.Choices = sentences(r.Insights)
	p.Cards, p.Both = cards(r), r.phase(PhaseMixed) != nil || r.phase(PhaseSync) != nil && r.phase(PhaseAsync) != nil
	style, script, err := assets()
	if err != nil {
		return nil, err
	}
	p.Style, p.Script = template.CSS(style), template.JS(script) //nolint:gosec // both are files of this package
	p.Policy = fmt.Sprintf("default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; base-uri 'none'; form-action 'none'", digest(script), digest(style))
	metrics := byName(r)
	alone := exchange{id: "phases", syncPhase: r.phase(PhaseSync), asyncPhase: r.phase(PhaseAsync)}
	if alone.syncPhase != nil {
		alone.sync = alone.syncPhase.Sync
	}
	if alone.asyncPhase != nil {
		alone.async = alone.asyncPhase.Async
	}
	exchanges := []exchange{alone}
	if mixed := r.phase(PhaseMixed); mixed != nil {
		exchanges = append(exchanges, exchange{id: PhaseMixed, sync: mixed.Sync, async: mixed.Async, syncPhase: mixed, asyncPhase: mixed})
	}
	for _, e := range exchanges {
		if e.sync == nil && e.async == nil {
			continue
		}
		s := section{ID: e.id, Title: "Side against side", HasSync: e.sync != nil, HasAsync: e.async != nil, Both: e.sync != nil && e.async != nil}
		prefixes := [2]string{"sync", "async"}
		if e.id == PhaseMixed {
			s.Title, prefixes = mixedTitle(r), [2]string{"mixed.sync", "mixed.async"}
		}
		s.Groups = sideBySide(metrics, prefixes)
		if s.Charts, err = e.charts(); err != nil {
			return nil, err
		}
		p.Charts = append(p.Charts, s.Charts...)
		s.Percentiles = e.percentiles()
		s.Steps, s.StepSeconds = e.table()
		p.Sections = append(p.Sections, s)
	}
	return p, nil
}

// assets are the style and the script of the page.
func assets() (style, script string, err error) {
	var texts [4]string
	for i, name := range []string{"third_party/uplot/uPlot.min.css", "page/report.css", "third_party/uplot/uPlot.iife.min.js", "page/report.js"} {
		text, err := pageFiles.ReadFile(name)
		if err != nil {
			return "", "", err
		}
		texts[i] = string(text)
	}
	return texts[0] + "\n" + texts[1], texts[2] + "\n" + texts[3], nil
}

// digest is how a Content-Security-Policy names an inline script or style.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// cards sums the run up in four figures, or fewer where something was not measured.
func cards(r *Report) []card {
	var cards []card
	metrics := byName(r)
	// add makes a card when all figures of its detail were measured.
	add := func(title, value, detail string, names ...string) bool {
		var figures []any
		for _, name := range names {
			metric, ok := metrics[name]
			if !ok {
				return false
			}
			figures = append(figures, metric.show())
		}
		cards = append(cards, card{Title: title, Value: value, Detail: fmt.Sprintf(detail, figures...)})
		return true
	}
	ratio := func(sync, async string) string {
		if ownWait(metrics, PhaseAsync, strings.TrimPrefix(async, "async.")) {
			return "cannot be told"
		}
		if text := versus(metrics[sync], metrics[async]); text != "" {
			return text
		}
		return "no comparison"
	}
	show := func(name string) string { return metrics[name].show() }

	_ = add("Immediate answer", ratio("sync.response.p50", "async.accept.p50"),
		"with async: it accepts in %s, sync answers in %s (p50)", "async.accept.p50", "sync.response.p50") ||
		add("Answer", show("sync.response.p50"), "p50; 99 of 100 within %s", "sync.response.p99") ||
		add("Acceptance", show("async.accept.p50"), "p50; 99 of 100 within %s", "async.accept.p99")
	by := "by callback"
	if r.Settings.Completion == CompletionPoll {
		by = "seen by a poll"
	}
	add("The result itself", ratio("sync.response.p50", "async.end_to_end.p50"),
		"with async: "+by+" after %s, on the line after %s (p50)", "async.end_to_end.p50", "sync.response.p50")
	_ = add("Work completed", ratio("sync.completed_per_second", "async.completed_per_second"),
		"with async: %s, sync %s (async accepted %s)", "async.completed_per_second", "sync.completed_per_second", "async.accepted_per_second") ||
		add("Work completed", show("sync.completed_per_second"), "%s of %s requests", "sync.success_rate", "sync.sent") ||
		add("Work completed", show("async.completed_per_second"), "accepted: %s", "async.accepted_per_second")
	switch {
	case r.Settings.Completion == CompletionPoll:
		add("Results seen", show("async.polled")+" of "+show("async.expected"), "by polling (%s missing); no callback can reach the generator", "async.missing")
	case add("Callbacks", show("async.delivered")+" of "+show("async.expected"),
		"%s missing, %s duplicate, %s with a bad signature", "async.missing", "async.duplicate", "async.bad_signature"):
		cards[len(cards)-1].Bad = metrics["async.missing"].Value > 0 || metrics["async.bad_signature"].Value > 0
	}
	return cards
}

// percentiles is the table of distributions.
func (e exchange) percentiles() []percentiles {
	var lines []percentiles
	add := func(label string, l *Latency) {
		if l == nil || l.Count == 0 {
			return
		}
		lines = append(lines, percentiles{
			label, showCount(l.Count), showMS(l.P50MS), showMS(l.P90MS), showMS(l.P95MS), showMS(l.P99MS), showMS(l.P999MS), showMS(l.MaxMS),
		})
	}
	if e.sync != nil {
		add("sync: answer, from the planned send", &e.sync.Response)
		add("sync: answer, from the actual send", &e.sync.Service)
		add("sync: the work itself", e.sync.Processing)
	}
	if e.async != nil {
		add("async: acceptance, from the planned send", &e.async.Response)
		add("async: acceptance, from the actual send", &e.async.Service)
		add("async: result, from the planned send", e.async.EndToEnd)
		add("async: the work itself", e.async.Processing)
		add("async: from its end to the callback", e.async.DeliveryLag)
	}
	return lines
}

// table is the figures over time, in at most maxSteps lines of so many seconds each.
func (e exchange) table() (lines []stepRow, seconds int) {
	merge := (e.length() + maxSteps - 1) / maxSteps
	if merge == 0 {
		return nil, 0
	}
	seconds = merge * int(e.step())
	for from := 0; from < e.length(); from += merge {
		line := stepRow{Second: from * int(e.step())}
		var errors int64
		if sum, ok := merged(e.sync, from, merge); ok {
			line.SyncRate, line.SyncP50, line.SyncP99 = showPerSecond(sum.Completed, seconds), worst(sum.P50MS), worst(sum.P99MS)
			errors += sum.Errors
		}
		if sum, ok := merged(e.async, from, merge); ok {
			line.AcceptedRate, line.AcceptP50, line.AcceptP99 = showPerSecond(sum.Accepted, seconds), worst(sum.P50MS), worst(sum.P99MS)
			line.CompletedRate, line.ResultP50, line.ResultP99 = showPerSecond(sum.Completed, seconds), worst(sum.EndP50MS), worst(sum.EndP99MS)
			errors += sum.Errors
		}
		line.Errors = showCount(errors)
		lines = append(lines, line)
	}
	return lines, seconds
}

// merged sums steps up; of percentiles it keeps the worst, because they cannot be averaged.
func merged(side *Side, from, n int) (sum Step, ok bool) {
	if side == nil || from >= len(side.Series) {
		return Step{}, false
	}
	for _, step := range side.Series[from:min(from+n, len(side.Series))] {
		sum.Accepted += step.Accepted
		sum.Completed += step.Completed
		sum.Errors += step.Errors
		sum.P50MS, sum.P99MS = math.Max(sum.P50MS, step.P50MS), math.Max(sum.P99MS, step.P99MS)
		sum.EndP50MS, sum.EndP99MS = math.Max(sum.EndP50MS, step.EndP50MS), math.Max(sum.EndP99MS, step.EndP99MS)
	}
	return sum, true
}

func showPerSecond(n int64, seconds int) string { return ShowNumber(float64(n) / float64(seconds)) }

// worst is empty when nothing arrived.
func worst(ms float64) string {
	if ms <= 0 {
		return ""
	}
	return showMS(ms)
}

// settingsOf lists what the run was asked to do.
func settingsOf(r *Report) []fact {
	s := r.Settings
	list := []fact{
		{"Mode", r.Mode},
		{"Requests per phase", showCount(s.Requests)},
		{"Seconds per phase", ShowNumber(s.DurationSeconds)},
		{"Concurrency", showCount(int64(s.Concurrency))},
		{"Rate per second", ShowNumber(s.RatePerSecond)},
		{"Ramp from, per second", ShowNumber(s.RampFromPerSecond)},
		{"Warm-up", showSeconds(s.WarmupSeconds)},
		{"Sync share of the mixed phase", showPercent(100 * s.SyncRatio)},
		{"Task", s.Task},
		{"Complexity", showCount(int64(s.Complexity))},
		{"Data", showBytes(int64(s.DataBytes))},
		{"Time limit of a request", showSeconds(s.TimeoutSeconds)},
		{"Longest wait for callbacks", showSeconds(s.DrainSeconds)},
		{"On 429 and 503", s.On429},
		{"Seed", fmt.Sprint(s.Seed)},
		{"Service's clock minus ours", showMS(r.Target.ClockOffsetMS)},
	}
	if r.asksAsync() {
		list = append(list, fact{"Results by", s.Completion}, fact{"Callback address", s.CallbackURL},
			fact{"Receiver fails on purpose", showPercent(100 * s.SinkFailRate)},
			fact{"Receiver delays by", showSeconds(s.SinkDelaySeconds)})
	}
	shown := list[:0]
	for _, setting := range list {
		if setting.Text != "" && setting.Text != "0" && setting.Text != "0 ms" && setting.Text != "0 %" {
			shown = append(shown, setting)
		}
	}
	return shown
}
