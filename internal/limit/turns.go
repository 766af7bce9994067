package limit

import "slices"

// Share is the largest part of a total for one of several owners while the others hold some of it: half of the rest,
// and at least one. So a later owner finds room at once, however much the first one wants.
func Share(total, others int) int { return max(1, (total-others+1)/2) }

// quantum is the cost allowed to an owner in one turn.
const quantum = 1

// Turns is a queue serving its owners in turns (deficit round robin: Shreedhar and Varghese, 1995). The values of one
// owner leave in their order of arrival. The zero Turns is empty and ready to use. It is bounded by its user and is not
// safe for concurrent use.
type Turns[T any] struct {
	flows map[string]*flow[T] // :: owner → its values; owners without any are forgotten
	ring  []*flow[T]          // in order of their turns
	at    int                 // in ring: the owner to serve next
	count int
}

// flow holds the values of one owner.
type flow[T any] struct {
	owner   string
	queue   []turn[T]
	deficit int  // cost still allowed in this turn
	granted bool // it got its quantum when its turn began
}

type turn[T any] struct {
	value T
	cost  int
}

// Len is how many values wait.
func (t *Turns[T]) Len() int { return t.count }

// Waiting is how many values of an owner wait.
func (t *Turns[T]) Waiting(owner string) int {
	if f := t.flows[owner]; f != nil {
		return len(f.queue)
	}
	return 0
}

// Each calls f with every value, in no order.
func (t *Turns[T]) Each(f func(value T)) {
	for _, owner := range t.ring {
		for _, waiting := range owner.queue {
			f(waiting.value)
		}
	}
}

// Push appends a value of an owner. Its cost, at least 1, is compared with those of others.
func (t *Turns[T]) Push(owner string, cost int, value T) {
	if t.flows == nil {
		t.flows = map[string]*flow[T]{}
	}
	f := t.flows[owner]
	if f == nil {
		f = &flow[T]{owner: owner}
		t.flows[owner] = f
		t.ring = slices.Insert(t.ring, t.at, f) // before the next one: last in the round
		t.at = (t.at + 1) % len(t.ring)
	}
	f.queue = append(f.queue, turn[T]{value, max(cost, 1)})
	t.count++
}

// Peek returns the next value among the owners whose first value may pass, and false if there is none. It stays where
// it is: the same call returns the same value until Take removes it.
func (t *Turns[T]) Peek(may func(owner string, value T) bool) (value T, ok bool) {
	for refused := 0; refused < len(t.ring); {
		f := t.ring[t.at]
		first := f.queue[0]
		if !f.granted {
			f.granted, f.deficit = true, f.deficit+quantum
		}
		switch {
		case !may(f.owner, first.value):
			refused++
			t.pass(f)
			f.deficit = 0 // unused allowance is not saved
		case f.deficit < first.cost:
			refused = 0
			t.pass(f)
		default:
			return first.value, true
		}
	}
	return value, false
}

// pass gives the turn to the next owner.
func (t *Turns[T]) pass(f *flow[T]) {
	f.granted = false
	t.at = (t.at + 1) % len(t.ring)
}

// Take removes the value just returned by Peek.
func (t *Turns[T]) Take() {
	f := t.ring[t.at]
	f.deficit -= f.queue[0].cost
	f.queue[0] = turn[T]{} // for the garbage collector
	f.queue = f.queue[1:]
	t.count--
	switch {
	case len(f.queue) == 0:
		t.forget(f)
	case f.deficit < 1:
		t.pass(f)
	}
}

// Remove takes out the first matching value of an owner, and reports whether there was one.
func (t *Turns[T]) Remove(owner string, match func(T) bool) bool {
	f := t.flows[owner]
	if f == nil {
		return false
	}
	i := slices.IndexFunc(f.queue, func(w turn[T]) bool { return match(w.value) })
	if i < 0 {
		return false
	}
	f.queue = slices.Delete(f.queue, i, i+1)
	t.count--
	if len(f.queue) == 0 {
		t.forget(f)
	}
	return true
}

// forget takes an owner without values out of the round.
func (t *Turns[T]) forget(f *flow[T]) {
	delete(t.flows, f.owner)
	i := slices.Index(t.ring, f)
	t.ring = slices.Delete(t.ring, i, i+1)
	if i < t.at {
		t.at--
	}
	if t.at == len(t.ring) {
		t.at = 0
	}
}
