package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/store"
)

// operation is one kind of thing that is done.
type operation struct {
	name   string
	weight int  // how often, relative to the others
	always bool // there is nothing to refuse
	rare   bool // it takes seconds, so it may be missing in a short run

	// run skips t when there is nothing to do it with, and before it draws anything: otherwise rapid ends sequences early.
	run func(w *world, t *rapid.T) (a answer)
}

var cut = &operation{name: "cut a node off", weight: 1, rare: true, always: true, run: cutOff}

// operations are all that a store can do.
var operations = []*operation{
	{name: "accept a sync request", weight: 6, run: acceptSync},
	{name: "accept an async request", weight: 8, run: acceptAsync},
	{name: "accept a leased request", weight: 4, run: acceptLeased},
	{name: "accept several", weight: 3, run: acceptSeveral},
	{name: "finish a sync request", weight: 6, run: finishSync},
	{name: "finish a leased request", weight: 4, run: finishLeased},
	{name: "reschedule a leased request", weight: 2, run: rescheduleLeased},
	{name: "finish twice", weight: 2, run: finishTwice},
	{name: "begin work", weight: 2, always: true, run: beginWork},
	{name: "end work", weight: 8, run: endWork},
	{name: "reschedule work", weight: 3, run: rescheduleWork},
	{name: "end a callback", weight: 8, run: endCallback},
	{name: "try a callback in vain", weight: 5, run: failCallback},
	{name: "reschedule a callback", weight: 3, run: rescheduleCallback},
	{name: "park a callback", weight: 5, run: parkCallback},
	{name: "fill or free a destination", weight: 3, always: true, run: fillOrFree},
	{name: "look up a request", weight: 4, run: lookUp},
	{name: "list requests", weight: 6, run: list},
	{name: "list the next page", weight: 6, run: listNext},
	{name: "retain", weight: 2, run: retain},
	{name: "keep the signing secret", weight: 1, run: keepSecret},
	{name: "restart", weight: 1, rare: true, run: restart},
	cut,
	{name: "crash", weight: 1, rare: true, always: true, run: crash},
}

// Counts are the operations of a run, by name and by how they ended.
type Counts struct {
	mu             sync.Mutex // guards the fields below
	done, refused  map[string]int
	Operations     int
	SequencesBegun int
}

// NewCounts returns those of a run that has not begun.
func NewCounts() *Counts { return &Counts{done: map[string]int{}, refused: map[string]int{}} }

func (c *Counts) add(o *operation, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Operations++
	if a == done {
		c.done[o.name]++
	} else {
		c.refused[o.name]++
	}
}

func (c *Counts) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SequencesBegun++
}

// Check reports every kind of operation that has not both succeeded and been refused: the run has not tested
// it.
func (c *Counts) Check(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("%d operations in %d sequences", c.Operations, c.SequencesBegun)
	for _, o := range operations {
		t.Logf("%-26s %7d done %7d refused", o.name, c.done[o.name], c.refused[o.name])
		if c.done[o.name] == 0 || c.refused[o.name] == 0 && !o.always {
			t.Errorf("%q was done %d times and refused %d times: the run says too little",
				o.name, c.done[o.name], c.refused[o.name])
		}
	}
}

// Check does random operations in a setting, which is to be empty. It fails t when an answer, a row or a counter is not
// that of the model.
func Check(t *rapid.T, setting Setting, counts *Counts) {
	counts.begin()
	w, err := newWorld(setting, counts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.end(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	actions := map[string]func(*rapid.T){}
	for i, o := range operations {
		for j := range o.weight { // rapid sorts actions by name and prefers the first, so each kind stands everywhere
			actions[fmt.Sprintf("%02d %s", (i*7+j*29)%97, o.name)] = func(t *rapid.T) { w.do(t, o) }
		}
	}
	t.Repeat(actions)
	if setting.Cut && !w.cut {
		w.do(t, cut)
	}
	w.settle(t)
}

// settle checks at the end that everything due is dispatched, and each request with its attempts.
func (w *world) settle(t *rapid.T) {
	for _, r := range w.model.sorted(w.soon) {
		w.each(t, 0, func(s *subject, _ *node) error {
			_, err := s.await(r.request.ID)
			return err
		})
	}
	w.checks = 0
	w.compare(t)
	for _, r := range w.model.sorted(func(*row) bool { return true }) {
		w.each(t, 0, func(_ *subject, n *node) error { return w.compareWhole(n, r.request.ID) })
	}
}

func (w *world) accept(t *rapid.T, lane store.Lane, requests ...*tandem.Request) answer {
	const enough = 40 // unfinished, where nothing bounds them
	switch full := w.model.full(true, requests...); {
	case w.setting.MaxQueue > enough && w.model.unfinished() >= enough,
		full != w.model.full(false, requests...), // a store may not know of the newest results
		full != done && rapid.IntRange(0, 3).Draw(t, "although it is full") > 0:
		t.SkipNow()
	}
	return w.acceptAt(t, w.someNode(t), lane, requests...)
}

func (w *world) acceptAt(t *rapid.T, k int, lane store.Lane, requests ...*tandem.Request) answer {
	t.Helper()
	want := w.model.accept(k, lane, requests...)
	w.sameAnswer(t, want, k, func(s store.Store) error { return s.Accept(context.Background(), lane, requests...) })
	for _, r := range requests {
		if _, err := tandem.IDOrder(r.ID); err == nil {
			w.each(t, 0, func(_ *subject, n *node) error { return w.compareWhole(n, r.ID) })
		}
		if want == done && w.model.rows[r.ID].leased {
			w.leases[r.ID] = time.Now()
		}
	}
	return want
}

func acceptSync(w *world, t *rapid.T) answer {
	return w.accept(t, store.LaneNone, w.drawSync(t))
}

func acceptAsync(w *world, t *rapid.T) answer {
	return w.accept(t, workLane.Draw(t, "lane"), w.drawAsync(t))
}

func acceptLeased(w *world, t *rapid.T) answer {
	return w.accept(t, store.LaneIO, w.drawLeased(t, batches.Draw(t, "batch")))
}

// acceptSeveral is a batch of leased requests or of async requests, one of which may be there already, or be there
// twice.
func acceptSeveral(w *world, t *rapid.T) answer {
	batch, leased := batches.Draw(t, "batch"), rapid.Bool().Draw(t, "leased")
	var requests []*tandem.Request
	for range rapid.IntRange(2, 6).Draw(t, "several") {
		if leased {
			requests = append(requests, w.drawLeased(t, batch))
		} else {
			requests = append(requests, w.drawAsync(t))
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "twice") == 0 {
		requests[len(requests)-1].ID = requests[0].ID
	}
	for _, r := range requests { // of one owner
		r.KeyID, r.Owner = requests[0].KeyID, requests[0].Owner
	}
	return w.accept(t, store.LaneIO, requests...)
}

func finishSync(w *world, t *rapid.T) answer {
	r := w.pick(t, func(r *row) bool { return r.answering() && !r.leased })
	e := w.drawDone(t)
	if oneIn(t, 10, "against the rules") {
		e = end{kind: rapid.SampledFrom([]endKind{released, retried, postponed}).Draw(t, "how")} // it is in no queue
	}
	return w.finish(t, store.Job{Lane: r.lane, Request: r.request}, e)
}

func finishLeased(w *world, t *rapid.T) answer {
	r := w.pick(t, func(r *row) bool { return r.leased })
	e := w.drawDone(t)
	if oneIn(t, 6, "against the rules") {
		e = end{kind: postponed} // nobody is to be called
	}
	return w.finish(t, store.Job{Lane: r.lane, Request: r.request}, e)
}

func rescheduleLeased(w *world, t *rapid.T) answer {
	r := w.pick(t, func(r *row) bool { return r.leased })
	e := w.drawRetry(t, r)
	if rapid.IntRange(0, 3).Draw(t, "how") == 0 {
		e = end{kind: postponed, at: e.at}
	}
	return w.finish(t, store.Job{Lane: r.lane, Request: r.request}, e)
}

// finishTwice is a caller that finishes a request too late, or one that is not its own. The model knows
// whether that is accepted.
func finishTwice(w *world, t *rapid.T) answer {
	late := func(r *row) bool { return !r.answering() && r.lane == store.LaneNone }
	own := func(r *row) bool { return r.answering() && !r.leased }
	if n := w.model.count(late); w.model.count(own) == 0 || n > 0 && rapid.IntRange(0, 3).Draw(t, "how") > 0 {
		r := w.pick(t, late)
		job := store.Job{Request: r.request}
		job.Request.Status, job.Request.CallbackStatus = tandem.StatusProcessing, ""
		return w.finish(t, job, w.drawDone(t))
	}
	r := w.pick(t, own)
	job := store.Job{Request: r.request}
	w.finish(t, job, w.drawDone(t))
	if a := w.finish(t, job, w.drawDone(t)); a == done {
		t.Fatalf("%s was finished twice", r.request.ID)
	}
	return done
}

func beginWork(w *world, t *rapid.T) answer {
	w.start(t, w.pickSoon(t, func(r *row) bool { return r.lane != store.LaneDeliver && !w.started[r.request.ID] }))
	return done
}

func working(w *world, t *rapid.T) *row {
	return w.pickSoon(t, func(r *row) bool { return r.lane != store.LaneDeliver })
}

func calling(w *world, t *rapid.T) *row {
	return w.pickSoon(t, func(r *row) bool { return r.lane == store.LaneDeliver })
}

func endWork(w *world, t *rapid.T) answer {
	r := working(w, t)
	e := w.drawDone(t)
	if oneIn(t, 12, "against the rules") {
		e = end{kind: delivered, attempt: w.drawAttempt(t, r, tandem.OutcomeDelivered)}
	}
	return w.step(t, r, e)
}

func rescheduleWork(w *world, t *rapid.T) answer {
	r := working(w, t)
	e := w.drawRetry(t, r)
	switch rapid.IntRange(0, 19).Draw(t, "how") {
	case 0, 1:
		e = end{kind: postponed, at: e.at} // against the rules
	case 2:
		e = end{kind: released}
	}
	return w.step(t, r, e)
}

func endCallback(w *world, t *rapid.T) answer {
	r := calling(w, t)
	e := end{kind: delivered, attempt: w.drawAttempt(t, r, tandem.OutcomeDelivered)}
	switch rapid.IntRange(0, 19).Draw(t, "how") {
	case 0:
		e = w.drawDone(t) // of work
	case 1, 2, 3:
		e = end{kind: givenUp, attempt: w.drawAttempt(t, r, tandem.OutcomeGone)}
	case 4, 5:
		e = end{kind: givenUp, attempt: w.drawAttempt(t, r, tandem.OutcomeExpired)}
	}
	return w.step(t, r, e)
}

func failCallback(w *world, t *rapid.T) answer {
	r := calling(w, t)
	e := end{kind: postponed, at: w.drawDue(t), attempt: w.drawFailed(t, r)}
	if oneIn(t, 8, "against the rules") {
		e = w.drawRetry(t, r)
	}
	return w.step(t, r, e)
}

func rescheduleCallback(w *world, t *rapid.T) answer {
	r := calling(w, t)
	e := end{kind: postponed, at: w.drawDue(t)}
	switch rapid.IntRange(0, 7).Draw(t, "how") {
	case 0, 1:
		e = end{kind: retried, at: e.at} // against the rules
	case 2:
		e = end{kind: released}
	}
	return w.step(t, r, e)
}

func lookUp(w *world, t *rapid.T) answer {
	id := w.drawID(t)
	if len(w.model.rows) > 0 && rapid.Bool().Draw(t, "there") {
		id = w.pick(t, func(*row) bool { return true }).request.ID
	}
	w.each(t, w.someNode(t), func(_ *subject, n *node) error { return w.compareWhole(n, id) })
	if w.model.rows[id] == nil {
		return answer(tandem.CodeNotFound)
	}
	return done
}

func list(w *world, t *rapid.T) answer {
	f := w.drawFilter(t)
	if rapid.IntRange(0, 9).Draw(t, "cursor") == 0 {
		f.Cursor = rapid.SampledFrom([]string{"x", "%", "cmVx", "AAAAAAAAAAAAAAAAAAAAAAAA", "é"}).Draw(t, "text")
		w.sameAnswer(t, answer(tandem.CodeInvalidCursor), w.someNode(t), func(s store.Store) error {
			_, err := s.Requests(context.Background(), f)
			return err
		})
		return answer(tandem.CodeInvalidCursor)
	}
	w.page(t, cursor{filter: f})
	return done
}

// listNext goes on after a page, whatever has happened since, with the same filter or another.
func listNext(w *world, t *rapid.T) answer {
	if len(w.cursors) == 0 {
		t.SkipNow()
	}
	c := w.cursors[rapid.IntRange(0, len(w.cursors)-1).Draw(t, "page")]
	c.filter.Offset = 0
	if rapid.IntRange(0, 4).Draw(t, "other filter") == 0 {
		c.filter = w.drawFilter(t)
		c.filter.Offset = 0
	}
	if w.page(t, c) == 0 {
		return answer("nothing is left")
	}
	return done
}

// page compares a page, and remembers where it ends.
func (w *world) page(t *rapid.T, at cursor) int {
	want, next, total := w.model.page(at.filter, at.after)
	end := cursor{filter: at.filter, after: next, texts: map[*subject]string{}}
	w.each(t, w.someNode(t), func(s *subject, n *node) error {
		f := at.filter
		if at.after != "" {
			f.Cursor = at.texts[s]
		}
		page, err := n.store.Requests(context.Background(), f)
		if err != nil {
			return err
		}
		end.texts[s] = page.Next
		if page.Total != total || (page.Next == "") != (next == "") {
			return fmt.Errorf("%+v: %d in all and next page %q, want %d and %q",
				f, page.Total, page.Next, total, next)
		}
		if err := w.compareRows(want, page.Requests); err != nil {
			return fmt.Errorf("%+v: %w", f, err)
		}
		return nil
	})
	if next != "" {
		const most = 4
		w.cursors = append(w.cursors, end)
		w.cursors = w.cursors[max(len(w.cursors)-most, 0):]
	}
	return len(want)
}

// retain refuses when it deletes nothing.
func retain(w *world, t *rapid.T) answer {
	before := w.drawTime(t)
	want := w.model.retain(before)
	w.each(t, w.someNode(t), func(_ *subject, n *node) error {
		got, err := n.store.Retain(context.Background(), before)
		if err != nil || got != want {
			return fmt.Errorf("retention deleted %d, %w; want %d", got, errOrNone(err), want)
		}
		return nil
	})
	if want == 0 {
		return answer("nothing to delete")
	}
	return done
}

func keepSecret(w *world, t *rapid.T) answer {
	fresh := tandem.NewSecret()
	want, made := w.model.signingSecret(fresh)
	w.each(t, w.someNode(t), func(_ *subject, n *node) error {
		got, kept, err := n.store.SigningSecret(context.Background(), fresh)
		if err != nil || kept != made || got.Reveal() != want.Reveal() {
			return fmt.Errorf("secret made %t, the same %t, %w; want made %t",
				kept, got.Reveal() == want.Reveal(), errOrNone(err), made)
		}
		return nil
	})
	if !made {
		return answer("it has one")
	}
	return done
}
