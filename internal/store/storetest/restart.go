package storetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"tandem"
	"tandem/internal/store"
)

// mayRestart draws the node that ends, if any more may.
func (w *world) mayRestart(t *rapid.T) int {
	if w.restarts >= w.setting.Restarts {
		t.SkipNow()
	}
	return w.someNode(t)
}

// restart closes a node in good order and opens another instead. It is refused while a node has a database
// that is for one process only.
func restart(w *world, t *rapid.T) answer {
	k := w.mayRestart(t)
	own := func(s *subject) bool { return !s.Volatile && !s.Shared }
	if slices.ContainsFunc(w.subjects, own) && rapid.Bool().Draw(t, "while it is open") {
		return openTwice(w, t)
	}
	w.restarts++
	w.ended(k, func(h *heldJob) bool { return h.node == w.subjects[0].nodes[min(k, len(w.subjects[0].nodes)-1)] })
	w.each(t, k, func(s *subject, n *node) error {
		if err := n.end(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		_, _, err := n.store.SigningSecret(context.Background(), tandem.NewSecret())
		if got := answerOf(err); got != answer(tandem.CodeStoreUnavailable) {
			return fmt.Errorf("it was closed and answered %q (%w)", got, errOrNone(err))
		}
		return w.reopen(s, k)
	})
	w.takenOver(t)
	return done
}

func openTwice(w *world, t *rapid.T) answer {
	w.each(t, 0, func(s *subject, _ *node) error {
		if s.Volatile || s.Shared {
			return nil
		}
		second, err := s.Open(w.model.limits)
		if err == nil {
			return fmt.Errorf("two have it open; %w", errOrNone(second.Close()))
		}
		return nil
	})
	return answer("somebody has it open")
}

// crash ends the only process without a word.
func crash(w *world, t *rapid.T) answer {
	for _, s := range w.subjects {
		if s.Crash == nil && !s.Volatile {
			t.SkipNow()
		}
	}
	w.mayRestart(t)
	w.restarts++
	w.ended(0, func(*heldJob) bool { return true })
	w.each(t, 0, func(s *subject, n *node) error {
		if !s.Volatile {
			if err := s.Crash(); err != nil {
				return err
			}
		}
		if err := w.reopen(s, 0); err != nil {
			return err
		}
		if err := n.end(); err != nil { // nobody looks at its file any more
			return fmt.Errorf("close what has crashed: %w", err)
		}
		return nil
	})
	w.takenOver(t)
	return done
}

// ended is the end of a node, or of all there is, as the model has it: its jobs are nobody's any more.
func (w *world) ended(k int, its func(*heldJob) bool) {
	now := time.Now()
	jobs, _ := w.subjects[0].jobs() // of one node there is no other; a mistake is found by the next comparison
	for id := range w.started {
		if h := jobs[id]; h == nil || its(h) { // a job that nobody holds is its
			w.model.released(w.model.rows[id])
			delete(w.started, id)
		}
	}
	w.model.ended(k, now)
	if len(w.subjects[0].nodes) > 1 {
		return // another node may hold what is parked
	}
	for _, r := range w.model.sorted(func(r *row) bool { return r.parked != "" }) {
		w.parked(r)
	}
}

// reopen opens a node to replace one that has ended.
func (w *world) reopen(s *subject, k int) error {
	if s.Volatile {
		s.gone, s.nodes = true, nil
		return nil
	}
	n, err := s.open(w.model.limits, w.rooms)
	if err != nil {
		return err
	}
	s.nodes[k] = n
	return nil
}

// cutOff has the others take over from a node that cannot reach its database. Results that it sends
// afterwards are ignored, and it re-registers.
func cutOff(w *world, t *rapid.T) answer {
	if !w.setting.Cut || w.cut {
		t.SkipNow()
	}
	w.cut = true
	s, k := w.subjects[0], w.someNode(t)
	n := s.nodes[k]
	w.leaveBehind(t, k)
	late := n.forget()
	w.ended(k, func(h *heldJob) bool { return late[h.Request.ID] == h })
	others := slices.Clone(s.nodes)
	s.Cut(n.number, true)
	s.nodes = slices.Delete(s.nodes, k, k+1)
	_, _, err := n.store.SigningSecret(context.Background(), tandem.NewSecret())
	if got := answerOf(err); got != answer(tandem.CodeStoreUnavailable) {
		t.Fatalf("it was cut off and answered %q", got)
	}
	w.takenOver(t)
	s.Cut(n.number, false)
	w.each(t, 0, func(s *subject, _ *node) error {
		return eventually(func() error { return w.compareAll(s, n) }, nil)
	})
	s.nodes = others
	before, err := writes(n)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range late {
		h.next <- w.drawAny(t, h).next()
	}
	err = eventually(func() error {
		after, err := writes(n)
		if err == nil && after < before+int64(len(late)) {
			err = fmt.Errorf("%d late results of %d were looked at", after-before, len(late))
		}
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for id := range late {
		if err := w.compareWhole(n, id); err != nil {
			t.Fatalf("after a late result: %v", err)
		}
	}
	return done
}

// leaveBehind has work begun, by a caller of a node, and by any.
func (w *world) leaveBehind(t *rapid.T, k int) {
	answering := w.drawWith(t, w.drawID(t), tandem.ModeSync)
	answering.Status, answering.StartedAt = tandem.StatusProcessing, w.moment()
	w.acceptAt(t, k, store.LaneNone, answering)
	const several = 6 // some of which that node will hold
	for range several {
		r := w.drawWith(t, w.drawID(t), tandem.ModeAsync)
		w.acceptAt(t, k, workLane.Draw(t, "lane"), r)
		w.start(t, w.model.rows[r.ID])
	}
}

// drawAny is an end of a job.
func (w *world) drawAny(t *rapid.T, h *heldJob) end {
	if h.Lane == store.LaneDeliver {
		attempt := w.drawAttempt(t, &row{request: h.Request}, tandem.OutcomeDelivered)
		return end{kind: delivered, attempt: attempt}
	}
	return w.drawDone(t)
}

// takenOver waits until other nodes have taken over what a node left behind, as the model has it.
func (w *world) takenOver(t *rapid.T) {
	t.Helper()
	w.checks = 0 // rows as well
	w.each(t, 0, func(s *subject, n *node) error {
		if !s.Shared {
			return nil
		}
		return eventually(func() error { return w.compareAll(s, n) }, nil)
	})
}
