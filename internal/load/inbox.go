package load

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem"
	"tandem/internal/receiver"
)

// Bounds of an [inbox].
const (
	maxOutstanding = 4 << 20 // callbacks expected at once, about 40 bytes each
	maxKnownIDs    = 10_000  // request ids of expected callbacks, to look up the missing ones
)

// errTooManyOutstanding ends a phase: more callbacks cannot be told apart.
var errTooManyOutstanding = fmt.Errorf("%d callbacks are expected and have not come", maxOutstanding)

// The states of a number, in two bits. inbox.open holds the rest while a callback is expected.
const (
	stateExpected  = 0 // or missing, when it is not in inbox.open any more
	stateDelivered = 1
	stateRefused   = 2
)

// inbox counts the callbacks of a run. A request's key is the run's random prefix and a number. Numbers are
// consecutive, so a finished request needs two bits, and repeats are recognised until the end of the run.
type inbox struct {
	prefix string
	since  func(time.Time) time.Duration // on the clock of the run
	offset time.Duration                 // the service's clock minus ours

	mu     sync.Mutex // guards the fields below, and the counters of the phases; taken before a recorder's
	next   uint64     // number
	states []uint64   // two bits per number
	open   map[uint64]expectation
	early  map[uint64]landing // callbacks ahead of their 202; at most one per request in flight
	ids    map[uint64]string  // request ids of some of open
	phases []*running         // in the order of their numbers
	left   int64              // answered 202 and without callback
	idle   chan struct{}      // closed when left is 0; nil while nobody waits
}

// expectation is a request without its callback so far.
type expectation struct {
	planned  time.Duration // on the clock of the run
	answered bool          // its 202 was read
}

// landing is a good callback.
type landing struct {
	at         time.Duration // on the clock of the run
	endToEnd   time.Duration
	processing time.Duration
	delivery   time.Duration
	attempt    int  // of the delivery, from 1, as it says; 0: polled
	failed     bool // the work failed, it says
}

func newInbox(offset time.Duration, since func(time.Time) time.Duration) *inbox {
	return &inbox{
		prefix: keyPrefix(), since: since, offset: offset,
		open: make(map[uint64]expectation), early: make(map[uint64]landing), ids: make(map[uint64]string),
	}
}

// keyPrefix makes the keys of a run unique: a callback of an earlier run is unknown.
func keyPrefix() string {
	var random [6]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	return hex.EncodeToString(random[:]) + "-"
}

// appendKey appends the key of a number.
func (b *inbox) appendKey(to []byte, number uint64) []byte {
	return strconv.AppendUint(append(to, b.prefix...), number, 10)
}

// number reads a key.
func (b *inbox) number(key string) (uint64, bool) {
	digits, ok := strings.CutPrefix(key, b.prefix)
	if !ok || digits == "" || len(digits) > 1 && digits[0] == '0' {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// begin assigns the following numbers to a phase.
func (b *inbox) begin(p *running) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.firstNumber = b.next
	b.phases = append(b.phases, p)
}

// expect registers a request before it is sent.
func (b *inbox) expect(planned time.Duration) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.open) >= maxOutstanding {
		return 0, errTooManyOutstanding
	}
	number := b.next
	b.next++
	if number%32 == 0 {
		b.states = append(b.states, 0)
	}
	b.open[number] = expectation{planned: planned}
	return number, nil
}

func (b *inbox) stateLocked(number uint64) uint64 {
	return b.states[number/32] >> (number % 32 * 2) & 3
}

func (b *inbox) settleLocked(number, state uint64) {
	shift := number % 32 * 2
	b.states[number/32] = b.states[number/32]&^(3<<shift) | state<<shift
	delete(b.open, number)
	delete(b.early, number)
	delete(b.ids, number)
}

// answered records the 202 of a request.
func (b *inbox) answered(number uint64, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.phases[len(b.phases)-1]
	p.callbacks.Expected++
	b.left++
	if early, overtaken := b.early[number]; overtaken {
		p.callbacks.BeforeAnswer++
		p.callbacks.Delivered++
		b.landedLocked(p, number, early)
		return
	}
	b.open[number] = expectation{planned: b.open[number].planned, answered: true}
	if len(b.ids) < maxKnownIDs {
		b.ids[number] = id
	}
}

// refused records a request without a 202. It may have been carried out all the same.
func (b *inbox) refused(number uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, came := b.early[number]; came {
		b.phases[len(b.phases)-1].callbacks.Unanswered++
		b.settleLocked(number, stateDelivered)
		return
	}
	b.settleLocked(number, stateRefused)
}

// polled counts a polled result, unless the request counts as missing already.
func (b *inbox) polled(number uint64, l landing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open[number].answered {
		return
	}
	p := b.phases[len(b.phases)-1]
	p.callbacks.Polled++
	b.landedLocked(p, number, l)
}

// landedLocked records an awaited result, before the phase is reported: the last result closes idle.
func (b *inbox) landedLocked(p *running, number uint64, l landing) {
	b.settleLocked(number, stateDelivered)
	b.left--
	if l.attempt > 1 {
		p.callbacks.Redelivered++
	}
	p.landed(l)
	b.wakeLocked()
}

// count counts a callback, and refuses unknown keys.
func (b *inbox) count(a *receiver.Arrival) {
	number, ours := b.number(a.Key)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.phases) == 0 {
		a.Status = http.StatusNotFound
		return
	}
	known := ours && number < b.next
	p := b.phases[len(b.phases)-1]
	for i := len(b.phases) - 1; known && p.firstNumber > number; i-- {
		p = b.phases[i]
	}
	counts := &p.callbacks
	switch {
	case a.Outcome == receiver.BadSignature:
		counts.BadSignature++
	case a.Outcome == receiver.Malformed:
		counts.Malformed++
	case !known:
		a.Status = http.StatusNotFound
		counts.Unknown++
	case a.Outcome == receiver.Misbehaved:
		counts.Misbehaved++
	default:
		b.acceptLocked(p, number, a)
	}
}

// acceptLocked counts a good callback for a known key.
func (b *inbox) acceptLocked(p *running, number uint64, a *receiver.Arrival) {
	_, early := b.early[number]
	expected, open := b.open[number]
	switch state := b.stateLocked(number); {
	case early || state == stateDelivered:
		a.Duplicate = true
		p.callbacks.Duplicate++
	case state == stateRefused:
		p.callbacks.Unanswered++
		b.settleLocked(number, stateDelivered)
	case !open:
		p.callbacks.Late++
		b.settleLocked(number, stateDelivered)
	case !expected.answered:
		b.early[number] = b.landing(expected, a)
	default:
		p.callbacks.Delivered++
		b.landedLocked(p, number, b.landing(expected, a))
	}
}

// landing is the result in a callback.
func (b *inbox) landing(expected expectation, a *receiver.Arrival) landing {
	at := b.since(a.At)
	return landing{
		at: at, endToEnd: at - expected.planned,
		processing: time.Duration(a.Callback.ProcessingTimeMS * float64(time.Millisecond)),
		delivery:   a.At.Sub(a.Callback.Timestamp.Add(-b.offset)),
		attempt:    a.Callback.Metadata.Attempt,
		failed: a.Callback.Type != tandem.EventCompleted &&
			(a.Callback.Type != "" || a.Callback.Status != tandem.StatusCompleted),
	}
}

// wakeLocked closes idle when nothing is missing any more.
func (b *inbox) wakeLocked() {
	if b.idle != nil && b.left == 0 {
		close(b.idle)
		b.idle = nil
	}
}

// allIn returns a channel, closed when no callback is missing.
func (b *inbox) allIn() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle == nil {
		b.idle = make(chan struct{})
	}
	idle := b.idle
	b.wakeLocked()
	return idle
}

// outstanding is the number of callbacks missing so far.
func (b *inbox) outstanding() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}

// end closes the last phase: open callbacks are missing, and late if they arrive after all. It returns ids of some of
// them.
func (b *inbox) end() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	for number, id := range b.ids {
		if len(ids) == maxLookups {
			break
		}
		if b.open[number].answered {
			ids = append(ids, id)
		}
	}
	b.phases[len(b.phases)-1].callbacks.Missing = b.left
	b.left = 0
	clear(b.open)
	clear(b.early)
	clear(b.ids)
	return ids
}

// counters returns the counters of a phase so far.
func (b *inbox) counters(p *running) Callbacks {
	b.mu.Lock()
	defer b.mu.Unlock()
	return p.callbacks
}
