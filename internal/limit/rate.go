package limit

import (
	"container/list"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	mostCalls  = 1_000_000
	mostWindow = 24 * time.Hour

	finest       = 64    // cells of a window, for counting the calls of a larger quota
	perShared    = 16    // places in the table for each history shared by newcomers
	dropsPerTake = 2     // clients forgotten by one call: faster than they come
	dropsPerLook = 1_000 // the same for one look at the figures
)

// Quota is a number of calls in any window of time. The zero Quota is no limit.
type Quota struct {
	Calls  int
	Window time.Duration // whole seconds, as in the headers
}

// ParseQuota reads 50/60s; off and 0 are no limit.
func ParseQuota(text string) (Quota, error) {
	if text == "off" || text == "0" {
		return Quota{}, nil
	}
	calls, window, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(calls)
	length, err2 := time.ParseDuration(window)
	quota := Quota{n, length}
	if err != nil || err2 != nil || quota.IsZero() {
		return Quota{}, errors.New("want CALLS/WINDOW such as 50/60s, or off")
	}
	return quota, quota.Validate()
}

// Validate reports a value out of range.
func (q Quota) Validate() error {
	switch {
	case q.IsZero():
		return nil
	case q.Calls < 1 || q.Calls > mostCalls:
		return fmt.Errorf("%d calls: want 1 to %d", q.Calls, mostCalls)
	case q.Window < time.Second || q.Window > mostWindow || q.Window%time.Second != 0:
		return fmt.Errorf("a window of %v: want whole seconds from 1s to %v", q.Window, mostWindow)
	}
	return nil
}

// IsZero reports whether there is no limit.
func (q Quota) IsZero() bool { return q == Quota{} }

// String writes the form of ParseQuota.
func (q Quota) String() string {
	if q.IsZero() {
		return "off"
	}
	return fmt.Sprintf("%d/%ds", q.Calls, q.Window/time.Second)
}

// Rate lets each client make at most a quota of calls in any window, wherever the window begins. Refused calls use
// nothing up. It may be used from any number of goroutines.
//
// Of a quota of at most 64, each call is remembered, and a client within the quota is never refused. Of a larger quota,
// calls in the same 64th of a window are remembered as one run, counted until its last call is too old: never too many
// pass, and at least 64/65 of the quota do.
//
// Memory is bounded, and the history of a client with calls in the window is never dropped to make room: a flood of
// addresses must not get anybody a new allowance. When the table is full of such clients, newcomers share histories by
// a secret hash of their keys. Sharing can refuse a call needlessly; it never lets one too many pass. Clients beyond a
// stranger's invention, such as API keys, belong in a Rate of their own: a flood cannot fill it.
type Rate[K comparable] struct {
	quota    Quota
	width    time.Duration // of a cell, with its calls as one run; 0: each call is one
	capacity int
	seed     maphash.Seed // secret: nobody can choose a history to share

	mu      sync.Mutex // guards the fields below
	origin  time.Time  // of the first call; times are kept as durations since then
	now     time.Duration
	clients map[K]*list.Element // of *client[K]
	order   list.List           // of *client[K], longest without a passed call first
	shared  []history           // of newcomers to a full table; nil until it was full once
	allowed int64
	limited int64
}

// client is one place of the table.
type client[K comparable] struct {
	key K
	history
}

// NewRate makes a limiter that remembers at most capacity clients (less than 1 counts as 1), and some more in shared
// histories. The quota must be valid and not zero.
func NewRate[K comparable](quota Quota, capacity int) *Rate[K] {
	r := &Rate[K]{quota: quota, capacity: max(capacity, 1), seed: maphash.MakeSeed(), clients: make(map[K]*list.Element)}
	if quota.Calls > finest {
		r.width = quota.Window / finest
	}
	return r
}

// Verdict is the decision about one call, and the rest of its client's quota.
type Verdict struct {
	OK        bool
	Remaining int           // calls left now
	Reset     time.Duration // until more than Remaining would pass; more than 0
	Wait      time.Duration // until the refused call would pass; 0: it has passed, or never would
}

// Take asks for one call of a client. A time before the latest one counts as the latest.
func (r *Rate[K]) Take(key K, now time.Time) Verdict { return r.TakeAll(key, now, 1) }

// TakeAll asks for n calls at once: all pass or none. When n is 0 it asks whether one would pass, and takes none.
func (r *Rate[K]) TakeAll(key K, now time.Time, n int) Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.advance(now)
	r.forget(dropsPerTake)

	place, known := r.clients[key]
	room := len(r.clients) < r.capacity
	var calls *history
	if known {
		calls = &place.Value.(*client[K]).history
	} else {
		calls = r.newcomer(key, room)
	}

	calls.expire(at - r.quota.Window)
	asked := max(n, 1)
	ok := calls.total+asked <= r.quota.Calls
	if !ok {
		r.limited += int64(asked)
	} else if n > 0 {
		calls.add(at, n, r.width)
		r.allowed += int64(n)
		switch {
		case known:
			r.order.MoveToBack(place)
		case room:
			r.clients[key] = r.order.PushBack(&client[K]{key, *calls})
		}
	}
	verdict := Verdict{OK: ok, Remaining: r.quota.Calls - calls.total, Reset: r.quota.Window}
	if calls.total > 0 {
		verdict.Reset = calls.runs[0].last + r.quota.Window - at
	}
	if !ok {
		verdict.Wait = max(calls.without(calls.total+asked-r.quota.Calls)+r.quota.Window-at, 0)
	}
	return verdict
}

// RateStats are the counters of a [Rate] since it was made.
type RateStats struct {
	Quota            Quota
	Clients          int // in the table
	Capacity         int // of the table
	Allowed, Limited int64
}

// Stats returns where the limiter stands.
func (r *Rate[K]) Stats(now time.Time) RateStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.origin.IsZero() {
		r.advance(now)
	}
	r.forget(dropsPerLook)
	return RateStats{r.quota, len(r.clients), r.capacity, r.allowed, r.limited}
}

// advance moves the clock. It never goes back: callers may read the time in one order and arrive in another.
func (r *Rate[K]) advance(now time.Time) time.Duration {
	if r.origin.IsZero() {
		r.origin = now
	}
	r.now = max(r.now, now.Sub(r.origin))
	return r.now
}

// forget drops at most so many clients without a counted call. It ends at the first with one: the latest callers are at
// the back.
func (r *Rate[K]) forget(most int) {
	for range most {
		oldest := r.order.Front()
		if oldest == nil {
			return
		}
		c := oldest.Value.(*client[K])
		// None: they have expired while somebody asked.
		if n := len(c.runs); n > 0 && c.runs[n-1].last > r.now-r.quota.Window {
			return
		}
		r.order.Remove(oldest)
		delete(r.clients, c.key)
	}
}

// newcomer returns the history of a client outside the table: one of its own if there is room, else a shared one. A
// shared history is copied into the table, because it holds the earlier calls of the client.
func (r *Rate[K]) newcomer(key K, room bool) *history {
	switch {
	case r.shared == nil && room:
		return &history{}
	case r.shared == nil:
		r.shared = make([]history, max(r.capacity/perShared, 1))
	}
	shared := &r.shared[maphash.Comparable(r.seed, key)%uint64(len(r.shared))]
	if !room {
		return shared
	}
	shared.expire(r.now - r.quota.Window)
	return &history{slices.Clone(shared.runs), shared.total}
}

// Network is the address for a client without an API key: an IPv4 address itself, and the first of an IPv6 /64, the
// smallest assignment to a customer.
func Network(address netip.Addr) netip.Addr {
	if address = address.Unmap().WithZone(""); !address.Is6() {
		return address
	}
	return netip.PrefixFrom(address, 64).Masked().Addr()
}

// history holds the passed calls of a client, or of several, in the last window.
type history struct {
	runs  []run // oldest first; at most 65
	total int   // of their counts
}

// run is one call, or some of the same cell of time.
type run struct {
	last  time.Duration // when the last of them passed
	count int
}

// expire drops calls at or before a time: windows are half open.
func (h *history) expire(before time.Duration) {
	gone := 0
	for gone < len(h.runs) && h.runs[gone].last <= before {
		h.total -= h.runs[gone].count
		gone++
	}
	h.runs = slices.Delete(h.runs, 0, gone)
}

// without returns the time of the n-th oldest call; if there are fewer, a time long ago.
func (h *history) without(n int) time.Duration {
	for _, r := range h.runs {
		if n -= r.count; n <= 0 {
			return r.last
		}
	}
	return math.MinInt64 / 2
}

// add remembers n more calls.
func (h *history) add(at time.Duration, n int, width time.Duration) {
	h.total += n
	if newest := len(h.runs) - 1; newest >= 0 && width > 0 && h.runs[newest].last/width == at/width {
		h.runs[newest].last = at
		h.runs[newest].count += n
		return
	}
	h.runs = append(h.runs, run{at, n})
}
