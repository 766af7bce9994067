package engine_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

func TestMetricsOfARunningEngine(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	rc := newReceiver(t, nil)
	if _, err := p.Do(t.Context(), order("sleep")); err != nil {
		t.Fatal(err)
	}
	latencies, _ := p.Metrics.Recent()
	if p50 := latencies["sync_response"].P50; p50 < 49 || p50 > patience.Seconds()*1000 {
		t.Errorf("sync_response p50 %v ms, want the 50 of the task and a little more", p50)
	}
	_, err := p.Do(t.Context(), order("broken"))
	wantCode(t, err, tandem.CodeTaskFailed)
	p.Settled(p.submit("echo", rc.URL).ID)
	p.Settled(p.submit("panicky", rc.URL).ID)
	ended := map[string]float64{
		`tandem_requests_ended_total{mode="sync",outcome="completed",task="sleep"}`:        1,
		`tandem_requests_ended_total{mode="sync",outcome="task_failed",task="broken"}`:     1,
		`tandem_requests_ended_total{mode="async",outcome="completed",task="echo"}`:        1,
		`tandem_requests_ended_total{mode="async",outcome="task_panicked",task="panicky"}`: 1,
	}
	if diff := cmp.Diff(ended, p.Ended(false)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	counts, recent := map[string]float64{}, map[string]int64{}
	for sample, value := range tandemtest.Samples(t, p.Metrics) {
		if name, ok := strings.CutSuffix(sample, "_seconds_count"); ok {
			counts[name] = value
		}
	}
	want := map[string]float64{
		"tandem_sync_response": 2, "tandem_async_acceptance": 2, "tandem_processing": 4, "tandem_accept_to_callback": 2,
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("durations (-want +got):\n%s", diff)
	}
	latencies, perSecond := p.Metrics.Recent()
	for name, l := range latencies {
		recent[name] = l.Count
	}
	lately := map[string]int64{"sync_response": 2, "async_acceptance": 2, "processing": 4, "accept_to_callback": 2}
	if diff := cmp.Diff(lately, recent); diff != "" {
		t.Errorf("durations of the last minutes (-want +got):\n%s", diff)
	}
	if perSecond <= 0 || perSecond > 4 {
		t.Errorf("%v requests per second, want at most 4", perSecond)
	}
	if d := p.Destinations(); len(d) != 1 || d[0].Host != rc.Listener.Addr().String() {
		t.Errorf("destinations %+v, want %s", d, rc.Listener.Addr())
	}
	if diff := cmp.Diff(map[string]int{"closed": 1, "half-open": 0, "open": 0}, p.Breakers()); diff != "" {
		t.Errorf("breakers (-want +got):\n%s", diff)
	}
}

// What is handed back has not ended; what no task does any more has.
func TestMetricsOfStepsWithoutAResult(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle = true })
	job := completed("http://127.0.0.1:9/", 0)
	job.Lane, job.Request.Status, job.Started = store.LaneIO, tandem.StatusPending, func() {}
	job.Request.Task = "retired"
	p.Step(t.Context(), job)
	p.Halt()
	job.Request.Task = "stuck"
	p.Step(t.Context(), job)
	want := map[string]float64{`tandem_requests_ended_total{mode="async",outcome="task_failed",task="unknown"}`: 1}
	if diff := cmp.Diff(want, p.Ended(false)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}
