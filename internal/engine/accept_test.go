package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/work"
)

// order asks for a task with little data.
func order(task string) engine.Order {
	return engine.Order{Task: task, Data: json.RawMessage(`{"b": [2, 1]}`), Complexity: 1}
}

func TestDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		task    string
		timeout time.Duration
		result  string      // of work that ends well
		code    tandem.Code // of the error
		reason  string      // in the history
		message string      // the same, "" for any
	}{
		{task: "echo", result: `{"b": [2, 1]}`},
		{task: "sleep", result: `{"slept_ms":500}`},
		{task: "void", result: `null`},
		{task: "broken", code: tandem.CodeTaskFailed, reason: tandem.FailedTask, message: "the printer is on fire"},
		{task: "garbled", code: tandem.CodeTaskFailed, reason: tandem.FailedTask},
		{task: "panicky", code: tandem.CodeTaskFailed, reason: tandem.FailedPanic},
		{task: "panicky-cpu", code: tandem.CodeTaskFailed, reason: tandem.FailedPanic},
		{task: "stuck", timeout: 500 * time.Millisecond, code: tandem.CodeTaskTimeout, reason: tandem.FailedTimeout},
		{task: "compute", timeout: 200 * time.Millisecond, code: tandem.CodeTaskTimeout, reason: tandem.FailedTimeout},
	} {
		t.Run(tt.task, func(t *testing.T) {
			t.Parallel()
			p := start(t, func(s *setup) { s.engine.TaskTimeout = tt.timeout })
			before := time.Now()
			o := order(tt.task)
			o.Complexity = work.MaxComplexity
			got, err := p.Do(t.Context(), o)
			stored := p.Request(p.Only().ID)
			if tt.code != "" {
				if e := wantCode(t, err, tt.code); e.RequestID != stored.ID || (tt.message != "" && e.Message != tt.message) {
					t.Errorf("error %+v, want request id %s and message %q", e, stored.ID, tt.message)
				}
				if stored.Status != tandem.StatusFailed || stored.ErrorCode != tt.reason || stored.Result != nil ||
					stored.ErrorMessage == "" {
					t.Errorf("stored %s %s %q %s, want failed %s", stored.Status, stored.ErrorCode, stored.ErrorMessage,
						stored.Result, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(stored, got); diff != "" {
				t.Errorf("the answer differs from the history (-history +answer):\n%s", diff)
			}
			if got.Status != tandem.StatusCompleted || string(got.Result) != tt.result || got.Mode != tandem.ModeSync ||
				got.CallbackStatus != "" {
				t.Errorf("got %s %s %s %q, want completed sync %s", got.Mode, got.Status, got.Result, got.CallbackStatus, tt.result)
			}
			made, err := tandem.IDTime(got.ID)
			if err != nil || !made.Equal(got.CreatedAt) || made.Before(before.Truncate(time.Millisecond)) ||
				time.Since(made) < 0 {
				t.Errorf("id %s tells %v (%v), created_at is %v", got.ID, made, err, got.CreatedAt)
			}
			if got.CompletedAt.Before(got.StartedAt) || got.StartedAt.Before(before.Truncate(time.Microsecond)) {
				t.Errorf("started %v, completed %v, asked at %v", got.StartedAt, got.CompletedAt, before)
			}
		})
	}
}

func TestDoAfterPanicTheThreadGoesOn(t *testing.T) {
	t.Parallel()
	p := start(t, nil) // one compute thread
	for range 3 {
		_, err := p.Do(t.Context(), order("panicky-cpu"))
		wantCode(t, err, tandem.CodeTaskFailed)
	}
	if _, err := p.Do(t.Context(), order("compute")); err != nil {
		t.Errorf("compute after panics: %v", err)
	}
}

func TestOrdersAreChecked(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	good := engine.Order{Task: "echo", Data: json.RawMessage(`{"a":1}`), Complexity: 1,
		CallbackURL: newReceiver(t, nil).URL}
	for _, tt := range []struct {
		name   string
		change func(*engine.Order)
		fields []string // locations; none: accepted
	}{
		{"good", func(*engine.Order) {}, nil},
		{"complexity 0", func(o *engine.Order) { o.Complexity = 0 }, []string{"body.complexity"}},
		{"complexity 10", func(o *engine.Order) { o.Complexity = 10 }, nil},
		{"complexity 11", func(o *engine.Order) { o.Complexity = 11 }, []string{"body.complexity"}},
		{"no such task", func(o *engine.Order) { o.Task = "ech" }, []string{"body.task"}},
		{"no task and no data", func(o *engine.Order) { o.Task, o.Data = "", nil }, []string{"body.task", "body.data"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := good
			tt.change(&o)
			for mode, ask := range map[tandem.Mode]func(context.Context, engine.Order) (tandem.Request, error){
				tandem.ModeSync: p.Do, tandem.ModeAsync: p.Submit,
			} {
				_, err := ask(t.Context(), o)
				if tt.fields == nil {
					if err != nil {
						t.Errorf("%s: %v", mode, err)
					}
					continue
				}
				var got []string
				for _, field := range wantCode(t, err, tandem.CodeValidation).Fields {
					got = append(got, field.Location)
				}
				if diff := cmp.Diff(tt.fields, got); diff != "" {
					t.Errorf("%s: fields (-want +got):\n%s", mode, diff)
				}
			}
		})
	}
}

func TestSubmitChecksTheURL(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for url, code := range map[string]tandem.Code{
		"ftp://example.com/":      tandem.CodeInvalidCallbackURL,
		"http://169.254.169.254/": tandem.CodeCallbackBlocked,
		"":                        tandem.CodeInvalidCallbackURL,
	} {
		o := order("echo")
		o.CallbackURL = url
		_, err := p.Submit(t.Context(), o)
		wantCode(t, err, code)
	}
	if page, err := p.Store.Requests(t.Context(), store.Filter{Limit: 1}); err != nil || len(page.Requests) != 0 {
		t.Errorf("%d rows (%v), want none: a refused order leaves no trace", len(page.Requests), err)
	}
}

func TestDoWithoutSlot(t *testing.T) {
	t.Parallel()
	holder := newGated(false)
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{holder.task("holder")}
		s.engine.IOWorkers = 1
		s.engine.TaskTimeout = time.Second
	})
	var held errgroup.Group
	held.Go(func() error {
		_, err := p.Do(context.Background(), order("holder"))
		return err
	})
	<-holder.started
	_, err := p.Do(t.Context(), order("echo"))
	e := wantCode(t, err, tandem.CodeOverloaded)
	if r := p.Request(e.RequestID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedNoSlot ||
		!r.StartedAt.IsZero() || e.RetryAfter != time.Second {
		t.Errorf("stored %s %s, started %v, RetryAfter %v; want failed no_slot, never, 1s", r.Status, r.ErrorCode,
			r.StartedAt, e.RetryAfter)
	}
	close(holder.release)
	if err := held.Wait(); err != nil {
		t.Errorf("the holder, whose work was done: %v", err)
	}
	if _, err := p.Do(t.Context(), order("echo")); err != nil {
		t.Errorf("the slot was not given back: %v", err)
	}
}

func TestDoClientGone(t *testing.T) {
	t.Parallel()
	stuck := newGated(true)
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{stuck.task("gated")}
		s.engine.IOWorkers = 1
	})
	running, leaveRunning := context.WithCancel(t.Context())
	waiting, leaveWaiting := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := p.Do(running, order("gated")); errs <- err }()
	<-stuck.started
	go func() { _, err := p.Do(waiting, order("echo")); errs <- err }()
	p.Await("both on record", func() bool {
		stats, err := p.Store.Stats(t.Context())
		return err == nil && stats.Now[tandem.StatusProcessing] == 2
	})
	for _, leave := range []context.CancelFunc{leaveWaiting, leaveRunning} {
		leave()
		e := wantCode(t, <-errs, tandem.CodeClientClosed)
		if r := p.Request(e.RequestID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedClientClosed {
			t.Errorf("stored %s %s, want failed client_closed", r.Status, r.ErrorCode)
		}
	}
	if _, err := p.Do(t.Context(), order("echo")); err != nil {
		t.Errorf("the slot of the client who left is not free: %v", err)
	}
}

func TestDoClientGoneFreesTheCore(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	heavy := order("compute")
	heavy.Complexity = 10
	go func() { _, err := p.Do(ctx, heavy); errs <- err }()
	p.Await("the work on record", func() bool {
		stats, err := p.Store.Stats(t.Context())
		return err == nil && stats.Now[tandem.StatusProcessing] == 1
	})
	leave()
	wantCode(t, <-errs, tandem.CodeClientClosed)
}

func TestDoBoundsItsWaiters(t *testing.T) {
	t.Parallel()
	holder := newGated(true)
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{holder.task("holder")}
		s.engine.IOWorkers = 1
	})
	ctx, leave := context.WithCancel(t.Context())
	var crowd sync.WaitGroup
	crowd.Go(func() { _, _ = p.Do(ctx, order("holder")) })
	<-holder.started
	const most = (engine.MaxSyncWaiters + 2) / 2 // of one owner, with the one that holds the slot
	for range most - 1 {
		crowd.Go(func() { _, _ = p.Do(ctx, order("echo")) })
	}
	p.Await("all waiting", func() bool {
		stats, err := p.Store.Stats(t.Context())
		return err == nil && stats.Now[tandem.StatusProcessing] == most
	})
	_, err := p.Do(t.Context(), order("echo"))
	if e := wantCode(t, err, tandem.CodeOverloaded); e.RequestID != "" || e.RetryAfter != time.Second {
		t.Errorf("RequestID %q, RetryAfter %v; want none (no row) and 1s", e.RequestID, e.RetryAfter)
	}
	if _, err := p.Do(t.Context(), order("compute")); err != nil {
		t.Errorf("the other kind of slot: %v", err)
	}
	leave()
	crowd.Wait()
	if _, err := p.Do(t.Context(), order("echo")); err != nil {
		t.Errorf("after the crowd has left: %v", err)
	}
}

func TestStoreFaults(t *testing.T) {
	t.Parallel()
	full := &tandem.Error{Code: tandem.CodeQueueFull, Message: "the queue is full"}
	for _, tt := range []struct {
		name           string
		accept, finish error
		do, submit     tandem.Code // "" means it works
	}{
		{"accept fails", errors.New("disk on fire"), nil, tandem.CodeStoreUnavailable, tandem.CodeStoreUnavailable},
		{"queue full", fmt.Errorf("accept: %w", full), nil, tandem.CodeQueueFull, tandem.CodeQueueFull},
		{"finish fails", nil, errors.New("disk on fire"), tandem.CodeStoreUnavailable, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil)
			p.Store.Sabotage(tt.accept, tt.finish)
			r, err := p.Do(t.Context(), order("echo"))
			if e := wantCode(t, err, tt.do); e.RetryAfter <= 0 || r.Result != nil {
				t.Errorf("RetryAfter %v, result %s; want some, and nothing that is not on disk", e.RetryAfter, r.Result)
			}
			o := order("echo")
			o.CallbackURL = newReceiver(t, nil).URL
			if _, err = p.Submit(t.Context(), o); tt.submit != "" {
				wantCode(t, err, tt.submit)
			} else if err != nil {
				t.Errorf("Submit: %v", err)
			}
		})
	}
}

// A result that the database did not take is kept and committed when it does: the
// row does not seem to be processing until the next start.
func TestDoFinishesLater(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	p.Store.Sabotage(nil, errors.New("disk on fire"))
	_, err := p.Do(t.Context(), order("echo"))
	e := wantCode(t, err, tandem.CodeStoreUnavailable)
	p.Store.Sabotage(nil, nil)
	p.Await("the result in its row", func() bool { return p.Request(e.RequestID).Status == tandem.StatusCompleted })
	if r := p.Request(e.RequestID); string(r.Result) != string(order("echo").Data) {
		t.Errorf("stored %s, want the result", r.Result)
	}
}

// An id that is taken is replaced, for a while.
func TestTakenIDs(t *testing.T) {
	t.Parallel()
	for taken, code := range map[int]tandem.Code{1: "", 9: "", 10: tandem.CodeStoreUnavailable} {
		for _, ask := range []func(*engine.Engine, context.Context, engine.Order) (tandem.Request,
			error){(*engine.Engine).Do, (*engine.Engine).Submit} {
			p := start(t, nil)
			p.Store.Take(taken)
			o := order("echo")
			o.CallbackURL = newReceiver(t, nil).URL
			r, err := ask(p.Engine.Engine, t.Context(), o)
			if tandem.CodeOf(err) != code {
				t.Errorf("%d ids taken: %v, want code %q", taken, err, code)
			}
			if code == "" && p.Only().ID != r.ID {
				t.Errorf("%d ids taken: the row is %s, the caller was told %s", taken, p.Only().ID, r.ID)
			}
		}
	}
}

// The end of the grace period ends the tries.
func TestDrainWithoutDatabase(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.engine.Grace = 50 * time.Millisecond })
	p.Store.Sabotage(nil, errors.New("disk on fire"))
	_, err := p.Do(t.Context(), order("echo"))
	wantCode(t, err, tandem.CodeStoreUnavailable)
	p.Stop()
}

// The database commits, but too late for the caller: the row must not seem to run for ever.
func TestDoAcceptTooLate(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.engine.TaskTimeout = 500 * time.Millisecond })
	p.Store.Late = true
	_, err := p.Do(t.Context(), order("echo"))
	wantCode(t, err, tandem.CodeStoreUnavailable)
	if r := p.Settled(p.Only().ID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedInterrupted {
		t.Errorf("stored %s %s, want failed interrupted", r.Status, r.ErrorCode)
	}
}

// The database has committed, and the answer is lost with the connection.
func TestDoAcceptUnsure(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	p.Store.Unsure = true
	_, err := p.Do(t.Context(), order("echo"))
	wantCode(t, err, tandem.CodeStoreUnavailable)
	if r := p.Settled(p.Only().ID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedInterrupted {
		t.Errorf("stored %s %s, want failed interrupted", r.Status, r.ErrorCode)
	}
}

func TestSubmitClientGone(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	o := order("echo")
	o.CallbackURL = newReceiver(t, nil).URL
	_, err := p.Submit(ctx, o)
	wantCode(t, err, tandem.CodeClientClosed)
	if stats, err := p.Store.Stats(t.Context()); err != nil || stats.Requests[tandem.ModeAsync] != 0 {
		t.Errorf("%d requests, %v; want none for a client that had left before", stats.Requests[tandem.ModeAsync], err)
	}
}
