package load

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// maxSteps bounds the rows of the table of seconds; longer runs have several seconds in one.
const maxSteps = 60

// view is a report in words and figures, for people. The renderers only draw it.
type view struct {
	Report               *Report
	Work                 string // task and complexity
	Both                 bool   // both ways ran
	Interrupted, Invalid string // warnings about the figures; ""
	Facts                []fact // target, run, work and method
	Cards                []card
	Sections             []section
	Failures             []string
	Findings, Choices    []string // insights, and advice
	Settings             []fact
	Machine              string // resources of the generator
}

// fact is a name and its text.
type fact struct{ Name, Text string }

// card is a summary figure.
type card struct {
	Title, Value, Detail string
	Bad                  bool // it needs attention
}

// section is the sync and the async side of the run, or of its mixed phase. A missing side has no column.
type section struct {
	ID, Title         string
	HasSync, HasAsync bool
	Groups            []group
	Charts            []chart
	Percentiles       []row // of each distribution: count, p50, p90, p95, p99, p99.9, max
	Steps             []row // of each second or more: rates and the worst percentiles of each side, errors
	StepSeconds       int
}

// group is a heading and the rows under it.
type group struct {
	Heading string
	Rows    []row
}

// row is a line of a table.
type row struct {
	Label string
	Cells []string
}

// Both reports whether there are two sides to compare.
func (s section) Both() bool { return s.HasSync && s.HasAsync }

// newView makes the view of a report. Its error means a damaged histogram: its chart is missing.
func newView(r *Report) (*view, error) {
	f := figuresOf(r)
	v := &view{
		Report: r, Work: describeWork(r), Facts: facts(r), Cards: cards(r, f), Failures: failures(r),
		Settings: settingsOf(r), Machine: describeGenerator(r),
		Both: r.phase(PhaseMixed) != nil || r.phase(PhaseSync) != nil && r.phase(PhaseAsync) != nil,
	}
	if r.Interrupted {
		v.Interrupted = "the run was stopped before its end. What follows is a part, and no threshold was evaluated."
	}
	switch {
	case r.Valid:
	case len(r.InvalidReasons) == 0:
		v.Invalid = "do not rely on these figures; the report does not say why."
	default:
		v.Invalid = "do not rely on these figures: " + strings.Join(r.InvalidReasons, "; ") + "."
	}
	for _, insight := range r.Insights {
		if insight.Topic == TopicChoice {
			v.Choices = append(v.Choices, insight.Text)
		} else {
			v.Findings = append(v.Findings, insight.Text)
		}
	}
	var damage error
	add := func(id, title string, sync, async *Phase, prefixes [2]string) {
		e := newExchange(sync, async)
		if e.sync == nil && e.async == nil {
			return
		}
		s := section{
			ID: id, Title: title, HasSync: e.sync != nil, HasAsync: e.async != nil,
			Groups: f.sideBySide(prefixes, e), Percentiles: e.percentiles(),
		}
		s.Steps, s.StepSeconds = e.steps()
		var err error
		if s.Charts, err = e.charts(id); err != nil {
			damage = err
		}
		v.Sections = append(v.Sections, s)
	}
	add("phases", "Sync vs async", r.phase(PhaseSync), r.phase(PhaseAsync), [2]string{"sync.", "async."})
	mixed := r.phase(PhaseMixed)
	add(PhaseMixed, "Mixed: both at once, "+showPercent(100*r.Settings.SyncRatio)+" of the requests sync",
		mixed, mixed, [2]string{"mixed.sync.", "mixed.async."})
	return v, damage
}

// facts describe target, run, work and method.
func facts(r *Report) []fact {
	target := r.Target.URL
	if r.Target.Version != "" {
		target += ", tandem " + strings.TrimPrefix(r.Target.Version, "tandem ")
	}
	if r.Target.Mode != "" {
		target += ", " + r.Target.Mode + " mode"
	}
	list := []fact{
		{"Target", target}, {"Run", describeRun(r)},
		{"Work", fmt.Sprintf("%s, %s of data in each request", describeWork(r), showBytes(int64(r.Settings.DataBytes)))},
	}
	if r.asksAsync() {
		results := "by callback to " + r.Settings.CallbackURL + ", signatures not verified"
		switch {
		case r.Settings.Completion == CompletionPoll:
			results = "seen by polling, because no callback can reach the generator"
		case r.Settings.Signed:
			results = "by callback to " + r.Settings.CallbackURL + ", signatures verified"
		}
		list = append(list, fact{"Results", results})
	}
	times := "from the send. While the service stalls its callers send nothing, so callers who do not wait for each " +
		"other would see worse; --rate measures that"
	if r.Settings.RatePerSecond > 0 {
		times = "from the planned send, so what a request waits because the service is slow is in them"
	}
	return append(list, fact{"Times", times})
}

// asksAsync reports whether any of the phases expected a callback.
func (r *Report) asksAsync() bool {
	return slices.ContainsFunc(r.Phases, func(p Phase) bool { return p.Async != nil })
}

// describeRun describes date, length and load.
func describeRun(r *Report) string {
	s := r.Settings
	amount := showCount(s.Requests) + " requests"
	switch {
	case s.Requests > 0 && s.DurationSeconds > 0:
		amount += " or " + showSeconds(s.DurationSeconds)
	case s.DurationSeconds > 0:
		amount = showSeconds(s.DurationSeconds)
	}
	most, pace := showCount(int64(s.Concurrency)), ShowNumber(s.RatePerSecond)
	switch {
	case s.RatePerSecond > 0 && s.RampFromPerSecond > 0:
		pace = fmt.Sprintf("from %s to %s a second (open loop, at most %s at once)",
			ShowNumber(s.RampFromPerSecond), pace, most)
	case s.RatePerSecond > 0:
		pace += " a second (open loop, at most " + most + " at once)"
	default:
		pace = most + " at a time (closed loop: the next is sent when one is answered)"
	}
	return fmt.Sprintf("%s, %s in all. Each phase: %s, %s",
		r.StartedAt.UTC().Format("2006-01-02 15:04:05 UTC"), showSeconds(r.WallSeconds), amount, pace)
}

// describeWork names the work in a few words.
func describeWork(r *Report) string {
	task := r.Settings.Task
	if task == "" {
		task = "the service's default task"
	}
	return fmt.Sprintf("%s, complexity %d", task, r.Settings.Complexity)
}

// describeGenerator describes the resources of the generator.
func describeGenerator(r *Report) string {
	var parts []string
	if r.Generator.CPUSeconds > 0 {
		parts = append(parts, fmt.Sprintf("%s of CPU time (%s of the machine's %d cores)",
			showSeconds(r.Generator.CPUSeconds), showPercent(100*r.Generator.CPUShare), r.Generator.Cores))
	}
	if r.Generator.MaxMemoryBytes > 0 {
		parts = append(parts, showBytes(r.Generator.MaxMemoryBytes)+" of memory at most")
	}
	if r.Settings.RatePerSecond > 0 {
		parts = append(parts, "and sent 99 of 100 requests at most "+showMS(r.Generator.LagP99MS)+" late")
	}
	text := "Measured by " + r.Tool
	if len(parts) > 0 {
		text += ", which used " + strings.Join(parts, ", ")
	}
	return text + "."
}

// settingsOf lists the options of the run.
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
	return slices.DeleteFunc(list, func(f fact) bool { return slices.Contains([]string{"", "0", "0 ms", "0 %"}, f.Text) })
}

// failures lists errors and missing callbacks, by category.
func failures(r *Report) []string {
	var lines []string
	for _, phase := range r.Phases {
		for _, async := range []bool{false, true} {
			side, name := phase.side(async), map[bool]string{false: PhaseSync, true: PhaseAsync}[async]
			if side == nil {
				continue
			}
			if name != phase.Name {
				name = phase.Name + ", " + name
			}
			for _, category := range slices.Sorted(maps.Keys(side.Errors)) {
				lines = append(lines, fmt.Sprintf("%s: %s × %s", name, showCount(side.Errors[category]), category))
			}
		}
		if phase.Callbacks == nil {
			continue
		}
		missing := phase.Callbacks.MissingByStatus
		for _, status := range slices.Sorted(maps.Keys(missing)) {
			lines = append(lines, fmt.Sprintf(
				"%s: of %s requests without a callback that were looked up, %s have the status %s",
				phase.Name, showCount(phase.Callbacks.MissingSampled), showCount(missing[status]), status))
		}
	}
	return lines
}

// cards sums the run up in four figures, or fewer where something was not measured.
func cards(r *Report, f figures) []card {
	var cards []card
	add := func(title, value, detail string) bool {
		value, _, ok := f.fill(value)
		detail, _, measured := f.fill(detail)
		if ok && measured {
			cards = append(cards, card{Title: title, Value: value, Detail: detail})
		}
		return ok && measured
	}
	ratio := func(sync, async string) string {
		switch text := versus(f["sync."+sync], f["async."+async]); {
		case f.ownWait("async.", async):
			return "unknown"
		case text != "":
			return text
		default:
			return "no comparison"
		}
	}
	_ = add("Immediate answer", ratio("response.p50", "accept.p50"),
		"with async: it accepts in {async.accept.p50}, sync answers in {sync.response.p50} (p50)") ||
		add("Answer", "{sync.response.p50}", "p50; p99 {sync.response.p99}") ||
		add("Acceptance", "{async.accept.p50}", "p50; p99 {async.accept.p99}")
	polled := r.Settings.Completion == CompletionPoll
	by := "by callback"
	if polled {
		by = "seen by a poll"
	}
	add("The result itself", ratio("response.p50", "end_to_end.p50"),
		"with async: "+by+" after {async.end_to_end.p50}, in the response after {sync.response.p50} (p50)")
	_ = add("Work completed", ratio("completed_per_second", "completed_per_second"),
		"with async: {async.completed_per_second}, sync {sync.completed_per_second} "+
			"(async accepted {async.accepted_per_second})") ||
		add("Work completed", "{sync.completed_per_second}", "{sync.success_rate} of {sync.sent} requests") ||
		add("Work completed", "{async.completed_per_second}", "accepted: {async.accepted_per_second}")
	switch {
	case polled:
		add("Results seen", "{async.polled} of {async.expected}",
			"by polling ({async.missing} missing); no callback can reach the generator")
	case add("Callbacks", "{async.delivered} of {async.expected}",
		"{async.missing} missing, {async.duplicate} duplicate, {async.bad_signature} with a bad signature"):
		cards[len(cards)-1].Bad = f.value("async.missing") > 0 || f.value("async.bad_signature") > 0
	}
	return cards
}

// comparisons are the rows of the comparison: a label and the metrics of the two sides. Empty rows and headings are
// left out.
var comparisons = []struct {
	heading string
	rows    []comparison
}{
	{"Immediate answer", []comparison{
		{"p50 (half of the callers)", "response.p50", "accept.p50", withRatio},
		{"p95", "response.p95", "accept.p95", withRatio},
		{"p99", "response.p99", "accept.p99", withRatio},
		{"max", "response.max", "accept.max", 0},
	}},
	{"The result itself", []comparison{
		{"p50 (half of the results)", "response.p50", "end_to_end.p50", withRatio | needsAsync},
		{"p99", "response.p99", "end_to_end.p99", withRatio | needsAsync},
		{"of that, work (p50)", "processing.p50", "processing.p50", 0},
		{"of that, delivery (p50)", "", "delivery_lag.p50", 0},
	}},
	{"Throughput", []comparison{
		{"accepted per second", "accepted_per_second", "accepted_per_second", withRatio | notMixed},
		{"completed per second", "completed_per_second", "completed_per_second", withRatio | notMixed},
	}},
	{"Outcome", []comparison{
		{"requests sent", "sent", "sent", 0},
		{"completed at the caller", "success_rate", "success_rate", 0},
		{"work failed", "work_failed", "work_failed", 0},
		{"errors", "errors", "errors", 0},
		{"refused, then retried", "retried", "retried", rare},
	}},
	{"Callbacks", []comparison{
		{"expected", "", "expected", 0},
		{"delivered", "", "delivered", 0},
		{"missing", "", "missing", 0},
		{"duplicate", "", "duplicate", 0},
		{"with a bad signature", "", "bad_signature", 0},
		{"malformed", "", "malformed", rare},
		{"before the 202 was read", "", "before_answer", rare},
		{"for requests without a 202", "", "unanswered", rare},
		{"for unknown requests", "", "unknown", rare},
		{"after the drain", "", "late", rare},
		{"answered badly on purpose", "", "misbehaved", rare},
		{"delivered by a retry", "", "redelivered", rare},
		{"seen by polling", "", "polled", rare},
	}},
	{"Server", []comparison{
		{"CPU time per request", "server.cpu_per_request", "server.cpu_per_request", withRatio | perPhase},
		{"cores used", "server.cpu", "server.cpu", perPhase},
		{"memory at most", "server.memory", "server.memory", perPhase},
	}},
}

type comparison struct {
	label       string
	sync, async string
	traits      int
}

// The traits of a comparison.
const (
	withRatio  = 1 << iota // with the ratio of async
	notMixed               // but not in a mixed phase, where --sync-ratio decides
	needsAsync             // leave it out without a figure of async: the one of sync is in another group
	rare                   // leave it out when it is zero
	perPhase               // of the phase as a whole: leave it out of a mixed phase
)

// sideBySide makes the rows of two sides, by the prefixes of their metrics.
func (f figures) sideBySide(prefixes [2]string, e exchange) []group {
	var groups []group
	mixed := prefixes[0] != "sync."
	for _, c := range comparisons {
		g := group{Heading: c.heading}
		for _, c := range c.rows {
			sync, async := f[prefixes[0]+c.sync], f[prefixes[1]+c.async]
			is := func(trait int) bool { return c.traits&trait != 0 }
			if sync.Name+async.Name == "" || is(needsAsync) && async.Name == "" || is(perPhase) && mixed ||
				is(rare) && sync.Value == 0 && async.Value == 0 {
				continue
			}
			cells := []string{sync.show(), async.show(), ""}
			if is(withRatio) && (!mixed || !is(notMixed)) && !f.ownWait(prefixes[1], c.async) {
				cells[2] = versus(sync, async)
			}
			g.Rows = append(g.Rows, row{c.label, e.columns(cells)})
		}
		if len(g.Rows) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// columns leaves out the columns of a missing side.
func (e exchange) columns(cells []string) []string {
	switch {
	case e.async == nil:
		return cells[:1]
	case e.sync == nil:
		return cells[1:2]
	default:
		return cells
	}
}

// ownWait reports whether a figure of async measures the generator's own wait, for missing callbacks or between polls.
func (f figures) ownWait(prefix, name string) bool {
	polled := f.value(prefix+"polled") > 0
	switch name {
	case "completed_per_second":
		return polled || f.value(prefix+"missing") > 0
	case "end_to_end.p50", "end_to_end.p99":
		return polled
	default:
		return false
	}
}

// versus compares async's figure with sync's in two words.
func versus(sync, async Metric) string {
	if sync.Value <= 0 || async.Value <= 0 {
		return ""
	}
	ratio := async.Value / sync.Value
	waiting := sync.Unit == UnitMilliseconds && !strings.Contains(sync.Name, ".server.")
	switch {
	case same(ratio):
		return "the same"
	case waiting && ratio < 1:
		return showTimes(1/ratio) + " sooner"
	case waiting:
		return showTimes(ratio) + " later"
	case ratio < 1:
		return ShowNumber(ratio) + "× as much"
	default:
		return showTimes(ratio) + " as much"
	}
}

// percentiles is the table of distributions.
func (e exchange) percentiles() []row {
	var rows []row
	add := func(label string, l *Latency) {
		if l == nil || l.Count == 0 {
			return
		}
		cells := []string{showCount(l.Count)}
		for _, ms := range []float64{l.P50MS, l.P90MS, l.P95MS, l.P99MS, l.P999MS, l.MaxMS} {
			cells = append(cells, showMS(ms))
		}
		rows = append(rows, row{label, cells})
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
	return rows
}

// steps is the figures over time, in at most maxSteps rows of so many seconds each.
func (e exchange) steps() (rows []row, seconds int) {
	merge := (e.length + maxSteps - 1) / maxSteps
	seconds = merge * int(e.step)
	rate := func(n int64) string { return ShowNumber(float64(n) / float64(seconds)) }
	worst := func(ms float64) string { // empty when nothing arrived
		if ms <= 0 {
			return ""
		}
		return showMS(ms)
	}
	for from := 0; from < e.length; from += merge {
		var cells []string
		sync, async := merged(e.sync, from, merge), merged(e.async, from, merge)
		if e.sync != nil {
			cells = append(cells, rate(sync.Completed), worst(sync.P50MS), worst(sync.P99MS))
		}
		if e.async != nil {
			cells = append(cells, rate(async.Accepted), worst(async.P50MS), worst(async.P99MS),
				rate(async.Completed), worst(async.EndP50MS), worst(async.EndP99MS))
		}
		rows = append(rows, row{fmt.Sprint(from * int(e.step)), append(cells, showCount(sync.Errors+async.Errors))})
	}
	return rows, seconds
}

// merged sums steps up; of percentiles it keeps the worst, because they cannot be averaged.
func merged(side *Side, from, n int) (sum Step) {
	if side == nil || from >= len(side.Series) {
		return Step{}
	}
	for _, step := range side.Series[from:min(from+n, len(side.Series))] {
		sum.Accepted += step.Accepted
		sum.Completed += step.Completed
		sum.Errors += step.Errors
		sum.P50MS, sum.P99MS = math.Max(sum.P50MS, step.P50MS), math.Max(sum.P99MS, step.P99MS)
		sum.EndP50MS, sum.EndP99MS = math.Max(sum.EndP50MS, step.EndP50MS), math.Max(sum.EndP99MS, step.EndP99MS)
	}
	return sum
}
