package app_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// history is a database file with all that a server may leave behind.
type history struct {
	path   string
	dice   *rand.Rand
	keys   []tandem.Key
	tokens []tandem.Token
	ids    []string
}

// odd are results and messages that a careless copy would change.
var odd = []string{
	"", `null`, `{"text":"\u0000 \u001f é 漢 👩‍👩‍👧"}`, "[\n 1e3 ,\t-0.0 ]", `"` + strings.Repeat("x", 20_000) + `"`, "\xff\xfe no JSON \x00",
}

// newHistory makes one of random requests of every kind, ended and not, as it is when its server dies.
func newHistory(t *testing.T, seed uint64, requests int) *history {
	t.Helper()
	t.Logf("seed %d", seed)
	h := &history{dice: rand.New(rand.NewPCG(seed, 0))}
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	h.makeKeys(t, path)
	if _, _, err := s.SigningSecret(t.Context(), tandem.NewSecret()); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		if err := s.Work(ctx, store.Capacity{Jobs: map[store.Lane]int{store.LaneCPU: 500, store.LaneIO: 500, store.LaneDeliver: 500}}, h.step(release)); err != nil {
			t.Errorf("work: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	t.Cleanup(func() { close(release) }) // before the work is stopped, which waits for it
	for range requests {
		h.ask(t, s)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path)+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tandemtest.WaitFor(t, "all that is due to have ended, or to run", func() bool {
		var left int
		if err := db.QueryRow(`SELECT count(*) FROM requests WHERE due_at <= ? AND status <> 'processing'`, time.Now().UnixMicro()).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left == 0
	})
	h.path = storetest.Crash(t, path)
	return h
}

func (h *history) makeKeys(t *testing.T, path string) {
	k := tandemtest.OpenKeys(t, path)
	for i := range 6 {
		made := tandemtest.MakeKey(t, k, fmt.Sprintf("key %d, ключ", i), tandem.Scopes[:1+i%3]...)
		h.keys, h.tokens = append(h.keys, made.Key), append(h.tokens, made.Token)
	}
	h.tokens = append(h.tokens, tandem.NewToken())
	if _, err := k.Rotate(t.Context(), h.keys[1].ID, h.tokens[len(h.tokens)-1], time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := k.RotateSigning(t.Context(), h.keys[2].ID, tandem.NewSecret(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Revoke(t.Context(), h.keys[3].ID); err != nil {
		t.Fatal(err)
	}
	if !tandemtest.ValidToken(t, k, h.tokens[4], time.Now()) {
		t.Fatal("a fresh token is not valid")
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ask makes a request, and ends those that are their caller's, or does not.
func (h *history) ask(t *testing.T, s *sqlite.Store) {
	t.Helper()
	pick := func(r *tandem.Request) *tandem.Request {
		r.Complexity = 1 + h.dice.IntN(10)
		if h.dice.IntN(2) == 0 {
			r.KeyID = h.keys[h.dice.IntN(len(h.keys))].ID
			r.Owner = r.KeyID
		}
		return r
	}
	switch h.dice.IntN(4) {
	case 0:
		r := pick(newSync())
		accept(t, s, r, store.LaneNone)
		h.ids = append(h.ids, r.ID)
		if h.dice.IntN(5) > 0 {
			h.finish(t, s, store.Job{Request: *r}, store.Finished(h.outcome(), ""))
		}
	case 1:
		batch := fmt.Sprintf("batch_%d", h.dice.IntN(3))
		several := []*tandem.Request{pick(newSubmission(batch)), pick(newSubmission(batch))}
		if err := s.Accept(t.Context(), store.LaneIO, several...); err != nil {
			t.Fatal(err)
		}
		for i, r := range several {
			h.ids = append(h.ids, r.ID)
			switch h.dice.IntN(4 - i) {
			case 0: // its caller is gone
			case 1:
				h.finish(t, s, submissionJob(r), store.RetryAt(time.Now().Add(time.Hour), 0))
			default:
				h.finish(t, s, submissionJob(r), store.Finished(h.outcome(), ""))
			}
		}
	default:
		r := pick(newAsync())
		r.Task = []string{"echo", "sleep", "compute"}[h.dice.IntN(3)]
		r.Data = json.RawMessage("{ \"plan\" : \"" + plans[h.dice.IntN(len(plans))] + "\",\n\"n\":1e3,\"text\":\"\\u0000é\" }")
		accept(t, s, r, []store.Lane{store.LaneCPU, store.LaneIO}[h.dice.IntN(2)])
		h.ids = append(h.ids, r.ID)
	}
}

func (h *history) finish(t *testing.T, s *sqlite.Store, job store.Job, next store.Next) {
	t.Helper()
	if err := s.Finish(t.Context(), job, next); err != nil {
		t.Fatal(err)
	}
}

func (h *history) outcome() store.Outcome {
	o := outcomeOf(h.dice.IntN(len(odd)))
	if h.dice.IntN(3) == 0 {
		o.ErrorCode, o.ErrorMessage, o.Result = tandem.FailedTask, o.ErrorMessage+string(o.Result), nil
	}
	return o
}

func outcomeOf(which int) store.Outcome {
	now := time.Now().UTC().Truncate(time.Microsecond)
	o := store.Outcome{Result: json.RawMessage(odd[which]), StartedAt: now.Add(-time.Second), CompletedAt: now, Processing: 1_234_567 * time.Microsecond}
	if which == 3 {
		o.StartedAt = time.Time{} // it found no slot
	}
	return o
}

// plans are what may become of an async request; step carries them out.
var plans = []string{"waits", "runs", "fails", "delivered", "delivered at the second try", "given up", "expired", "retry later", "deliver later", "failed, then delivered"}

// step says what comes next of a request by its plan. What "runs" does so until release is closed.
func (h *history) step(release chan struct{}) store.Step {
	return func(_ context.Context, job store.Job) store.Next {
		r := job.Request
		if job.Lane != store.LaneDeliver {
			var order struct {
				Plan string `json:"plan"`
			}
			if err := json.Unmarshal(r.Data, &order); err != nil {
				return store.RetryAt(time.Now().Add(time.Hour), 0)
			}
			if order.Plan == "waits" || r.Task == counted {
				return store.RetryAt(time.Now().Add(time.Hour), 0)
			}
			if order.Plan == "runs" {
				job.Started()
				<-release
				return store.Release()
			}
			o := outcomeOf(len(r.ID) % len(odd))
			o.Result = json.RawMessage(fmt.Sprintf("%q", order.Plan))
			if strings.HasPrefix(order.Plan, "fail") {
				o.ErrorCode, o.ErrorMessage, o.Result = tandem.FailedTask, "it failed: \x00 \xff é", nil
			}
			return store.Finished(o, "")
		}
		return callback(&r)
	}
}

// callback is one try of a callback by the plan in the result, which failed work has not.
func callback(r *tandem.Request) store.Next {
	a := attempt(r.CallbackAttempts+1, tandem.OutcomeHTTPError)
	a.Error, a.StatusCode = "answered 500: \x00 \xff é", 500
	plan := strings.Trim(string(r.Result), `"`)
	switch {
	case plan == "" || plan == "delivered" || plan == "delivered at the second try" && a.Number == 2:
		return store.Delivered(attempt(a.Number, tandem.OutcomeDelivered))
	case plan == "given up" && a.Number == 3:
		return store.GiveUp(a)
	case plan == "expired" && a.Number == 2:
		return store.GiveUp(tandem.Attempt{Number: 1, StartedAt: a.StartedAt, Outcome: tandem.OutcomeExpired})
	case plan == "deliver later" && a.Number == 1:
		return store.Postpone(time.Now().Add(90*time.Minute), "") // put off: counts nothing
	case plan == "retry later" && a.Number == 2:
		a.NextAt = time.Now().Add(30 * time.Minute).UTC().Truncate(time.Microsecond)
	}
	return store.Redeliver(a, a.NextAt, "")
}

// copyAll copies, and fails the test if that fails.
func copyAll(t testing.TB, cfg app.CopyConfig) app.CopyReport {
	t.Helper()
	report, err := app.Copy(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// duplicate copies a file that nobody uses, with its write-ahead log if there is one.
func duplicate(t testing.TB, path string) string {
	t.Helper()
	other := filepath.Join(t.TempDir(), "tandem.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + suffix)
		if errors.Is(err, os.ErrNotExist) && suffix != "" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(other+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return other
}

// TestCopy: whatever the history, both stores answer the same to everything.
func TestCopy(t *testing.T) {
	t.Parallel()
	for round, requests := range []int{0, 20, 80, 200} {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, rand.Uint64(), requests)
			to := emptyPostgres(t, tandemtest.Volatile)
			report := copyAll(t, app.CopyConfig{From: duplicate(t, h.path), To: to}.InPages(1+h.dice.IntN(50)))
			if diff := cmp.Diff(report.Source, report.Target); diff != "" {
				t.Errorf("digests (-source +target):\n%s", diff)
			}
			sameDue(t, h.path, to)
			compareStores(t, h, to)
		})
	}
}

// sameDue: every job waits until its time, in its lane.
func sameDue(t testing.TB, path, to string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(duplicate(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := pgx.Connect(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	want, got := map[string]string{}, map[string]string{}
	// Of submissions whose caller is gone the start decides.
	rows, err := db.Query(`SELECT substr(id, 5), lane, due_at FROM requests WHERE lane IS NOT NULL AND NOT (mode = 'sync' AND status = 'processing')`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, lane string
		var due int64
		if err := rows.Scan(&id, &lane, &due); err != nil {
			t.Fatal(err)
		}
		want[id] = fmt.Sprint(lane, " available ", due)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	jobs, err := conn.Query(t.Context(), `
		SELECT replace(requests.id::text, '-', ''), lane, state::text, (extract(epoch FROM scheduled_at) * 1000000)::bigint
		FROM river_job JOIN requests ON job_id = river_job.id AND queue = concat_ws('|', lane, nullif(owner, ''))
		WHERE mode = 'async' OR scheduled_at > now()`)
	if err != nil {
		t.Fatal(err)
	}
	var id, lane, state string
	var due int64
	if _, err := pgx.ForEachRow(jobs, []any{&id, &lane, &state, &due}, func() error {
		got[id] = fmt.Sprint(lane, " ", state, " ", due)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-source +target):\n%s", diff)
	}
}

// compareStores opens the file as a server would, and the copy as another, and asks both everything.
func compareStores(t *testing.T, h *history, to string) {
	t.Helper()
	path := duplicate(t, h.path)
	source, target := openFile(t, path), joinPostgres(t, to)
	ignoreDue := cmpopts.IgnoreFields(store.Stats{}, "Commits", "OldestDue")
	if diff := cmp.Diff(kept(mustStats(t, source)), kept(mustStats(t, target)), ignoreDue, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("stats (-source +target):\n%s", diff)
	}
	for _, id := range h.ids {
		same(t, id, shown(mustRequest(t, source, id)), shown(mustRequest(t, target, id)))
	}
	for _, filter := range h.filters() {
		same(t, fmt.Sprintf("%+v", filter), pages(t, source, filter), pages(t, target, filter))
	}
	for _, s := range []store.Store{source, target} { // none is made
		if _, made, err := s.SigningSecret(t.Context(), tandem.NewSecret()); err != nil || made {
			t.Errorf("signing secret: made %v, %v", made, err)
		}
	}
	ours, theirs := tandemtest.OpenKeys(t, path), tandemtest.OpenKeys(t, to)
	want, err := ours.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := theirs.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("API keys (-source +target):\n%s", diff)
	}
	for i, token := range h.tokens {
		if a, b := tandemtest.ValidToken(t, ours, token, time.Now()), tandemtest.ValidToken(t, theirs, token, time.Now()); a != b {
			t.Errorf("token %d is valid here %v and there %v", i, a, b)
		}
	}
	for _, key := range h.keys {
		if a, b := tandemtest.Revealed(ours.SigningSecrets(key.ID, time.Now())), tandemtest.Revealed(theirs.SigningSecrets(key.ID, time.Now())); !slices.Equal(a, b) {
			t.Errorf("%s: %d secrets here, %d others there", key.ID, len(a), len(b))
		}
	}
}

// same compares quickly, and tells slowly.
func same(t testing.TB, what string, source, target any) {
	t.Helper()
	if !reflect.DeepEqual(source, target) {
		t.Fatalf("%s (-source +target):\n%s", what, cmp.Diff(source, target))
	}
}

// kept is what a copy keeps of figures: a counter that is 0 may be missing.
func kept(stats store.Stats) store.Stats {
	for _, zero := range []map[tandem.Status]int64{stats.Now, stats.Ended} {
		for status, n := range zero {
			if n == 0 {
				delete(zero, status)
			}
		}
	}
	return stats
}

// shown is a request as people see it: texts as PostgreSQL keeps them, and no moment at which it was interrupted.
func shown(r tandem.Request) tandem.Request {
	clean := func(text string) string {
		return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
	}
	r.ErrorMessage = clean(r.ErrorMessage)
	for i := range r.Attempts {
		r.Attempts[i].Error = clean(r.Attempts[i].Error)
	}
	if r.ErrorCode == tandem.FailedInterrupted {
		r.CompletedAt = time.Time{}
	}
	if len(r.Result) == 0 {
		r.Result = nil
	}
	if len(r.Attempts) == 0 {
		r.Attempts = nil
	}
	return r
}

// filters are every kind there is.
func (h *history) filters() []store.Filter {
	filters := []store.Filter{{}, {MaxBytes: 1000}, {Offset: 7}, {Task: counted}, {Batch: "batch_1"},
		{Batch: "batch_2", Key: h.keys[0].ID}}
	for _, key := range h.keys {
		filters = append(filters, store.Filter{Key: key.ID}, store.Filter{Key: key.ID, Task: counted})
	}
	for _, status := range tandem.Statuses {
		filters = append(filters, store.Filter{Status: status}, store.Filter{Status: status, Mode: tandem.ModeAsync, Task: "echo"})
	}
	if len(h.ids) > 3 {
		middle, err := tandem.IDTime(h.ids[len(h.ids)/2])
		if err == nil {
			filters = append(filters, store.Filter{Since: middle}, store.Filter{Until: middle, Mode: tandem.ModeSync})
		}
	}
	return filters
}

// pages reads all pages of a filter, each as it comes, cursors included.
func pages(t testing.TB, s store.Store, filter store.Filter) (all []store.Page) {
	t.Helper()
	for filter.Limit = 7; ; filter.Offset = 0 {
		page, err := s.Requests(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range page.Requests {
			page.Requests[i] = shown(r)
		}
		all = append(all, page)
		if filter.Cursor = page.Next; page.Next == "" {
			return all
		}
	}
}

// A copy that is interrupted anywhere begins anew, and the target is the same in the end.
func TestCopyInterrupted(t *testing.T) {
	t.Parallel()
	h := newHistory(t, rand.Uint64(), 100)
	path, to := duplicate(t, h.path), emptyPostgres(t, tandemtest.Volatile)
	cfg := app.CopyConfig{From: path, To: to}.InPages(20)
	interrupted, verifying := 0, 0
	for events := 1; ; events += 1 + h.dice.IntN(3) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough for now")
		left, removed := events, interrupted > 0
		cfg.Progress = func(p app.CopyProgress) {
			if left--; left == 0 {
				cancel(cause)
				if p.Phase == app.CopyVerify {
					verifying++
				}
			}
		}
		report, err := app.Copy(ctx, cfg)
		cancel(nil)
		if got := report.Removed; (got == path) != removed {
			t.Fatalf("after %d interruptions a copy of %q was removed", interrupted, got)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, cause) || !report.Begun {
			t.Fatalf("begun: %t, %v", report.Begun, err)
		}
		interrupted++
		refusedEverywhere(t, to, path)
	}
	if interrupted < 4 || verifying == 0 {
		t.Errorf("interrupted %d times, %d of them while comparing: too few to show anything", interrupted, verifying)
	}
	sameDue(t, h.path, to)
	again := copyAll(t, app.CopyConfig{From: path, To: to})
	if again.Over.IsZero() || again.Source.Requests != nil {
		t.Errorf("once more: %+v", again)
	}
	compareStores(t, h, to)
}

// refusedEverywhere: a target that is not complete is of no use, and none of its jobs can be had.
func refusedEverywhere(t testing.TB, to, from string) {
	t.Helper()
	const want = "a copy into this database is not finished; run `tandem copy --from "
	if s, err := postgres.Open(t.Context(), store.Config{Counted: counted, URL: to, Log: quiet()}); err == nil {
		s.Close()
		t.Fatal("a node starts on a copy that is not finished")
	} else if !strings.Contains(err.Error(), want+from) {
		t.Fatal(err)
	}
	if k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: to, Log: quiet()}); err == nil {
		k.Close()
		t.Fatal("API keys can be changed in a copy that is not finished")
	} else if !strings.Contains(err.Error(), want+from) {
		t.Fatal(err)
	}
	if jobs := storetest.AskPostgres(t, to, `SELECT count(*) FROM river_job WHERE state <> 'pending'`); jobs != "0" {
		t.Fatalf("%s jobs could run before the copy is complete", jobs)
	}
	if nodes := storetest.AskPostgres(t, to, `SELECT count(*) FROM nodes`); nodes != "0" {
		t.Fatalf("%s nodes that were refused are still there", nodes)
	}
}

// What is unfinished goes on where it was copied to.
func TestCopyGoesOn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	s := openFile(t, path)
	due, later, submission := newAsync(), newAsync(), newSubmission("")
	accept(t, s, due, store.LaneCPU)
	accept(t, s, later, store.LaneIO)
	accept(t, s, submission, store.LaneIO)
	stop := workWith(t, s, store.Capacity{Jobs: map[store.Lane]int{store.LaneIO: 1, store.LaneDeliver: 1}}, func(_ context.Context, job store.Job) store.Next {
		if job.Lane == store.LaneDeliver {
			a := attempt(1, tandem.OutcomeTimeout)
			return store.Redeliver(a, time.Now().Add(3*time.Second), "")
		}
		return workEnded(`{"by":"source"}`)
	})
	tandemtest.WaitFor(t, "the first try", func() bool { return mustRequest(t, s, later.ID).CallbackAttempts == 1 })
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := emptyPostgres(t, tandemtest.Volatile)
	copyAll(t, app.CopyConfig{From: path, To: to})
	target := joinPostgres(t, to)
	work(t, target, func(_ context.Context, job store.Job) store.Next {
		switch {
		case job.Request.Task == counted:
			return called("")
		case job.Lane == store.LaneDeliver:
			return store.Delivered(attempt(job.Request.CallbackAttempts+1, tandem.OutcomeDelivered))
		default:
			return workEnded(`{"by":"target"}`)
		}
	})
	waitStatus(t, target, due.ID, tandem.StatusCallbackSent)
	waitStatus(t, target, later.ID, tandem.StatusCallbackSent)
	waitStatus(t, target, submission.ID, tandem.StatusCompleted)
	if got := mustRequest(t, target, later.ID); string(got.Result) != `{"by":"source"}` || len(got.Attempts) != 2 || got.CallbackAttempts != 2 {
		t.Errorf("its second try: %+v", got)
	}
	if err := target.Close(); err != nil {
		t.Error(err)
	}
	storetest.CheckPostgres(t, to)
}
