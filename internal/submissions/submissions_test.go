package submissions_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/submissions"
	"tandem/internal/tandemtest"
)

var ada = json.RawMessage(`{"firstName":"Ada","lastName":"Lovelace"}`)

// external is an external service: what it was sent, and how it answers the n-th call, from 1.
type external struct {
	*httptest.Server
	mu   sync.Mutex
	keys []string
	body []string
}

func newExternal(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *external {
	t.Helper()
	x := &external{}
	x.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("external service: %v", err)
		}
		x.mu.Lock()
		x.keys, x.body = append(x.keys, r.Header.Get("Idempotency-Key")), append(x.body, string(body))
		n := len(x.keys)
		x.mu.Unlock()
		if answer != nil {
			answer(n, w, r)
		}
	}))
	t.Cleanup(x.Close)
	return x
}

func (x *external) calls() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]string(nil), x.keys...)
}

// calling makes an engine pass submissions on to url.
func calling(t *testing.T, url string, timeout time.Duration, more func(*setup)) func(*setup) {
	t.Helper()
	client, err := egress.New(egress.Config{
		Policy: egress.Policy{AllowPrivate: true, AnyPort: true}, Timeout: timeout, HostConcurrency: 256, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return func(s *setup) {
		s.config.External = submissions.External{URL: url, Client: client, Timeout: timeout}
		if more != nil {
			more(s)
		}
	}
}

// submitAll submits n times the same person, and wants that to be taken.
func (p *plant) submitAll(n int, batch string) []engine.Run {
	p.t.Helper()
	var data []json.RawMessage
	for range n {
		data = append(data, ada)
	}
	all, err := p.submit(submissions.Batch{ID: batch, Data: data})
	if err != nil || len(all) != n {
		p.t.Fatalf("submit: %d, %v", len(all), err)
	}
	return all
}

// The call is made before the row is committed, and the row is committed before the call
// ends: each waits for the other here.
func TestSubmissionIsSavedWhileItsCallRuns(t *testing.T) {
	t.Parallel()
	called := make(chan struct{})
	var p *plant
	x := newExternal(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		close(called)
		p.Await("the row", func() bool {
			found, err := p.Store.Request(context.Background(), r.Header.Get("Idempotency-Key"))
			return err == nil && found.Status == tandem.StatusProcessing
		})
	})
	p = start(t, calling(t, x.URL, testTimeout, nil))
	p.Store.OnAccept(func() { <-called })
	s := p.submitAll(1, "")[0]
	if s.Request.Status != tandem.StatusCompleted || s.Saving <= 0 || s.Working <= 0 {
		t.Errorf("%+v", s)
	}
	if diff := cmp.Diff(p.Request(s.Request.ID), s.Request); diff != "" {
		t.Errorf("the answer is not what is on record (-record +answer):\n%s", diff)
	}
}

func TestExternalCall(t *testing.T) {
	t.Parallel()
	var header http.Header
	x := newExternal(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		header = r.Header
		w.WriteHeader(http.StatusAccepted)
	})
	p := start(t, calling(t, x.URL+"/in", testTimeout, nil))
	r := p.submitAll(1, "batch_a")[0].Request
	if got := p.Request(r.ID); got.Status != tandem.StatusCompleted ||
		string(got.Result) != `{"status_code":202,"simulated":false}` ||
		got.Mode != tandem.ModeSync || got.Task != submissions.Task || got.BatchID != "batch_a" ||
		string(got.Data) != string(ada) || got.ProcessingTimeMS <= 0 {
		t.Errorf("%+v", got)
	}
	if header.Get("Idempotency-Key") != r.ID || header.Get("Content-Type") != "application/json" ||
		header.Get("User-Agent") != "tandem/"+tandem.Version {
		t.Errorf("header %v", header)
	}
	want := fmt.Sprintf(`{"submissionId":%q,"batch_id":"batch_a","timestamp":%q,"submission":%s}`, r.ID,
		r.CreatedAt.Format(time.RFC3339Nano), ada)
	if diff := cmp.Diff([]string{want}, x.body); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	const ended = `tandem_requests_ended_total{mode="sync",outcome="completed",task="submission"}`
	if counted := p.Ended(false); p.app.Calls()[tandem.OutcomeDelivered] != 1 || counted[ended] != 1 {
		t.Errorf("counted %v", counted)
	}
}

// A call that goes wrong leaves the submission pending, and is made again with the same key.
func TestExternalFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request){
		"500":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"404":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"throttled": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.WriteString(conn, "220 smtp.example.com ESMTP\r\n")
				conn.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExternal(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					fault(w, r)
				}
			})
			timeout := testTimeout
			if name == "hangs" {
				timeout = 200 * time.Millisecond
			}
			p := start(t, calling(t, x.URL, timeout, nil))
			s := p.submitAll(1, "")[0]
			if s.Request.Status != tandem.StatusPending || s.Working <= 0 {
				t.Fatalf("%+v", s)
			}
			got := p.Settled(s.Request.ID)
			if calls := x.calls(); got.Status != tandem.StatusCompleted || len(calls) != 2 || calls[0] != got.ID ||
				calls[1] != got.ID {
				t.Errorf("calls %v; %+v", calls, got)
			}
			if got.ProcessingTimeMS >= 1000 {
				t.Errorf("the second call took %v ms: the wait before it was counted", got.ProcessingTimeMS)
			}
		})
	}
}

// Nobody listens: that is no reason to keep the caller waiting, nor to forget the submission.
func TestExternalIsDown(t *testing.T) {
	t.Parallel()
	p := start(t, calling(t, tandemtest.Refusing(t), testTimeout, nil))
	for i := range 8 { // after five the breaker is open and nobody is called
		s := p.submitAll(1, "")[0]
		if s.Request.Status != tandem.StatusPending || (submissions.CallTime(&s) > 0) != (i < 5) {
			t.Errorf("submission %d: %+v", i, s)
		}
	}
	stats, err := p.Store.Stats(t.Context())
	if err != nil || stats.Counted.Accepted != 8 || stats.Unfinished != 8 || stats.Queue[store.LaneIO] != 8 {
		t.Errorf("%+v, %v", stats, err)
	}
}

func TestExternalIsGone(t *testing.T) {
	t.Parallel()
	x := newExternal(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	p := start(t, calling(t, x.URL, testTimeout, nil))
	r := p.submitAll(1, "")[0].Request
	if got := p.Request(r.ID); r.Status != tandem.StatusFailed || got.Status != tandem.StatusFailed ||
		got.ErrorCode != tandem.FailedTask || got.ErrorMessage == "" || got.Unfinished() {
		t.Errorf("answered %+v, kept %+v", r, got)
	}
}

// A submission that cannot be saved leaves nothing behind, and its call is cut short.
func TestSubmissionThatCannotBeSaved(t *testing.T) {
	t.Parallel()
	called, cut := make(chan struct{}, 10), make(chan struct{}, 10)
	x := newExternal(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		called <- struct{}{}
		<-r.Context().Done()
		cut <- struct{}{}
	})
	p := start(t, calling(t, x.URL, testTimeout, nil))
	p.Store.OnAccept(func() { <-called; <-called })
	p.Store.Sabotage(&tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "full"}, nil)
	_, err := p.submit(submissions.Batch{ID: "batch_a", Data: []json.RawMessage{ada, ada}})
	if tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
		t.Errorf("%v, want %s", err, tandem.CodeStoreUnavailable)
	}
	<-cut
	<-cut
	page, err := p.Store.Requests(t.Context(), store.Filter{Limit: 10})
	if err != nil || len(page.Requests) != 0 {
		t.Errorf("kept %v, %v", page.Requests, err)
	}
}

// A commit that nobody could wait for is taken back: its caller was told that nothing was saved.
func TestSubmissionSavedTooLate(t *testing.T) {
	t.Parallel()
	p := start(t, func(s *setup) { s.config.External = submissions.External{} })
	p.Store.Late = true
	_, err := p.submit(submissions.Batch{Data: []json.RawMessage{ada}})
	if tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
		t.Errorf("%v, want %s", err, tandem.CodeStoreUnavailable)
	}
	if got := p.Settled(p.Only().ID); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedInterrupted {
		t.Errorf("%+v", got)
	}
}

// What came of a call could not be committed: the row is as it was, and the caller is told so.
func TestSubmissionThatCannotBeFinished(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	p.Store.Sabotage(nil, &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "full"})
	r := p.submitAll(1, "")[0].Request
	if got := p.Request(r.ID); r.Status != tandem.StatusPending || got.Status != tandem.StatusProcessing {
		t.Errorf("answered %+v, kept %+v", r, got)
	}
}

// Ids that are taken are replaced, and the call that counts carries the one that is kept.
func TestSubmissionIDsAreTaken(t *testing.T) {
	t.Parallel()
	x := newExternal(t, nil)
	p := start(t, calling(t, x.URL, testTimeout, nil))
	p.Store.Take(3)
	r := p.submitAll(1, "")[0].Request
	calls := x.calls()
	if got := p.Only(); got.ID != r.ID || got.Status != tandem.StatusCompleted || calls[len(calls)-1] != r.ID {
		t.Errorf("answered %s, calls %v, kept %+v", r.ID, calls, got)
	}
}

// The entries of a batch are called side by side: each call here waits for all of them.
func TestBatchIsCalledSideBySide(t *testing.T) {
	t.Parallel()
	var inside sync.WaitGroup
	inside.Add(10)
	x := newExternal(t, func(int, http.ResponseWriter, *http.Request) {
		inside.Done()
		inside.Wait()
	})
	p := start(t, calling(t, x.URL, testTimeout, func(s *setup) { s.engine.IOWorkers = 10 }))
	ids := map[string]bool{}
	for _, s := range p.submitAll(10, "batch_a") {
		ids[s.Request.ID] = true
		if got := p.Request(s.Request.ID); got.Status != tandem.StatusCompleted || got.BatchID != "batch_a" {
			t.Errorf("%+v", got)
		}
	}
	if len(ids) != 10 || len(x.calls()) != 10 {
		t.Errorf("%d ids, %d calls", len(ids), len(x.calls()))
	}
}

// The slow one of a batch is answered with the others, which are on record long before.
func TestSlowEntryHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	var p *plant
	x := newExternal(t, func(n int, _ http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			p.Await("the others on record", func() bool {
				page, err := p.Store.Requests(context.Background(), store.Filter{Status: tandem.StatusCompleted, Limit: 10})
				return err == nil && len(page.Requests) == 4
			})
		}
	})
	p = start(t, calling(t, x.URL, testTimeout, func(s *setup) { s.engine.IOWorkers = 5 }))
	for _, s := range p.submitAll(5, "batch_a") {
		if s.Request.Status != tandem.StatusCompleted {
			t.Errorf("%+v", s)
		}
	}
}

// As many calls as there are slots for work that waits, and none for work that computes is taken.
func TestCallsAreBoundedBySlots(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int64
	var p *plant
	x := newExternal(t, func(int, http.ResponseWriter, *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for {
			if seen := most.Load(); n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		if _, err := p.Do(context.Background(), engine.Order{Task: "compute", Data: ada, Complexity: 1}); err != nil {
			t.Errorf("compute beside a call: %v", err)
		}
	})
	p = start(t, calling(t, x.URL, testTimeout, func(s *setup) { s.engine.IOWorkers, s.engine.Workers = 3, 1 }))
	all := p.submitAll(6, "")
	if most.Load() != 3 {
		t.Errorf("%d calls at once, want 3", most.Load())
	}
	shortest := all[0].Working
	for _, s := range all {
		shortest = min(shortest, s.Working)
	}
	var waited int // for a slot, while a whole call of somebody else ran
	for _, s := range all {
		if s.Took >= s.Working+shortest {
			waited++
		}
	}
	if waited < 3 {
		t.Errorf("%d of 6 took longer than their call because they waited for a slot, want at least 3: %+v", waited, all)
	}
}

// A shutdown in the middle of a call leaves the submission for the next start, and says so.
func TestSubmissionCutOffByShutdown(t *testing.T) {
	t.Parallel()
	called := make(chan struct{}, 10)
	x := newExternal(t, func(n int, _ http.ResponseWriter, r *http.Request) {
		called <- struct{}{}
		if n == 1 {
			<-r.Context().Done()
		}
	})
	path := filepath.Join(t.TempDir(), "tandem.db")
	p := start(t, calling(t, x.URL, testTimeout, func(s *setup) { s.url = path }))
	answered := make(chan engine.Run, 1)
	go func() { answered <- p.submitAll(1, "")[0] }() // it ends before the test: answered is read
	<-called
	p.Halt()
	s := <-answered
	p.Wait()
	if s.Request.Status != tandem.StatusPending {
		t.Errorf("%+v", s)
	}
	if _, err := p.submit(submissions.Batch{Data: []json.RawMessage{ada}}); tandem.CodeOf(err) != tandem.CodeDraining {
		t.Errorf("after the end: %v, want %s", err, tandem.CodeDraining)
	}
	if err := p.Store.Close(); err != nil {
		t.Fatal(err)
	}
	next := start(t, calling(t, x.URL, testTimeout, func(s *setup) { s.url = path }))
	if got := next.Settled(s.Request.ID); got.Status != tandem.StatusCompleted {
		t.Errorf("after the restart: %+v", got)
	}
}

func TestSimulator(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := submissions.External{MinDelay: 70 * time.Millisecond, MaxDelay: 150 * time.Millisecond, Timeout: time.Second}
		least, most := time.Hour, time.Duration(0)
		for range 200 {
			started := time.Now()
			if result := submissions.Simulate(t.Context(), x); result.Outcome != tandem.OutcomeDelivered ||
				result.Duration != time.Since(started) {
				t.Fatalf("%+v", result)
			}
			least, most = min(least, time.Since(started)), max(most, time.Since(started))
		}
		if least < x.MinDelay || least > 90*time.Millisecond || most > x.MaxDelay || most < 130*time.Millisecond {
			t.Errorf("took %v to %v", least, most)
		}
		x = submissions.External{MinDelay: time.Minute, MaxDelay: time.Minute, Timeout: time.Second}
		started := time.Now()
		if result := submissions.Simulate(t.Context(), x); result.Outcome != tandem.OutcomeTimeout ||
			time.Since(started) != time.Second {
			t.Errorf("longer than its timeout: %+v", result)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if result := submissions.Simulate(ctx, x); !result.Interrupted {
			t.Errorf("cut off: %+v", result)
		}
	})
}

func TestExternalConfiguration(t *testing.T) {
	t.Parallel()
	strict, err := egress.New(egress.Config{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer strict.Close()
	for name, test := range map[string]struct {
		external submissions.External
		ok       bool
	}{
		"none":                   {submissions.External{}, true},
		"one delay":              {submissions.External{MinDelay: time.Second, MaxDelay: time.Second}, true},
		"a negative delay":       {submissions.External{MinDelay: -1, MaxDelay: 1}, false},
		"a range the wrong way":  {submissions.External{MinDelay: 2, MaxDelay: 1}, false},
		"the longest timeout":    {submissions.External{Timeout: submissions.MaxTimeout}, true},
		"a longer one":           {submissions.External{Timeout: submissions.MaxTimeout + 1}, false},
		"a negative one":         {submissions.External{Timeout: -1}, false},
		"a URL without a client": {submissions.External{URL: "https://example.com/"}, false},
		"a URL":                  {submissions.External{URL: "https://example.com/", Client: strict}, true},
		"no URL":                 {submissions.External{URL: "example.com", Client: strict}, false},
		"a URL that is refused":  {submissions.External{URL: "http://169.254.169.254/", Client: strict}, false},
	} {
		_, err := submissions.New(submissions.Config{External: test.external})
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := start(t, nil).Do(t.Context(), engine.Order{Task: submissions.Task, Data: ada,
		Complexity: 1}); tandem.CodeOf(err) != tandem.CodeValidation {
		t.Errorf("an order for a submission: %v", err)
	}
}
