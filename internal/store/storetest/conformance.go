package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// Conform checks what every store must keep, each chapter on a store of its own that open opens.
func Conform(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	chapters := map[string]func(t *testing.T, s store.Store){
		"accept keeps every field":             conformAccept,
		"a repeated id is refused alone":       conformDuplicate,
		"sync life":                            conformSync,
		"several together or none":             conformTogether,
		"a submission is its caller's":         conformSubmission,
		"a submission put off":                 conformPutOff,
		"callers that break the rules":         conformFinishRules,
		"figures of submissions":               conformSubmissionFigures,
		"async life":                           conformAsync,
		"failed work still calls back":         conformFailedWork,
		"retries, put-offs and giving up":      conformRetries,
		"when the next attempt is due":         conformNextAttempt,
		"processing is visible":                conformProcessing,
		"handed back":                          conformHandedBack,
		"a step that breaks the rules":         conformRules,
		"lanes do not wait for each other":     conformLanes,
		"capacity bounds jobs":                 conformCapacity,
		"capacity bounds bytes":                conformBytes,
		"more than memory holds, oldest first": conformOverflow,
		"owners take turns":                    conformTurns,
		"an owner leaves room for others":      conformShare,
		"parked callbacks are left alone":      conformParked,
		"parked callbacks become too old":      conformParkedTooOld,
		"undelivered callbacks are listed":     conformUndelivered,
		"undelivered, and not tried yet":       conformUndeliveredAtOnce,
		"work ends when its steps have":        conformStop,
		"lists of a key":                       conformKeys,
		"pages of the history":                 conformPages,
		"filters of the history":               conformFilters,
		"pages end at a size":                  conformPageBytes,
		"cursors are checked":                  conformCursor,
		"retention":                            conformRetention,
		"statistics":                           conformStats,
		"the signing secret is kept":           conformSecret,
		"a closed store refuses":               conformClosed,
		"a caller who leaves":                  conformCancelled,
		"many at once":                         conformMany,
	}
	for chapter, check := range chapters {
		t.Run(chapter, func(t *testing.T) {
			t.Parallel()
			check(t, open(t))
		})
	}
}

// cmpRequest ignores what is empty in one and nil in the other.
var cmpRequest = cmpopts.EquateEmpty()

func conformAccept(t *testing.T, s store.Store) {
	for _, want := range []*tandem.Request{NewAsync(), NewSync()} {
		lane := store.LaneIO
		if want.Mode == tandem.ModeSync {
			lane = store.LaneNone
		}
		want.Data = json.RawMessage("{ \"text\" : \"as received,\\u0000 \u00e9\",\n\"n\":1e3 }")
		want.Complexity, want.Task = 7, "compute"
		Accept(t, s, want, lane)
		if diff := cmp.Diff(*want, MustRequest(t, s, want.ID), cmpRequest); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Mode, diff)
		}
	}
	_, err := s.Request(context.Background(), NewAsync().ID)
	if code := tandem.CodeOf(err); code != tandem.CodeNotFound {
		t.Errorf("unknown id: %v, want %s", err, tandem.CodeNotFound)
	}
}

func conformDuplicate(t *testing.T, s store.Store) {
	first := NewAsync()
	Accept(t, s, first, store.LaneIO)
	var group sync.WaitGroup
	for i := range 40 { // in one batch with the bad one, more likely than not
		group.Go(func() {
			r := NewAsync()
			if i == 20 {
				r.ID = first.ID
			}
			err := s.Accept(context.Background(), store.LaneIO, r)
			if errors.Is(err, store.ErrExists) != (i == 20) || err != nil && i != 20 {
				t.Errorf("accept %d: %v", i, err)
			}
		})
	}
	group.Wait()
	stats := MustStats(t, s)
	if stats.Requests[tandem.ModeAsync] != 40 || stats.Unfinished != 40 {
		t.Errorf("counted %d accepted and %d unfinished, want 40 of each", stats.Requests[tandem.ModeAsync], stats.Unfinished)
	}
	if stats.Unavailable != nil {
		t.Errorf("one bad row made the store unavailable: %v", stats.Unavailable)
	}
}

func conformSync(t *testing.T, s store.Store) {
	ctx := context.Background()
	good, bad := NewSync(), NewSync()
	Accept(t, s, good, store.LaneNone)
	Accept(t, s, bad, store.LaneNone)
	if got := MustStats(t, s); got.Now[tandem.StatusProcessing] != 2 || got.Unfinished != 2 {
		t.Errorf("while running: %+v", got)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	if err := s.Finish(ctx, store.Job{Request: *good}, store.Finished(store.Outcome{Result: json.RawMessage(`{"a":1}`), StartedAt: now, CompletedAt: now, Processing: 42 * time.Millisecond}, "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(ctx, store.Job{Request: *bad}, store.Finished(store.Outcome{ErrorCode: tandem.FailedTask, ErrorMessage: "no", StartedAt: now, CompletedAt: now}, "")); err != nil {
		t.Fatal(err)
	}
	want := *good
	want.Status, want.Result, want.StartedAt, want.CompletedAt, want.ProcessingTimeMS = tandem.StatusCompleted, json.RawMessage(`{"a":1}`), now, now, 42
	if diff := cmp.Diff(want, MustRequest(t, s, good.ID), cmpRequest); diff != "" {
		t.Errorf("completed (-want +got):\n%s", diff)
	}
	if got := MustRequest(t, s, bad.ID); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedTask || got.ErrorMessage != "no" {
		t.Errorf("failed: %+v", got)
	}
	if err := s.Finish(ctx, store.Job{Request: *good}, store.Finished(store.Outcome{}, "")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished twice: %v, want %s", err, tandem.CodeNotFound)
	}
	async, claim := NewAsync(), NewSync()
	Accept(t, s, async, store.LaneIO)
	claim.ID = async.ID
	if err := s.Finish(ctx, store.Job{Request: *claim}, store.Finished(store.Outcome{}, "")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished an async request: %v, want %s", err, tandem.CodeNotFound)
	}
}

func conformAsync(t *testing.T, s store.Store) {
	var jobs []store.Job
	var mu sync.Mutex
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		mu.Lock()
		defer mu.Unlock()
		jobs = append(jobs, job)
		if job.Lane == store.LaneCPU {
			return WorkEnded(`{"sum":1}`)
		}
		return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
	})
	r := NewAsync()
	Accept(t, s, r, store.LaneCPU)
	WaitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	got := MustRequest(t, s, r.ID)
	if got.CallbackStatus != tandem.CallbackSent || got.CallbackAttempts != 1 || string(got.Result) != `{"sum":1}` || got.ProcessingTimeMS != 1.5 ||
		got.StartedAt.IsZero() || got.CompletedAt.IsZero() {
		t.Errorf("at the end: %+v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(jobs) != 2 || jobs[0].Lane != store.LaneCPU || jobs[1].Lane != store.LaneDeliver {
		t.Fatalf("jobs: %+v", jobs)
	}
	if string(jobs[0].Request.Data) != string(r.Data) || jobs[0].Request.Status != tandem.StatusPending {
		t.Errorf("work was handed %+v", jobs[0].Request)
	}
	if string(jobs[1].Request.Result) != `{"sum":1}` || jobs[1].Request.Status != tandem.StatusCompleted {
		t.Errorf("delivery was handed %+v", jobs[1].Request)
	}
	want := []tandem.Attempt{jobsAttempt(got)}
	if diff := cmp.Diff(want, got.Attempts); diff != "" || got.Attempts[0].DurationMS != 2.5 {
		t.Errorf("attempts %+v", got.Attempts)
	}
}

// jobsAttempt is the only attempt of a request, or a zero one that equals none.
func jobsAttempt(r tandem.Request) tandem.Attempt {
	if len(r.Attempts) != 1 {
		return tandem.Attempt{}
	}
	return r.Attempts[0]
}

func conformFailedWork(t *testing.T, s store.Store) {
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			o := GoodOutcome("")
			o.ErrorCode, o.ErrorMessage = tandem.FailedPanic, "boom"
			return store.Finished(o, "")
		}
		if job.Request.Complexity == 2 {
			return store.GiveUp(Attempt(1, tandem.OutcomeGone))
		}
		return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
	})
	told, untold := NewAsync(), NewAsync()
	untold.Complexity = 2
	Accept(t, s, told, store.LaneIO)
	Accept(t, s, untold, store.LaneIO)
	for id, want := range map[string]tandem.CallbackStatus{told.ID: tandem.CallbackSent, untold.ID: tandem.CallbackFailed} {
		tandemtest.WaitFor(t, "callback "+string(want), func() bool { return MustRequest(t, s, id).CallbackStatus == want })
		if got := MustRequest(t, s, id); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedPanic || got.ErrorMessage != "boom" {
			t.Errorf("callback %s: %+v", want, got)
		}
	}
	if got := MustStats(t, s); got.Ended[tandem.StatusFailed] != 2 || got.Failures[tandem.FailedPanic] != 2 || got.Unfinished != 0 {
		t.Errorf("stats: %+v", got)
	}
}

func conformRetries(t *testing.T, s store.Store) {
	var tries atomic.Int64
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return WorkEnded(`{}`)
		}
		switch tries.Add(1) {
		case 1:
			if job.Request.CallbackAttempts != 0 {
				t.Errorf("first try: %d attempts before", job.Request.CallbackAttempts)
			}
			a := Attempt(1, tandem.OutcomeHTTPError)
			a.NextAt = time.Now().Add(30 * time.Millisecond).UTC().Truncate(time.Microsecond)
			return store.Redeliver(a, a.NextAt, "")
		case 2: // postponed: counts nothing
			return store.Postpone(time.Now().Add(5*time.Millisecond), "")
		case 3:
			if job.Request.CallbackAttempts != 1 {
				t.Errorf("after one attempt and a put-off: %d attempts", job.Request.CallbackAttempts)
			}
			return store.Redeliver(Attempt(2, tandem.OutcomeTimeout), time.Time{}, "")
		default:
			return store.GiveUp(Attempt(2, tandem.OutcomeExpired))
		}
	})
	r := NewAsync()
	Accept(t, s, r, store.LaneIO)
	WaitStatus(t, s, r.ID, tandem.StatusCallbackFailed)
	got := MustRequest(t, s, r.ID)
	if got.CallbackAttempts != 2 || got.CallbackStatus != tandem.CallbackFailed {
		t.Errorf("at the end: %+v", got)
	}
	var log []string
	for _, a := range got.Attempts {
		log = append(log, fmt.Sprintf("%d %s", a.Number, a.Outcome))
	}
	if want := []string{"1 http_error", "2 timeout", "2 expired"}; !slices.Equal(log, want) {
		t.Errorf("log %v, want %v", log, want)
	}
	if got.Attempts[0].NextAt.IsZero() || !got.Attempts[1].NextAt.IsZero() {
		t.Errorf("next_at: %+v", got.Attempts)
	}
}

func conformProcessing(t *testing.T, s store.Store) {
	release := make(chan struct{})
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		job.Started()
		<-release
		return WorkEnded(`{}`)
	})
	r := NewAsync()
	Accept(t, s, r, store.LaneIO)
	WaitStatus(t, s, r.ID, tandem.StatusProcessing)
	if got := MustRequest(t, s, r.ID); got.StartedAt.IsZero() {
		t.Errorf("processing without a start: %+v", got)
	}
	if got := MustStats(t, s); got.Now[tandem.StatusProcessing] != 1 || got.Now[tandem.StatusPending] != 0 {
		t.Errorf("stats while it runs: %+v", got)
	}
	close(release)
	WaitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	if got := MustStats(t, s); got.Now[tandem.StatusProcessing] != 0 || got.Now[tandem.StatusPending] != 0 {
		t.Errorf("stats at the end: %+v", got)
	}
}

func conformHandedBack(t *testing.T, s store.Store) {
	late := NewAsync()
	noted := make(chan struct{}) // closed when late's row says processing
	var tries atomic.Int64
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane == store.LaneDeliver:
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		case job.Request.ID == late.ID:
			job.Started()
			WaitStatus(t, s, late.ID, tandem.StatusProcessing)
			close(noted)
			return store.RetryAt(time.Now().Add(time.Hour), 0)
		case tries.Add(1) == 1:
			return store.Release()
		default:
			return WorkEnded(`{}`)
		}
	})
	soon := NewAsync()
	Accept(t, s, late, store.LaneCPU)
	Accept(t, s, soon, store.LaneCPU)
	<-noted
	WaitStatus(t, s, late.ID, tandem.StatusPending)
	WaitStatus(t, s, soon.ID, tandem.StatusCallbackSent)
	if n := tries.Load(); n != 2 {
		t.Errorf("worked %d times, want 2", n)
	}
	if got := MustStats(t, s); got.Now[tandem.StatusPending] != 1 || got.Now[tandem.StatusProcessing] != 0 {
		t.Errorf("stats: %+v", got)
	}
}

func conformRules(t *testing.T, s store.Store) {
	var tries atomic.Int64
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Lane == store.LaneDeliver:
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		case tries.Add(1) == 1:
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered)) // work has no callback
		default:
			return WorkEnded(`{}`)
		}
	})
	r := NewAsync()
	Accept(t, s, r, store.LaneCPU)
	WaitStatus(t, s, r.ID, tandem.StatusCallbackSent) // it stayed in the queue and ran again
}

func conformLanes(t *testing.T, s store.Store) {
	release := make(chan struct{})
	defer close(release)
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		switch job.Lane {
		case store.LaneCPU:
			<-release
			return store.RetryAt(time.Now().Add(time.Hour), 0)
		case store.LaneIO:
			return WorkEnded(`{}`)
		default:
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
	})
	for range 20 { // more than the lane has places for
		Accept(t, s, NewAsync(), store.LaneCPU)
	}
	r := NewAsync()
	Accept(t, s, r, store.LaneIO)
	WaitStatus(t, s, r.ID, tandem.StatusCallbackSent)
}

func conformCapacity(t *testing.T, s store.Store) {
	var running, most atomic.Int64
	full := make(chan struct{}) // closed when as many run as may
	var once sync.Once
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 6, store.LaneDeliver: 100}}
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		n := running.Add(1)
		defer running.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		if n == 3 {
			once.Do(func() { close(full) })
		}
		<-full
		return WorkEnded(`{}`)
	})
	AcceptMany(t, s, 60, store.LaneIO)
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return MustStats(t, s).Ended[tandem.StatusCallbackSent] == 60
	})
	if n := most.Load(); n != 3 {
		t.Errorf("%d jobs of one owner at once, want half of 6", n)
	}
}

func conformBytes(t *testing.T, s store.Store) {
	var running, most atomic.Int64
	full := make(chan struct{}) // closed when as many run as may
	var once sync.Once
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 50, store.LaneDeliver: 50}, Bytes: 5000}
	WorkWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		n := running.Add(1)
		defer running.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		if n == 2 {
			once.Do(func() { close(full) })
		}
		<-full
		return WorkEnded(`{}`)
	})
	large := json.RawMessage(`{"x":"` + strings.Repeat("x", 992) + `"}`) // 1,000 bytes: two fit
	huge := json.RawMessage(`{"x":"` + strings.Repeat("x", 9992) + `"}`) // fits never, and goes alone
	for i := range 20 {
		r := NewAsync()
		r.Data = large
		if i == 7 {
			r.Data = huge
		}
		Accept(t, s, r, store.LaneIO)
	}
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return MustStats(t, s).Ended[tandem.StatusCallbackSent] == 20
	})
	if n := most.Load(); n != 2 {
		t.Errorf("%d jobs of 1,000 bytes of one owner at once within half of 5,000, want 2", n)
	}
}

func conformOverflow(t *testing.T, s store.Store) {
	const n = 6000 // more than a lane holds in memory
	AcceptMany(t, s, n, store.LaneIO)
	var mu sync.Mutex
	times := map[string]int{}
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		if string(job.Request.Data) != `{"n": 1}` {
			t.Errorf("handed %s without its data: %q", job.Request.ID, job.Request.Data)
		}
		mu.Lock()
		defer mu.Unlock()
		times[job.Request.ID]++
		return WorkEnded(`{}`)
	})
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return MustStats(t, s).Ended[tandem.StatusCallbackSent] == n
	})
	mu.Lock()
	defer mu.Unlock()
	for id, count := range times {
		if count != 1 {
			t.Errorf("%s was worked on %d times", id, count)
		}
	}
	if len(times) != n {
		t.Errorf("%d requests were worked on, want %d", len(times), n)
	}
}

func conformStop(t *testing.T, s store.Store) {
	started, release := make(chan struct{}), make(chan struct{})
	stop := Work(t, s, func(context.Context, store.Job) store.Next {
		close(started)
		<-release
		return WorkEnded(`{"late":true}`)
	})
	r, never := NewAsync(), NewAsync()
	Accept(t, s, r, store.LaneCPU)
	<-started
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("Work returned while a step ran")
	case <-time.After(20 * time.Millisecond):
	}
	Accept(t, s, never, store.LaneCPU) // accepted, but dispatched to nobody: step would close started twice
	close(release)
	<-stopped
	if got := MustRequest(t, s, r.ID); got.Status != tandem.StatusCompleted || string(got.Result) != `{"late":true}` {
		t.Errorf("after Work returned: %+v", got)
	}
	if got := MustRequest(t, s, never.ID); got.Status != tandem.StatusPending {
		t.Errorf("accepted after the stop: %+v", got)
	}
}

func conformSecret(t *testing.T, s store.Store) {
	first := tandem.NewSecret()
	for i, fresh := range []tandem.Secret{first, tandem.NewSecret()} {
		got, made, err := s.SigningSecret(context.Background(), fresh)
		if err != nil || made != (i == 0) || got.Reveal() != first.Reveal() {
			t.Errorf("call %d: made %v, the first one %v, %v", i+1, made, got.Reveal() == first.Reveal(), err)
		}
	}
}

func conformClosed(t *testing.T, s store.Store) {
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(context.Background(), store.LaneIO, NewAsync()); tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
		t.Errorf("accept after close: %v, want %s", err, tandem.CodeStoreUnavailable)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func conformCancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("gone")
	cancel(gone)
	for range 50 { // the row may be there or not; the answer is the caller's own reason, or success
		if err := s.Accept(ctx, store.LaneIO, NewAsync()); err != nil && !errors.Is(err, gone) {
			t.Errorf("accept: %v", err)
		}
	}
}

func conformMany(t *testing.T, s store.Store) {
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		return WorkEnded(string(job.Request.Data))
	})
	AcceptMany(t, s, 2000, store.LaneIO)
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return MustStats(t, s).Ended[tandem.StatusCallbackSent] == 2000
	})
}

// MustStats returns the stats of a store.
func MustStats(t testing.TB, s store.Store) store.Stats {
	t.Helper()
	stats, err := s.Stats(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

// WaitStatus waits until a request has a status.
func WaitStatus(t testing.TB, s store.Store, id string, want tandem.Status) {
	t.Helper()
	tandemtest.WaitFor(t, id+" to be "+string(want), func() bool { return MustRequest(t, s, id).Status == want })
}

func pageIDs(page store.Page) []string {
	var ids []string
	for _, r := range page.Requests {
		ids = append(ids, r.ID)
	}
	return ids
}

// AcceptMany accepts from 64 goroutines at once.
func AcceptMany(t testing.TB, s store.Store, n int, lane store.Lane) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				if err := s.Accept(context.Background(), lane, NewAsync()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// Pause lets time pass where the passing of time is what is tested.
func Pause(d time.Duration) { <-time.After(d) }
