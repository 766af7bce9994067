package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// The shape of the table: a label and three columns, 78 characters wide.
const (
	tableWidth  = 78
	labelWidth  = 30
	columnWidth = 16
)

// WriteTable writes the report for people, as plain text of at most 78 columns.
func WriteTable(w io.Writer, r *Report) error {
	t := table{metrics: map[string]Metric{}}
	for _, metric := range Metrics(r) {
		t.metrics[metric.Name] = metric
	}
	t.head(r)
	t.sides("Side against side", []string{"sync", "async"}, r)
	t.sides("Mixed: both at once, "+showPercent(100*r.Settings.SyncRatio)+" of the requests sync", []string{"mixed.sync", "mixed.async"}, r)
	t.refusals(r)
	t.sentences("What the figures say", r.Insights, func(topic string) bool { return topic != TopicChoice })
	t.sentences("When to choose which", r.Insights, func(topic string) bool { return topic == TopicChoice })
	t.thresholds(r)
	t.list("What a reader has to know", r.Warnings)
	t.foot(r)
	if _, err := io.WriteString(w, t.text.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// table is the text as it grows.
type table struct {
	text    strings.Builder
	metrics map[string]Metric
}

// line writes one line without blanks at its end.
func (t *table) line(format string, args ...any) {
	t.text.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// heading begins a section.
func (t *table) heading(text string) {
	t.line("\n%s\n%s", text, strings.Repeat("─", utf8.RuneCountInString(text)))
}

// paragraph writes a text behind a mark, broken at blanks.
func (t *table) paragraph(mark, text string) {
	room := tableWidth - utf8.RuneCountInString(mark)
	for line := range wrap(plain(text), room) {
		t.line("%s%s", mark, line)
		mark = strings.Repeat(" ", utf8.RuneCountInString(mark))
	}
}

// wrap yields the lines of a text, each as long as it may be. A word that is longer than a line is cut.
func wrap(text string, room int) func(func(string) bool) {
	return func(yield func(string) bool) {
		line := ""
		for _, word := range strings.Fields(text) {
			for runes := []rune(word); len(runes) > room; runes = []rune(word) {
				if line != "" && !yield(line) || !yield(string(runes[:room])) {
					return
				}
				line, word = "", string(runes[room:])
			}
			switch {
			case line == "":
				line = word
			case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= room:
				line += " " + word
			default:
				if !yield(line) {
					return
				}
				line = word
			}
		}
		if line != "" {
			yield(line)
		}
	}
}

// head says what was done to whom, and first of all whether it counts.
func (t *table) head(r *Report) {
	if r.Interrupted {
		t.paragraph("INTERRUPTED: ", "the run was stopped before its end. What follows is a part, and no threshold was evaluated.")
	}
	if !r.Valid {
		reasons := strings.Join(r.InvalidReasons, "; ")
		if reasons == "" {
			reasons = "the report does not say why"
		}
		t.paragraph("INVALID: ", "do not rely on these figures: "+reasons+".")
	}
	if r.Interrupted || !r.Valid {
		t.line("")
	}
	t.paragraph("Target    ", describeTarget(r))
	t.paragraph("Run       ", describeRun(r))
	t.paragraph("Work      ", describeWork(r))
	t.paragraph("Results   ", describeCompletion(r))
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
		text += fmt.Sprintf(", from %s to %s a second (open loop, at most %s at once)", showNumber(s.RampFromPerSecond), showNumber(s.RatePerSecond), showCount(int64(s.Concurrency)))
	case s.RatePerSecond > 0:
		text += fmt.Sprintf(", %s a second (open loop, at most %s at once)", showNumber(s.RatePerSecond), showCount(int64(s.Concurrency)))
	default:
		text += fmt.Sprintf(", %s at a time (closed loop: the next is sent when one is answered)", showCount(int64(s.Concurrency)))
	}
	return text
}

// describeWork says what was asked for.
func describeWork(r *Report) string {
	s := r.Settings
	task := s.Task
	if task == "" {
		task = "the service's own choice"
	}
	return fmt.Sprintf("%s, complexity %d, %s of data in each request", task, s.Complexity, showBytes(int64(s.DataBytes)))
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

// A row is a label and the metrics of a side, which may be called differently on the two.
type row struct {
	label       string
	sync, async string
	better      string // word for the ratio: "sooner" of times; "" of rates
}

// rows are what stands side by side. A row without any figure is left out, and so is a heading without rows.
var rows = []struct {
	heading string
	rows    []row
}{
	{"Immediate answer", []row{
		{"half of the callers within", "response.p50", "accept.p50", "sooner"},
		{"95 of 100 within", "response.p95", "accept.p95", "sooner"},
		{"99 of 100 within", "response.p99", "accept.p99", "sooner"},
		{"the slowest", "response.max", "accept.max", ""},
	}},
	{"The result itself", []row{
		{"half of them within", "response.p50", "end_to_end.p50", "sooner"},
		{"99 of 100 within", "response.p99", "end_to_end.p99", "sooner"},
		{"of that, the work (p50)", "processing.p50", "processing.p50", ""},
		{"and the delivery (p50)", "", "delivery_lag.p50", ""},
	}},
	{"Throughput", []row{
		{"accepted per second", "accepted_per_second", "accepted_per_second", "rate"},
		{"completed per second", "completed_per_second", "completed_per_second", "rate"},
	}},
	{"Outcome", []row{
		{"requests sent", "sent", "sent", ""},
		{"completed at the caller", "success_rate", "success_rate", ""},
		{"the work failed", "work_failed", "work_failed", ""},
		{"errors", "errors", "errors", ""},
	}},
	{"Callbacks", []row{
		{"expected", "", "expected", ""},
		{"delivered", "", "delivered", ""},
		{"missing", "", "missing", ""},
		{"duplicate", "", "duplicate", ""},
		{"with a bad signature", "", "bad_signature", ""},
		{"seen by polling instead", "", "polled", ""},
	}},
	{"The server", []row{
		{"CPU time per request", "server.cpu_per_request", "server.cpu_per_request", ""},
		{"cores used", "server.cpu", "server.cpu", ""},
		{"memory at most", "server.memory", "server.memory", ""},
	}},
}

// sides sets two sides beside each other.
func (t *table) sides(title string, prefixes []string, r *Report) {
	_, one := t.metrics[prefixes[0]+".sent"]
	_, other := t.metrics[prefixes[1]+".sent"]
	if !one && !other {
		return
	}
	t.heading(title)
	t.line("%s", cells("", "sync", "async", "async is"))
	for _, group := range rows {
		var lines []string
		for _, row := range group.rows {
			if line, ok := t.row(row, prefixes, r.Settings.Completion); ok {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			t.line("%s", group.heading)
			t.line("%s", strings.Join(lines, "\n"))
		}
	}
}

// cells writes a label and columns, aligned to the right.
func cells(label string, columns ...string) string {
	line := label + strings.Repeat(" ", max(0, labelWidth-utf8.RuneCountInString(label)))
	for _, column := range columns {
		line += strings.Repeat(" ", max(1, columnWidth-utf8.RuneCountInString(column))) + column
	}
	return strings.TrimRight(line, " ")
}

// row is one line; it is not ok when neither side has the figure, or when it says nothing here.
func (t *table) row(row row, prefixes []string, completion string) (string, bool) {
	one, hasOne := t.metrics[prefixes[0]+"."+row.sync]
	other, hasOther := t.metrics[prefixes[1]+"."+row.async]
	switch {
	case !hasOne && !hasOther:
		return "", false
	case row.async == "polled" && completion != CompletionPoll:
		return "", false
	case row.async == "end_to_end.p50" && !hasOther, row.async == "end_to_end.p99" && !hasOther:
		return "", false // the sync side alone stands under Immediate answer
	}
	left, right, ratio := "", "", ""
	if hasOne {
		left = one.show()
	}
	if hasOther {
		right = other.show()
	}
	if hasOne && hasOther && row.better != "" {
		ratio = versus(one, other)
	}
	return cells("  "+row.label, left, right, ratio), true
}

// versus says in two words what async makes of sync's figure.
func versus(sync, async Metric) string {
	if sync.Value <= 0 || async.Value <= 0 {
		return ""
	}
	ratio := async.Value / sync.Value
	if same(ratio) {
		return "the same"
	}
	if sync.Unit == UnitMilliseconds {
		if ratio < 1 {
			return showTimes(1/ratio) + " sooner"
		}
		return showTimes(ratio) + " later"
	}
	if ratio > 1 {
		return showTimes(ratio) + " as much"
	}
	return showTimes(1/ratio) + " less"
}

// refusals lists what went wrong, by category.
func (t *table) refusals(r *Report) {
	var lines []string
	for _, phase := range r.Phases {
		for _, side := range []struct {
			name string
			side *Side
		}{{"sync", phase.Sync}, {"async", phase.Async}} {
			if side.side == nil {
				continue
			}
			for _, category := range slices.Sorted(maps.Keys(side.side.Errors)) {
				lines = append(lines, fmt.Sprintf("%s phase, %s: %s × %s", phase.Name, side.name, showCount(side.side.Errors[category]), category))
			}
		}
		if phase.Callbacks == nil {
			continue
		}
		for _, status := range slices.Sorted(maps.Keys(phase.Callbacks.MissingByStatus)) {
			lines = append(lines, fmt.Sprintf("%s phase, missing callbacks: %s of %s looked up have the status %s",
				phase.Name, showCount(phase.Callbacks.MissingByStatus[status]), showCount(phase.Callbacks.MissingSampled), status))
		}
	}
	t.list("What went wrong", lines)
}

// sentences lists the insights of some topics.
func (t *table) sentences(title string, all []Insight, wanted func(topic string) bool) {
	var texts []string
	for _, insight := range all {
		if wanted(insight.Topic) {
			texts = append(texts, insight.Text)
		}
	}
	t.list(title, texts)
}

// list writes a section of points; none, no section.
func (t *table) list(title string, texts []string) {
	if len(texts) == 0 {
		return
	}
	t.heading(title)
	for _, text := range texts {
		t.paragraph("  • ", text)
	}
}

// thresholds says which bounds were kept.
func (t *table) thresholds(r *Report) {
	if len(r.Thresholds) == 0 {
		return
	}
	t.heading("Thresholds")
	for _, threshold := range r.Thresholds {
		verdict := "FAILED  "
		if threshold.Pass {
			verdict = "kept    "
		}
		t.paragraph("  "+verdict, threshold.Expression+"   "+threshold.found())
	}
}

// found says what was measured.
func (t ThresholdResult) found() string {
	if !t.Measured {
		return "(nothing was measured)"
	}
	return "(" + Metric{Unit: t.Unit, Value: t.Value}.show() + ")"
}

// foot says how punctual the generator was.
func (t *table) foot(r *Report) {
	t.line("")
	t.paragraph("", describeGenerator(r))
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
	text += "."
	if r.Generator.SharesMachine {
		text += " It ran on the service's machine, and they shared its cores."
	}
	return text
}
