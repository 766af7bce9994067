package engine_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/work"
)

// close ends a plant so that its database can be opened again.
func (p *plant) close() {
	p.t.Helper()
	p.Stop()
	if err := p.Store.Close(); err != nil {
		p.t.Errorf("close the store: %v", err)
	}
}

func TestDrainLetsWorkFinish(t *testing.T) {
	t.Parallel()
	gate := newGated(true)
	p := start(t, func(s *setup) { s.engine.Tasks = []work.Task{gate.task("gated")} })
	rc := newReceiver(t, nil)
	async := p.submit("gated", rc.URL)
	answer := make(chan error, 1)
	go func() { _, err := p.Do(context.Background(), order("gated")); answer <- err }()
	<-gate.started
	<-gate.started

	p.Cancel()
	p.Await("draining", p.Draining)
	select {
	case err := <-p.Done:
		t.Fatalf("Run returned (%v) while work was running", err)
	default:
	}
	close(gate.release)
	if err := <-answer; err != nil {
		t.Errorf("Do during the drain: %v", err)
	}
	p.Wait()
	if r := p.Request(async.ID); r.Status != tandem.StatusCompleted || string(r.Result) != `"released"` ||
		r.CallbackStatus != tandem.CallbackPending {
		t.Errorf("async work: %s %s, callback %s; want completed, to be delivered after the next start", r.Status,
			r.Result, r.CallbackStatus)
	}
}

func TestRunOutlastsEveryDo(t *testing.T) {
	t.Parallel()
	gate := newGated(true)
	p := start(t, func(s *setup) { s.engine.Tasks = []work.Task{gate.task("gated")} })
	answer := make(chan error, 1)
	go func() { _, err := p.Do(context.Background(), order("gated")); answer <- err }()
	<-gate.started
	p.Cancel()
	p.Await("draining", p.Draining)
	select { // nothing but Do is under way: a Run that does not wait for it returns at once
	case err := <-p.Done:
		t.Fatalf("Run returned (%v) before Do", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate.release)
	p.Wait()
	if err := <-answer; err != nil {
		t.Errorf("Do during the drain: %v", err)
	}
}

func TestDrainPastTheGrace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		grace time.Duration
		end   func(*plant)
	}{
		{"grace over", 20 * time.Millisecond, func(p *plant) { p.Cancel() }},
		{"halted while draining", time.Hour, func(p *plant) { p.Cancel(); p.Await("draining", p.Draining); p.Halt() }},
		{"halted at once", time.Hour, func(p *plant) { p.Halt() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := databaseFile(t)
			gate := newGated(true)
			change := func(s *setup) {
				s.url, s.engine.Grace = url, tt.grace
				s.engine.Tasks = []work.Task{gate.task("gated")}
			}
			p := start(t, change)
			rc := newReceiver(t, nil)
			async := p.submit("gated", rc.URL)
			answer := make(chan error, 1)
			go func() { _, err := p.Do(context.Background(), order("gated")); answer <- err }()
			<-gate.started
			<-gate.started

			tt.end(p)
			e := wantCode(t, <-answer, tandem.CodeDraining)
			p.Wait()
			if r := p.Request(e.RequestID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedInterrupted {
				t.Errorf("sync work: %s %s, want failed interrupted", r.Status, r.ErrorCode)
			}
			if r := p.Request(async.ID); r.Status != tandem.StatusPending || r.ErrorCode != "" {
				t.Errorf("async work: %s %q, want handed back as pending", r.Status, r.ErrorCode)
			}
			p.close()

			close(gate.release)
			again := start(t, change)
			if r := again.Settled(async.ID); r.Status != tandem.StatusCallbackSent || string(r.Result) != `"released"` {
				t.Errorf("after a restart: %s %s, want callback_sent", r.Status, r.Result)
			}
		})
	}
}

func TestDrainHandsBackWhatWaits(t *testing.T) {
	t.Parallel()
	gate := newGated(true)
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{gate.task("gated")}
		s.engine.IOWorkers = 1
	})
	rc := newReceiver(t, nil)
	running := p.submit("gated", rc.URL)
	<-gate.started
	waiting := p.submit("gated", rc.URL)
	p.Cancel()
	p.Await("draining", p.Draining)
	close(gate.release)
	p.Wait()
	if r := p.Request(running.ID); r.Status != tandem.StatusCompleted {
		t.Errorf("what ran: %s, want completed", r.Status)
	}
	if r := p.Request(waiting.ID); r.Status != tandem.StatusPending || len(gate.started) != 0 {
		t.Errorf("what waited: %s, started %d times; want pending, never", r.Status, len(gate.started))
	}
}

func TestStepWhileDraining(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.idle = true })
	rc := newReceiver(t, nil)
	claiming, drain := context.WithCancel(t.Context())
	drain()
	for _, lane := range store.Lanes {
		job := completed(rc.URL, 0)
		job.Lane, job.Request.Task = lane, "echo"
		next := p.Step(claiming, job)
		if next.Lane != lane || !next.At.IsZero() || next.Outcome != nil || next.Attempt != nil {
			t.Errorf("%s: %+v, want the job handed back as it was", lane, next)
		}
	}
	if n := len(rc.deliveries()); n != 0 {
		t.Errorf("%d callbacks sent while draining, want none started", n)
	}
}

func TestInterruptedDeliveryDoesNotCount(t *testing.T) {
	t.Parallel()
	url := databaseFile(t)
	arrived := make(chan struct{}, 10)
	rc := newReceiver(t, func(n int, _ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		if n == 1 {
			<-r.Context().Done() // until the engine hangs up
		}
	})
	change := func(s *setup) { s.url, s.engine.Grace = url, time.Hour }
	p := start(t, change)
	id := p.submit("echo", rc.URL).ID
	<-arrived
	p.Halt()
	p.Wait()
	if r := p.Request(id); r.Status != tandem.StatusCompleted || r.CallbackAttempts != 0 || len(r.Attempts) != 0 {
		t.Errorf("%s after %d attempts, %d logged; want completed, 0, 0", r.Status, r.CallbackAttempts, len(r.Attempts))
	}
	p.close()

	again := start(t, change)
	r := again.Settled(id)
	if r.Status != tandem.StatusCallbackSent || r.CallbackAttempts != 1 || len(r.Attempts) != 1 {
		t.Errorf("after a restart: %s after %d attempts, %d logged; want callback_sent, 1, 1", r.Status,
			r.CallbackAttempts, len(r.Attempts))
	}
}

// Engines are started and stopped in the middle of their work, again and again
// and in every way: every call ends, and nothing stays behind (TestMain).
func TestStartAndStopOften(t *testing.T) {
	t.Parallel()
	rc := newReceiver(t, nil)
	for _, way := range []string{"halted", "drained", "stopped", "all at once"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			for range 75 {
				t.Run("", func(t *testing.T) { // one after the other: each is gone before the next
					startAndStop(t, way, rc.URL)
				})
			}
		})
	}
}

func startAndStop(t *testing.T, way, url string) {
	t.Helper()
	p := start(t, nil)
	p.submit("echo", url)
	var calling sync.WaitGroup
	for i := range 6 {
		calling.Go(func() {
			o := order([]string{"echo", "sleep", "panicky-cpu"}[i%3])
			o.CallbackURL = url
			var err error
			if i%2 == 0 {
				_, err = p.Do(context.Background(), o)
			} else {
				_, err = p.Submit(context.Background(), o)
			}
			if code := tandem.CodeOf(err); err != nil && code != tandem.CodeDraining && code != tandem.CodeTaskFailed {
				t.Errorf("while stopping: %v", err)
			}
		})
	}
	if way == "halted" || way == "all at once" {
		calling.Go(p.Halt)
	}
	if way == "drained" || way == "all at once" {
		calling.Go(p.Drain)
	}
	p.Stop()
	calling.Wait()
}
