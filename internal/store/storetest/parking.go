package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pgregory.net/rapid"

	"tandem/internal/store"
)

// destinations are what callbacks are parked for. Two of them belong to one site.
var destinations = []string{"https://a.example:443", "http://b.example:80", "http://b.example:80/hook|1"}

// spot is where one owner's callbacks go.
type spot struct{ destination, owner string }

// rooms are the destinations that can take callbacks. Stores ask at any time.
type rooms struct {
	mu   sync.Mutex         // guards the field below
	full map[spot]time.Time // :: what has no room → since when; zero: it never had any
}

// newRooms has one destination that is full.
func newRooms() *rooms {
	r := &rooms{full: map[spot]time.Time{}}
	for _, owner := range owners {
		r.full[spot{destinations[0], owner}] = time.Time{}
	}
	return r
}

// room is store.Capacity.Room.
func (r *rooms) room(destination, owner string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, full := r.full[spot{destination, owner}]; full {
		return 0
	}
	return 1000 // more than are ever parked
}

// last is when there was room last.
func (r *rooms) last(destination, owner string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, full := r.full[spot{destination, owner}]; full {
		return at
	}
	return time.Now()
}

// set fills a destination for an owner, or frees it.
func (r *rooms) set(s spot, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !full {
		delete(r.full, s)
	} else if _, before := r.full[s]; !before {
		r.full[s] = time.Now()
	}
}

// lateRoom is how long before a callback was parked its destination may have had room for a store to dispatch it:
// a fetch from PostgreSQL asks for room first.
const lateRoom = time.Second

// parked notes that a callback is parked from now on, or is not any more.
func (w *world) parked(r *row) {
	r.parkedAt, r.roomAt = time.Now(), w.rooms.last(r.parked, r.request.Owner)
}

// hadRoom reports whether there was room for a row at some moment since it was parked.
func (r *row) hadRoom(s *subject) bool {
	if r.parked == "" {
		return true
	}
	since := r.parkedAt
	if s.Shared {
		since = since.Add(-lateRoom)
	}
	return !r.roomAt.Before(since)
}

func parkCallback(w *world, t *rapid.T) answer {
	r := calling(w, t)
	e := end{
		kind: postponed, at: w.drawDue(t), parked: rapid.SampledFrom(destinations).Draw(t, "destination"),
	}
	if rapid.Bool().Draw(t, "attempted") {
		e.attempt = w.drawFailed(t, r)
	}
	if oneIn(t, 10, "against the rules") {
		e = w.drawDone(t)
	}
	return w.step(t, r, e)
}

// fillOrFree changes whether a destination has room, for one owner or for all.
func fillOrFree(w *world, t *rapid.T) answer {
	destination, of := rapid.SampledFrom(destinations).Draw(t, "destination"), owners
	full := rapid.IntRange(0, 2).Draw(t, "full") == 0
	if rapid.Bool().Draw(t, "of one owner") {
		of = []string{rapid.SampledFrom(owners).Draw(t, "owner")}
	}
	for _, owner := range of {
		w.rooms.set(spot{destination, owner}, full)
	}
	if full {
		return done
	}
	waiting := w.model.sorted(func(r *row) bool {
		return r.parked == destination && slices.Contains(of, r.request.Owner)
	})
	for _, r := range waiting {
		r.roomAt = time.Now()
	}
	if rapid.IntRange(0, 3).Draw(t, "announced") == 0 || !w.announce(t, destination) {
		for _, r := range waiting {
			w.slowly(r)
		}
	}
	return done
}

// announce has a job end that says that a destination has room. It reports false if there is no such job.
func (w *world) announce(t *rapid.T, destination string) bool {
	ending := w.model.sorted(func(r *row) bool { return w.fast(r) && r.parked != destination })
	if len(ending) == 0 {
		return false
	}
	e := end{kind: released}
	e.freed[rapid.IntRange(0, 1).Draw(t, "freed")] = destination
	w.step(t, ending[0], e)
	return true
}

// undelivered are the sites that callbacks are parked for.
func (m *model) undelivered() (sites []store.UndeliveredSite) {
	for _, r := range m.sorted(func(r *row) bool { return r.parked != "" }) {
		scheme, rest, _ := strings.Cut(r.parked, "://")
		host, _, _ := strings.Cut(rest, "/")
		ended := r.request.CompletedAt
		i := slices.IndexFunc(sites, func(s store.UndeliveredSite) bool { return s.Site == scheme+"://"+host })
		if i < 0 {
			i = len(sites)
			sites = append(sites, store.UndeliveredSite{Site: scheme + "://" + host, Oldest: ended})
		}
		sites[i].Count++
		if ended.Before(sites[i].Oldest) {
			sites[i].Oldest = ended
		}
	}
	slices.SortFunc(sites, func(a, b store.UndeliveredSite) int {
		return cmp.Or(a.Oldest.Compare(b.Oldest), cmp.Compare(a.Site, b.Site))
	})
	return sites
}

// compareUndelivered compares what is parked. Of callbacks that are not, the oldest depends on how it is done.
func (w *world) compareUndelivered(n *node) error {
	got, err := n.store.Undelivered(context.Background())
	if err != nil {
		return err
	}
	want := w.model.undelivered()
	for i := range got.Sites {
		got.Sites[i].Oldest = got.Sites[i].Oldest.UTC()
	}
	if len(want)+len(got.Sites) > 0 {
		if err := same("undelivered callbacks", want, got.Sites); err != nil {
			return err
		}
	}
	due := w.model.due(func(r *row) bool { return r.lane == store.LaneDeliver })
	switch oldest := got.Oldest; {
	case len(want) > 0 && oldest.Equal(want[0].Oldest), len(want) == 0 && oldest.IsZero():
		return nil
	case len(due) == 0 || oldest.IsZero() || oldest.After(time.Now()) || len(want) > 0 && oldest.After(want[0].Oldest):
		return fmt.Errorf("the oldest undelivered callback is of %v, and %d that are not parked are due", oldest, len(due))
	}
	return nil
}
