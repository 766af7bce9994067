package postgres_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// Figures are told, a second late at most, while the database answers none of several commits.
func TestFiguresWhileCommitsHang(t *testing.T) {
	t.Parallel()
	s := joinPostgres(t, emptyPostgres(t, tandemtest.Volatile))
	accept(t, s, newSync(), store.LaneNone)
	release := s.HoldCommits()
	defer release()
	told := make(chan store.Stats, 1)
	var asking sync.WaitGroup
	asking.Go(func() {
		stats, err := s.Stats(context.Background())
		if err != nil {
			t.Error(err)
		}
		told <- stats
	})
	select {
	case stats := <-told:
		if stats.Requests[tandem.ModeSync] != 1 {
			t.Errorf("%+v", stats)
		}
	case <-time.After(tandemtest.Patience):
		t.Error("whoever asks waits for the commits")
	}
	t.Cleanup(asking.Wait)
}

// A node may find that the others took it for dead while it writes.
func TestRejoinWhileWriting(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	ctx, enough := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				accept(t, s, newSync(), store.LaneNone)
			}
		})
	}
	for range 50 {
		storetest.ExecPostgres(t, url, `DELETE FROM counters WHERE node <> ''`) // as the sweep of another node does
		if err := s.Rejoin(t.Context()); err != nil {
			t.Error(err)
		}
	}
	enough()
	asking.Wait()
}

// Jobs whose rows somebody holds are not marked as begun, and what ends meanwhile is kept.
func TestMarksWaitForNobody(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	open := beginPostgres(t, url)
	defer open.Conn().Close(context.Background())
	handed, begin, release := make(chan string), make(chan struct{}), make(chan struct{})
	capacity := store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 8}}
	stop := workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		handed <- job.Request.ID
		<-begin
		job.Started()
		<-release
		return workEnded(`{}`)
	})
	end := sync.OnceFunc(func() { close(release) })
	t.Cleanup(end)
	const jobs = 4 // more than there are writers
	acceptMany(t, s, jobs, store.LaneIO)
	for range jobs {
		id := strings.TrimPrefix(<-handed, "req_")
		if tag, err := open.Exec(t.Context(), `SELECT FROM requests WHERE id = $1::uuid FOR UPDATE`, id); err != nil || tag.RowsAffected() != 1 {
			t.Fatal(tag, err)
		}
	}
	close(begin)
	pause(200 * time.Millisecond) // the marks have been handed in
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r := newSync()
	accept(t, s, r, store.LaneNone)
	next := workEnded(`{}`)
	if err := s.Finish(ctx, store.Job{Request: *r}, next); err != nil {
		t.Errorf("the result of another: %v", err)
	}
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	end()
	tandemtest.WaitFor(t, "the end of all work", func() bool {
		return mustStats(t, s).Ended[tandem.StatusCompleted] == jobs+1
	})
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, url)
}

// A change of the schema takes as long as it takes, whatever statement_timeout says.
func TestMigrationTakesItsTime(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	storetest.ExecPostgres(t, url, `DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`)
	open := beginPostgres(t, url)
	defer open.Conn().Close(context.Background())
	if _, err := open.Exec(t.Context(), `LOCK TABLE counters`); err != nil { // which the last migration changes
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	var migrating sync.WaitGroup
	migrating.Go(func() { migrated <- postgres.Migrate(context.Background(), url+"&statement_timeout=1000") })
	t.Cleanup(migrating.Wait)
	tandemtest.WaitFor(t, "it to have waited for longer than that", func() bool {
		select {
		case err := <-migrated:
			t.Fatal("it did not wait: ", err)
		default:
		}
		return storetest.AskPostgres(t, url, `
			SELECT (count(*) > 0)::text FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'relation' AND query_start < clock_timestamp() - interval '2 seconds'`) == "true"
	})
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Error(err)
	}
}
