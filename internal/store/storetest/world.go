package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/store"
)

// Setting is what a sequence of operations is done on.
type Setting struct {
	Databases []Database
	MaxQueue  int64 // 0: so many that it is never reached
	Restarts  int   // how often a node may end and start again, in one sequence
	Cut       bool  // one node is cut off, once

	// As in store.Config; 0: none. With several nodes they are not exact.
	MaxPerOwner, MaxBytesPerOwner int64
}

const endless = 1_000_000

// ownTime is for how long a leased request may be its caller's: well below store.CallerLease, after which the
// stores dispatch it.
const ownTime = store.CallerLease / 3

// nearlyLease allows for when a lease began.
const nearlyLease = store.CallerLease - time.Second

// world is a model and the databases that are compared with it.
type world struct {
	setting  Setting
	model    *model
	subjects []*subject
	counts   *Counts
	rooms    *rooms

	base       time.Time // of the times in ids, and of those that the oracle makes up
	made       int       // ids
	moments    int       // times
	checks     int
	restarts   int
	operations int
	cut        bool                 // a node was cut off
	leases     map[string]time.Time // :: id → when it was accepted for its caller
	started    map[string]bool      // ids of the jobs whose work has begun
	seen       map[*heldJob]bool    // jobs that were found right
	cursors    []cursor
}

// counted is the task of requests whose callers do the work, and that are counted on their own.
const counted = "leased"

// cursor is where a page of the history ended, as each subject says it.
type cursor struct {
	filter store.Filter
	after  string // as the model says it
	texts  map[*subject]string
}

func newWorld(setting Setting, counts *Counts) (*world, error) {
	if setting.MaxQueue == 0 {
		setting.MaxQueue = endless
	}
	w := &world{
		setting: setting, counts: counts, rooms: newRooms(),
		model: newModel(store.Config{
			MaxQueue: setting.MaxQueue, MaxPerOwner: setting.MaxPerOwner, MaxBytesPerOwner: setting.MaxBytesPerOwner,
			Counted: counted,
		}),
		base:   time.Now().UTC().Add(-time.Hour).Truncate(time.Second),
		leases: map[string]time.Time{}, started: map[string]bool{}, seen: map[*heldJob]bool{},
	}
	for _, d := range setting.Databases {
		s := &subject{Database: d}
		w.subjects = append(w.subjects, s)
		for range max(d.Nodes, 1) {
			n, err := s.open(w.model.limits, w.rooms)
			if err != nil {
				return nil, errors.Join(err, w.end())
			}
			s.nodes = append(s.nodes, n)
		}
	}
	return w, nil
}

// end closes everything.
func (w *world) end() error {
	var errs []error
	for _, s := range w.subjects {
		for _, n := range s.nodes {
			if err := n.end(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
			}
		}
		s.nodes = nil
	}
	return errors.Join(errs...)
}

// do runs an operation and compares everything afterwards.
func (w *world) do(t *rapid.T, o *operation) {
	w.keepLeases(t)
	w.counts.add(o, o.run(w, t))
	w.checks++
	w.operations++
	w.compare(t)
}

// keepLeases finishes what callers have had for long, as an engine that is alive does.
func (w *world) keepLeases(t *rapid.T) {
	for _, id := range slices.Sorted(maps.Keys(w.leases)) {
		r := w.model.rows[id]
		if r != nil && r.leased && time.Since(w.leases[id]) > ownTime {
			job := store.Job{Lane: r.lane, Request: r.request}
			w.finish(t, job, end{kind: finished, outcome: store.Outcome{ErrorCode: tandem.FailedTask}})
		}
		if r == nil || !r.leased {
			delete(w.leases, id)
		}
	}
}

// each does the same with every subject that is still compared; of one with several nodes with one of them.
func (w *world) each(t *rapid.T, k int, f func(s *subject, n *node) error) {
	t.Helper()
	for _, s := range w.subjects {
		if s.gone {
			continue
		}
		if err := f(s, s.nodes[min(k, len(s.nodes)-1)]); err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
	}
}

// sameAnswer has every subject answer what the model did.
func (w *world) sameAnswer(t *rapid.T, want answer, k int, ask func(store.Store) error) {
	t.Helper()
	w.each(t, k, func(_ *subject, n *node) error {
		err := ask(n.store)
		if got := answerOf(err); got != want {
			return fmt.Errorf("it answered %q (%w), want %q", got, errOrNone(err), want)
		}
		return nil
	})
}

var errNone = errors.New("no error")

func errOrNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// compare checks that subjects have the rows and counters of the model, and dispatch what it would.
func (w *world) compare(t *rapid.T) {
	t.Helper()
	w.each(t, w.checks%2, w.compareAll)
}

// compareAll compares jobs and counters, and the rows: each time where that costs little, else now and then.
func (w *world) compareAll(s *subject, n *node) error {
	if err := w.compareJobs(s); err != nil {
		return err
	}
	if err := w.compareStats(n, w.model.stats()); err != nil {
		return err
	}
	const rarely = 5
	if s.Shared && w.checks%rarely != 0 {
		return nil
	}
	if w.checks%rarely == 0 {
		if err := w.compareUndelivered(n); err != nil {
			return err
		}
	}
	all := store.Filter{Limit: 1000}
	page, err := n.store.Requests(context.Background(), all)
	if err != nil {
		return err
	}
	want, _, _ := w.model.page(all, "")
	return w.compareRows(want, page.Requests)
}

// compareJobs checks that what was dispatched is due, and complete.
func (w *world) compareJobs(s *subject) error {
	jobs, err := s.jobs()
	if err != nil {
		return err
	}
	for id, h := range jobs {
		if w.seen[h] {
			continue
		}
		r := w.model.rows[id]
		// The machine may be so busy that its caller came too late.
		if r != nil && r.leased && time.Since(w.leases[id]) > nearlyLease {
			r.leased, w.started[id] = false, true
		}
		if r == nil || !r.queued() || h.Lane != r.lane {
			return fmt.Errorf("%s was dispatched in lane %q, want %s", id, h.Lane, r)
		}
		if early := r.due.Sub(h.at); early > r.tolerance(h.at) {
			return fmt.Errorf("%s was dispatched %v before it was due", id, early)
		}
		if !r.hadRoom(s) {
			return fmt.Errorf("%s is parked for %s, which had no room since, and was dispatched", id, r.parked)
		}
		want := r.request
		want.Attempts = nil
		if r.lane == store.LaneDeliver {
			want.Data = nil
		} else {
			want.Result = nil
		}
		if err := w.compareRow(r, true, want, h.Request); err != nil {
			return fmt.Errorf("the job of %s: %w", id, err)
		}
		w.seen[h] = true
	}
	return nil
}

// tolerance is by how much a job may seem to be due too early at a moment. PostgreSQL counts from the beginning of the
// transaction, which is after it was asked, and two clocks differ a little.
func (r *row) tolerance(at time.Time) time.Duration {
	return at.Sub(r.asked) + 2*time.Millisecond
}

func (r *row) String() string {
	if r == nil {
		return "no such request"
	}
	return fmt.Sprintf("%s, callback %q, lane %q, due %v, parked for %q, its caller's %t",
		r.request.Status, r.request.CallbackStatus, r.lane, r.due, r.parked, r.leased)
}

func (w *world) compareRows(want, got []tandem.Request) error {
	ids := func(list []tandem.Request) (ids []string) {
		for i := range list {
			ids = append(ids, list[i].ID)
		}
		return ids
	}
	if err := same("which requests", ids(want), ids(got)); err != nil {
		return err
	}
	for i := range want {
		if err := w.compareRow(w.model.rows[want[i].ID], false, want[i], got[i]); err != nil {
			return err
		}
	}
	return nil
}

// compareRow compares a request with what is wanted of it. Times by the store's own clock need only be
// possible. In a job they are not compared, because its work begins anew.
func (w *world) compareRow(r *row, job bool, want, got tandem.Request) error {
	for _, own := range []struct {
		from      time.Time
		want, got *time.Time
	}{{r.startedFrom, &want.StartedAt, &got.StartedAt}, {r.completedFrom, &want.CompletedAt, &got.CompletedAt}} {
		if own.from.IsZero() {
			continue
		}
		if job { // it may have been dispatched before it began
			*own.want, *own.got = time.Time{}, time.Time{}
			continue
		}
		if own.got.Before(own.from.Add(-time.Millisecond)) || own.got.After(time.Now().Add(time.Millisecond)) {
			return fmt.Errorf("request %s: %v is not between %v and now", want.ID, *own.got, own.from)
		}
		*own.want = *own.got
	}
	for _, r := range []*tandem.Request{&want, &got} { // of nothing there are two kinds
		if len(r.Data) == 0 {
			r.Data = nil
		}
		if len(r.Result) == 0 {
			r.Result = nil
		}
		if len(r.Attempts) == 0 {
			r.Attempts = nil
		}
	}
	return same("request "+want.ID, want, got)
}

// difference is an error that makes its text when somebody reads it: much is compared again and again until
// it is the same.
type difference struct {
	what      string
	want, got any
}

// same is nil if both are. Neither may have a nil where the other has something empty.
func same(what string, want, got any) error {
	if reflect.DeepEqual(want, got) {
		return nil
	}
	return &difference{what, want, got}
}

func (d *difference) Error() string {
	return fmt.Sprintf("%s (-want +got):\n%s", d.what, cmp.Diff(d.want, d.got, cmpopts.EquateEmpty()))
}

// compareStats compares counters, of which those that are 0 may be missing.
func (w *world) compareStats(n *node, want store.Stats) error {
	got, err := n.store.Stats(context.Background())
	if err != nil {
		return err
	}
	if got.Unavailable != nil {
		return fmt.Errorf("unavailable: %w", got.Unavailable)
	}
	due := w.model.due(func(*row) bool { return true })
	if oldest := got.OldestDue; !oldest.IsZero() && (len(due) == 0 || oldest.After(time.Now())) {
		return fmt.Errorf("a job has waited since %v, and %d are due", oldest, len(due))
	}
	got.OldestDue, got.Commits = time.Time{}, store.Commits{} // they depend on how it is done
	positive(got)
	positive(want)
	return same("counters", want, got)
}

// positive takes out the members of maps that count nothing.
func positive(s store.Stats) {
	deleteZero(s.Requests)
	deleteZero(s.Now)
	deleteZero(s.Ended)
	deleteZero(s.Callback)
	deleteZero(s.Failures)
	deleteZero(s.Attempts)
	deleteZero(s.Work)
	deleteZero(s.Queue)
}

func deleteZero[K, V comparable](m map[K]V) {
	var zero V
	maps.DeleteFunc(m, func(_ K, v V) bool { return v == zero })
}

// compareWhole compares one request with its attempts.
func (w *world) compareWhole(n *node, id string) error {
	got, err := n.store.Request(context.Background(), id)
	r := w.model.rows[id]
	if r == nil {
		if tandem.CodeOf(err) != tandem.CodeNotFound {
			return fmt.Errorf("%s: %w, want %s", id, errOrNone(err), tandem.CodeNotFound)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("request %s: %w", id, err)
	}
	want := r.request
	if want.Attempts, err = r.attempts(got.Attempts); err != nil {
		return err
	}
	return w.compareRow(r, false, want, got)
}

// attempts are those of a row as a store shows them now. The last one says when the next is due, which is
// when the job is due, until that is past.
func (r *row) attempts(got []tandem.Attempt) ([]tandem.Attempt, error) {
	want := slices.Clone(r.request.Attempts)
	last := len(want) - 1
	if last < 0 || len(got) != len(want) || r.request.CallbackStatus != tandem.CallbackPending ||
		want[last].NextAt.IsZero() {
		return want, nil
	}
	const slow = 10 * time.Second // of a transaction, which adds to its beginning
	next := got[last].NextAt
	if next.IsZero() && r.due.After(time.Now()) ||
		!next.IsZero() && (next.Before(r.due.Add(-r.tolerance(time.Now()))) || next.After(r.due.Add(slow))) {
		return nil, fmt.Errorf("request %s: the next attempt at %v, want %v", r.request.ID, next, r.due)
	}
	want[last].NextAt = next
	return want, nil
}

// finish is Finish, of the model and of the subjects.
func (w *world) finish(t *rapid.T, job store.Job, e end) answer {
	t.Helper()
	k := 0
	if r := w.model.rows[job.Request.ID]; r != nil {
		k, r.asked = r.node, time.Now()
	}
	want := w.model.finish(job, e)
	w.sameAnswer(t, want, k, func(s store.Store) error { return s.Finish(context.Background(), job, e.next()) })
	w.each(t, 0, func(_ *subject, n *node) error { return w.compareWhole(n, job.Request.ID) })
	return want
}

// step ends the job of a row, which is due or soon will be, and waits until that is committed.
func (w *world) step(t *rapid.T, r *row, e end) answer {
	t.Helper()
	id := r.request.ID
	held := map[*subject]*heldJob{}
	w.each(t, 0, func(s *subject, _ *node) (err error) {
		held[s], err = s.await(id)
		return err
	})
	w.each(t, 0, func(s *subject, _ *node) error { return w.compareJobs(s) })
	delete(w.started, id)
	r.asked = time.Now()
	want := w.model.stepped(r, e)
	if want != done { // it returns to its lane
		r.due = time.Now().Add(refusedDelay)
		w.slowly(r)
		w.model.released(r)
	}
	w.parked(r)
	w.each(t, 0, func(s *subject, _ *node) error {
		h := held[s]
		delete(w.seen, h)
		before, err := writes(h.node)
		if err != nil {
			return err
		}
		h.node.release(h, e.next())
		return eventually(func() error {
			if err := w.compareWhole(h.node, id); err != nil {
				return err
			}
			after, err := writes(h.node)
			if err == nil && after == before { // a rescheduled job leaves no trace in its row
				err = fmt.Errorf("what came of %s is not committed", id)
			}
			return err
		}, nil)
	})
	return want
}

// refusedDelay is how soon a job may be dispatched again that ended against the rules.
const refusedDelay = 900 * time.Millisecond

// writes is how many a node has committed.
func writes(n *node) (int64, error) {
	stats, err := n.store.Stats(context.Background())
	return stats.Commits.Writes, err
}

// start says that the work of a job begins, and waits until its row says so.
func (w *world) start(t *rapid.T, r *row) {
	t.Helper()
	id := r.request.ID
	held := map[*subject]*heldJob{}
	w.each(t, 0, func(s *subject, _ *node) (err error) {
		held[s], err = s.await(id)
		return err
	})
	w.each(t, 0, func(s *subject, _ *node) error { return w.compareJobs(s) })
	w.started[id] = true
	w.model.started(r, time.Now())
	for _, h := range held {
		h.Started()
	}
	w.each(t, 0, func(_ *subject, n *node) error {
		return eventually(func() error { return w.compareWhole(n, id) }, nil)
	})
}
