package submissions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/work"
)

// DefaultTimeout and MaxTimeout are of External.Timeout. The bound lets the first call end
// well before the lease on its row does: a slot, the call and a commit.
const (
	DefaultTimeout = 5 * time.Second
	MaxTimeout     = 20 * time.Second
)

// spareTime is the grace beyond a call's own timeout before the engine ends it.
const spareTime = 5 * time.Second

// retry is the schedule for unconfirmed submissions. Only a call ended by the engine uses up an attempt.
var retry = work.Retry{Attempts: 1000, Backoff: time.Second, Max: 15 * time.Minute, MaxAge: 24 * time.Hour,
	Unknown: true}

// External is the service behind every submission. The zero External is a simulator: it confirms at once.
type External struct {
	// URL is posted to: {"submissionId", "timestamp", "submission"} with the id as
	// Idempotency-Key, at least once. A 2xx confirms; its body is not looked at. "": the simulator.
	URL string

	// Client calls URL and nothing else; required with it. It has a policy of its own, unlike callbacks: the operator has
	// chosen this address, not a stranger.
	Client *egress.Client

	MinDelay, MaxDelay time.Duration // of the simulator, at random between them
	// for a slot, and again for the simulator (Client has its own); DefaultTimeout, at most MaxTimeout
	Timeout time.Duration
}

// withDefaults fills in the zero fields and validates the others.
func (x External) withDefaults() (External, error) {
	if x.Timeout == 0 {
		x.Timeout = DefaultTimeout
	}
	switch {
	case x.MinDelay < 0 || x.MaxDelay < x.MinDelay:
		return x, fmt.Errorf("external delay %s to %s: must not be negative, the shorter one first", x.MinDelay, x.MaxDelay)
	case x.Timeout < 0 || x.Timeout > MaxTimeout:
		return x, fmt.Errorf("external timeout %s: must be more than 0 and at most %s", x.Timeout, MaxTimeout)
	case x.URL != "" && x.Client == nil:
		return x, errors.New("an external URL needs a client to call it")
	case x.URL != "":
		if err := x.Client.Check(x.URL); err != nil {
			return x, fmt.Errorf("external URL: %w", err)
		}
	}
	return x, nil
}

// Task is the call for one submission.
func (a *App) Task() work.Task {
	return work.Task{
		Name: Task, Class: work.IO, Internal: true, Timeout: a.external.Timeout + spareTime, Retry: retry, Run: a.call,
	}
}

// call passes one submission on.
func (a *App) call(ctx context.Context, in work.Input) work.Result {
	result, err := a.external.exchange(ctx, in)
	if later, ok := errors.AsType[*egress.Reschedule](err); ok {
		return work.Held("", later.Until)
	}
	if err != nil {
		return work.Again(err.Error(), 0, false)
	}
	if result.Interrupted {
		return work.Again("the call was interrupted", 0, false)
	}
	a.called(result.Outcome)
	if result.Reschedule != nil {
		return work.Held(result.Message, result.Reschedule.Until)
	}
	a.log.Debug("🌐 external service: "+string(result.Outcome),
		"request_id", in.RequestID, "took", result.Duration, "status_code", result.StatusCode)
	switch {
	case result.Outcome == tandem.OutcomeDelivered:
		return work.Done([]byte(`{"status_code":`+strconv.Itoa(result.StatusCode)+
			`,"simulated":`+strconv.FormatBool(a.external.URL == "")+`}`), "")
	case result.Outcome == tandem.OutcomeGone:
		return work.Failed("The external service takes no more submissions (410).")
	case result.Outcome.Permanent():
		return work.Failed("The external service may not be called.")
	}
	return work.Again(fmt.Sprintf("%s, status %d: %s", result.Outcome, result.StatusCode, result.Message),
		result.RetryAfter, false)
}

// exchange calls the external service, or simulates it. After an error no call was made; it may be an
// *egress.Reschedule.
func (x External) exchange(ctx context.Context, in work.Input) (egress.Result, error) {
	if x.URL == "" {
		return x.simulate(ctx), nil
	}
	body, err := json.Marshal(struct {
		ID         string          `json:"submissionId"` //nolint:tagliatelle // the submissions API is camelCase
		BatchID    string          `json:"batch_id,omitempty"`
		Timestamp  time.Time       `json:"timestamp"`
		Submission json.RawMessage `json:"submission"`
	}{in.RequestID, in.BatchID, in.AcceptedAt, in.Data})
	if err != nil {
		return egress.Result{}, fmt.Errorf("encode submission: %w", err)
	}
	place, err := x.Client.Reserve(ctx, x.URL, "")
	if err != nil {
		return egress.Result{}, err
	}
	header := make(http.Header, 3)
	header.Set("Content-Type", "application/json")
	header.Set("User-Agent", "tandem/"+tandem.Version)
	header.Set("Idempotency-Key", in.RequestID)
	return place.Post(ctx, header, body), nil
}

// simulate confirms after a random delay, or times out.
func (x External) simulate(ctx context.Context) egress.Result {
	result := egress.Result{StartedAt: time.Now().UTC(), Outcome: tandem.OutcomeDelivered, StatusCode: http.StatusOK}
	delay := x.MinDelay + rand.N(x.MaxDelay-x.MinDelay+1)
	if delay > x.Timeout {
		delay, result.Outcome, result.StatusCode = x.Timeout, tandem.OutcomeTimeout, 0
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			result.Interrupted = true
		}
	}
	result.Duration = time.Since(result.StartedAt)
	return result
}
