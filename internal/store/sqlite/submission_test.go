package sqlite_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

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

	after := openFile(t, storetest.Crash(t, path))
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

// What is parked is found after a restart.
func TestParkedSurvivesRestart(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/tandem.db"
	s, err := sqlite.Open(t.Context(), store.Config{Counted: counted, URL: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	capacity := everyLane
	capacity.Room = func(string, string) int { return 0 }
	var steps atomic.Int64
	stop := workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{}`)
		}
		steps.Add(1)
		return store.Postpone(time.Time{}, "dead.example:443")
	})
	ids := accepted(t, s, "a", 100)
	tandemtest.WaitFor(t, "all to be parked", func() bool { return steps.Load() == 100 })
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openFile(t, path)
	capacity.Room = func(string, string) int { return 5 }
	workWith(t, s, capacity, func(context.Context, store.Job) store.Next { return sent })
	for _, id := range ids {
		waitStatus(t, s, id, tandem.StatusCallbackSent)
	}
}
