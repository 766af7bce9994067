package limit

import (
	"container/list"
	"iter"
)

// Keyed is a table of at most a fixed number of values by key. When it is full,
// a new key takes the place of the one longest unused; a value that somebody
// holds is never dropped, however long ago it was asked for.
//
// It has no lock: whoever owns it has one already, because what it does with the
// values has to be one step with finding them.
type Keyed[V any] struct {
	capacity int
	entries  map[string]*keyedEntry[V]
	held     list.List // of *keyedEntry with holders > 0, last asked for first
	idle     list.List // of *keyedEntry with holders = 0, last given back first
}

type keyedEntry[V any] struct {
	key     string
	value   V
	holders int           // Hold minus Release
	element *list.Element // in held or in idle
}

// NewKeyed makes a table of at most capacity values; less than 1 counts as 1.
func NewKeyed[V any](capacity int) *Keyed[V] {
	return &Keyed[V]{capacity: max(capacity, 1), entries: make(map[string]*keyedEntry[V])}
}

// Hold returns the value of key, which is made with create if it is not known,
// and keeps it in the table until as many calls of Release. It returns false, and
// holds nothing, when every place is taken by values that are held.
func (k *Keyed[V]) Hold(key string, create func() V) (V, bool) {
	entry, known := k.entries[key]
	switch {
	case !known:
		if len(k.entries) >= k.capacity && !k.forgetOne() {
			var none V
			return none, false
		}
		entry = &keyedEntry[V]{key: key, value: create()}
		entry.element = k.held.PushFront(entry)
		k.entries[key] = entry
	case entry.holders == 0:
		k.idle.Remove(entry.element)
		entry.element = k.held.PushFront(entry)
	default:
		k.held.MoveToFront(entry.element)
	}
	entry.holders++
	return entry.value, true
}

// Release takes back one Hold of key. It panics when there was none: a place
// given back twice would let the table forget what is in use.
func (k *Keyed[V]) Release(key string) {
	entry, known := k.entries[key]
	if !known || entry.holders == 0 {
		panic("limit: Release of a key that is not held: " + key)
	}
	entry.holders--
	if entry.holders == 0 {
		k.held.Remove(entry.element)
		entry.element = k.idle.PushFront(entry)
	}
}

// Len returns how many keys are known.
func (k *Keyed[V]) Len() int { return len(k.entries) }

// All yields the keys and values: those in use first, each group from the most to
// the least recently used. The table must not be changed meanwhile.
func (k *Keyed[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, group := range []*list.List{&k.held, &k.idle} {
			for element := group.Front(); element != nil; element = element.Next() {
				entry := element.Value.(*keyedEntry[V])
				if !yield(entry.key, entry.value) {
					return
				}
			}
		}
	}
}

// forgetOne drops the key longest unused; false when all are held.
func (k *Keyed[V]) forgetOne() bool {
	oldest := k.idle.Back()
	if oldest == nil {
		return false
	}
	entry := k.idle.Remove(oldest).(*keyedEntry[V])
	delete(k.entries, entry.key)
	return true
}
