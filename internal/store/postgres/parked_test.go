package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// Callbacks that wait for a destination are looked for about once a second, however many fetches went before.
func TestParkedCallbacksAreFetchedRarely(t *testing.T) {
	t.Parallel()
	const destination, count = "http://a.example:80", 200
	url := emptyPostgres(t, tandemtest.Volatile)
	s := joinPostgres(t, url)
	parked := make(chan struct{}, count)
	capacity := everyLane
	capacity.Room = func(string, string) int { return 0 }
	workWith(t, s, capacity, func(_ context.Context, job store.Job) store.Next {
		if job.Lane != store.LaneDeliver {
			return store.Finished(storetest.GoodOutcome(`{}`), "")
		}
		parked <- struct{}{}
		return store.Postpone(time.Time{}, destination)
	})
	for range count {
		accept(t, s, newAsync(), store.LaneIO)
	}
	for range count {
		<-parked
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), `LISTEN "public.river_insert"`); err != nil {
		t.Fatal(err)
	}
	// next reports whether a notification comes before ctx ends.
	next := func(ctx context.Context) bool {
		_, err := conn.WaitForNotification(ctx)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}
	notifications := func(length time.Duration) (n int) {
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		for next(ctx) {
			n++
		}
		return n
	}
	notifications(2 * time.Second) // of what has just ended
	if n := notifications(3 * time.Second); n > 4 {
		t.Errorf("%d notifications in 3 s, want 3 or so", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), tandemtest.Patience)
	defer cancel()
	if !next(ctx) {
		t.Error("nobody looks for parked callbacks")
	}
}
