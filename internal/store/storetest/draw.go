package storetest

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"

	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/store"
)

const micro = time.Microsecond

var (
	workLane = rapid.SampledFrom([]store.Lane{store.LaneCPU, store.LaneIO})
	tasks    = rapid.SampledFrom([]string{"echo", "compute", "sleep"})
	keys     = rapid.SampledFrom([]string{"", "key_a", "key_b"})
	networks = rapid.SampledFrom([]string{"net-1", "net-2"})
	owners   = []string{"key_a", "key_b", "net-1", "net-2"}
	batches  = rapid.SampledFrom([]string{"", "batch_a", "batch_b", "batch_c"})
	texts    = rapid.SampledFrom([]string{"", "no", "größer als 💥", "it's \"quoted\"\n\\ %s $1 ?"})
	failures = rapid.SampledFrom([]string{
		tandem.FailedTask, tandem.FailedPanic, tandem.FailedTimeout, tandem.FailedNoSlot, tandem.FailedClientClosed,
	})
	failed = rapid.SampledFrom([]tandem.Outcome{
		tandem.OutcomeHTTPError, tandem.OutcomeRedirect, tandem.OutcomeThrottled,
		tandem.OutcomeTimeout, tandem.OutcomeConnect, tandem.OutcomeTLS,
	})
	// Some are larger than what stores read along with a list of jobs.
	documents = []json.RawMessage{
		json.RawMessage(`{}`),
		json.RawMessage(`{"n": 1}`),
		json.RawMessage("{ \"text\" : \"as received,\\u0000 \u00e9\",\n\"n\":1e3 }"),
		json.RawMessage(`{"x":"` + strings.Repeat("x", 700) + `"}`),
		json.RawMessage(`{"x":"` + strings.Repeat("é", 3000) + `"}`),
	}
)

// oneIn is true about once in n times: rapid draws what is in the middle of a range less often than its ends.
func oneIn(t *rapid.T, n int, what string) bool { return rapid.IntRange(0, n-1).Draw(t, what) == n/2 }

func drawDocument(t *rapid.T) json.RawMessage {
	return documents[rapid.IntRange(0, len(documents)-1).Draw(t, "document")]
}

// pick draws a row.
func (w *world) pick(t *rapid.T, match func(*row) bool) *row {
	found := w.model.sorted(match)
	if len(found) == 0 {
		t.SkipNow()
	}
	return found[rapid.IntRange(0, len(found)-1).Draw(t, "which")]
}

// soon reports whether a row has a job that is dispatched, now or in a moment.
func (w *world) soon(r *row) bool {
	return r.queued() && time.Until(r.due) < 10*time.Second &&
		(r.parked == "" || w.rooms.room(r.parked, r.request.Owner) > 0)
}

// pickSoon draws a row that has a job soon, if possible one that need not be waited for.
func (w *world) pickSoon(t *rapid.T, match func(*row) bool) *row {
	fast := func(r *row) bool { return match(r) && w.fast(r) }
	if w.model.count(fast) > 0 {
		return w.pick(t, fast)
	}
	return w.pick(t, func(r *row) bool { return match(r) && w.soon(r) })
}

// fast reports whether a row has a job soon that is likely to be dispatched at once.
func (w *world) fast(r *row) bool { return w.soon(r) && w.operations >= r.slowUntil }

// slowly notes that a job is not dispatched for a second. That is counted in operations: a sequence that fails is done
// again, and must then go the same way.
func (w *world) slowly(r *row) { r.slowUntil = w.operations + 100 }

func (w *world) someNode(t *rapid.T) int {
	if len(w.subjects[0].nodes) == 1 {
		return 0
	}
	return rapid.IntRange(0, len(w.subjects[0].nodes)-1).Draw(t, "node")
}

// moment is a time that was not there before, in microseconds.
func (w *world) moment() time.Time {
	w.moments++
	return w.base.Add(time.Duration(w.moments) * 1_000_007 * micro)
}

// idStep is how far ids are apart, about: they are not made in their order.
const idStep = 7

// drawID makes an id that was not there before and does not sort equal to another one.
func (w *world) drawID(t *rapid.T) string {
	w.made++
	ms := uint64(w.base.UnixMilli() + int64(w.made*idStep+rapid.IntRange(-2*idStep, 2*idStep).Draw(t, "ms")))
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], ms<<16|0x7000|uint64(w.made)&0xfff)
	binary.BigEndian.PutUint64(id[8:], 1<<63|uint64(w.made)*0x9e3779b97f4a7c15>>2)
	return tandem.ID(id)
}

// drawTime is one at which, before which or after which requests were made.
func (w *world) drawTime(t *rapid.T) time.Time {
	ms := rapid.IntRange(-2*idStep, w.made*idStep+3*idStep).Draw(t, "ms")
	more := rapid.SampledFrom([]time.Duration{0, 0, 1, 500 * micro}).Draw(t, "more")
	return w.base.Add(time.Duration(ms) * time.Millisecond).Add(more)
}

func (w *world) drawRequest(t *rapid.T, mode tandem.Mode) *tandem.Request {
	id := w.drawID(t)
	switch rapid.IntRange(0, 29).Draw(t, "id") {
	case 0, 1:
		if there := w.model.sorted(func(*row) bool { return true }); len(there) > 0 {
			id = there[rapid.IntRange(0, len(there)-1).Draw(t, "which")].request.ID
		}
	case 2:
		return &tandem.Request{
			ID: "req_1", Mode: mode, Task: "echo", Status: tandem.StatusPending, Data: json.RawMessage(`{}`),
		}
	}
	return w.drawWith(t, id, mode)
}

// drawWith is one of an id.
func (w *world) drawWith(t *rapid.T, id string, mode tandem.Mode) *tandem.Request {
	created, err := tandem.IDTime(id)
	if err != nil {
		t.Fatal(err)
	}
	r := &tandem.Request{
		ID: id, Mode: mode, Task: tasks.Draw(t, "task"), Status: tandem.StatusPending, KeyID: keys.Draw(t, "key"),
		Data: drawDocument(t), Complexity: rapid.IntRange(1, 10).Draw(t, "complexity"), CreatedAt: created,
	}
	if r.Owner = r.KeyID; r.Owner == "" {
		r.Owner = networks.Draw(t, "network")
	}
	return r
}

// drawAsync is one with a callback, as a rule.
func (w *world) drawAsync(t *rapid.T) *tandem.Request {
	r := w.drawRequest(t, tandem.ModeAsync)
	if rapid.IntRange(0, 7).Draw(t, "callback") > 0 {
		r.CallbackStatus, r.CallbackURL = tandem.CallbackPending, "http://127.0.0.1:1/hook?q=ü"
	}
	return r
}

func (w *world) drawSync(t *rapid.T) *tandem.Request {
	r := w.drawRequest(t, tandem.ModeSync)
	r.Status, r.StartedAt = tandem.StatusProcessing, w.moment()
	return r
}

func (w *world) drawLeased(t *rapid.T, batch string) *tandem.Request {
	r := w.drawRequest(t, tandem.ModeSync)
	r.Status, r.Task, r.BatchID = tandem.StatusProcessing, counted, batch
	return r
}

// drawDone is the end of work.
func (w *world) drawDone(t *rapid.T) end {
	took := time.Duration(rapid.IntRange(0, 3_000_000_000).Draw(t, "took"))
	o := store.Outcome{StartedAt: w.moment(), CompletedAt: w.moment(), Processing: took}
	switch rapid.IntRange(0, 3).Draw(t, "ended") {
	case 0:
		o.ErrorCode, o.ErrorMessage = failures.Draw(t, "code"), texts.Draw(t, "message")
		if o.ErrorCode == tandem.FailedNoSlot {
			o.StartedAt, o.Processing = time.Time{}, 0
		}
	default:
		o.Result = drawDocument(t)
	}
	return end{kind: finished, outcome: o}
}

// drawRetry has work run again.
func (w *world) drawRetry(t *rapid.T, r *row) end {
	return end{kind: retried, at: w.drawDue(t), runs: w.drawRuns(t, r)}
}

// drawFailed is an attempt after which there is another.
func (w *world) drawFailed(t *rapid.T, r *row) *tandem.Attempt {
	a := w.drawAttempt(t, r, failed.Draw(t, "outcome"))
	a.NextAt = time.Now().UTC().Truncate(micro)
	return a
}

// drawDue is when a rescheduled job is due: now, in a moment, or not during this test.
func (w *world) drawDue(t *rapid.T) time.Time {
	switch rapid.IntRange(0, 39).Draw(t, "due") {
	case 39:
		return time.Now().Add(time.Hour)
	case 1, 2:
		return time.Now().Add(20 * time.Millisecond)
	case 3:
		return time.Now().Add(-time.Minute)
	default:
		return time.Time{}
	}
}

// drawRuns is one run more, or, when it does not count, none.
func (w *world) drawRuns(t *rapid.T, r *row) int {
	if rapid.Bool().Draw(t, "counts") {
		return r.request.Runs + 1
	}
	return 0
}

// drawAttempt is the next of a row, or, rarely, the last one once more.
func (w *world) drawAttempt(t *rapid.T, r *row, outcome tandem.Outcome) *tandem.Attempt {
	a := &tandem.Attempt{
		Number: r.request.CallbackAttempts + 1, Outcome: outcome, StartedAt: w.moment(), Error: texts.Draw(t, "error"),
		DurationMS: float64(rapid.IntRange(0, 10_000_000).Draw(t, "duration")) / 1000,
		StatusCode: rapid.SampledFrom([]int{0, 200, 204, 410, 503}).Draw(t, "code"),
	}
	if outcome == tandem.OutcomeExpired || a.Number > 1 && rapid.IntRange(0, 9).Draw(t, "again") == 0 {
		a.Number = r.request.CallbackAttempts
	}
	return a
}

func (w *world) drawFilter(t *rapid.T) store.Filter {
	f := store.Filter{Limit: rapid.SampledFrom([]int{1, 2, 5, 20, 1000}).Draw(t, "limit"), Key: keys.Draw(t, "key")}
	if rapid.IntRange(0, 3).Draw(t, "by") == 0 {
		f.Batch = batches.Draw(t, "batch")
	}
	if f.Batch == "" {
		f.Mode = rapid.SampledFrom(append([]tandem.Mode{"", ""}, tandem.Modes...)).Draw(t, "mode")
		f.Status = rapid.SampledFrom(append([]tandem.Status{"", "", ""}, tandem.Statuses...)).Draw(t, "status")
		f.Task = rapid.SampledFrom([]string{
			"", "", "echo", "compute", "nothing", counted, counted,
		}).Draw(t, "task")
	}
	if rapid.IntRange(0, 3).Draw(t, "since") == 0 {
		f.Since = w.drawTime(t)
	}
	if rapid.IntRange(0, 3).Draw(t, "until") == 0 {
		f.Until = w.drawTime(t)
	}
	if rapid.IntRange(0, 3).Draw(t, "offset") == 0 {
		f.Offset = rapid.IntRange(0, 10).Draw(t, "rows")
	}
	f.MaxBytes = rapid.SampledFrom([]int{0, 0, 0, 1, 1000, 10_000}).Draw(t, "bytes")
	return f
}
