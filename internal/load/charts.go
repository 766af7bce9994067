package load

import (
	"encoding/json"
	"fmt"
	"math"
)

// A chart is the data of one picture of the HTML report; page/report.js draws it.
type chart struct {
	ID      string  `json:"id"`
	Title   string  `json:"title"`
	Caption string  `json:"-"`       // the same in words and figures
	XKind   string  `json:"x_kind"`  // seconds, or percentile: x is 1/(1-p), so that each nine has the same width
	YKind   string  `json:"y_kind"`  // ms, rate or count
	LogY    bool    `json:"log_y"`   //
	X       points  `json:"x"`       //
	Lines   []curve `json:"lines"`   //
	XLabel  string  `json:"x_label"` //
	YLabel  string  `json:"y_label"` //
}

// curve is one line of a chart.
type curve struct {
	Label string `json:"label"`
	Color string `json:"color"` // sync, accept, result or other: the page has the colours
	Dash  bool   `json:"dash"`
	Y     points `json:"y"` // as long as chart.X
}

// points are numbers of which some are missing (NaN): null in JSON.
type points []float64

// MarshalJSON writes six digits, which is more than a screen shows.
func (p points) MarshalJSON() ([]byte, error) {
	short := make([]any, len(p))
	for i, value := range p {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			short[i] = json.Number(fmt.Sprintf("%.6g", value))
		}
	}
	return json.Marshal(short)
}

// exchange is what is drawn together: sync and async of a run, or of its mixed phase. A side that did not run is nil.
type exchange struct {
	id                    string
	sync, async           *Side
	syncPhase, asyncPhase *Phase
}

// charts makes the pictures of an exchange.
func (e exchange) charts() ([]chart, error) {
	distribution, err := e.distribution()
	if err != nil {
		return nil, err
	}
	charts := []chart{distribution, e.latencies(), e.rates()}
	if e.async != nil {
		charts = append(charts, e.arrivals())
	}
	for i := range charts {
		charts[i].ID = e.id + "-" + charts[i].ID
	}
	return charts, nil
}

// clocksOf are the distributions that callers feel, under the names of the page.
func (e exchange) clocksOf() []namedLatency {
	var clocks []namedLatency
	if e.sync != nil {
		clocks = append(clocks, namedLatency{"sync: answer", "sync", &e.sync.Response})
	}
	if e.async != nil {
		clocks = append(clocks, namedLatency{"async: acceptance", "accept", &e.async.Response})
		if e.async.EndToEnd != nil {
			clocks = append(clocks, namedLatency{"async: result", "result", e.async.EndToEnd})
		}
	}
	return clocks
}

// namedLatency is a distribution with its name and colour.
type namedLatency struct {
	label, color string
	latency      *Latency
}

// distribution draws how long the luckiest to the unluckiest waited.
func (e exchange) distribution() (chart, error) {
	const perDecade = 40
	c := chart{
		ID: "distribution", Title: "How long callers wait, from the luckiest to the unluckiest", XKind: "percentile", YKind: UnitMilliseconds, LogY: true,
		XLabel: "share of requests that took no longer", YLabel: "time (logarithmic)",
	}
	decades := 0.0
	for _, clock := range e.clocksOf() {
		decades = max(decades, math.Log10(float64(max(1, clock.latency.Count))))
	}
	decades = min(6, max(2, decades))
	for i := range int(decades*perDecade) + 1 {
		c.X = append(c.X, math.Pow(10, float64(i)/perDecade))
	}
	for _, clock := range e.clocksOf() {
		if clock.latency.Count == 0 {
			continue
		}
		histogram, err := clock.latency.histogram()
		if err != nil {
			return chart{}, err
		}
		line := curve{Label: clock.label, Color: clock.color}
		for _, x := range c.X {
			y := math.NaN()
			if x <= float64(clock.latency.Count) {
				y = float64(histogram.ValueAtPercentile(100*(1-1/x))) / 1000
			}
			line.Y = append(line.Y, y)
		}
		c.Lines = append(c.Lines, line)
		c.Caption = addSentence(c.Caption, fmt.Sprintf("%s: half within %s, 99 of 100 within %s, the slowest %s",
			clock.label, showMS(clock.latency.P50MS), showMS(clock.latency.P99MS), showMS(clock.latency.MaxMS)))
	}
	return c, nil
}

// addSentence adds a sentence to a text.
func addSentence(text, sentence string) string {
	if text != "" {
		text += " "
	}
	return text + sentence + "."
}

// length is the number of steps of the longer side.
func (e exchange) length() int {
	n := 0
	for _, side := range []*Side{e.sync, e.async} {
		if side != nil {
			n = max(n, len(side.Series))
		}
	}
	return n
}

// step is the length of a step in seconds.
func (e exchange) step() float64 {
	for _, side := range []*Side{e.sync, e.async} {
		if side != nil && side.SeriesStepSeconds > 0 {
			return float64(side.SeriesStepSeconds)
		}
	}
	return 1
}

// times are the beginnings of the steps.
func (e exchange) times() points {
	x := make(points, e.length())
	for i := range x {
		x[i] = float64(i) * e.step()
	}
	return x
}

// along reads one value per step; absent and zero ones are missing in a picture of times.
func (e exchange) along(side *Side, read func(Step) float64) points {
	y := make(points, e.length())
	for i := range y {
		y[i] = math.NaN()
		if i < len(side.Series) {
			if value := read(side.Series[i]); value > 0 {
				y[i] = value
			}
		}
	}
	return y
}

// latencies draws the percentiles of each step.
func (e exchange) latencies() chart {
	c := chart{
		ID: "latency", Title: "Waiting over time", XKind: "seconds", YKind: UnitMilliseconds, LogY: true, X: e.times(),
		XLabel: "seconds since the phase began", YLabel: "time (logarithmic)",
	}
	add := func(label, color string, side *Side, p50, p99 func(Step) float64) {
		c.Lines = append(c.Lines,
			curve{Label: label + " p50", Color: color, Y: e.along(side, p50)},
			curve{Label: label + " p99", Color: color, Dash: true, Y: e.along(side, p99)})
	}
	p50, p99 := func(s Step) float64 { return s.P50MS }, func(s Step) float64 { return s.P99MS }
	if e.sync != nil {
		add("sync: answer", "sync", e.sync, p50, p99)
		c.Caption = addSentence(c.Caption, "Sync: the median second has "+middle(e.along(e.sync, p50))+" at p50, the worst "+most(e.along(e.sync, p99))+" at p99")
	}
	if e.async != nil {
		add("async: acceptance", "accept", e.async, p50, p99)
		c.Caption = addSentence(c.Caption, "Async acceptance: the median second has "+middle(e.along(e.async, p50))+" at p50, the worst "+most(e.along(e.async, p99))+" at p99")
		if e.async.EndToEnd != nil {
			end50, end99 := func(s Step) float64 { return s.EndP50MS }, func(s Step) float64 { return s.EndP99MS }
			add("async: result", "result", e.async, end50, end99)
			c.Caption = addSentence(c.Caption, "Async result: from "+least(e.along(e.async, end50))+" to "+most(e.along(e.async, end50))+" at p50")
		}
	}
	return c
}

// values are the points that are there.
func (p points) values() []Metric {
	var values []Metric
	for _, value := range p {
		if !math.IsNaN(value) {
			values = append(values, Metric{Value: value})
		}
	}
	return values
}

func middle(p points) string {
	if values := p.values(); len(values) > 0 {
		return showMS(median(values))
	}
	return "nothing"
}

func most(p points) string {
	worst := math.NaN()
	for _, v := range p.values() {
		if !(v.Value <= worst) {
			worst = v.Value
		}
	}
	if math.IsNaN(worst) {
		return "nothing"
	}
	return showMS(worst)
}

func least(p points) string {
	best := math.NaN()
	for _, v := range p.values() {
		if !(v.Value >= best) {
			best = v.Value
		}
	}
	if math.IsNaN(best) {
		return "nothing"
	}
	return showMS(best)
}

// rates draws how much was accepted and done in each second. The last step is a
// part of one: its rate is over that part, and left out where the part is too short to tell.
func (e exchange) rates() chart {
	c := chart{
		ID: "rates", Title: "Requests per second", XKind: "seconds", YKind: "rate", X: e.times(),
		XLabel: "seconds since the phase began", YLabel: "per second",
	}
	add := func(label, color string, side *Side, seconds float64, count func(Step) int64) {
		line := curve{Label: label, Color: color, Y: make(points, e.length())}
		for i := range line.Y {
			part := min(e.step(), seconds-float64(i)*e.step())
			switch {
			case i >= len(side.Series) || part <= 0 || i > 0 && part < 0.3*e.step():
				line.Y[i] = math.NaN()
			default:
				line.Y[i] = float64(count(side.Series[i])) / part
			}
		}
		c.Lines = append(c.Lines, line)
	}
	if e.sync != nil {
		add("sync: completed", "sync", e.sync, e.syncPhase.WallSeconds, func(s Step) int64 { return s.Completed })
		c.Caption = addSentence(c.Caption, "Sync completed "+ShowNumber(e.sync.CompletedPerSecond)+" a second")
	}
	if e.async != nil {
		add("async: accepted", "accept", e.async, e.asyncPhase.SendSeconds, func(s Step) int64 { return s.Accepted })
		add("async: completed", "result", e.async, e.asyncPhase.WallSeconds, func(s Step) int64 { return s.Completed })
		c.Caption = addSentence(c.Caption, "Async accepted "+ShowNumber(e.async.AcceptedPerSecond)+
			" and completed "+ShowNumber(e.async.CompletedPerSecond)+" a second")
	}
	low, high := math.Inf(1), 0.0
	for _, line := range c.Lines {
		for _, v := range line.Y.values() {
			if v.Value > 0 {
				low, high = min(low, v.Value), max(high, v.Value)
			}
		}
	}
	if c.LogY = high > 30*low; c.LogY {
		c.YLabel += " (logarithmic)"
		for _, line := range c.Lines {
			for i, v := range line.Y {
				if v == 0 {
					line.Y[i] = math.NaN()
				}
			}
		}
	}
	return c
}

// arrivals draws what was promised, what came, and what was outstanding between the two.
func (e exchange) arrivals() chart {
	c := chart{
		ID: "callbacks", Title: "Promised and delivered", XKind: "seconds", YKind: UnitCount,
		XLabel: "seconds since the phase began", YLabel: "requests so far",
	}
	promised, came, open := points{0}, points{0}, points{0}
	c.X = points{0}
	accepted, received, peak := 0.0, 0.0, 0.0
	for i, step := range e.async.Series {
		from, to := float64(i)*e.step(), float64(i+1)*e.step()
		accepted, received = accepted+float64(step.Accepted), received+float64(step.Completed)
		if send := e.asyncPhase.SendSeconds; send > from && send < to { // nothing is accepted after it: the line bends here
			c.X, promised = append(c.X, send), append(promised, accepted)
			came, open = append(came, math.NaN()), append(open, math.NaN())
		}
		c.X = append(c.X, max(min(to, e.asyncPhase.WallSeconds), c.X[len(c.X)-1]+0.001))
		promised, came = append(promised, accepted), append(came, received)
		open = append(open, max(0, accepted-received))
		peak = max(peak, accepted-received)
	}
	c.Lines = []curve{
		{Label: "accepted", Color: "accept", Y: promised},
		{Label: "results received", Color: "result", Y: came},
		{Label: "outstanding", Color: "other", Dash: true, Y: open},
	}
	c.Caption = addSentence("", showCount(int64(accepted))+" were accepted, "+showCount(int64(received))+
		" results came; at the end of a second at most "+showCount(int64(peak))+" were outstanding")
	return c
}
