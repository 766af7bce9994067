package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tandem/internal/term"
)

// tableWidth is the width of a text for people, in columns.
const tableWidth = 78

// WriteTable writes the report for people, as plain text of at most 78 columns.
func WriteTable(w io.Writer, r *Report) error {
	t := table{Page: term.Page{Width: tableWidth}, metrics: byName(r)}
	t.head(r)
	t.comparison("Side against side", [2]string{"sync", "async"})
	t.comparison(mixedTitle(r), [2]string{"mixed.sync", "mixed.async"})
	t.List("What went wrong", failures(r))
	findings, choices := sentences(r.Insights)
	t.List("What the figures say", findings)
	t.List("When to choose which", choices)
	t.thresholds(r)
	t.List("What a reader has to know", r.Warnings)
	t.Linef("")
	t.Paragraph("", describeGenerator(r))
	if _, err := io.WriteString(w, t.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// table is the text as it grows.
type table struct {
	term.Page
	metrics map[string]Metric
}

// head says what was done to whom, and first of all whether it counts.
func (t *table) head(r *Report) {
	if r.Interrupted {
		t.Paragraph("INTERRUPTED: ", interruptedText)
	}
	if !r.Valid {
		t.Paragraph("INVALID: ", invalidText(r))
	}
	if r.Interrupted || !r.Valid {
		t.Linef("")
	}
	for _, fact := range facts(r) {
		t.Paragraph(fmt.Sprintf("%-10s", fact.Name), fact.Text)
	}
}

// interruptedText says what an interrupted run is worth.
const interruptedText = "the run was stopped before its end. What follows is a part, and no threshold was evaluated."

// invalidText says why the figures do not count.
func invalidText(r *Report) string {
	if len(r.InvalidReasons) == 0 {
		return "do not rely on these figures; the report does not say why."
	}
	return "do not rely on these figures: " + strings.Join(r.InvalidReasons, "; ") + "."
}

// fact is a line of the head.
type fact struct{ Name, Text string }

// facts say what was done, to whom and how it was measured.
func facts(r *Report) []fact {
	list := []fact{{"Target", describeTarget(r)}, {"Run", describeRun(r)}, {"Work", describeWork(r)}}
	if r.asksAsync() {
		list = append(list, fact{"Results", describeCompletion(r)})
	}
	return append(list, fact{"Times", describeTimes(r)})
}

// asksAsync reports whether any of the phases expected a callback.
func (r *Report) asksAsync() bool {
	return slices.ContainsFunc(r.Phases, func(p Phase) bool { return p.Async != nil })
}

// describeTimes says from where times count, and what that leaves out.
func describeTimes(r *Report) string {
	if r.Settings.RatePerSecond > 0 {
		return "from the planned send, so what a request waits because the service is slow is in them"
	}
	return "from the send. While the service stalls its callers send nothing, so callers who do not wait for each other would see worse; --rate measures that"
}

// describeTarget names the service.
func describeTarget(r *Report) string {
	text := r.Target.URL
	if r.Target.Version != "" {
		text += ", tandem " + strings.TrimPrefix(r.Target.Version, "tandem ")
	}
	if r.Target.Mode != "" {
		text += ", " + r.Target.Mode + " mode"
	}
	return text
}

// describeRun says when, how long and how hard.
func describeRun(r *Report) string {
	s := r.Settings
	text := r.StartedAt.UTC().Format("2006-01-02 15:04:05 UTC") + ", " + showSeconds(r.WallSeconds) + " in all. Each phase: "
	switch {
	case s.Requests > 0 && s.DurationSeconds > 0:
		text += showCount(s.Requests) + " requests or " + showSeconds(s.DurationSeconds)
	case s.DurationSeconds > 0:
		text += showSeconds(s.DurationSeconds)
	default:
		text += showCount(s.Requests) + " requests"
	}
	switch {
	case s.RatePerSecond > 0 && s.RampFromPerSecond > 0:
		text += fmt.Sprintf(", from %s to %s a second (open loop, at most %s at once)",
			ShowNumber(s.RampFromPerSecond), ShowNumber(s.RatePerSecond), showCount(int64(s.Concurrency)))
	case s.RatePerSecond > 0:
		text += fmt.Sprintf(", %s a second (open loop, at most %s at once)",
			ShowNumber(s.RatePerSecond), showCount(int64(s.Concurrency)))
	default:
		text += fmt.Sprintf(", %s at a time (closed loop: the next is sent when one is answered)", showCount(int64(s.Concurrency)))
	}
	return text
}

// describeWork says what was asked for.
func describeWork(r *Report) string {
	return fmt.Sprintf("%s, %s of data in each request", nameWork(r), showBytes(int64(r.Settings.DataBytes)))
}

// nameWork names the work in a few words.
func nameWork(r *Report) string {
	task := r.Settings.Task
	if task == "" {
		task = "the service's default task"
	}
	return fmt.Sprintf("%s, complexity %d", task, r.Settings.Complexity)
}

// describeCompletion says how the end of async work was learnt.
func describeCompletion(r *Report) string {
	s := r.Settings
	switch {
	case s.Completion == CompletionPoll:
		return "seen by polling, because no callback can reach the generator"
	case s.Signed:
		return "by callback to " + s.CallbackURL + ", signatures verified"
	default:
		return "by callback to " + s.CallbackURL + ", signatures not verified"
	}
}

// row is a label and the metrics of the two sides, which may be called differently there.
type row struct {
	label       string
	sync, async string
	ratio       bool // say what async makes of it
	asyncOnly   bool // leave it out when async has no figure
	rare        bool // leave it out when it is zero
}

// rows are what stands side by side. A row without any figure is left out, and so is a heading without rows.
var rows = []struct {
	heading string
	whole   bool // figures of the phase as a whole
	rows    []row
}{
	{heading: "Immediate answer", rows: []row{
		{label: "half of the callers within", sync: "response.p50", async: "accept.p50", ratio: true},
		{label: "95 of 100 within", sync: "response.p95", async: "accept.p95", ratio: true},
		{label: "99 of 100 within", sync: "response.p99", async: "accept.p99", ratio: true},
		{label: "the slowest", sync: "response.max", async: "accept.max"},
	}},
	{heading: "The result itself", rows: []row{
		{label: "half of them within", sync: "response.p50", async: "end_to_end.p50", ratio: true, asyncOnly: true},
		{label: "99 of 100 within", sync: "response.p99", async: "end_to_end.p99", ratio: true, asyncOnly: true},
		{label: "of that, the work (p50)", sync: "processing.p50", async: "processing.p50"},
		{label: "and the delivery (p50)", async: "delivery_lag.p50"},
	}},
	{heading: "Throughput", rows: []row{
		{label: "accepted per second", sync: "accepted_per_second", async: "accepted_per_second", ratio: true},
		{label: "completed per second", sync: "completed_per_second", async: "completed_per_second", ratio: true},
	}},
	{heading: "Outcome", rows: []row{
		{label: "requests sent", sync: "sent", async: "sent"},
		{label: "completed at the caller", sync: "success_rate", async: "success_rate"},
		{label: "the work failed", sync: "work_failed", async: "work_failed"},
		{label: "errors", sync: "errors", async: "errors"},
		{label: "refused, then tried again", sync: "retried", async: "retried", rare: true},
	}},
	{heading: "Callbacks", rows: []row{
		{label: "expected", async: "expected"},
		{label: "delivered", async: "delivered"},
		{label: "missing", async: "missing"},
		{label: "duplicate", async: "duplicate"},
		{label: "with a bad signature", async: "bad_signature"},
		{label: "no callback at all", async: "malformed", rare: true},
		{label: "before the 202 was read", async: "before_answer", rare: true},
		{label: "for requests without a 202", async: "unanswered", rare: true},
		{label: "for nothing that was asked", async: "unknown", rare: true},
		{label: "after the wait had ended", async: "late", rare: true},
		{label: "answered badly on purpose", async: "misbehaved", rare: true},
		{label: "delivered at a later try", async: "redelivered", rare: true},
		{label: "seen by polling instead", async: "polled", rare: true},
	}},
	{heading: "The server", whole: true, rows: []row{
		{label: "CPU time per request", sync: "server.cpu_per_request", async: "server.cpu_per_request", ratio: true},
		{label: "cores used", sync: "server.cpu", async: "server.cpu"},
		{label: "memory at most", sync: "server.memory", async: "server.memory"},
	}},
}

// group is a heading and what stands side by side under it.
type groupOfFigures struct {
	Heading string
	Rows    []figures
}

// figures is one line of a comparison, in words.
type figures struct{ Label, Sync, Async, Versus string }

// sideBySide sets two sides beside each other, by the prefixes of their metrics.
func sideBySide(metrics map[string]Metric, prefixes [2]string) []groupOfFigures {
	var groups []groupOfFigures
	for _, rows := range rows {
		group := groupOfFigures{Heading: rows.heading}
		for _, row := range rows.rows {
			one, hasOne := metrics[prefixes[0]+"."+row.sync]
			other, hasOther := metrics[prefixes[1]+"."+row.async]
			switch {
			case !hasOne && !hasOther:
				continue
			case row.asyncOnly && !hasOther:
				continue // what sync has for it stands in another group already
			case row.rare && one.Value == 0 && other.Value == 0:
				continue
			case rows.whole && prefixes[0] != PhaseSync:
				continue // the server's account of a phase is not told apart by side
			}
			line := figures{Label: row.label}
			if hasOne {
				line.Sync = one.show()
			}
			if hasOther {
				line.Async = other.show()
			}
			switch {
			case !hasOne || !hasOther || !row.ratio:
			case one.Unit == UnitPerSecond && prefixes[0] != PhaseSync: // --sync-ratio decides the rates of a mixed phase
			case ownWait(metrics, prefixes[1], row.async):
			default:
				line.Versus = versus(one, other)
			}
			group.Rows = append(group.Rows, line)
		}
		if len(group.Rows) > 0 {
			groups = append(groups, group)
		}
	}
	return groups
}

// ownWait reports whether a figure of async says how long the generator waited, for callbacks that
// did not come or between polls, rather than what the service did.
func ownWait(metrics map[string]Metric, prefix, name string) bool {
	polled := metrics[prefix+".polled"].Value > 0
	switch name {
	case "completed_per_second":
		return polled || metrics[prefix+".missing"].Value > 0
	case "end_to_end.p50", "end_to_end.p99":
		return polled
	default:
		return false
	}
}

// comparison writes two sides beside each other; a side that did not run has no column.
func (t *table) comparison(title string, prefixes [2]string) {
	_, one := t.metrics[prefixes[0]+".sent"]
	_, other := t.metrics[prefixes[1]+".sent"]
	if !one && !other {
		return
	}
	columns := func(f figures) []string {
		switch {
		case !other:
			return []string{f.Label, f.Sync}
		case !one:
			return []string{f.Label, f.Async}
		default:
			return []string{f.Label, f.Sync, f.Async, f.Versus}
		}
	}
	t.Heading(title)
	lines := [][]string{columns(figures{Sync: "sync", Async: "async", Versus: "async is"})}
	for _, group := range sideBySide(t.metrics, prefixes) {
		lines = append(lines, []string{group.Heading})
		for _, row := range group.Rows {
			row.Label = "  " + row.Label
			lines = append(lines, columns(row))
		}
	}
	t.Table([]int{-30, 14, 14, 14}, lines)
}

// versus says in two words what async makes of sync's figure.
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

// mixedTitle names the mixed phase.
func mixedTitle(r *Report) string {
	return "Mixed: both at once, " + showPercent(100*r.Settings.SyncRatio) + " of the requests sync"
}

// byName finds metrics by their names.
func byName(r *Report) map[string]Metric {
	metrics := map[string]Metric{}
	for _, metric := range Metrics(r) {
		metrics[metric.Name] = metric
	}
	return metrics
}

// failures lists what went wrong, by category.
func failures(r *Report) []string {
	var lines []string
	for _, phase := range r.Phases {
		for _, side := range []struct {
			name string
			side *Side
		}{{"sync", phase.Sync}, {"async", phase.Async}} {
			if side.side == nil {
				continue
			}
			name := phase.Name
			if name != side.name {
				name += ", " + side.name
			}
			for _, category := range slices.Sorted(maps.Keys(side.side.Errors)) {
				lines = append(lines, fmt.Sprintf("%s: %s × %s", name, showCount(side.side.Errors[category]), category))
			}
		}
		if phase.Callbacks == nil {
			continue
		}
		for _, status := range slices.Sorted(maps.Keys(phase.Callbacks.MissingByStatus)) {
			lines = append(lines, fmt.Sprintf("%s: of %s requests without a callback that were looked up, %s have the status %s",
				phase.Name, showCount(phase.Callbacks.MissingSampled), showCount(phase.Callbacks.MissingByStatus[status]), status))
		}
	}
	return lines
}

// sentences tells findings from advice.
func sentences(insights []Insight) (findings, choices []string) {
	for _, insight := range insights {
		if insight.Topic == TopicChoice {
			choices = append(choices, insight.Text)
		} else {
			findings = append(findings, insight.Text)
		}
	}
	return findings, choices
}

// thresholds says which bounds were kept.
func (t *table) thresholds(r *Report) {
	if len(r.Thresholds) == 0 {
		return
	}
	t.Heading("Thresholds")
	for _, threshold := range r.Thresholds {
		verdict := "FAILED  "
		if threshold.Pass {
			verdict = "kept    "
		}
		t.Paragraph("  "+verdict, threshold.Expression+" ("+threshold.Shown()+")")
	}
}

// Shown is what was measured, for people.
func (t ThresholdResult) Shown() string {
	if !t.Measured {
		return "nothing was measured"
	}
	return Metric{Unit: t.Unit, Value: t.Value}.show()
}

// describeGenerator says what the generator spent itself.
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
		parts = append(parts, "and sent 99 of 100 requests at most "+showMS(r.Generator.LagP99MS)+" after their planned time")
	}
	text := "Measured by " + r.Tool
	if len(parts) > 0 {
		text += ", which took " + strings.Join(parts, ", ")
	}
	return text + "."
}
