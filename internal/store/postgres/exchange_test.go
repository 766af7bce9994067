package postgres_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// joinNodes opens one more node on a database, known to the others by an address.
func joinNodes(t testing.TB, url, address string) (*postgres.Store, *store.Nodes) {
	t.Helper()
	nodes := store.NewNodes(address)
	s, err := postgres.Open(context.Background(),
		store.Config{Counted: counted, URL: url, Log: quiet(), Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	storetest.CloseAtEnd(t, s)
	return s, nodes
}

// addresses are those of the nodes that one knows of, with a star for itself.
func addresses(t testing.TB, nodes *store.Nodes) []string {
	t.Helper()
	list, err := nodes.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, n := range list {
		if n.ID == "" || n.Name == "" || n.Version != tandem.Version || time.Since(n.Since).Abs() > time.Hour {
			t.Errorf("%+v", n)
		}
		if n.This {
			n.Address += "*"
		}
		found = append(found, n.Address)
	}
	return found
}

// Every node knows all of them, and hears what the others tell until either has had enough.
func TestNodesTellEachOther(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	_, first := joinNodes(t, url, "first")
	second, others := joinNodes(t, url, "second")
	for nodes, want := range map[*store.Nodes][]string{first: {"first*", "second"}, others: {"first", "second*"}} {
		if diff := cmp.Diff(want, addresses(t, nodes)); diff != "" {
			t.Error(diff)
		}
	}
	heard := make(chan []store.State, 1)
	latest := func() []store.State {
		select {
		case states := <-heard:
			return states
		case <-time.After(tandemtest.Patience):
			t.Fatal("nothing is heard")
			return nil
		}
	}
	hear := func(states []store.State) {
		select {
		case <-heard: // only the latest counts
		default:
		}
		heard <- states
	}
	deaf := first.Exchange(func() []byte { return []byte("from the first") }, hear)
	mute := others.Exchange(func() []byte { return []byte("from the second") }, func([]store.State) {})
	states := latest()
	for len(states) == 0 {
		states = latest()
	}
	if len(states) != 1 || string(states[0].Told) != "from the second" || states[0].Node == "" || states[0].Age < 0 || states[0].Age > 8*time.Second {
		t.Errorf("the first heard %+v", states)
	}
	if n := first.Count(); n != 2 {
		t.Errorf("the first counts %d nodes", n)
	}
	mute()
	for len(states) > 0 { // it lives on, and tells nothing
		states = latest()
	}
	if n := first.Count(); n != 2 {
		t.Errorf("the first counts %d nodes after the second fell mute", n)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	tandemtest.WaitFor(t, "the first to be alone", func() bool {
		return first.Count() == 1 &&
			slices.Equal(addresses(t, first), []string{"first*"})
	})
	deaf()
	select {
	case <-heard:
	default:
	}
	pause(3 * time.Second)
	select {
	case states := <-heard:
		t.Errorf("heard %+v after the end", states)
	default:
	}
}

// A node that was itself cut off, or whose database was, takes nobody for dead before the others had time to say that they live.
func TestNodeThatWasCutOffWaits(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	one, nodes := joinNodes(t, url, "one")
	another, _ := joinNodes(t, url, "another")
	one.FallSilent(true)
	another.FallSilent(true)
	pause(time.Second) // a sign of life may have been on its way
	both, alone := []string{"one*", "another"}, []string{"one*"}
	for _, step := range []struct {
		name, change string
		want         []string
	}{
		{"all silent", `UPDATE nodes SET seen_at = now() - interval '1 minute', steady_since = now() - interval '1 hour'`, both},
		{"one back for a moment", `UPDATE nodes SET seen_at = now(), steady_since = now() WHERE address = 'one'`, both},
		{"one back for a while", `UPDATE nodes SET seen_at = now(), steady_since = now() - interval '5 seconds' WHERE address = 'one'`, alone},
	} {
		storetest.ExecPostgres(t, url, step.change)
		if err := one.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, addresses(t, nodes)); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
	// A gap in its own signs of life is noticed by the next one of them.
	storetest.ExecPostgres(t, url, `UPDATE nodes SET seen_at = now() - interval '6 seconds', steady_since = now() - interval '1 hour'`)
	one.FallSilent(false)
	tandemtest.WaitFor(t, "a sign of life", func() bool {
		return storetest.AskPostgres(t, url, `SELECT (now() - seen_at < interval '3 seconds')::text FROM nodes`) == "true"
	})
	if text := storetest.AskPostgres(t, url, `SELECT (now() - steady_since < interval '30 seconds')::text FROM nodes`); text != "true" {
		t.Error("it seems to have been heard of all the time")
	}
}

// What a node that stopped in the middle of a transaction holds keeps nobody from taking over the rest.
func TestSweepWaitsForNobody(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	stopped, other := joinPostgres(t, url), joinPostgres(t, url)
	held, free := newSync(), newSync()
	accept(t, stopped, held, store.LaneNone)
	accept(t, stopped, free, store.LaneNone)
	heldJob, freeJob := newSubmission(""), newSubmission("")
	accept(t, stopped, heldJob, store.LaneIO)
	accept(t, stopped, freeJob, store.LaneIO)

	open := beginPostgres(t, url)
	defer open.Conn().Close(context.Background())
	uuids := []string{strings.TrimPrefix(held.ID, "req_"), strings.TrimPrefix(heldJob.ID, "req_")}
	if tag, err := open.Exec(t.Context(), `SELECT FROM requests WHERE id = ANY ($1::uuid[]) FOR UPDATE`, uuids); err != nil || tag.RowsAffected() != 2 {
		t.Fatal(tag, err)
	}
	if _, err := open.Exec(t.Context(), `SELECT FROM counters WHERE node <> '' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	stopped.FallSilent(true)
	pause(time.Second) // a sign of life may have been on its way
	storetest.ExecPostgres(t, url, `UPDATE nodes SET seen_at = now() - interval '1 minute' WHERE id = (SELECT node FROM requests LIMIT 1)`)
	storetest.ExecPostgres(t, url, `UPDATE nodes SET seen_at = now(), steady_since = now() - interval '1 minute' WHERE id <> (SELECT node FROM requests LIMIT 1)`)
	statuses := func() []tandem.Status {
		var all []tandem.Status
		for _, r := range []*tandem.Request{held, free, heldJob, freeJob} {
			all = append(all, mustRequest(t, other, r.ID).Status)
		}
		return all
	}
	for _, want := range [][]tandem.Status{
		{tandem.StatusProcessing, tandem.StatusFailed, tandem.StatusProcessing, tandem.StatusPending},
		{tandem.StatusFailed, tandem.StatusFailed, tandem.StatusPending, tandem.StatusPending},
	} {
		started := time.Now()
		if err := other.Sweep(t.Context()); err != nil {
			t.Fatalf("after %v: %v", time.Since(started), err)
		}
		if diff := cmp.Diff(want, statuses()); diff != "" {
			t.Error(diff)
		}
		if err := open.Rollback(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Fatal(err)
		}
	}
}

// A node that was too slow, and whose transaction the server has ended, does it again.
func TestTransactionThatIdledIsRepeated(t *testing.T) {
	t.Parallel()
	_, url := newLossy(t, emptyPostgres(t, tandemtest.Volatile)) // over TCP, where its last words are read
	s := joinPostgres(t, url+"&idle_in_transaction_session_timeout=2000")
	times := 0
	err := s.Do(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		times++
		if times == 1 {
			pause(3 * time.Second)
		}
		_, err := tx.Exec(ctx, `INSERT INTO settings (name, value) VALUES ('slow', 'kept')`)
		return err
	})
	if err != nil || times != 2 {
		t.Errorf("%v, after %d times", err, times)
	}
}
