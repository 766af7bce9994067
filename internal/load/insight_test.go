package load_test

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tandem/internal/load"
)

// TestInsightsFlip: each sentence is there because of figures, and goes, or says the opposite, when
// they change. The figures of `from` and `to` are all that differs.
func TestInsightsFlip(t *testing.T) {
	t.Parallel()
	type change = func(r *load.Report)
	none := func(*load.Report) {}
	phase := func(edit func(sync, async *load.Phase)) change {
		return func(r *load.Report) { edit(&r.Phases[0], &r.Phases[1]) }
	}
	accept := func(ms float64) change { return phase(func(_, async *load.Phase) { async.Async.Response.P50MS = ms }) }
	completed := func(sync, async float64) change {
		return phase(func(one, other *load.Phase) {
			one.Sync.CompletedPerSecond, other.Async.CompletedPerSecond = sync, async
		})
	}
	closed := func(r *load.Report) { r.Settings.RatePerSecond = 0 }
	tests := []struct {
		name     string
		common   change // before both
		from, to change
		before   string // said with from, not with to
		after    string // said with to, not with from; "": nothing instead
	}{
		{"acceptance becomes slow", none, accept(1), accept(500), "Async frees the caller", "Sync frees the caller"},
		{"acceptance as fast as the answer", none, accept(1), accept(240), "Async frees the caller",
			"Callers wait equally long"},
		{"acceptance at the edge of the same", none, accept(242 / 1.09), accept(242 / 1.2), "Callers wait equally long",
			"Async frees the caller"},
		{
			"acceptance becomes uneven", none,
			phase(func(_, p *load.Phase) { p.Async.Response.P99MS = 99 * p.Async.Response.P50MS }), none,
			"Acceptance is uneven", "",
		},
		{"async completes more", closed, completed(100, 109), completed(100, 250), "complete the work equally fast",
			"Async completes 2.5× as much"},
		{"async completes less", closed, completed(100, 92), completed(250, 100), "complete the work equally fast",
			"Sync completes 2.5× as much"},
		{
			"async completes less, and waited for what was missing", func(r *load.Report) { closed(r); completed(250, 100)(r) },
			none, phase(func(_, p *load.Phase) { p.Callbacks.Missing = 3 }),
			"Sync completes 2.5× as much", "The throughput of async is unknown: 3 callbacks",
		},
		{"async completes nothing", closed, completed(100, 100), completed(100, 0), "complete the work equally fast", ""},
		{
			"the work computes, by the service's account", func(r *load.Report) { closed(r); completed(80, 80)(r) },
			phase(func(p, _ *load.Phase) { p.Server.CPUSeconds = 240 * 1.8 * 0.9 }),
			phase(func(p, _ *load.Phase) { p.Server.CPUSeconds = 240 * 1.8 * 0.2 }),
			"The work is CPU-bound", "Both ways complete the work equally fast",
		},
		{
			"the work computes, by its name", func(r *load.Report) { closed(r); completed(80, 80)(r); r.Phases[0].Server = nil },
			func(r *load.Report) { r.Settings.Task = "compute" }, func(r *load.Report) { r.Settings.Task = "sleep" },
			"The work is CPU-bound", "Both ways complete the work equally fast",
		},
		{
			"a rate is kept", none, completed(59.9, 60), completed(30, 30),
			"Both ways keep up with what was asked", "Both ways complete the work equally fast",
		},
		{
			"a queue grows", none, phase(func(_, p *load.Phase) { p.Async.AcceptedPerSecond = 1000 }),
			phase(func(_, p *load.Phase) { p.Async.AcceptedPerSecond = 60 }),
			"the rest waited in the queue", "",
		},
		{
			"the result comes later", none, phase(func(_, p *load.Phase) { p.Async.EndToEnd.P50MS = 900 }), none,
			"The result itself comes later with async", "The result itself comes equally soon",
		},
		{
			"the result comes sooner", none, phase(func(_, p *load.Phase) { p.Async.EndToEnd.P50MS = 90 }),
			phase(func(_, p *load.Phase) { p.Async.EndToEnd = nil }),
			"The result itself comes sooner with async", "",
		},
		{
			"waiting for a slot", none, phase(func(_, p *load.Phase) { p.Async.EndToEnd.P50MS = 900 }), none,
			"most of it is waiting for a slot", "the delivery 1.52 ms.",
		},
		{
			"a callback is missing", none, none,
			phase(func(_, p *load.Phase) { p.Callbacks.Delivered--; p.Callbacks.Missing++ }),
			"All 1,800 callbacks came, and every signature was verified", "1 of 1,800 callbacks had not come",
		},
		{
			"all callbacks are missing", none, phase(func(_, p *load.Phase) { p.Callbacks.Missing = 1799 }),
			phase(func(_, p *load.Phase) { p.Callbacks.Missing = 1800 }),
			"1,799 of 1,800 callbacks had not come", "None of 1,800 callbacks came",
		},
		{"signatures are not checked", none, none, func(r *load.Report) { r.Settings.Signed = false },
			"every signature was verified", "signatures were not checked"},
		{
			"results are polled for", none, none, func(r *load.Report) {
				r.Settings.Completion, r.Phases[1].Callbacks.Polled = load.CompletionPoll, 1700
			}, "callbacks came", "1,700 of 1,800 results were seen by polling",
		},
		{
			"the pace of polls is no throughput", func(r *load.Report) { closed(r); completed(3000, 9)(r) }, none,
			func(r *load.Report) { r.Settings.Completion = load.CompletionPoll },
			"Sync completes 333× as much", "The throughput of async is unknown",
		},
		{
			"what a poll sees may have been there before",
			func(r *load.Report) { phase(func(_, p *load.Phase) { p.Async.EndToEnd.P50MS = 1360 })(r) }, none,
			func(r *load.Report) { r.Settings.Completion = load.CompletionPoll },
			"The result itself comes later with async", "Half of the async results were seen within 1.36 s, by polling",
		},
		{
			"the pace of polls is no queue", phase(func(_, p *load.Phase) { p.Async.AcceptedPerSecond = 1000 }), none,
			func(r *load.Report) { r.Settings.Completion = load.CompletionPoll },
			"the rest waited in the queue", "",
		},
		{
			"a slow receiver is no queue", phase(func(_, p *load.Phase) { p.Async.AcceptedPerSecond = 1000 }), none,
			phase(func(_, p *load.Phase) { p.Async.DeliveryLag.P50MS = 0.6 * p.Async.EndToEnd.P50MS }),
			"the rest waited in the queue", "waited for the receiver",
		},
		{
			"all callbacks have another signature", phase(func(_, p *load.Phase) { p.Callbacks.Missing = 1800 }), none,
			phase(func(_, p *load.Phase) { p.Callbacks.BadSignature = 5400 }),
			"Can the service reach", "None of 1,800 callbacks came with a good signature: 5,400 had another",
		},
		{
			"all callbacks are refused on purpose", phase(func(_, p *load.Phase) { p.Callbacks.Missing = 1800 }), none,
			phase(func(_, p *load.Phase) { p.Callbacks.Misbehaved = 7 }),
			"Can the service reach", "None of 1,800 callbacks was accepted",
		},
		{
			"retries", none, phase(func(_, p *load.Phase) { p.Callbacks.Misbehaved, p.Callbacks.Redelivered = 8, 6 }), none,
			"8 callbacks were answered badly on purpose, and the service tried again: 6 of the 1,800", "",
		},
		{
			"the breaker", none, phase(func(_, p *load.Phase) { p.Callbacks.Breaker = load.BreakerOpen }),
			phase(func(_, p *load.Phase) { p.Callbacks.Breaker = load.BreakerHalfOpen }),
			"circuit breaker for this receiver was open", "",
		},
		{
			"what is missing on purpose is no reason", phase(func(_, p *load.Phase) { p.Callbacks.Missing = 9 }), none,
			phase(func(_, p *load.Phase) { p.Callbacks.Misbehaved = 9 }),
			"callbacks are missing before you choose async", "Choose async when callers can go on",
		},
		{"repeats", none, phase(func(_, p *load.Phase) { p.Callbacks.Duplicate = 4 }), none,
			"4 of the callbacks were repeats", ""},
		{"a forgery", none, phase(func(_, p *load.Phase) { p.Callbacks.BadSignature = 1 }), none,
			"1 of the callbacks had an invalid signature", ""},
		{
			"refusals", none, phase(func(p, _ *load.Phase) { p.Sync.Errors["http_429"] = 7 }),
			phase(func(p, _ *load.Phase) { p.Sync.Errors["http_500"] = 7 }),
			"In the sync phase, 7 of the answers to 1,800 requests said 429 or 503",
			"In the sync phase, 7 of 1,800 requests ended in an error",
		},
		{
			"async costs more", none, phase(func(_, p *load.Phase) { p.Server.CPUSeconds *= 2 }),
			phase(func(_, p *load.Phase) { p.Server.CPUSeconds /= 2 }),
			"Async costs the server more CPU time", "Async costs the server less CPU time",
		},
		{"async costs the same", none, none, phase(func(_, p *load.Phase) { p.Server = nil }), "equally much CPU time", ""},
		{
			"side by side", none, func(r *load.Report) { r.Phases[2].Sync.Response.P99MS *= 3 },
			func(r *load.Report) { r.Phases[2].Sync.Response.P99MS /= 3 },
			"sync answers are slower than alone", "sync answers are faster than alone",
		},
		{"sync is the choice", none, accept(1), accept(500), "Choose sync when the caller cannot go on",
			"Choose sync for work like this"},
		{"async is the choice", none, accept(1), accept(500), "Choose async when callers can go on",
			"Choose async here for what it promises"},
		{
			"async is the choice for throughput", closed, completed(100, 300), completed(100, 100),
			"300/s are completed", "the result follows in",
		},
		{
			"async lost callbacks", none, phase(func(_, p *load.Phase) { p.Callbacks.Missing = 9 }), none,
			"Find out why 9 of 1,800", "Choose async when callers can go on",
		},
	}
	var sample bytes.Buffer // making one takes longer than reading it
	if err := sleepy.report(t).Encode(&sample); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			said := func(edit change) string {
				r, err := load.DecodeReport(bytes.NewReader(sample.Bytes()))
				if err != nil {
					t.Fatal(err)
				}
				test.common(r)
				edit(r)
				var texts []string
				for _, insight := range load.Insights(r) {
					texts = append(texts, insight.Text)
				}
				restsOnFigures(t, r)
				return strings.Join(texts, "\n")
			}
			before, after := said(test.from), said(test.to)
			if !strings.Contains(before, test.before) || strings.Contains(after, test.before) {
				t.Errorf("want %q before and not after;\nbefore:\n%s\nafter:\n%s", test.before, before, after)
			}
			if test.after != "" && (!strings.Contains(after, test.after) || strings.Contains(before, test.after)) {
				t.Errorf("want %q after and not before;\nbefore:\n%s\nafter:\n%s", test.after, before, after)
			}
		})
	}
}

// restsOnFigures checks that each sentence cites metrics of the report, and that their values stand in it.
func restsOnFigures(t *testing.T, r *load.Report) {
	t.Helper()
	metrics := map[string]load.Metric{}
	for _, metric := range load.Metrics(r) {
		metrics[metric.Name] = metric
	}
	for _, insight := range load.Insights(r) {
		if len(insight.Figures) == 0 || insight.Topic == "" {
			t.Errorf("no figures or no topic: %+v", insight)
		}
		for _, name := range insight.Figures {
			metric, ok := metrics[name]
			if !ok || !strings.Contains(insight.Text, load.Show(metric)) {
				t.Errorf("%q cites %s = %s, which does not stand in it", insight.Text, name, load.Show(metric))
			}
		}
	}
}

// TestInsightsOfNothing: what did not run is not talked about.
func TestInsightsOfNothing(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]func(*load.Report){
		"no phases": func(r *load.Report) { r.Phases = nil },
		"no answers": func(r *load.Report) {
			r.Phases = r.Phases[:1]
			r.Phases[0].Sync = &load.Side{}
			r.Phases[0].Server = nil
		},
		"empty phase": func(r *load.Report) { r.Phases = []load.Phase{{Name: load.PhaseAsync}, {Name: load.PhaseSync}} },
	} {
		r := sleepy.report(t)
		keep(r)
		if got := load.Insights(r); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if got := load.Compare(r); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	r := &load.Report{Phases: []load.Phase{
		{
			Name: load.PhaseSync, Server: &load.ServerUse{CPUSeconds: 2},
			Sync: &load.Side{Accepted: 100, Completed: 100, AcceptedPerSecond: 80, CompletedPerSecond: 80,
				Response: load.Latency{Count: 100, P50MS: 200, P99MS: 300}},
		},
		{
			Name: load.PhaseAsync, Server: &load.ServerUse{CPUSeconds: 3},
			Async: &load.Side{
				Accepted: 100, Completed: 90, WorkFailed: 7, AcceptedPerSecond: 800, CompletedPerSecond: 84,
				Response: load.Latency{Count: 100, P50MS: 2, P99MS: 5},
				EndToEnd: &load.Latency{Count: 100, P50MS: 400},
			},
		},
	}}
	want := &load.Comparison{
		ResponseP50Ratio: 100, ResponseP99Ratio: 60, AcceptedRatio: 10, CompletedRatio: 1.05, EndToEndP50Ratio: 0.5,
		SameCompletion: true, CPUPerRequestSync: 20, CPUPerRequestAsync: 30,
	}
	if diff := cmp.Diff(want, load.Compare(r), cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.Phases[0].Sync.CompletedPerSecond, r.Phases[0].Server, r.Phases[1].Async.EndToEnd = 70, nil, nil
	got := load.Compare(r)
	if got.SameCompletion || math.Abs(got.CompletedRatio-1.2) > 1e-9 || got.CPUPerRequestSync != 0 ||
		got.EndToEndP50Ratio != 0 {
		t.Errorf("%+v", got)
	}
	r.Settings.Completion = load.CompletionPoll
	r.Phases[1].Async.EndToEnd = &load.Latency{Count: 100, P50MS: 400}
	if got := load.Compare(r); got.CompletedRatio != 0 || got.EndToEndP50Ratio != 0 || got.AcceptedRatio == 0 {
		t.Errorf("compared with the pace of polls: %+v", got)
	}
	r.Phases[1].Async.Response.Count = 0
	if got := load.Compare(r); got != nil {
		t.Errorf("nothing was accepted, and yet %+v", got)
	}
}

// TestStarved: a busy machine is told from its neighbours, by the CPU time that the work has used.
func TestStarved(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		edit func(*load.Report)
		want bool
	}{
		{"a core each", func(*load.Report) {}, false},
		{"twice as long", func(r *load.Report) { r.Phases[0].Sync.Processing.P50MS = 1.9 * 24 }, false},
		{"longer", func(r *load.Report) { r.Phases[0].Sync.Processing.P50MS = 2.2 * 24 }, true},
		{"longer, async", func(r *load.Report) { r.Phases[1].Async.Processing.P50MS = 2.2 * 24 }, true},
		{"the default task", func(r *load.Report) { r.Settings.Task = ""; r.Phases[0].Sync.Processing.P50MS = 200 }, true},
		{"work that waits", func(r *load.Report) { r.Settings.Task = "sleep"; r.Phases[0].Sync.Processing.P50MS = 200 },
			false},
		{
			"others used the time",
			func(r *load.Report) { r.Phases[0].Sync.Completed--; r.Phases[0].Sync.Processing.P50MS = 200 }, false,
		},
		{"too little to tell", func(r *load.Report) {
			r.Phases[0].Server.CPUSeconds = 1500 * 0.004
			r.Phases[0].Sync.Processing.P50MS = 200
		}, false},
		{"no account", func(r *load.Report) { r.Phases[0].Server = nil; r.Phases[0].Sync.Processing.P50MS = 200 }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := busy.report(t)
			test.edit(r)
			if got := load.Starved(r); (got != "") != test.want {
				t.Errorf("%q, want a warning: %t", got, test.want)
			}
		})
	}
}
