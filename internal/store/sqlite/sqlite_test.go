package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

func TestRecovery(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	release := make(chan struct{})
	stop := work(t, s, func(_ context.Context, job store.Job) store.Next {
		job.Started()
		<-release
		return store.RetryAt(time.Now().Add(time.Hour), 0)
	})
	defer stop()
	defer close(release)
	running, waiting, answering, answered := newAsync(), newAsync(), newSync(), newSync()
	accept(t, s, running, store.LaneCPU)
	waitStatus(t, s, running.ID, tandem.StatusProcessing)
	accept(t, s, waiting, store.LaneNone) // pending, in no lane that is worked on here
	accept(t, s, answering, store.LaneNone)
	accept(t, s, answered, store.LaneNone)
	if err := s.Finish(context.Background(), store.Job{Request: *answered}, store.Finished(store.Outcome{Result: json.RawMessage(`1`)}, "")); err != nil {
		t.Fatal(err)
	}

	after := openFile(t, storetest.Crash(t, path))
	if got := mustRequest(t, after, answering.ID); got.Status != tandem.StatusFailed || got.ErrorCode != tandem.FailedInterrupted || got.CompletedAt.IsZero() {
		t.Errorf("sync request that was running: %+v", got)
	}
	if got := mustRequest(t, after, answered.ID); got.Status != tandem.StatusCompleted || string(got.Result) != "1" {
		t.Errorf("sync request that was answered: %+v", got)
	}
	if got := mustRequest(t, after, running.ID); got.Status != tandem.StatusPending {
		t.Errorf("async request that was running: %+v", got)
	}
	work(t, after, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		return workEnded(`{}`)
	})
	waitStatus(t, after, running.ID, tandem.StatusCallbackSent)
	if got := mustStats(t, after); got.Failures[tandem.FailedInterrupted] != 1 || got.Now[tandem.StatusProcessing] != 0 {
		t.Errorf("counters after recovery: %+v", got)
	}
	// accept put waiting into LaneNone for this test alone: take it out of the recount.
	if got := mustStats(t, after); got.Unfinished != 1 {
		t.Errorf("unfinished: %d, want 1", got.Unfinished)
	}
}

// A retry that became due while the process was down is dispatched at the next
// start, and one that is not yet due waits.
func TestRetrySurvivesRestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	soon, late := newAsync(), newAsync()
	stop := work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return workEnded(`{"kept":1}`)
		}
		at := time.Now().Add(50 * time.Millisecond)
		if job.Request.ID == late.ID {
			at = time.Now().Add(time.Hour)
		}
		return store.Redeliver(attempt(1, tandem.OutcomeTimeout), at, "")
	})
	accept(t, s, soon, store.LaneIO)
	accept(t, s, late, store.LaneIO)
	for _, r := range []*tandem.Request{soon, late} {
		tandemtest.WaitFor(t, "the first attempt", func() bool { return mustRequest(t, s, r.ID).CallbackAttempts == 1 })
	}
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openFile(t, path)
	work(t, again, func(_ context.Context, job store.Job) store.Next {
		if job.Request.ID != soon.ID || string(job.Request.Result) != `{"kept":1}` || job.Request.CallbackAttempts != 1 {
			t.Errorf("handed out %+v", job)
		}
		return store.Delivered(attempt(2, tandem.OutcomeDelivered))
	})
	waitStatus(t, again, soon.ID, tandem.StatusCallbackSent)
	if got := mustRequest(t, again, late.ID); got.Status != tandem.StatusCompleted || got.CallbackStatus != tandem.CallbackPending {
		t.Errorf("due in an hour: %+v", got)
	}
}

func TestOneProcessPerFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	openFile(t, path)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, "file:" + path, link} {
		_, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: name, Log: quiet()})
		if err == nil || !strings.Contains(err.Error(), "another tandem is using it") {
			t.Errorf("second open of %s: %v", name, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.db")
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: newer, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", newer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		garbage:                          "not a tandem database",
		newer:                            "written by a newer tandem",
		dir:                              "this is a folder",
		filepath.Join(dir, "no", "such"): "no such file or directory",
		"file:":                          "no file named",
		"postgres://localhost/tandem":    "SQLite",
		"file:x.db?mode=memory":          "not supported",
	} {
		s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), url) {
			t.Errorf("open %s: %v; want it to name the database and say %q", url, err, want)
		}
	}
}

func TestAwkwardPaths(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"with space.db", "per%20cent.db", "hash#tag.db", "ünï.db"} {
		path := filepath.Join(t.TempDir(), name)
		s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: path, Log: quiet()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		accept(t, s, newAsync(), store.LaneIO)
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() == 0 {
			t.Errorf("%s: the data went elsewhere: %v", name, err)
		} else if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s holds a secret with mode %v", name, info.Mode())
		}
	}
}

func TestQueueCap(t *testing.T) {
	t.Parallel()
	s, err := sqlite.Open(context.Background(), store.Config{Counted: counted, URL: ":memory:", MaxQueue: 20,
		Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if err := s.Accept(context.Background(), store.LaneIO, newAsync()); err != nil && tandem.CodeOf(err) != tandem.CodeQueueFull {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for err == nil { // those that were refused while others were under way may have left room
		err = s.Accept(context.Background(), store.LaneIO, newAsync())
	}
	if code := tandem.CodeOf(err); code != tandem.CodeQueueFull {
		t.Errorf("at the cap: %v, want %s", err, tandem.CodeQueueFull)
	}
	if got := mustStats(t, s); got.Unfinished != 20 || got.Capacity != 20 {
		t.Errorf("%d of %d unfinished, want 20 of 20", got.Unfinished, got.Capacity)
	}
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		return workEnded(`{}`)
	})
	tandemtest.WaitFor(t, "room", func() bool { return s.Accept(context.Background(), store.LaneIO, newAsync()) == nil })
}

// A full disk: no accept succeeds, the store says so, and once there is room it
// goes on with nothing lost.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	big := json.RawMessage(`{"x":"` + strings.Repeat("x", 8000) + `"}`)
	pages, err := s.Pages()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LimitPages(pages + 20); err != nil {
		t.Fatal(err)
	}
	var accepted []string
	for {
		r := newAsync()
		r.Data = big
		if err = s.Accept(context.Background(), store.LaneIO, r); err != nil {
			break
		}
		accepted = append(accepted, r.ID)
	}
	told, _ := errors.AsType[*tandem.Error](err)
	if told == nil || told.Code != tandem.CodeStoreUnavailable || strings.Contains(told.Message, "SQL") {
		t.Errorf("full: %v, want %s in plain words", err, tandem.CodeStoreUnavailable)
	}
	if got := mustStats(t, s); got.Unavailable == nil || got.Commits.Failed == 0 {
		t.Error("the store is full and does not say so")
	}
	if len(accepted) == 0 {
		t.Fatal("nothing was accepted before it was full")
	}
	if err := s.LimitPages(0); err != nil {
		t.Fatal(err)
	}
	tandemtest.WaitFor(t, "the store to find room by itself", func() bool { return mustStats(t, s).Unavailable == nil })
	accept(t, s, newAsync(), store.LaneIO)
	for _, id := range accepted {
		mustRequest(t, s, id)
	}
	if got := mustStats(t, s).Unfinished; got != int64(len(accepted))+1 {
		t.Errorf("%d unfinished, want %d", got, len(accepted)+1)
	}
}

// A result that cannot be committed is kept and committed later; the work is not done twice.
func TestDiskFullWhileWorking(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	r := newAsync()
	accept(t, s, r, store.LaneIO)
	pages, err := s.Pages()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LimitPages(pages); err != nil {
		t.Fatal(err)
	}
	var worked int
	result := `{"x":"` + strings.Repeat("x", 40_000) + `"}`
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		worked++
		return workEnded(result)
	})
	tandemtest.WaitFor(t, "the failed commit", func() bool { return mustStats(t, s).Unavailable != nil })
	if err := s.LimitPages(0); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	if worked != 1 {
		t.Errorf("worked %d times, want once", worked)
	}
}

// Waiting jobs beyond the bound leave their data on disk.
func TestReadyJobsHoldBoundedMemory(t *testing.T) {
	t.Parallel()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	block := make(chan struct{})
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 1, store.LaneDeliver: 8}}
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		<-block
		if len(job.Request.Data) < 1<<20 {
			t.Errorf("handed %d bytes of data", len(job.Request.Data))
		}
		return workEnded(`{}`)
	})
	for range 40 {
		r := newAsync()
		r.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 1<<20) + `"}`)
		accept(t, s, r, store.LaneIO)
	}
	// Those accepted before the queue first looks come from the index.
	tandemtest.WaitFor(t, "39 jobs to wait in memory", func() bool {
		ready, bytes := s.Held()
		if bytes > sqlite.MaxReadyBytes {
			t.Fatalf("%d waiting jobs hold %d bytes, want at most %d", ready, bytes, sqlite.MaxReadyBytes)
		}
		return ready == 39
	})
	close(block)
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return mustStats(t, s).Ended[tandem.StatusCallbackSent] == 40
	})
	if ready, bytes := s.Held(); ready != 0 || bytes != 0 {
		t.Errorf("at the end %d jobs hold %d bytes", ready, bytes)
	}
}

func TestMemoryIsTrimmed(t *testing.T) {
	t.Parallel()
	s := openMemory(t)
	work(t, s, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			return store.Delivered(attempt(1, tandem.OutcomeDelivered))
		}
		return workEnded(string(job.Request.Data))
	})
	first := newAsync() // small, and the oldest
	accept(t, s, first, store.LaneIO)
	waitStatus(t, s, first.ID, tandem.StatusCallbackSent)
	for range 280 { // with its result each takes 2 MiB: beyond 256 MiB long before 100,000 rows
		r := newAsync()
		r.Data = json.RawMessage(`{"x":"` + strings.Repeat("x", 1<<20) + `"}`)
		accept(t, s, r, store.LaneIO)
	}
	tandemtest.WaitFor(t, "the oldest to go", func() bool {
		_, err := s.Request(context.Background(), first.ID)
		return tandem.CodeOf(err) == tandem.CodeNotFound
	})
	tandemtest.WaitFor(t, "all to be delivered", func() bool {
		return mustStats(t, s).Ended[tandem.StatusCallbackSent] == 281
	})
}

// Deletions give the writer back soon: a chunk that took long is followed by a
// much smaller one, and chunks never grow past their bound.
func TestChunksOfRetention(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.IntRange(1, 256).Draw(t, "rows")
		took := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "took"))
		next := sqlite.NextChunk(rows, took)
		if next < 1 || next > 256 {
			t.Fatalf("%d rows after %d rows in %v", next, rows, took)
		}
		perRow := took / time.Duration(rows)
		if took > 20*time.Millisecond && next > 1 && perRow*time.Duration(next) > took/2 {
			t.Fatalf("%d rows took %v, and %d are next", rows, took, next)
		}
	})
}

// Rows are inserted some at a time: each keeps its own values, and one that is there already takes
// those of its own call with it and no others.
func TestRowsInsertedTogether(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := openFile(t, filepath.Join(t.TempDir(), "tandem.db"))
	for _, n := range []int{1, 15, 16, 17, 33} {
		many := make([]*tandem.Request, n)
		for i := range many {
			many[i] = newAsync()
			many[i].Data = fmt.Appendf(nil, `{"n":%d,"of":%d}`, i, n)
		}
		if err := s.Accept(ctx, store.LaneIO, many...); err != nil {
			t.Fatalf("accept %d: %v", n, err)
		}
		for i, want := range many {
			got, err := s.Request(ctx, want.ID)
			if err != nil || string(got.Data) != string(want.Data) || got.ID != want.ID || got.Task != want.Task || got.CallbackURL != want.CallbackURL {
				t.Errorf("request %d of %d: %v, got %+v, want %+v", i, n, err, got, want)
			}
		}
		fresh := newAsync()
		again := append([]*tandem.Request{fresh}, many...)
		if err := s.Accept(ctx, store.LaneIO, again...); !errors.Is(err, store.ErrExists) {
			t.Errorf("accept %d that are there: %v, want ErrExists", n, err)
		}
		if _, err := s.Request(ctx, fresh.ID); tandem.CodeOf(err) != tandem.CodeNotFound {
			t.Errorf("a request accepted together with %d that are there: %v, want none", n, err)
		}
	}
}
