package limit

import (
	"container/list"
	"fmt"
	"iter"
)

// Keyed is a table of at most a fixed number of values by key. When it is full, a new key replaces the one longest
// unused; a held value is never dropped.
//
// It has no lock: its owner has one already, because it must find a value and work on it in one step.
type Keyed[K comparable, V any] struct {
	capacity int
	entries  map[K]*keyedEntry[K, V]
	held     list.List // of *keyedEntry with holders > 0, last asked for first
	idle     list.List // of *keyedEntry with holders = 0, last released first
}

type keyedEntry[K comparable, V any] struct {
	key     K
	value   V
	holders int           // Hold minus Release
	element *list.Element // in held or in idle
}

// NewKeyed makes a table of at most capacity values; less than 1 counts as 1.
func NewKeyed[K comparable, V any](capacity int) *Keyed[K, V] {
	return &Keyed[K, V]{capacity: max(capacity, 1), entries: make(map[K]*keyedEntry[K, V])}
}

// Hold returns the value of key, made with create if it is new, and keeps it in the table until as many calls of
// Release. It returns false, and holds nothing, when the table is full of held values.
func (k *Keyed[K, V]) Hold(key K, create func() V) (V, bool) {
	entry, known := k.entries[key]
	switch {
	case !known:
		if len(k.entries) >= k.capacity && !k.forgetOne() {
			var none V
			return none, false
		}
		entry = &keyedEntry[K, V]{key: key, value: create()}
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

// Release ends one Hold of key. It panics when there was none: a second Release would let the table drop a value in
// use.
func (k *Keyed[K, V]) Release(key K) {
	entry, known := k.entries[key]
	if !known || entry.holders == 0 {
		panic(fmt.Sprintf("limit: Release of a key not held: %v", key))
	}
	entry.holders--
	if entry.holders == 0 {
		k.held.Remove(entry.element)
		entry.element = k.idle.PushFront(entry)
	}
}

// Peek returns the value of key if it is known. It is no use of it.
func (k *Keyed[K, V]) Peek(key K) (V, bool) {
	entry, known := k.entries[key]
	if !known {
		var none V
		return none, false
	}
	return entry.value, true
}

// Len returns how many keys are known.
func (k *Keyed[K, V]) Len() int { return len(k.entries) }

// All yields the keys and values: those in use first, each group from the most to
// the least recently used. The table must not be changed meanwhile.
func (k *Keyed[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, group := range []*list.List{&k.held, &k.idle} {
			for element := group.Front(); element != nil; element = element.Next() {
				entry := element.Value.(*keyedEntry[K, V])
				if !yield(entry.key, entry.value) {
					return
				}
			}
		}
	}
}

// forgetOne drops the key longest unused; false when all are held.
func (k *Keyed[K, V]) forgetOne() bool {
	oldest := k.idle.Back()
	if oldest == nil {
		return false
	}
	entry := k.idle.Remove(oldest).(*keyedEntry[K, V])
	delete(k.entries, entry.key)
	return true
}
