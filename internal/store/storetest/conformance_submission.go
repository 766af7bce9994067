package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/store"
)

// NewSubmission is a request as the engine accepts a submission: being worked on, in a lane.
func NewSubmission(batch string) *tandem.Request {
	r := NewSync()
	r.Task, r.BatchID, r.StartedAt = Counted, batch, time.Time{}
	r.Data = json.RawMessage(`{"firstName":"Ada","lastName":"Lovelace"}`)
	return r
}

// SubmissionJob is a submission as its caller finishes it.
func SubmissionJob(r *tandem.Request) store.Job { return store.Job{Lane: store.LaneIO, Request: *r} }

// Called is what comes of a call that took 120 ms; code is "" when it ended well.
func Called(code string) store.Next {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Finished(store.Outcome{
		Result: json.RawMessage(`{"status_code":200}`), ErrorCode: code, StartedAt: now, CompletedAt: now, Processing: 120 * time.Millisecond,
	}, "")
}

// Several requests are accepted together or not at all, whatever else is in the same commit.
func conformTogether(t *testing.T, s store.Store) {
	taken := NewAsync()
	Accept(t, s, taken, store.LaneIO)
	var group sync.WaitGroup
	for i := range 40 { // in one commit with others, more likely than not
		group.Go(func() {
			batch := []*tandem.Request{NewSubmission("batch_a"), NewSubmission("batch_a"), NewSubmission("batch_a")}
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
	stats := MustStats(t, s)
	if stats.Requests[tandem.ModeSync] != 90 || stats.Unfinished != 91 || stats.Now[tandem.StatusProcessing] != 90 || stats.Queue[store.LaneIO] != 91 {
		t.Errorf("counted %+v", stats)
	}
}

// A submission is its caller's while it is processing, and nobody's once it has ended.
func conformSubmission(t *testing.T, s store.Store) {
	var handed atomic.Int64
	Work(t, s, func(context.Context, store.Job) store.Next {
		handed.Add(1)
		return Called("")
	})
	good, bad := NewSubmission("batch_b"), NewSubmission("")
	Accept(t, s, good, store.LaneIO)
	Accept(t, s, bad, store.LaneIO)
	if diff := cmp.Diff(*good, MustRequest(t, s, good.ID), cmpRequest); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
	next := Called("")
	if err := s.Finish(t.Context(), SubmissionJob(good), next); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), SubmissionJob(bad), Called(tandem.FailedTask)); err != nil {
		t.Fatal(err)
	}
	want := *good
	want.Status, want.Result, want.ProcessingTimeMS = tandem.StatusCompleted, next.Outcome().Result, 120
	want.StartedAt, want.CompletedAt = next.Outcome().StartedAt, next.Outcome().CompletedAt
	if diff := cmp.Diff(want, MustRequest(t, s, good.ID), cmpRequest); diff != "" {
		t.Errorf("completed (-want +got):\n%s", diff)
	}
	if got := MustRequest(t, s, bad.ID); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedTask {
		t.Errorf("failed: %+v", got)
	}
	if err := s.Finish(t.Context(), SubmissionJob(good), Called("")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished twice: %v, want %s", err, tandem.CodeNotFound)
	}
	stats := MustStats(t, s)
	if handed.Load() != 0 || stats.Unfinished != 0 || stats.Queue[store.LaneIO] != 0 || len(stats.Callback) != 0 ||
		stats.Ended[tandem.StatusCompleted] != 1 || stats.Ended[tandem.StatusFailed] != 1 || stats.Work[tandem.ModeSync].Count != 2 {
		t.Errorf("dispatched %d times; %+v", handed.Load(), stats)
	}
}

// A submission whose call went wrong is postponed into its lane, again and again, and ends without a callback.
func conformPutOff(t *testing.T, s store.Store) {
	jobs := make(chan store.Job, 10)
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		jobs <- job
		if len(jobs) == 1 {
			return store.RetryAt(time.Now().Add(20*time.Millisecond), 0)
		}
		return Called("")
	})
	r := NewSubmission("")
	Accept(t, s, r, store.LaneIO)
	if err := s.Finish(t.Context(), SubmissionJob(r), store.RetryAt(time.Now().Add(20*time.Millisecond), 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), SubmissionJob(r), Called("")); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("finished after it was postponed: %v, want %s", err, tandem.CodeNotFound)
	}
	WaitStatus(t, s, r.ID, tandem.StatusCompleted)
	for range 2 {
		if job := <-jobs; job.Lane != store.LaneIO || job.Request.Status != tandem.StatusPending || string(job.Request.Data) != string(r.Data) ||
			job.Request.Task != Counted {
			t.Errorf("dispatched %+v", job)
		}
	}
	stats := MustStats(t, s)
	if stats.Unfinished != 0 || stats.Queue[store.LaneIO]+stats.Queue[store.LaneDeliver] != 0 || len(stats.Callback) != 0 || stats.Ended[tandem.StatusCompleted] != 1 {
		t.Errorf("at the end: %+v", stats)
	}
}

// What a caller may not say of its request is an error, and changes nothing.
func conformFinishRules(t *testing.T, s store.Store) {
	plain, submission := NewSync(), NewSubmission("")
	Accept(t, s, plain, store.LaneNone)
	Accept(t, s, submission, store.LaneIO)
	for name, test := range map[string]struct {
		job  store.Job
		next store.Next
	}{
		"a callback for nobody":         {SubmissionJob(submission), store.Postpone(time.Time{}, "")},
		"an end without an outcome":     {SubmissionJob(submission), store.Delivered(Attempt(1, tandem.OutcomeDelivered))},
		"a callback given up":           {SubmissionJob(submission), store.GiveUp(Attempt(1, tandem.OutcomeGone))},
		"a sync request for the queue":  {store.Job{Request: *plain}, store.RetryAt(time.Time{}, 1)},
		"a sync request released":       {store.Job{Request: *plain}, store.Release()},
		"a sync request in a lane":      {SubmissionJob(plain), Called("")},
		"a submission without its lane": {store.Job{Request: *submission}, Called("")},
	} {
		if err := s.Finish(t.Context(), test.job, test.next); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, r := range []*tandem.Request{plain, submission} {
		if got := MustRequest(t, s, r.ID); got.Status != tandem.StatusProcessing {
			t.Errorf("%s is %s", r.Task, got.Status)
		}
	}
}

func conformSubmissionFigures(t *testing.T, s store.Store) {
	if got := MustStats(t, s).Counted; got != (store.Counted{}) {
		t.Errorf("of none: %+v", got)
	}
	other := NewSync()
	Accept(t, s, other, store.LaneNone)
	if err := s.Finish(t.Context(), store.Job{Request: *other}, Called("")); err != nil {
		t.Fatal(err)
	}
	var batch []*tandem.Request
	for range 5 {
		batch = append(batch, NewSubmission("batch_c"))
	}
	if err := s.Accept(t.Context(), store.LaneIO, batch...); err != nil {
		t.Fatal(err)
	}
	Accept(t, s, NewSubmission(""), store.LaneIO)
	Accept(t, s, NewSubmission("batch_d"), store.LaneIO)
	for i, code := range []string{"", "", "", tandem.FailedTask} {
		if err := s.Finish(t.Context(), SubmissionJob(batch[i]), Called(code)); err != nil {
			t.Fatal(err)
		}
	}
	want := store.Counted{Accepted: 7, Kept: 7, Recent: 7, Ended: 3,
		Work: store.WorkTime{Count: 4, Total: 480 * time.Millisecond}}
	if diff := cmp.Diff(want, MustStats(t, s).Counted); diff != "" {
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
	if diff := cmp.Diff(want, MustStats(t, s).Counted); diff != "" {
		t.Errorf("after retention (-want +got):\n%s", diff)
	}
}
