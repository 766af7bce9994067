// Package storetest checks that every store behaves as store.Store promises. It
// knows stores by that interface alone. Tests import it, and nothing else does.
//
// [Check] is the oracle: it does the same random operations on a model and on real
// stores, and compares answers, rows and counters after each. A new operation is an entry
// in the table of operations and a method of the model; a new field of a request needs a
// line where requests are drawn.
package storetest

import (
	"cmp"
	"slices"
	"time"

	"tandem"
	"tandem/internal/store"
)

// model is a store in memory, as plain as can be: a table of rows, gone through from the
// beginning for every question. It is for one goroutine.
type model struct {
	limits   store.Config    // MaxQueue, MaxPerOwner and MaxBytesPerOwner
	rows     map[string]*row // :: id → row
	counters store.Stats     // what grows only; stats adds the gauges, which it counts in the rows
	secret   *tandem.Secret
}

// row is a request and what is still to be done for it.
type row struct {
	request tandem.Request
	lane    store.Lane // of its job; LaneNone: nothing is dispatched
	due     time.Time  // the job is not dispatched before; zero: it is due
	asked   time.Time  // when that was said
	leased  bool       // its caller works on it: it is not dispatched
	node    int        // where it was accepted
	parked  string     // the destination that its callback is parked for; "": it is not

	// Since when it is parked, and when its destination last had room for it.
	parkedAt, roomAt time.Time

	slowUntil int // the operation before which its job is not likely to be dispatched

	// The times that the store itself took: it is known only that they are not before these.
	startedFrom, completedFrom time.Time
}

// newModel is empty.
func newModel(limits store.Config) *model {
	return &model{limits: limits, rows: map[string]*row{}, counters: store.Stats{
		Requests: map[tandem.Mode]int64{}, Ended: map[tandem.Status]int64{},
		Callback: map[tandem.CallbackStatus]int64{}, Failures: map[string]int64{},
		Attempts: map[tandem.Outcome]int64{}, Work: map[tandem.Mode]store.WorkTime{},
	}}
}

// over reports whether nothing is left to do for a request.
func (r *row) over() bool {
	return r.lane == store.LaneNone &&
		r.request.Status != tandem.StatusPending && r.request.Status != tandem.StatusProcessing
}

// answering reports whether the caller of Accept is still to finish it.
func (r *row) answering() bool {
	return r.request.Status == tandem.StatusProcessing && (r.leased || r.lane == store.LaneNone)
}

// queued reports whether it is dispatched, now or later.
func (r *row) queued() bool { return r.lane != store.LaneNone && !r.leased }

// sorted returns the rows that match, the oldest first.
func (m *model) sorted(match func(*row) bool) []*row {
	var found []*row
	for _, r := range m.rows {
		if match(r) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *row) int { return cmp.Compare(a.request.ID, b.request.ID) })
	return found
}

func (m *model) count(match func(*row) bool) int64 { return int64(len(m.sorted(match))) }

func (m *model) unfinished() int64 { return m.count(func(r *row) bool { return !r.over() }) }

// due are the rows that may be due now and are not parked.
func (m *model) due(match func(*row) bool) []*row {
	now := time.Now()
	return m.sorted(func(r *row) bool {
		return r.queued() && r.parked == "" && r.due.Sub(now) <= r.tolerance(now) && match(r)
	})
}

// full is how requests are refused because there are too many, by the rules of quotas and of the whole queue. Results
// count as well, but a store may not know of those of the last seconds.
func (m *model) full(results bool, requests ...*tandem.Request) answer {
	var bytes int64
	for _, r := range requests {
		bytes += int64(len(r.Data))
	}
	mine := m.sorted(func(r *row) bool { return r.lane != store.LaneNone && r.request.Owner == requests[0].Owner })
	for _, r := range mine {
		bytes += int64(len(r.request.Data))
		if results {
			bytes += int64(len(r.request.Result))
		}
	}
	n := int64(len(requests))
	switch limit := m.limits; {
	case limit.MaxPerOwner > 0 && int64(len(mine))+n > limit.MaxPerOwner:
		return answer(tandem.CodeQueueFull)
	case limit.MaxBytesPerOwner > 0 && bytes > limit.MaxBytesPerOwner:
		return answer(tandem.CodeQuotaExceeded)
	case m.unfinished()+n > limit.MaxQueue:
		return answer(tandem.CodeQueueFull)
	}
	return done
}

// accept adds requests, all or none, and returns how it refuses them.
func (m *model) accept(node int, lane store.Lane, requests ...*tandem.Request) answer {
	if full := m.full(true, requests...); full != done {
		return full
	}
	seen := map[string]bool{}
	for _, r := range requests {
		if _, err := tandem.IDOrder(r.ID); err != nil {
			return anError
		}
	}
	for _, r := range requests {
		if seen[r.ID] || m.rows[r.ID] != nil {
			return exists
		}
		seen[r.ID] = true
	}
	for _, r := range requests {
		leased := lane != store.LaneNone && r.Status == tandem.StatusProcessing
		m.rows[r.ID] = &row{request: *r, lane: lane, leased: leased, node: node}
		m.counters.Requests[r.Mode]++
		if r.Task == counted {
			m.counters.Counted.Accepted++
			m.counters.Counted.Recent++ // no test goes on for a day
		}
	}
	return done
}

// finish is what the caller of Accept says of its own request.
func (m *model) finish(job store.Job, e end) answer {
	if !allowed(job.Lane, e) {
		return anError
	}
	r := m.rows[job.Request.ID]
	if r == nil || !r.answering() || r.lane != job.Lane {
		return answer(tandem.CodeNotFound)
	}
	m.step(r, e)
	return done
}

// stepped is what a step returned for the job of a row.
func (m *model) stepped(r *row, e end) answer {
	if !allowed(r.lane, e) {
		return anError
	}
	m.step(r, e)
	return done
}

// allowed says which ends there are for the jobs of a lane.
func allowed(lane store.Lane, e end) bool {
	switch e.kind {
	case finished:
		return lane != store.LaneDeliver
	case retried:
		return lane == store.LaneCPU || lane == store.LaneIO
	case released:
		return lane != store.LaneNone
	default:
		return lane == store.LaneDeliver
	}
}

// step changes a row as an allowed end says.
func (m *model) step(r *row, e end) {
	r.leased = false
	lane, parked := r.lane, r.parked
	r.lane, r.due, r.parked = store.LaneNone, time.Time{}, ""
	switch e.kind {
	case finished:
		m.worked(r, &e.outcome)
		if r.request.CallbackStatus != "" {
			r.lane = store.LaneDeliver
		}
	case delivered, givenUp:
		m.called(r, e.kind == delivered)
	case released:
		r.lane, r.parked = lane, parked
		m.released(r)
	default:
		r.lane, r.due, r.parked = lane, e.at, e.parked
		if e.runs > 0 {
			r.request.Runs = e.runs
		}
		m.released(r)
	}
	if e.attempt != nil {
		m.attempted(r, *e.attempt)
	}
}

// worked notes how the work ended.
func (m *model) worked(r *row, o *store.Outcome) {
	q := &r.request
	q.Status = tandem.StatusCompleted
	if o.ErrorCode != "" {
		q.Status = tandem.StatusFailed
		m.counters.Failures[o.ErrorCode]++
	}
	m.counters.Ended[q.Status]++
	q.Result, q.ErrorCode, q.ErrorMessage = o.Result, o.ErrorCode, o.ErrorMessage
	q.StartedAt, q.CompletedAt, r.startedFrom = o.StartedAt, o.CompletedAt, time.Time{}
	q.ProcessingTimeMS = float64(o.Processing.Microseconds()) / 1000
	q.Runs = 0
	own := q.Task == counted
	if own && o.ErrorCode == "" {
		m.counters.Counted.Ended++
	}
	if o.StartedAt.IsZero() {
		return
	}
	m.counters.Work[q.Mode] = plus(m.counters.Work[q.Mode], o.Processing)
	if own {
		m.counters.Counted.Work = plus(m.counters.Counted.Work, o.Processing)
	}
}

func plus(w store.WorkTime, took time.Duration) store.WorkTime {
	return store.WorkTime{Count: w.Count + 1, Total: w.Total + took.Truncate(time.Microsecond)}
}

// called notes how the callback ended. Of failed work the status stays.
func (m *model) called(r *row, sent bool) {
	status := tandem.StatusCallbackFailed
	r.request.CallbackStatus = tandem.CallbackFailed
	if sent {
		status, r.request.CallbackStatus = tandem.StatusCallbackSent, tandem.CallbackSent
	}
	m.counters.Callback[r.request.CallbackStatus]++
	if r.request.Status == tandem.StatusCompleted {
		r.request.Status = status
		m.counters.Ended[status]++
	}
}

// attempted adds to the log, in which a number stands once with each outcome.
func (m *model) attempted(r *row, a tandem.Attempt) {
	q := &r.request
	if a.Outcome != tandem.OutcomeExpired { // which is no attempt
		q.CallbackAttempts = a.Number
	}
	q.Attempts = slices.DeleteFunc(slices.Clone(q.Attempts), func(b tandem.Attempt) bool {
		return b.Number == a.Number && b.Outcome == a.Outcome
	})
	q.Attempts = append(q.Attempts, a)
	slices.SortStableFunc(q.Attempts, func(a, b tandem.Attempt) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), a.StartedAt.Compare(b.StartedAt))
	})
	m.counters.Attempts[a.Outcome]++
}

// started notes that the work of a job has begun.
func (m *model) started(r *row, now time.Time) {
	r.request.Status, r.startedFrom = tandem.StatusProcessing, now
}

// released is the job of a row that nobody works on any more, although it has not ended.
func (m *model) released(r *row) {
	if r.request.Status == tandem.StatusProcessing {
		r.request.Status = tandem.StatusPending
	}
}

// ended is the end of a node, or of the only process: what its callers did themselves is
// interrupted, or dispatched if it can be.
func (m *model) ended(node int, now time.Time) {
	for _, r := range m.sorted(func(r *row) bool { return r.node == node && r.answering() }) {
		if r.leased {
			r.leased = false
			m.released(r)
			continue
		}
		q := &r.request
		q.Status, q.ErrorCode = tandem.StatusFailed, tandem.FailedInterrupted
		q.ErrorMessage = "the server stopped while this request was running"
		r.completedFrom = now
		m.counters.Ended[q.Status]++
		m.counters.Failures[q.ErrorCode]++
	}
}

// retain deletes what is over and was made before the given time.
func (m *model) retain(before time.Time) (deleted int) {
	for _, r := range m.sorted(func(r *row) bool { return r.over() && madeBefore(r, before) }) {
		delete(m.rows, r.request.ID)
		deleted++
	}
	return deleted
}

// madeBefore goes by the time inside the id, which is whole milliseconds.
func madeBefore(r *row, t time.Time) bool { return r.request.CreatedAt.Before(t) }

// page is a page of the history after the given id; "" is its beginning. next is the id
// that the page after it begins after, "" at the end.
func (m *model) page(f store.Filter, after string) (page []tandem.Request, next string, total int64) {
	matching := m.sorted(func(r *row) bool {
		q := &r.request
		return (f.Mode == "" || q.Mode == f.Mode) && (f.Status == "" || q.Status == f.Status) &&
			(f.Task == "" || q.Task == f.Task) &&
			(f.Key == "" || q.KeyID == f.Key) && (f.Batch == "" || q.BatchID == f.Batch) &&
			(f.Since.IsZero() || !madeBefore(r, f.Since)) && (f.Until.IsZero() || madeBefore(r, f.Until)) &&
			(after == "" || q.ID < after)
	})
	slices.Reverse(matching)
	bytes := 0
	for _, r := range matching[min(f.Offset, len(matching)):] {
		bytes += len(r.request.Data) + len(r.request.Result)
		if len(page) == f.Limit || f.MaxBytes > 0 && len(page) > 0 && bytes > f.MaxBytes {
			next = page[len(page)-1].ID
			break
		}
		q := r.request
		q.Attempts = nil
		page = append(page, q)
	}
	if f.Task == counted && f.Mode == "" && f.Status == "" && f.Batch == "" &&
		f.Since.IsZero() && f.Until.IsZero() {
		total = m.count(func(r *row) bool {
			return r.request.Task == f.Task && (f.Key == "" || r.request.KeyID == f.Key)
		})
	}
	return page, next, total
}

// stats are the counters, and the gauges as the rows have them.
func (m *model) stats() store.Stats {
	s := m.counters
	s.Now, s.Queue, s.Capacity = map[tandem.Status]int64{}, map[store.Lane]int64{}, m.limits.MaxQueue
	for _, status := range []tandem.Status{tandem.StatusPending, tandem.StatusProcessing} {
		s.Now[status] = m.count(func(r *row) bool { return r.request.Status == status })
	}
	for _, lane := range store.Lanes {
		s.Queue[lane] = m.count(func(r *row) bool { return r.lane == lane })
	}
	s.Unfinished = m.unfinished()
	s.Counted.Kept = m.count(func(r *row) bool { return r.request.Task == counted })
	return s
}

// signingSecret keeps the first secret that it is given.
func (m *model) signingSecret(fresh tandem.Secret) (secret tandem.Secret, made bool) {
	if m.secret == nil {
		m.secret, made = &fresh, true
	}
	return *m.secret, made
}
