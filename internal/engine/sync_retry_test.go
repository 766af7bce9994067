package engine_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/work"
)

// retried is a task with a policy that an order may name.
func retried(policy work.Retry, run func(ctx context.Context, in work.Input) work.Result) work.Task {
	return work.Task{Name: "retried", Class: work.IO, Retry: policy, Timeout: 10 * time.Second, Run: run}
}

var orderRetried = engine.Order{Task: "retried", Data: json.RawMessage(`{}`)}

// A waiting caller waits through the retries of its work.
func TestSyncWaitsThroughRetries(t *testing.T) {
	t.Parallel()
	var attempts []int
	p := start(t, func(s *setup) {
		s.engine.Tasks = []work.Task{retried(again, func(_ context.Context, in work.Input) work.Result {
			attempts = append(attempts, in.Attempt)
			switch len(attempts) {
			case 1:
				return work.Again("not now", 0, true)
			case 2:
				return work.Again("busy", 0, false) // uses up no attempt
			case 3:
				return work.Held("left alone", time.Now().Add(time.Millisecond))
			default:
				return work.Done([]byte(`"done"`), "")
			}
		})}
	})
	r, err := p.Do(t.Context(), orderRetried)
	if err != nil || string(r.Result) != `"done"` || r.Status != tandem.StatusCompleted {
		t.Fatalf("%+v, %v", r, err)
	}
	if want := []int{1, 2, 2, 2}; len(attempts) != 4 || attempts[1] != want[1] || attempts[3] != want[3] {
		t.Errorf("attempts %v, want %v", attempts, want)
	}
}

// Work that has used up its attempts, or whose outcome is unknown, has failed.
func TestSyncRetriesEnd(t *testing.T) {
	t.Parallel()
	for name, result := range map[string]work.Result{
		"not done": work.Again("not now", 0, true),
		"unknown":  work.Unknown("cut off"),
		"failed":   work.Failed("never"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			policy := work.Retry{Attempts: 3, Backoff: time.Millisecond, MaxAge: time.Hour}
			p := start(t, func(s *setup) {
				s.engine.Tasks = []work.Task{retried(policy, func(context.Context, work.Input) work.Result {
					runs.Add(1)
					return result
				})}
			})
			_, err := p.Do(t.Context(), orderRetried)
			wantCode(t, err, tandem.CodeTaskFailed)
			if !strings.Contains(err.Error(), result.Message()) {
				t.Errorf("%v does not tell %q", err, result.Message())
			}
			want := int64(1)
			if result.State() == work.StateAgain {
				want = 3
			}
			if runs.Load() != want {
				t.Errorf("%d runs, want %d", runs.Load(), want)
			}
		})
	}
}

// Between two runs a waiting caller holds no slot; at its deadline it is told the last error.
func TestSyncRetriesHoldNoSlot(t *testing.T) {
	t.Parallel()
	failed := make(chan struct{}, 1)
	policy := work.Retry{Attempts: 3, Backoff: time.Hour, MaxAge: 24 * time.Hour}
	p := start(t, func(s *setup) {
		s.engine.IOWorkers = 1
		task := retried(policy, func(context.Context, work.Input) work.Result {
			failed <- struct{}{}
			return work.Again("not now", 0, true)
		})
		task.Timeout = 500 * time.Millisecond
		s.engine.Tasks = []work.Task{task}
	})
	ended := make(chan error, 1)
	go func() {
		_, err := p.Do(context.WithoutCancel(t.Context()), orderRetried)
		ended <- err
	}()
	<-failed
	if _, err := p.Do(t.Context(), engine.Order{Task: "echo", Data: json.RawMessage(`{}`), Complexity: 1}); err != nil {
		t.Errorf("another order beside it: %v", err)
	}
	err := <-ended
	told := wantCode(t, err, tandem.CodeTaskTimeout)
	if !strings.Contains(told.Message, "not now") {
		t.Errorf("%q does not tell the last error", told.Message)
	}
	if r := p.Settled(told.RequestID); r.Status != tandem.StatusFailed || r.ErrorCode != tandem.FailedTimeout {
		t.Errorf("%+v", r)
	}
}
