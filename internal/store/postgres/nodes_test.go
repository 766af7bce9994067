package postgres_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// delivered ends every job well.
func delivered(_ context.Context, job store.Job) store.Next {
	if job.Lane == store.LaneDeliver {
		return store.Delivered(attempt(1, tandem.OutcomeDelivered))
	}
	return workEnded(`{}`)
}

// Two nodes share the work, each job is done once, and both tell the same figures.
func TestNodesShareWork(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	nodes := []*postgres.Store{joinPostgres(t, url), joinPostgres(t, url)}
	var done [2]atomic.Int64
	var mu sync.Mutex
	times := map[string]int{}
	for i, s := range nodes {
		capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 8, store.LaneDeliver: 8}}
		workWith(t, s, capacity, func(ctx context.Context, job store.Job) store.Next {
			mu.Lock()
			times[job.Request.ID+string(job.Lane)]++
			mu.Unlock()
			done[i].Add(1)
			return delivered(ctx, job)
		})
	}
	const n = 1000
	acceptMany(t, nodes[0], n/2, store.LaneIO)
	acceptMany(t, nodes[1], n/2, store.LaneIO)
	for _, s := range nodes {
		tandemtest.WaitFor(t, "all to be delivered", func() bool {
			return mustStats(t, s).Ended[tandem.StatusCallbackSent] == n
		})
		if stats := mustStats(t, s); stats.Requests[tandem.ModeAsync] != n || stats.Unfinished != 0 {
			t.Errorf("a node counts %d accepted and %d unfinished", stats.Requests[tandem.ModeAsync], stats.Unfinished)
		}
	}
	if done[0].Load() == 0 || done[1].Load() == 0 {
		t.Errorf("one node did all: %d and %d jobs", done[0].Load(), done[1].Load())
	}
	for job, count := range times {
		if count != 1 {
			t.Errorf("%s was done %d times", job, count)
		}
	}
}

// The work of a node that falls silent is taken over, within 15 s, and what it says afterwards is not heard.
func TestSilentNodeIsReplaced(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	slow, other := joinPostgres(t, url), joinPostgres(t, url)
	started, release := make(chan struct{}), make(chan struct{})
	begin, end := sync.OnceFunc(func() { close(started) }), sync.OnceFunc(func() { close(release) })
	stop := workWith(t, slow, store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 4}}, func(_ context.Context, job store.Job) store.Next {
		job.Started()
		begin()
		<-release
		return workEnded(`{"by":"slow"}`)
	})
	t.Cleanup(end) // before the work is stopped, which waits for it
	async, plain, submission := newAsync(), newSync(), newSubmission("")
	accept(t, slow, async, store.LaneIO)
	accept(t, slow, plain, store.LaneNone)
	accept(t, slow, submission, store.LaneIO)
	<-started
	waitStatus(t, other, async.ID, tandem.StatusProcessing)

	slow.FallSilent(true)
	silent := time.Now()
	stopOther := work(t, other, func(ctx context.Context, job store.Job) store.Next {
		switch {
		case job.Request.Task == counted:
			return called("")
		case job.Lane != store.LaneDeliver:
			return workEnded(`{"by":"other"}`)
		}
		return delivered(ctx, job)
	})
	waitStatus(t, other, async.ID, tandem.StatusCallbackSent)
	waitStatus(t, other, plain.ID, tandem.StatusFailed)
	waitStatus(t, other, submission.ID, tandem.StatusCompleted)
	t.Logf("taken over %v after the last sign of life at most", time.Since(silent).Round(time.Millisecond))
	if took := time.Since(silent); took > 15*time.Second {
		t.Errorf("taken over after %v", took)
	}
	end()
	stop()
	if got := mustRequest(t, other, async.ID); got.Status != tandem.StatusCallbackSent || string(got.Result) != `{"by":"other"}` || len(got.Attempts) != 1 {
		t.Errorf("after the late result: %+v", got)
	}
	if got := mustRequest(t, other, plain.ID); got.ErrorCode != tandem.FailedInterrupted {
		t.Errorf("the sync request: %+v", got)
	}
	for name, job := range map[string]store.Job{"sync": {Request: *plain}, "submission": submissionJob(submission)} {
		if err := slow.Finish(t.Context(), job, called("")); tandem.CodeOf(err) != tandem.CodeNotFound {
			t.Errorf("late end of the %s: %v, want %s", name, err, tandem.CodeNotFound)
		}
	}

	slow.FallSilent(false) // it takes part again, and counts anew
	accept(t, slow, newSync(), store.LaneNone)
	for _, s := range []*postgres.Store{slow, other} {
		tandemtest.WaitFor(t, "both to count the same", func() bool {
			stats := mustStats(t, s)
			return stats.Requests[tandem.ModeSync] == 3 && stats.Requests[tandem.ModeAsync] == 1 && stats.Unfinished == 1 && stats.Failures[tandem.FailedInterrupted] == 1
		})
	}
	stopOther()
	if err := slow.Close(); err != nil {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, url)
}

// A node that the others took for dead is handed nothing until its next sign of life, whatever it asks for.
func TestForgottenNodeFetchesNothing(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	var begun atomic.Int64
	stop := work(t, s, func(ctx context.Context, job store.Job) store.Next {
		begun.Add(1)
		return delivered(ctx, job)
	})
	first, second := newAsync(), newAsync()
	accept(t, s, first, store.LaneIO)
	waitStatus(t, s, first.ID, tandem.StatusCallbackSent)
	before := begun.Load()

	s.FallSilent(true)
	pause(time.Second) // a sign of life may have been on its way
	storetest.ExecPostgres(t, url, `DELETE FROM nodes`)
	accept(t, s, second, store.LaneIO)
	pause(3 * time.Second) // it is told of the job
	if n := begun.Load() - before; n != 0 {
		t.Errorf("it was handed %d jobs", n)
	}
	s.FallSilent(false)
	waitStatus(t, s, second.ID, tandem.StatusCallbackSent)
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, url)
}

// A job whose fetch was answered to nobody, because the connection broke, is dispatched again by the node that
// the database believes runs it. Jobs that it does run are left alone.
func TestStrayJobIsReclaimed(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	runs, release := make(chan struct{}), make(chan struct{})
	stop := workWith(t, s, store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 4}}, func(_ context.Context, job store.Job) store.Next {
		job.Started()
		close(runs) // once only
		<-release
		return workEnded(`{}`)
	})
	end := sync.OnceFunc(func() { close(release) })
	t.Cleanup(end)
	held, stray := newAsync(), newAsync()
	accept(t, s, held, store.LaneIO)
	<-runs
	accept(t, s, stray, store.LaneCPU)
	storetest.ExecPostgres(t, url, `
		UPDATE river_job
		SET state = 'running', attempted_at = now(), attempted_by = ARRAY[(SELECT id FROM nodes)]
		WHERE queue = 'cpu'`)
	waitStatus(t, s, held.ID, tandem.StatusProcessing)
	states := `SELECT string_agg(queue || ' ' || state || ' ' || attempt, ', ' ORDER BY queue) FROM river_job`
	for _, step := range []struct{ age, want string }{
		{"0 s", "cpu running 0, io running 1"},
		{"1 minute", "cpu available 0, io running 1"},
	} {
		storetest.ExecPostgres(t, url, `UPDATE river_job SET attempted_at = now() - $1::interval`, step.age)
		if err := s.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := storetest.AskPostgres(t, url, states); got != step.want {
			t.Errorf("fetched %s ago: %s, want %s", step.age, got, step.want)
		}
	}
	end()
	tandemtest.WaitFor(t, "its result", func() bool { return mustRequest(t, s, held.ID).Status == tandem.StatusCompleted })
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, url)
}

// When all connections are killed, again and again, what was accepted is kept and done, and the store recovers.
func TestConnectionsKilled(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	stop := work(t, s, delivered)
	killer, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer killer.Close(context.Background())
	var accepted sync.Map
	var asking sync.WaitGroup
	ctx, enough := context.WithCancel(t.Context())
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				r := newAsync()
				if err := s.Accept(context.Background(), store.LaneIO, r); err == nil {
					accepted.Store(r.ID, true)
				} else if tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
					t.Errorf("accept: %v", err)
				}
				pause(time.Millisecond)
			}
		})
	}
	for range 5 {
		pause(100 * time.Millisecond)
		if _, err := killer.Exec(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Error(err)
		}
	}
	enough()
	asking.Wait()
	count := 0
	accepted.Range(func(id, _ any) bool {
		count++
		waitStatus(t, s, id.(string), tandem.StatusCallbackSent)
		return true
	})
	if count == 0 {
		t.Error("nothing was accepted")
	}
	tandemtest.WaitFor(t, "the store to be well", func() bool {
		return mustStats(t, s).Unavailable == nil &&
			mustStats(t, s).Unfinished == 0
	})
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, url)
}

// All nodes that start at once see one secret, and one of them has made it.
func TestOneSecretForAllNodes(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile) // empty: they change the schema at once, too
	var group sync.WaitGroup
	var made atomic.Int64
	var mu sync.Mutex
	secrets := map[string]bool{}
	for range 4 {
		group.Go(func() {
			s, err := postgres.Open(context.Background(), store.Config{Counted: counted, URL: url, Log: quiet()})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			secret, fresh, err := s.SigningSecret(context.Background(), tandem.NewSecret())
			if err != nil {
				t.Error(err)
			}
			if fresh {
				made.Add(1)
			}
			mu.Lock()
			defer mu.Unlock()
			secrets[secret.Reveal()] = true
		})
	}
	group.Wait()
	if made.Load() != 1 || len(secrets) != 1 {
		t.Errorf("%d nodes made a secret, %d secrets are in use", made.Load(), len(secrets))
	}
}

// A database that takes no writes, and says so, can still be read.
func TestDatabaseThatTakesNoWritesIsRead(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	r := newSync()
	accept(t, s, r, store.LaneNone)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	has := func(setting string) { // on all connections but this one
		for _, statement := range []string{
			`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = ` + setting + `', current_database()); END $$`,
			`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`,
		} {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	has("on")
	for range 3 { // the first may find connections that are gone
		if err := s.Accept(t.Context(), store.LaneNone, newSync()); tandem.CodeOf(err) != tandem.CodeStoreUnavailable {
			t.Fatalf("accept: %v", err)
		}
		pause(2 * time.Second) // signs of life cannot be given
	}
	if stats := mustStats(t, s); stats.Unavailable == nil {
		t.Error("nobody is told")
	}
	if got := mustRequest(t, s, r.ID); got.Status != tandem.StatusProcessing {
		t.Errorf("%+v", got)
	}
	if page, err := s.Requests(t.Context(), store.Filter{Limit: 10}); err != nil || len(page.Requests) != 1 {
		t.Errorf("%d requests, %v", len(page.Requests), err)
	}
	has("off")
	tandemtest.WaitFor(t, "the store to be well", func() bool { return mustStats(t, s).Unavailable == nil })
	accept(t, s, newSync(), store.LaneNone)
}

// A secret that was kept by a try whose answer was lost is still one that was made, and is to be told to somebody.
func TestSecretIsMadeOnce(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s, fresh := joinPostgres(t, url), tandem.NewSecret()
	storetest.ExecPostgres(t, url, `INSERT INTO settings (name, value) VALUES ('signing_secret', $1)`, fresh.Reveal())
	if secret, made, err := s.SigningSecret(t.Context(), fresh); err != nil || !made || secret.Reveal() != fresh.Reveal() {
		t.Errorf("made: %t, %v", made, err)
	}
	if _, made, err := s.SigningSecret(t.Context(), tandem.NewSecret()); err != nil || made {
		t.Errorf("another: made %t, %v", made, err)
	}
}

// Three nodes with nothing to do ask little of their database.
func TestIdleNodesAskLittle(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	for range 3 {
		work(t, joinPostgres(t, url), delivered)
		k := tandemtest.OpenKeys(t, url)
		ctx, stop := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { k.Run(ctx) })
		t.Cleanup(func() { stop(); running.Wait() })
	}
	pause(12 * time.Second) // River elects its leader; idle connections hand in their figures after 10 s
	before, started := transactions(t, url), time.Now()
	pause(12 * time.Second)
	perSecond := float64(transactions(t, url)-before) / time.Since(started).Seconds()
	t.Logf("%.1f transactions per second", perSecond)
	if perSecond == 0 || perSecond > 20 {
		t.Errorf("%.1f transactions per second, want some and at most 20", perSecond)
	}
}
