package load_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"tandem/internal/load"
)

// parsed is the HTML of a report as a browser sees it.
type parsed struct {
	text  string
	nodes []*html.Node // elements in document order
}

func parse(t *testing.T, r *load.Report) parsed {
	t.Helper()
	var text bytes.Buffer
	if err := load.WriteHTML(&text, r); err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(bytes.NewReader(text.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	p := parsed{text: text.String()}
	for node := range root.Descendants() {
		if node.Type == html.ElementNode {
			p.nodes = append(p.nodes, node)
		}
	}
	return p
}

// all returns the elements of a name.
func (p parsed) all(name string) []*html.Node {
	var found []*html.Node
	for _, node := range p.nodes {
		if node.Data == name {
			found = append(found, node)
		}
	}
	return found
}

// content is the text inside an element.
func content(node *html.Node) string {
	var text strings.Builder
	for inner := range node.Descendants() {
		if inner.Type == html.TextNode {
			text.WriteString(inner.Data)
		}
	}
	return text.String()
}

func attribute(node *html.Node, name string) string {
	for _, a := range node.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// TestHTMLFetchesNothing: no element of the page names another file, and its policy would not allow it.
func TestHTMLFetchesNothing(t *testing.T) {
	t.Parallel()
	p := parse(t, sleepy.report(t))
	for _, node := range p.nodes {
		switch node.Data {
		case "link", "iframe", "object", "embed", "img", "base", "form", "a", "audio", "video", "svg":
			t.Errorf("there is a <%s>", node.Data)
		}
		for _, a := range node.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "src", a.Key == "href", a.Key == "style", a.Key == "srcset",
				a.Key == "action":
				t.Errorf("<%s %s=%q>", node.Data, a.Key, a.Val)
			}
		}
	}
	for _, style := range p.all("style") {
		if text := content(style); strings.Contains(text, "url(") || strings.Contains(text, "@import") {
			t.Error("the style names another file")
		}
	}
	policy := attribute(p.all("meta")[1], "content")
	if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") ||
		strings.Contains(policy, "http") {
		t.Errorf("policy %q", policy)
	}
	if limit := 600_000; len(p.text) > limit {
		t.Errorf("%d bytes, want at most %d", len(p.text), limit)
	}
}

// TestHTMLPolicyNamesItsScripts: the browser runs the page's own script and style, by their hashes, and nothing else.
func TestHTMLPolicyNamesItsScripts(t *testing.T) {
	t.Parallel()
	p := parse(t, busy.report(t))
	policy, named := attribute(p.all("meta")[1], "content"), 0
	for _, node := range append(p.all("script"), p.all("style")...) {
		if attribute(node, "type") == "application/json" {
			continue // data: never run
		}
		named++
		sum := sha256.Sum256([]byte(content(node)))
		if hash := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, hash) {
			t.Errorf("the policy does not name this <%s>: %.60s", node.Data, content(node))
		}
	}
	if named != 2 || strings.Count(policy, "sha256-") != 2 {
		t.Errorf("%d scripts and styles, policy %q", named, policy)
	}
}

// TestHTMLHoldsTheReport: the JSON inside is the report, and the charts have as many points as they say.
func TestHTMLHoldsTheReport(t *testing.T) {
	t.Parallel()
	r := sleepy.report(t)
	p := parse(t, r)
	found := map[string]string{}
	for _, script := range p.all("script") {
		found[attribute(script, "id")] = content(script)
	}
	inside, err := load.DecodeReport(strings.NewReader(found["report"]))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, inside), encoded(t, r)) {
		t.Error("the report inside the page is another one")
	}
	var charts []struct {
		ID    string     `json:"id"`
		X     []*float64 `json:"x"`
		Lines []struct {
			Label string     `json:"label"`
			Y     []*float64 `json:"y"`
		} `json:"lines"`
	}
	if err := json.Unmarshal([]byte(found["charts"]), &charts); err != nil {
		t.Fatal(err)
	}
	places := map[string]*html.Node{}
	for _, div := range p.all("div") {
		places[attribute(div, "id")] = div
	}
	if len(charts) != 8 { // four of the phases, four of the mixed phase
		t.Errorf("%d charts", len(charts))
	}
	for _, chart := range charts {
		place := places[chart.ID]
		if place == nil || attribute(place, "role") != "img" || len(attribute(place, "aria-label")) < 40 {
			t.Errorf("chart %s has no place, or nothing for those who cannot see it", chart.ID)
		}
		for _, line := range chart.Lines {
			points := 0
			for _, y := range line.Y {
				if y != nil {
					points++
				}
			}
			if len(line.Y) != len(chart.X) || points < 10 {
				t.Errorf("%s, %s: %d values for %d places, %d of them points", chart.ID, line.Label, len(line.Y), len(chart.X),
					points)
			}
		}
	}
}

// TestHTMLOfAStranger: texts that the service, a file or a shell chose stay texts.
func TestHTMLOfAStranger(t *testing.T) {
	t.Parallel()
	evil := `</script></style><script>alert(1)</script><!--"><img src=x onerror=alert(1)>'` + "\u2028{{.}}"
	r := busy.report(t)
	plain := len(parse(t, r).all("script"))
	r.Tool, r.Mode, r.Target.URL, r.Target.Version, r.Target.Mode = evil, evil, evil, evil, evil
	r.Settings.Task, r.Settings.On429, r.Settings.CallbackURL, r.Settings.Completion = evil, evil, evil, evil
	r.Warnings, r.InvalidReasons, r.Valid = []string{evil}, []string{evil}, false
	r.Insights = []load.Insight{{Topic: evil, Text: evil, Figures: []string{evil}}}
	r.Thresholds = []load.ThresholdResult{{Expression: evil, Metric: evil, Unit: evil}}
	r.Phases[0].Sync.Errors = map[string]int64{evil: 1}
	r.Phases[1].Callbacks.MissingByStatus = map[string]int64{evil: 1}
	p := parse(t, r)
	if got := len(p.all("script")); got != plain {
		t.Errorf("%d scripts, want %d", got, plain)
	}
	if got := len(p.all("img")); got != 0 {
		t.Errorf("%d images", got)
	}
	shown := 0
	for _, node := range append(p.all("li"), append(p.all("b"), append(p.all("dd"), p.all("code")...)...)...) {
		if strings.Contains(content(node), evil) {
			shown++
		}
	}
	if shown < 6 {
		t.Errorf("the texts are shown %d times: were they lost?", shown)
	}
}

// TestHTMLSaysWhatDoesNotCount: an invalid or interrupted run is one at first sight.
func TestHTMLSaysWhatDoesNotCount(t *testing.T) {
	t.Parallel()
	alarms := func(r *load.Report) string {
		var texts []string
		for _, node := range parse(t, r).all("p") {
			if attribute(node, "role") == "alert" {
				texts = append(texts, content(node))
			}
		}
		return strings.Join(texts, "\n")
	}
	r := busy.report(t)
	if got := alarms(r); got != "" {
		t.Errorf("a good run: %s", got)
	}
	r.Valid, r.InvalidReasons, r.Interrupted = false, []string{"the generator was late"}, true
	got := alarms(r)
	if !strings.Contains(got, "the generator was late") || !strings.Contains(got, "Interrupted") {
		t.Errorf("%q", got)
	}
}

// TestHTMLCards: the card of the callbacks is an alarm when some are missing, and what was completed is
// not compared then, because the wait for them is in the rate.
func TestHTMLCards(t *testing.T) {
	t.Parallel()
	cards := func(missing int64) string {
		s := busy
		s.callbacks.Missing = missing
		var texts []string
		for _, node := range parse(t, s.report(t)).all("li") {
			if first := node.FirstChild; first != nil && first.Data == "h2" {
				texts = append(texts, attribute(node, "class")+" "+strings.Join(strings.Fields(content(node)), " "))
			}
		}
		return strings.Join(texts, "\n")
	}
	good, bad := cards(0), cards(1)
	if strings.Contains(good, "bad Callbacks") || !strings.Contains(good, "Work completedthe same") ||
		strings.Count(good, "\n") != 3 {
		t.Errorf("nothing missing:\n%s", good)
	}
	if !strings.Contains(bad, "bad Callbacks1,499 of 1,500") || !strings.Contains(bad, "Work completedunknown") {
		t.Errorf("one missing:\n%s", bad)
	}
}

// TestHTMLOfParts: a report without a side, a phase or a second has a page too.
func TestHTMLOfParts(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*load.Report){
		"nothing":       func(r *load.Report) { *r = load.Report{} },
		"sync only":     func(r *load.Report) { r.Phases = r.Phases[:1] },
		"async only":    func(r *load.Report) { r.Phases = r.Phases[1:2] },
		"mixed only":    func(r *load.Report) { r.Phases = r.Phases[2:] },
		"no callbacks":  func(r *load.Report) { r.Phases[1].Async.EndToEnd = nil; r.Phases[1].Callbacks = nil },
		"no series":     func(r *load.Report) { r.Phases[0].Sync.Series, r.Phases[1].Async.Series = nil, nil },
		"nothing timed": func(r *load.Report) { r.Phases[0].Sync.Response = load.Latency{} },
	} {
		r := sleepy.report(t)
		edit(r)
		p := parse(t, r)
		if len(p.all("h1")) != 1 || len(p.all("script")) != 3 {
			t.Errorf("%s: the page is not whole", name)
		}
		for _, cell := range append(p.all("td"), p.all("figcaption")...) {
			if strings.Contains(content(cell), "NaN") || strings.Contains(content(cell), "Inf") {
				t.Errorf("%s: %s", name, content(cell))
			}
		}
	}
}

// TestHTMLOfDamage: a histogram that is none is an error, not an empty chart.
func TestHTMLOfDamage(t *testing.T) {
	t.Parallel()
	r := busy.report(t)
	r.Phases[0].Sync.Response.HDR = "bm8gaGlzdG9ncmFt"
	if err := load.WriteHTML(new(bytes.Buffer), r); err == nil || !strings.Contains(err.Error(), "decode histogram") {
		t.Errorf("%v", err)
	}
}
