package load

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// A chart is the data of one picture of the HTML report; page/report.js draws it.
type chart struct {
	ID      string  `json:"id"`
	Title   string  `json:"title"`
	Caption string  `json:"-"`       // the same in words and figures
	XKind   string  `json:"x_kind"`  // seconds, or percentile: x is 1/(1-p), equal width for each nine
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

// points are numbers; a missing one is NaN, null in JSON.
type points []float64

// MarshalJSON writes six digits, more than a screen shows.
func (p points) MarshalJSON() ([]byte, error) {
	short := make([]any, len(p))
	for i, value := range p {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			short[i] = json.Number(fmt.Sprintf("%.6g", value))
		}
	}
	return json.Marshal(short)
}

// shown picks one of the present points and writes it as a time.
func (p points) shown(pick func([]float64) float64) string {
	if there := p.there(); len(there) > 0 {
		return showMS(pick(there))
	}
	return "nothing"
}

// there are the present points.
func (p points) there() []float64 { return slices.DeleteFunc(slices.Clone(p), math.IsNaN) }

// exchange is drawn together: sync and async of a run, or of its mixed phase. A missing side is nil.
type exchange struct {
	sync, async          *Side
	syncWall             float64 // seconds
	asyncSend, asyncWall float64
	length               int     // steps of the longer side
	step                 float64 // seconds
}

func newExchange(sync, async *Phase) exchange {
	e := exchange{sync: sync.side(false), async: async.side(true)}
	for _, side := range []*Side{e.async, e.sync} {
		if side != nil {
			e.length = max(e.length, len(side.Series))
			e.step = cmp.Or(float64(max(0, side.SeriesStepSeconds)), e.step)
		}
	}
	e.step = cmp.Or(e.step, 1)
	if e.sync != nil {
		e.syncWall = sync.WallSeconds
	}
	if e.async != nil {
		e.asyncSend, e.asyncWall = async.SendSeconds, async.WallSeconds
	}
	return e
}

// charts makes the pictures of an exchange.
func (e exchange) charts(id string) ([]chart, error) {
	distribution, err := e.distribution()
	charts := []chart{distribution, e.latencies(), e.rates()}
	if e.async != nil {
		charts = append(charts, e.arrivals())
	}
	for i := range charts {
		charts[i].ID = id + "-" + charts[i].ID
	}
	return charts, err
}

// sayf adds a sentence to the caption.
func (c *chart) sayf(format string, args ...any) {
	if c.Caption != "" {
		c.Caption += " "
	}
	c.Caption += fmt.Sprintf(format, args...) + "."
}

// distribution draws the waits from the shortest to the longest.
func (e exchange) distribution() (chart, error) {
	const perDecade = 40
	c := chart{
		ID: "distribution", Title: "Latency distribution",
		XKind: "percentile", YKind: UnitMilliseconds, LogY: true,
		XLabel: "share of requests within that time", YLabel: "time (logarithmic)",
	}
	type clock struct {
		label, color string
		*Latency
	}
	var clocks []clock
	if e.sync != nil {
		clocks = append(clocks, clock{"sync: answer", "sync", &e.sync.Response})
	}
	if e.async != nil {
		clocks = append(clocks,
			clock{"async: acceptance", "accept", &e.async.Response}, clock{"async: result", "result", e.async.EndToEnd})
	}
	clocks = slices.DeleteFunc(clocks, func(c clock) bool { return c.Latency == nil || c.Count == 0 })
	decades := 2.0
	for _, clock := range clocks {
		decades = min(6, max(decades, math.Log10(float64(clock.Count))))
	}
	for i := range int(decades*perDecade) + 1 {
		c.X = append(c.X, math.Pow(10, float64(i)/perDecade))
	}
	for _, clock := range clocks {
		histogram, err := clock.histogram()
		if err != nil {
			return c, err
		}
		line := curve{Label: clock.label, Color: clock.color}
		for _, x := range c.X {
			y := math.NaN()
			if x <= float64(clock.Count) {
				y = float64(histogram.ValueAtPercentile(100*(1-1/x))) / 1000
			}
			line.Y = append(line.Y, y)
		}
		c.Lines = append(c.Lines, line)
		c.sayf("%s: p50 %s, p99 %s, max %s",
			line.Label, showMS(clock.P50MS), showMS(clock.P99MS), showMS(clock.MaxMS))
	}
	return c, nil
}

// overTime begins a picture of the steps.
func (e exchange) overTime(c chart) chart {
	c.XKind, c.XLabel = "seconds", "seconds since the phase began"
	for i := range e.length {
		c.X = append(c.X, float64(i)*e.step)
	}
	return c
}

// along reads one value per step; absent and zero ones are missing in a picture of times.
func (e exchange) along(side *Side, read func(Step) float64) points {
	y := make(points, e.length)
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
	c := e.overTime(chart{
		ID: "latency", Title: "Latency over time", YKind: UnitMilliseconds, LogY: true, YLabel: "time (logarithmic)",
	})
	add := func(label, color string, side *Side, p50, p99 func(Step) float64) (median, tail points) {
		median, tail = e.along(side, p50), e.along(side, p99)
		c.Lines = append(c.Lines,
			curve{Label: label + " p50", Color: color, Y: median},
			curve{Label: label + " p99", Color: color, Dash: true, Y: tail})
		return median, tail
	}
	p50, p99 := func(s Step) float64 { return s.P50MS }, func(s Step) float64 { return s.P99MS }
	const seconds = "%s: the median second has %s at p50, the worst %s at p99"
	if e.sync != nil {
		y50, y99 := add("sync: answer", "sync", e.sync, p50, p99)
		c.sayf(seconds, "Sync", y50.shown(median), y99.shown(slices.Max))
	}
	if e.async == nil {
		return c
	}
	y50, y99 := add("async: acceptance", "accept", e.async, p50, p99)
	c.sayf(seconds, "Async acceptance", y50.shown(median), y99.shown(slices.Max))
	if e.async.EndToEnd != nil {
		y50, _ := add("async: result", "result", e.async,
			func(s Step) float64 { return s.EndP50MS }, func(s Step) float64 { return s.EndP99MS })
		c.sayf("Async result: from %s to %s at p50", y50.shown(slices.Min), y50.shown(slices.Max))
	}
	return c
}

// rates draws the requests accepted and completed in each second. The last step is shorter: its rate is over its real
// length, and left out if that is too short.
func (e exchange) rates() chart {
	c := e.overTime(chart{ID: "rates", Title: "Requests per second", YKind: "rate", YLabel: "per second"})
	low, high := math.Inf(1), 0.0
	add := func(label, color string, side *Side, seconds float64, count func(Step) int64) {
		line := curve{Label: label, Color: color, Y: make(points, e.length)}
		for i := range line.Y {
			part := min(e.step, seconds-float64(i)*e.step)
			if i >= len(side.Series) || part <= 0 || i > 0 && part < 0.3*e.step {
				line.Y[i] = math.NaN()
				continue
			}
			line.Y[i] = float64(count(side.Series[i])) / part
			if line.Y[i] > 0 {
				low, high = min(low, line.Y[i]), max(high, line.Y[i])
			}
		}
		c.Lines = append(c.Lines, line)
	}
	accepted, completed := func(s Step) int64 { return s.Accepted }, func(s Step) int64 { return s.Completed }
	if e.sync != nil {
		add("sync: completed", "sync", e.sync, e.syncWall, completed)
		c.sayf("Sync completed %s a second", ShowNumber(e.sync.CompletedPerSecond))
	}
	if e.async != nil {
		add("async: accepted", "accept", e.async, e.asyncSend, accepted)
		add("async: completed", "result", e.async, e.asyncWall, completed)
		c.sayf("Async accepted %s and completed %s a second",
			ShowNumber(e.async.AcceptedPerSecond), ShowNumber(e.async.CompletedPerSecond))
	}
	if c.LogY = high > 30*low; !c.LogY {
		return c
	}
	c.YLabel += " (logarithmic)"
	for _, line := range c.Lines {
		for i, v := range line.Y {
			if v == 0 {
				line.Y[i] = math.NaN()
			}
		}
	}
	return c
}

// arrivals draws the accepted requests, the results, and the difference of the two.
func (e exchange) arrivals() chart {
	c := chart{
		ID: "callbacks", Title: "Accepted and delivered", XKind: "seconds", YKind: UnitCount,
		XLabel: "seconds since the phase began", YLabel: "requests so far",
	}
	promised, came, open := points{0}, points{0}, points{0}
	c.X = points{0}
	accepted, received, peak := 0.0, 0.0, 0.0
	for i, step := range e.async.Series {
		from, to := float64(i)*e.step, float64(i+1)*e.step
		accepted, received = accepted+float64(step.Accepted), received+float64(step.Completed)
		if send := e.asyncSend; send > from && send < to { // nothing is accepted after it: the line bends here
			c.X, promised = append(c.X, send), append(promised, accepted)
			came, open = append(came, math.NaN()), append(open, math.NaN())
		}
		c.X = append(c.X, max(min(to, e.asyncWall), c.X[len(c.X)-1]+0.001))
		promised, came = append(promised, accepted), append(came, received)
		open = append(open, max(0, accepted-received))
		peak = max(peak, accepted-received)
	}
	c.Lines = []curve{
		{Label: "accepted", Color: "accept", Y: promised},
		{Label: "results received", Color: "result", Y: came},
		{Label: "outstanding", Color: "other", Dash: true, Y: open},
	}
	c.sayf("%s were accepted, %s results came; at the end of a second at most %s were outstanding",
		showCount(int64(accepted)), showCount(int64(received)), showCount(int64(peak)))
	return c
}
