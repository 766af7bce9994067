package storetest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

func conformPages(t *testing.T, s store.Store) {
	var ids []string
	for range 25 {
		r := NewAsync()
		Accept(t, s, r, store.LaneIO)
		ids = append([]string{r.ID}, ids...) // newest first
	}
	var got []string
	filter := store.Filter{Limit: 10}
	for pages := 1; ; pages++ {
		page, err := s.Requests(context.Background(), filter)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, pageIDs(page)...)
		if page.Next == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
		Accept(t, s, NewAsync(), store.LaneIO) // newer ones do not shift the pages
		filter.Cursor = page.Next
	}
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Errorf("by cursor (-want +got):\n%s", diff)
	}
	page, err := s.Requests(context.Background(), store.Filter{Limit: 5, Offset: 4})
	if err != nil || !slices.Equal(pageIDs(page), ids[2:7]) { // two more were accepted above
		t.Errorf("by offset: %v, %v, want %v", pageIDs(page), err, ids[2:7])
	}
	page, err = s.Requests(context.Background(), store.Filter{Limit: 27})
	if err != nil || len(page.Requests) != 27 || page.Next != "" {
		t.Errorf("a page that just holds all: %d, next %q, %v", len(page.Requests), page.Next, err)
	}
}

// conformFilters compares every combination of filters with a plain selection.
func conformFilters(t *testing.T, s store.Store) {
	var all []tandem.Request
	for i := range 60 {
		r := NewSync()
		lane := store.LaneNone
		if i%3 != 0 {
			r, lane = NewAsync(), store.LaneIO
		}
		r.Task = []string{"compute", "echo", "sleep"}[i%5%3]
		Accept(t, s, r, lane)
		if i%6 == 0 {
			if err := s.Finish(context.Background(), store.Job{Request: *r}, store.Finished(store.Outcome{}, "")); err != nil {
				t.Fatal(err)
			}
		}
		all = append([]tandem.Request{MustRequest(t, s, r.ID)}, all...)
		Pause(100 * time.Microsecond)
	}
	middle := all[30].CreatedAt
	for _, mode := range append([]tandem.Mode{""}, tandem.Modes...) {
		for _, status := range append([]tandem.Status{""}, tandem.Statuses...) {
			for _, task := range []string{"", "compute", "echo", "nothing"} {
				for _, f := range []store.Filter{{}, {Since: middle}, {Until: middle}, {Since: middle, Until: middle.Add(time.Millisecond)}} {
					f.Mode, f.Status, f.Task, f.Limit = mode, status, task, 7
					var want, got []string
					for _, r := range all {
						if (mode == "" || r.Mode == mode) && (status == "" || r.Status == status) && (task == "" || r.Task == task) &&
							(f.Since.IsZero() || !r.CreatedAt.Before(f.Since)) && (f.Until.IsZero() || r.CreatedAt.Before(f.Until)) {
							want = append(want, r.ID)
						}
					}
					for {
						page, err := s.Requests(context.Background(), f)
						if err != nil {
							t.Fatalf("%+v: %v", f, err)
						}
						got = append(got, pageIDs(page)...)
						if f.Cursor = page.Next; f.Cursor == "" {
							break
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("%+v: got %d rows, want %d\n%v\n%v", f, len(got), len(want), got, want)
					}
				}
			}
		}
	}
}

func conformPageBytes(t *testing.T, s store.Store) {
	for range 6 {
		r := NewAsync()
		r.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 992) + `"}`)
		Accept(t, s, r, store.LaneIO)
	}
	for bytes, want := range map[int]int{1: 1, 999: 1, 2000: 2, 2999: 2, 0: 6, 6000: 6} {
		page, err := s.Requests(context.Background(), store.Filter{Limit: 100, MaxBytes: bytes})
		if err != nil || len(page.Requests) != want || (page.Next == "") != (want == 6) {
			t.Errorf("within %d bytes: %d requests, next %q, %v; want %d", bytes, len(page.Requests), page.Next, err, want)
		}
	}
}

func conformCursor(t *testing.T, s store.Store) {
	for _, cursor := range []string{"x", "%", "cmVx", strings.Repeat("A", 48)} {
		_, err := s.Requests(context.Background(), store.Filter{Limit: 1, Cursor: cursor})
		if code := tandem.CodeOf(err); code != tandem.CodeInvalidCursor {
			t.Errorf("cursor %q: %v, want %s", cursor, err, tandem.CodeInvalidCursor)
		}
	}
}

func conformRetention(t *testing.T, s store.Store) {
	ctx := context.Background()
	var finished, running []string
	for range 700 { // several chunks
		r := NewSync()
		Accept(t, s, r, store.LaneNone)
		if len(finished) <= len(running)*6 {
			if err := s.Finish(ctx, store.Job{Request: *r}, store.Finished(store.Outcome{}, "")); err != nil {
				t.Fatal(err)
			}
			finished = append(finished, r.ID)
		} else {
			running = append(running, r.ID)
		}
	}
	pending := NewAsync()
	Accept(t, s, pending, store.LaneIO)
	if n, err := s.Retain(ctx, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("nothing is an hour old: deleted %d, %v", n, err)
	}
	n, err := s.Retain(ctx, time.Now().Add(time.Second))
	if n != len(finished) || err != nil {
		t.Errorf("deleted %d, %v; want %d", n, err, len(finished))
	}
	for _, id := range append(running, pending.ID) {
		MustRequest(t, s, id)
	}
	if _, err := s.Request(ctx, finished[0]); tandem.CodeOf(err) != tandem.CodeNotFound {
		t.Errorf("a deleted request: %v", err)
	}
	if got := MustStats(t, s); got.Requests[tandem.ModeSync] != 700 || got.Unfinished != int64(len(running)+1) {
		t.Errorf("totals are not reduced, gauges tell what is left: %+v", got)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if n, err := s.Retain(cancelled, time.Now()); n != 0 || err != nil {
		t.Errorf("cancelled: deleted %d, %v", n, err)
	}
}

func conformStats(t *testing.T, s store.Store) {
	before, commits := time.Now().Add(-time.Millisecond), MustStats(t, s).Commits
	Accept(t, s, NewAsync(), store.LaneCPU)
	Accept(t, s, NewAsync(), store.LaneIO)
	got := MustStats(t, s)
	if c := got.Commits; c.Count != commits.Count+2 || c.Writes != commits.Writes+2 || c.Time <= commits.Time || c.Failed != 0 {
		t.Errorf("two accepts, one after the other, made of %+v %+v", commits, c)
	}
	if got.Queue[store.LaneCPU] != 1 || got.Queue[store.LaneIO] != 1 || got.Unfinished != 2 || got.Capacity != 1_000_000 || got.Now[tandem.StatusPending] != 2 {
		t.Errorf("waiting: %+v", got)
	}
	if got.OldestDue.Before(before) || got.OldestDue.After(time.Now()) {
		t.Errorf("oldest due at %v", got.OldestDue)
	}
	Work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(Attempt(1, tandem.OutcomeDelivered))
		}
		return WorkEnded(`{}`)
	})
	tandemtest.WaitFor(t, "both to be delivered", func() bool {
		return MustStats(t, s).Ended[tandem.StatusCallbackSent] == 2
	})
	want := store.Stats{
		Requests: map[tandem.Mode]int64{tandem.ModeAsync: 2},
		Now:      map[tandem.Status]int64{tandem.StatusPending: 0},
		Ended:    map[tandem.Status]int64{tandem.StatusCompleted: 2, tandem.StatusCallbackSent: 2},
		Callback: map[tandem.CallbackStatus]int64{tandem.CallbackSent: 2},
		Failures: map[string]int64{},
		Attempts: map[tandem.Outcome]int64{tandem.OutcomeDelivered: 2},
		Work:     map[tandem.Mode]store.WorkTime{tandem.ModeAsync: {Count: 2, Total: 3 * time.Millisecond}},
		Queue:    map[store.Lane]int64{store.LaneCPU: 0, store.LaneIO: 0, store.LaneDeliver: 0},
		Capacity: 1_000_000,
	}
	got = MustStats(t, s)
	got.Commits = store.Commits{} // they depend on what came together
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("at the end (-want +got):\n%s", diff)
	}
}

// The last attempt of a callback that waits says when the next one is due now, and never a time that is over.
func conformNextAttempt(t *testing.T, s store.Store) {
	const postponed = time.Hour
	first, deliveries := make(chan time.Time, 1), 0
	Work(t, s, func(ctx context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return WorkEnded(`{}`)
		}
		if deliveries++; deliveries == 1 { // one request, so one step at a time
			a := Attempt(1, tandem.OutcomeHTTPError)
			a.NextAt = time.Now().Add(time.Millisecond).UTC()
			return store.Redeliver(a, a.NextAt, "")
		}
		r, err := s.Request(ctx, job.Request.ID)
		if err != nil || len(r.Attempts) != 1 || !r.Attempts[0].NextAt.IsZero() {
			t.Errorf("while the next attempt is under way: %+v, %v", r.Attempts, err)
		}
		first <- time.Now()
		return store.Postpone(time.Now().Add(postponed), "")
	})
	r := NewAsync()
	Accept(t, s, r, store.LaneIO)
	least := (<-first).Add(postponed)
	tandemtest.WaitFor(t, "the postponed attempt", func() bool {
		return !MustRequest(t, s, r.ID).Attempts[0].NextAt.IsZero()
	})
	got := MustRequest(t, s, r.ID).Attempts[0].NextAt
	if got.Before(least.Add(-time.Second)) || got.After(least.Add(postponed)) {
		t.Errorf("the next attempt is shown due at %v, want about %v", got, least)
	}
}

// Lists of a key hold its requests only, whatever else is asked for.
func conformKeys(t *testing.T, s store.Store) {
	want := map[string][]string{}
	for _, key := range []string{"key_a", "key_b", ""} {
		for _, r := range []*tandem.Request{NewSync(), NewAsync(), NewSubmission("batch_" + key), NewSubmission("")} {
			r.KeyID = key
			lane := store.LaneIO
			if r.Mode == tandem.ModeSync && r.Task != Counted {
				lane = store.LaneNone
			}
			Accept(t, s, r, lane)
			want[key] = append([]string{r.ID}, want[key]...)
		}
	}
	ids := func(filter store.Filter) (found []string, submissions int64) {
		t.Helper()
		filter.Limit = 100
		page, err := s.Requests(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Requests {
			found = append(found, r.ID)
		}
		return found, page.Total
	}
	for _, key := range []string{"key_a", "key_b"} {
		all, _ := ids(store.Filter{Key: key})
		syncs, _ := ids(store.Filter{Key: key, Mode: tandem.ModeAsync})
		batch, _ := ids(store.Filter{Key: key, Batch: "batch_" + key})
		submissions, total := ids(store.Filter{Key: key, Task: Counted})
		got := [][]string{all, syncs, batch, submissions}
		own := want[key]
		if diff := cmp.Diff([][]string{own, {own[2]}, {own[1]}, {own[0], own[1]}}, got); diff != "" {
			t.Errorf("of %s (-want +got):\n%s", key, diff)
		}
		if total != 2 {
			t.Errorf("%s has %d submissions, want 2", key, total)
		}
	}
	foreign, _ := ids(store.Filter{Key: "key_a", Batch: "batch_key_b"})
	unknown, none := ids(store.Filter{Key: "key_c", Task: Counted})
	if len(foreign)+len(unknown) > 0 || none != 0 {
		t.Errorf("another's batch %v, of nobody %v, %d", foreign, unknown, none)
	}
	if everybody, total := ids(store.Filter{Task: Counted}); len(everybody) != 6 || total != 6 {
		t.Errorf("%d submissions, counted %d, want 6", len(everybody), total)
	}
	if got := MustRequest(t, s, want["key_a"][0]); got.KeyID != "key_a" {
		t.Errorf("a request of key_a says %q", got.KeyID)
	}
}
