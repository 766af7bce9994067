package postgres_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// A database that is held up takes requests after their callers have left. None of them seems to be processing for
// ever: the node ends what nobody waits for, and what was not begun is never begun.
func TestRowsThatComeTooLateAreEnded(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"river_job", "requests"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			url := emptyPostgres(t, tandemtest.Volatile)
			s := joinPostgres(t, url)
			open := beginPostgres(t, url)
			defer open.Conn().Close(context.Background())
			if _, err := open.Exec(t.Context(), `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			ctx, leave := context.WithCancel(t.Context())
			var callers sync.WaitGroup
			refused := func(lane store.Lane, requests ...*tandem.Request) {
				callers.Go(func() {
					if err := s.Accept(ctx, lane, requests...); !errors.Is(err, context.Canceled) {
						t.Errorf("%v, want %v", err, context.Canceled)
					}
				})
			}
			// A transaction of each writer waits for the lock, and a third has not begun.
			alone, behind := newSync(), newSync()
			batch := []*tandem.Request{newSubmission("batch_a"), newSubmission("batch_a")}
			refused(store.LaneNone, alone)
			awaitLocked(t, url, 1)
			refused(store.LaneIO, batch...)
			awaitLocked(t, url, 2)
			refused(store.LaneNone, behind)
			tandemtest.WaitFor(t, "the third to wait in line", func() bool { return s.Waiting() == 1 })
			leave()
			callers.Wait()
			if err := open.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}

			for _, r := range append(slices.Clone(batch), alone) {
				tandemtest.WaitFor(t, "the end of "+r.ID, func() bool {
					got, err := s.Request(t.Context(), r.ID)
					return err == nil && got.Status == tandem.StatusFailed && got.ErrorCode == tandem.FailedInterrupted
				})
			}
			accept(t, s, newAsync(), store.LaneIO) // behind it in line
			if got, err := s.Request(t.Context(), behind.ID); tandem.CodeOf(err) != tandem.CodeNotFound {
				t.Errorf("nobody waited for it, and it was accepted: %+v, %v", got, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			storetest.CheckPostgres(t, url)
		})
	}
}

// awaitLocked waits until so many transactions wait for what another has locked.
func awaitLocked(t *testing.T, url string, n int) {
	t.Helper()
	tandemtest.WaitFor(t, strconv.Itoa(n)+" transactions to wait for the lock", func() bool {
		return storetest.AskPostgres(t, url, `
			SELECT count(*)::text FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
			      AND query LIKE '%INSERT INTO requests%'`) == strconv.Itoa(n)
	})
}

// Only requests without a caller are ended; how long they have taken does not matter. Requests that a
// caller holds are left alone, and so are submissions whose lease is over: they are dispatched.
func TestOnlyStraysAreEnded(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s, other := joinPostgres(t, url), joinPostgres(t, url)
	held, stray, others := newSync(), newSync(), newSync()
	heldSubmission, straySubmission, due := newSubmission(""), newSubmission(""), newSubmission("")
	for _, r := range []*tandem.Request{held, stray} {
		accept(t, s, r, store.LaneNone)
	}
	for _, r := range []*tandem.Request{heldSubmission, straySubmission, due} {
		accept(t, s, r, store.LaneIO)
	}
	accept(t, other, others, store.LaneNone)
	s.CallerLeaves(stray.ID, straySubmission.ID, due.ID)
	storetest.ExecPostgres(t, url, `
		UPDATE river_job
		SET scheduled_at = now()
		WHERE id = (SELECT job_id FROM requests WHERE 'req_' || replace(id::text, '-', '') = $1)`, due.ID)
	if err := s.EndStrays(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]*tandem.Request{
		"held": held, "of another node": others, "held submission": heldSubmission, "due submission": due,
	} {
		if got := mustRequest(t, s, r.ID); got.Status != tandem.StatusProcessing {
			t.Errorf("%s: %+v", what, got)
		}
	}
	for what, r := range map[string]*tandem.Request{"sync": stray, "submission": straySubmission} {
		got := mustRequest(t, s, r.ID)
		if got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedInterrupted || got.CompletedAt.IsZero() {
			t.Errorf("%s that nobody waits for: %+v", what, got)
		}
	}
	if err := s.Finish(t.Context(), store.Job{Request: *held}, called("")); err != nil {
		t.Errorf("the end of one that is held: %v", err)
	}
	for _, node := range []*postgres.Store{s, other} {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	}
	storetest.CheckPostgres(t, url)
}

// A lock that is not to be had fails a batch as a whole: each write alone would wait as long again.
func TestLockedBatchFailsAtOnce(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url+"&lock_timeout=500")
	open := beginPostgres(t, url)
	defer open.Conn().Close(context.Background())
	if _, err := open.Exec(t.Context(), `LOCK TABLE requests IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	const callers = 40
	var asking sync.WaitGroup
	for range callers {
		asking.Go(func() {
			err := s.Accept(t.Context(), store.LaneIO, newAsync())
			if tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
				t.Errorf("%v, want %s", err, tandem.CodeStoreUnavailable)
			}
		})
	}
	asking.Wait()
	if failed := mustStats(t, s).Commits.Failed; failed == 0 || failed > callers/2 {
		t.Errorf("%d callers were refused by %d transactions, want some and many fewer", callers, failed)
	}
}

// To ask for an id that is there already takes nothing from the caller who works on it.
func TestRefusedCopyLeavesTheCallerItsRequest(t *testing.T) {
	t.Parallel()
	s := openPostgres(t)
	r := newSync()
	accept(t, s, r, store.LaneNone)
	if err := s.Accept(t.Context(), store.LaneNone, r); !errors.Is(err, store.ErrExists) {
		t.Fatalf("accepted twice: %v", err)
	}
	if err := s.EndStrays(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustRequest(t, s, r.ID); got.Status != tandem.StatusProcessing {
		t.Errorf("while its caller works on it: %s %s", got.Status, got.ErrorMessage)
	}
}
