package engine_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/work"
)

// again is a policy of short waits.
var again = work.Retry{Attempts: 1000, Backoff: time.Millisecond, MaxAge: 24 * time.Hour}

// trying is an internal task with a policy; run gets the number of the run, from 1.
func trying(policy work.Retry, run func(ctx context.Context, n int, in work.Input) work.Result) work.Task {
	var runs atomic.Int64
	return work.Task{Name: "trying", Class: work.IO, Internal: true, Retry: policy,
		Run: func(ctx context.Context, in work.Input) work.Result { return run(ctx, int(runs.Add(1)), in) }}
}

// beside asks for n requests of the task.
func (p *plant) beside(n int) []engine.Run {
	p.t.Helper()
	batch := engine.Batch{Task: "trying", ID: "batch_a", SlotTimeout: patience}
	for range n {
		batch.Data = append(batch.Data, json.RawMessage(`{"a":1}`))
	}
	runs, err := p.Beside(batch)
	if err != nil || len(runs) != n {
		p.t.Fatalf("Beside: %d, %v", len(runs), err)
	}
	return runs
}

// Work that was not done is run again, in the background, until it is; each run is told of.
func TestBesideIsRunAgain(t *testing.T) {
	t.Parallel()
	observed := make(chan engine.Run, 10)
	p := start(t, func(s *setup) {
		s.engine.Observers = []func(engine.Event){func(event engine.Event) {
			if event.Step == engine.Postponed || event.Step == engine.Ended {
				observed <- event.Run
			}
		}}
		s.engine.Tasks = []work.Task{trying(again, func(_ context.Context, n int, in work.Input) work.Result {
			if in.BatchID != "batch_a" || in.AcceptedAt.IsZero() || in.Deadline.IsZero() || string(in.Data) != `{"a":1}` {
				t.Errorf("%+v", in)
			}
			switch n {
			case 1:
				return work.Again("busy", 0, false)
			case 2:
				return work.Held("", time.Now().Add(time.Millisecond))
			default:
				return work.Done([]byte(`"`+in.RequestID+`"`), "")
			}
		})}
	})
	run := p.beside(1)[0]
	if !run.Waited || run.Request.Status != tandem.StatusPending || run.Saving <= 0 {
		t.Errorf("%+v", run)
	}
	got := p.Settled(run.Request.ID)
	if got.Status != tandem.StatusCompleted || string(got.Result) != `"`+got.ID+`"` || got.Mode != tandem.ModeSync ||
		got.CallbackStatus != "" {
		t.Errorf("%+v", got)
	}
	for i, want := range []tandem.Status{tandem.StatusPending, tandem.StatusPending, tandem.StatusCompleted} {
		r := <-observed
		if r.Request.ID != got.ID || r.Request.Status != want || r.Waited != (i == 0) || r.Took < r.Working ||
			r.EndedAt.IsZero() {
			t.Errorf("run %d: %+v", i+1, r)
		}
	}
	want := map[string]float64{`tandem_requests_ended_total{mode="sync",outcome="completed",task="trying"}`: 1}
	if diff := cmp.Diff(want, p.Ended(false)); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}

// Async work obeys the policy of its task as well, and its callback comes after the last run.
func TestAsyncWorkIsRunAgain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy work.Retry
		result work.Result
		code   string
	}{
		"not done":        {again, work.Again("busy", 0, false), ""},
		"no policy":       {work.Retry{}, work.Again("busy", 0, false), tandem.FailedTask},
		"held":            {again, work.Held("open", time.Now()), ""},
		"held, no policy": {work.Retry{}, work.Held("open", time.Now()), tandem.FailedTask},
		"for good":        {again, work.Failed("no"), tandem.FailedTask},
		"unknown":         {again, work.Unknown("cut"), tandem.FailedTask},
		"unknown, and no matter": {work.Retry{Attempts: 9, Backoff: 1, MaxAge: time.Hour, Unknown: true},
			work.Unknown("cut"), ""},
		"something but JSON": {again, work.Done([]byte("<p>"), "text/html"), tandem.FailedTask},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task := trying(tt.policy, func(_ context.Context, n int, _ work.Input) work.Result {
				if n == 1 {
					return tt.result
				}
				return work.Done(nil, "")
			})
			task.Internal = false
			p := start(t, func(s *setup) { s.engine.Tasks = []work.Task{task} })
			got := p.Settled(p.submit("trying", newReceiver(t, nil).URL).ID)
			if got.ErrorCode != tt.code || got.CallbackStatus != tandem.CallbackSent ||
				(got.ErrorMessage == "") != (tt.code == "") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A run that takes too long is one of which nobody knows whether it was done.
func TestRunThatTakesTooLong(t *testing.T) {
	t.Parallel()
	for name, unknown := range map[string]bool{tandem.FailedTimeout: false, "": true} {
		policy := again
		policy.Unknown = unknown
		task := trying(policy, func(ctx context.Context, n int, _ work.Input) work.Result {
			if n == 1 {
				<-ctx.Done()
				return work.Failed(ctx.Err().Error())
			}
			return work.Done(nil, "")
		})
		task.Timeout = 20 * time.Millisecond
		p := start(t, func(s *setup) { s.engine.Tasks, s.engine.TaskTimeout = []work.Task{task}, time.Hour })
		if got := p.Settled(p.beside(1)[0].Request.ID); got.ErrorCode != name {
			t.Errorf("unknown %v: %+v", unknown, got)
		}
	}
}

// At the maximum age of its policy work has failed, and is not run any more; what would be run later is run
// shortly before.
func TestWorkGrowsTooOld(t *testing.T) {
	t.Parallel()
	ran := 0
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{trying(work.Retry{Attempts: 1, Backoff: time.Second, MaxAge: 24 * time.Hour},
			func(context.Context, int, work.Input) work.Result {
				ran++
				return work.Again("busy", time.Hour, false)
			})}
	})
	step := func(age time.Duration) (store.Transition, time.Time) {
		created := time.Now().Add(-age)
		return p.Step(t.Context(), store.Job{Lane: store.LaneIO, Started: func() {}, Request: tandem.Request{
			ID: tandem.ID(uuid.Must(uuid.NewV7())), Mode: tandem.ModeSync, Task: "trying", Status: tandem.StatusPending,
			Data: json.RawMessage(`{}`), CreatedAt: created,
		}}), created.Add(24 * time.Hour)
	}
	next, end := step(24*time.Hour - time.Minute)
	if next.Lane != store.LaneIO || next.Outcome != nil || !next.At.Before(end) {
		t.Errorf("%+v, want a last run before %v", next, end)
	}
	next, _ = step(24 * time.Hour)
	if next.Lane != store.LaneNone || next.Outcome == nil || next.Outcome.ErrorCode != tandem.FailedTask || ran != 1 {
		t.Errorf("ran %d times: %+v %+v", ran, next, next.Outcome)
	}
}

// Nobody but an application of ours can name an internal task.
func TestInternalTask(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{trying(again, func(context.Context, int, work.Input) work.Result {
			return work.Done(nil,
				"")
		})}
	})
	_, err := p.Do(t.Context(), order("trying"))
	wantCode(t, err, tandem.CodeValidation)
	if strings.Contains(strings.Join(p.TaskNames(), " "), "trying") {
		t.Errorf("%v", p.TaskNames())
	}
	ended := p.Ended(true)
	for labels, want := range map[string]bool{
		`mode="sync",outcome="completed",task="trying"`: true, `mode="async",outcome="completed",task="trying"`: false,
		`mode="sync",outcome="completed",task="echo"`: true, `mode="async",outcome="completed",task="echo"`: true,
	} {
		if _, shown := ended["tandem_requests_ended_total{"+labels+"}"]; shown != want {
			t.Errorf("%v while there is none: %v", labels, shown)
		}
	}
	if _, err := p.Beside(engine.Batch{Task: "compute", Data: []json.RawMessage{json.RawMessage(`{}`)}}); err == nil {
		t.Error("work that computes is done beside its commit")
	}
}

// The attempts of the policy are counted over all runs, but for those that use up none; those of the callback
// are counted anew.
func TestAttemptsAreCounted(t *testing.T) {
	t.Parallel()
	seen := make(chan int, 10)
	task := trying(work.Retry{Attempts: 3, Backoff: time.Millisecond, MaxAge: time.Hour},
		func(_ context.Context, n int, in work.Input) work.Result {
			if seen <- in.Attempt; in.Attempts != 3 {
				t.Errorf("%d attempts", in.Attempts)
			}
			return work.Again("busy", 0, n != 2)
		})
	task.Internal = false
	p := start(t, func(s *setup) { s.engine.Tasks = []work.Task{task} })
	rc := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	got := p.Settled(p.submit("trying", rc.URL).ID)
	if got.ErrorCode != tandem.FailedTask || got.ErrorMessage != "busy" || got.Runs != 0 || got.CallbackAttempts != 2 {
		t.Errorf("%+v", got)
	}
	for i, want := range []int{1, 2, 2, 3} {
		if n := <-seen; n != want {
			t.Errorf("run %d: attempt %d, want %d", i+1, n, want)
		}
	}
	if len(seen) > 0 {
		t.Errorf("%d runs more", len(seen))
	}
}
