package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/store"
)

// newSubmission is a request as the engine accepts a submission: being worked on, in a lane.
func newSubmission(batch string) *tandem.Request {
	r := newSync()
	r.Task, r.BatchID, r.StartedAt = counted, batch, time.Time{}
	r.Data = json.RawMessage(`{"firstName":"Ada","lastName":"Lovelace"}`)
	return r
}

// submissionJob is a submission as its caller finishes it.
func submissionJob(r *tandem.Request) store.Job { return store.Job{Lane: store.LaneIO, Request: *r} }

// called is what comes of a call that took 120 ms; code is "" when it ended well.
func called(code string) store.Next {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Finished(store.Outcome{
		Result: json.RawMessage(`{"status_code":200}`), ErrorCode: code, StartedAt: now, CompletedAt: now, Processing: 120 * time.Millisecond,
	}, "")
}

// Several requests are accepted together or not at all, whatever else is in the same commit.
func conformTogether(t *testing.T, s store.Store) {
	taken := newAsync()
	accept(t, s, taken, store.LaneIO)
	var group sync.WaitGroup
	for i := range 40 { // in one commit with others, more likely than not
		group.Go(func() {
			batch := []*tandem.Request{newSubmission("batch_a"), newSubmission("batch_a"), newSubmission("batch_a")}
			if i%4 == 1 {
				batch[2].ID = taken.ID
			}
			err := s.Accept(t.Context(), store.LaneIO, batch...)
			if errors.Is(err, store.ErrExists) != (i%4 == 1) || err != nil && i%4 != 1 {
				t.Errorf("accept %d: %v", i, err)
			}
			for j, r := range batch[:2] {
				if _, missing := s.Request(t.Context(), r.ID); (missing == nil) != (err == nil) {
					t.Errorf("accept %d said %v; its request %d: %v", i, err, j, missing)
				}
			}
		})
	}
	group.Wait()
	stats := mustStats(t, s)
	if stats.Requests[tandem.ModeSync] != 90 || stats.Unfinished != 91 || stats.Now[tandem.StatusProcessing] != 90 || stats.Queue[store.LaneIO] != 91 {
		t.Errorf("counted %+v", stats)
	}
}

// A submission is its caller's while it is processing, and nobody's once it has ended.
func conformSubmission(t *testing.T, s store.Store) {
	var handed atomic.Int64
	work(t, s, func(context.Context, store.Job) store.Next {
		handed.Add(1)
		return called("")
	})
	good, bad := newSubmission("batch_b"), newSubmission("")
	accept(t, s, good, store.LaneIO)
	accept(t, s, bad, store.LaneIO)
	if diff := cmp.Diff(*good, mustRequest(t, s, good.ID), cmpRequest); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
	next := called("")
	if err := s.Finish(t.Context(), submissionJob(good), next); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), submissionJob(bad), called(tandem.FailedTask)); err != nil {
		t.Fatal(err)
	}
	want := *good
	want.Status, want.Result, want.ProcessingTimeMS = tandem.StatusCompleted, next.Outcome().Result, 120
	want.StartedAt, want.CompletedAt = next.Outcome().StartedAt, next.Outcome().CompletedAt
	if diff := cmp.Diff(want, mustRequest(t, s, good.ID), cmpRequest); diff != "" {
		t.Errorf("completed (-want +got):\n%s", diff)
	}
	if got := mustRequest(t, s, bad.ID); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedTask {
		t.Errorf("failed: %+v", got)
	}
	if err := s.Finish(t.Context(), submissionJob(good), called("")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished twice: %v, want %s", err, tandem.CodeNotFound)
	}
	stats := mustStats(t, s)
	if handed.Load() != 0 || stats.Unfinished != 0 || stats.Queue[store.LaneIO] != 0 || len(stats.Callback) != 0 ||
		stats.Ended[tandem.StatusCompleted] != 1 || stats.Ended[tandem.StatusFailed] != 1 || stats.Work[tandem.ModeSync].Count != 2 {
		t.Errorf("handed out %d times; %+v", handed.Load(), stats)
	}
}

// A submission whose call went wrong is put off into its lane, again and again, and ends without a callback.
func conformPutOff(t *testing.T, s store.Store) {
	jobs := make(chan store.Job, 10)
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		jobs <- job
		if len(jobs) == 1 {
			return store.RetryAt(time.Now().Add(20*time.Millisecond), 0)
		}
		return called("")
	})
	r := newSubmission("")
	accept(t, s, r, store.LaneIO)
	if err := s.Finish(t.Context(), submissionJob(r), store.RetryAt(time.Now().Add(20*time.Millisecond), 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), submissionJob(r), called("")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished after it was put off: %v, want %s", err, tandem.CodeNotFound)
	}
	waitStatus(t, s, r.ID, tandem.StatusCompleted)
	for range 2 {
		if job := <-jobs; job.Lane != store.LaneIO || job.Request.Status != tandem.StatusPending || string(job.Request.Data) != string(r.Data) ||
			job.Request.Task != counted {
			t.Errorf("handed out %+v", job)
		}
	}
	stats := mustStats(t, s)
	if stats.Unfinished != 0 || stats.Queue[store.LaneIO]+stats.Queue[store.LaneDeliver] != 0 || len(stats.Callback) != 0 || stats.Ended[tandem.StatusCompleted] != 1 {
		t.Errorf("at the end: %+v", stats)
	}
}

// What a caller may not say of its request is an error, and changes nothing.
func conformFinishRules(t *testing.T, s store.Store) {
	plain, submission := newSync(), newSubmission("")
	accept(t, s, plain, store.LaneNone)
	accept(t, s, submission, store.LaneIO)
	for name, test := range map[string]struct {
		job  store.Job
		next store.Next
	}{
		"a callback for nobody":         {submissionJob(submission), store.Postpone(time.Time{}, "")},
		"an end without an outcome":     {submissionJob(submission), store.Delivered(attempt(1, tandem.OutcomeDelivered))},
		"a callback given up":           {submissionJob(submission), store.GiveUp(attempt(1, tandem.OutcomeGone))},
		"a sync request for the queue":  {store.Job{Request: *plain}, store.RetryAt(time.Time{}, 1)},
		"a sync request released":       {store.Job{Request: *plain}, store.Release()},
		"a sync request in a lane":      {submissionJob(plain), called("")},
		"a submission without its lane": {store.Job{Request: *submission}, called("")},
	} {
		if err := s.Finish(t.Context(), test.job, test.next); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, r := range []*tandem.Request{plain, submission} {
		if got := mustRequest(t, s, r.ID); got.Status != tandem.StatusProcessing {
			t.Errorf("%s is %s", r.Task, got.Status)
		}
	}
}

func conformSubmissionFigures(t *testing.T, s store.Store) {
	if got := mustStats(t, s).Counted; got != (store.Counted{}) {
		t.Errorf("of none: %+v", got)
	}
	other := newSync()
	accept(t, s, other, store.LaneNone)
	if err := s.Finish(t.Context(), store.Job{Request: *other}, called("")); err != nil {
		t.Fatal(err)
	}
	var batch []*tandem.Request
	for range 5 {
		batch = append(batch, newSubmission("batch_c"))
	}
	if err := s.Accept(t.Context(), store.LaneIO, batch...); err != nil {
		t.Fatal(err)
	}
	accept(t, s, newSubmission(""), store.LaneIO)
	accept(t, s, newSubmission("batch_d"), store.LaneIO)
	for i, code := range []string{"", "", "", tandem.FailedTask} {
		if err := s.Finish(t.Context(), submissionJob(batch[i]), called(code)); err != nil {
			t.Fatal(err)
		}
	}
	want := store.Counted{Accepted: 7, Kept: 7, Recent: 7, Ended: 3,
		Work: store.WorkTime{Count: 4, Total: 480 * time.Millisecond}}
	if diff := cmp.Diff(want, mustStats(t, s).Counted); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	for name, count := range map[string]int{"batch_c": 5, "batch_d": 1, "batch_": 0} {
		page, err := s.Requests(t.Context(), store.Filter{Batch: name, Limit: 10})
		if err != nil || len(page.Requests) != count || page.Next != "" {
			t.Errorf("%s: %d requests, next %q, %v; want %d", name, len(page.Requests), page.Next, err, count)
		}
	}
	first, err := s.Requests(t.Context(), store.Filter{Batch: "batch_c", Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	rest, err := s.Requests(t.Context(), store.Filter{Batch: "batch_c", Limit: 3, Cursor: first.Next})
	if err != nil {
		t.Fatal(err)
	}
	ids := append(pageIDs(first), pageIDs(rest)...)
	slices.Reverse(ids)
	for i, r := range batch {
		if len(ids) != len(batch) || ids[i] != r.ID {
			t.Fatalf("pages of a batch hold %v", ids)
		}
	}

	if n, err := s.Retain(t.Context(), time.Now().Add(time.Second)); n != 5 || err != nil { // the other one, and four submissions
		t.Errorf("deleted %d, %v", n, err)
	}
	want.Kept = 3
	if diff := cmp.Diff(want, mustStats(t, s).Counted); diff != "" {
		t.Errorf("after retention (-want +got):\n%s", diff)
	}
}

// The current hour and the 23 before it are recent; what is older is forgotten by the store as well.
func TestRecentSubmissions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	s.ShiftClock(time.Until(time.Now().Truncate(time.Hour).Add(90 * time.Minute))) // half past: no hour ends by itself
	total := int64(0)
	for hour := range 30 {
		for range hour + 1 {
			accept(t, s, newSubmission(""), store.LaneIO)
			total++
		}
		want := int64(0)
		for h := max(hour-23, 0); h <= hour; h++ {
			want += int64(h + 1)
		}
		if got := mustStats(t, s).Counted; got.Recent != want || got.Accepted != total {
			t.Errorf("in hour %d: %+v, want %d recent of %d", hour, got, want, total)
		}
		s.ShiftClock(time.Hour)
	}
	if got := mustStats(t, s).Counted.Recent; got != 29*30/2+30-6*7/2-7 { // hours 7 to 29 of 0 to 29
		t.Errorf("an hour later %d are recent", got)
	}
	if n := s.Counters("recent/"); n > 24 {
		t.Errorf("%d hours are kept", n)
	}
	s.ShiftClock(24 * time.Hour)
	if got := mustStats(t, s).Counted; got.Recent != 0 || got.Accepted != total {
		t.Errorf("a day later: %+v", got)
	}
}

// A submission that was being worked on when the process died is dispatched by the next one.
func TestSubmissionIsResumed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	r := newSubmission("batch_e")
	accept(t, s, r, store.LaneIO)

	after := openFile(t, crash(t, path))
	if got := mustRequest(t, after, r.ID); got.Status != tandem.StatusPending || got.ErrorCode != "" {
		t.Errorf("after the crash: %+v", got)
	}
	work(t, after, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneIO || job.Request.ID != r.ID || job.Request.BatchID != "batch_e" {
			t.Errorf("handed out %+v", job)
		}
		return called("")
	})
	waitStatus(t, after, r.ID, tandem.StatusCompleted)
	if got := mustStats(t, after); got.Unfinished != 0 || got.Failures[tandem.FailedInterrupted] != 0 ||
		got.Counted.Ended != 1 {
		t.Errorf("counters: %+v", got)
	}
}

// A submission whose caller does not come back to it is dispatched in the end, and what the
// caller says of it then is not heard.
func TestSubmissionOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	release, started := make(chan struct{}), make(chan struct{})
	work(t, s, func(context.Context, store.Job) store.Next {
		close(started)
		<-release
		return called("")
	})
	r := newSubmission("")
	accept(t, s, r, store.LaneIO)
	s.ShiftClock(store.CallerLease + time.Second)
	<-started
	put := store.RetryAt(time.Now().Add(time.Hour), 0)
	close(release)
	waitStatus(t, s, r.ID, tandem.StatusCompleted)
	if err := s.Finish(t.Context(), submissionJob(r), put); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("%v, want %s", err, tandem.CodeNotFound)
	}
	if got := mustStats(t, s); got.Unfinished != 0 || got.Now[tandem.StatusProcessing] != 0 {
		t.Errorf("counters: %+v", got)
	}
}
