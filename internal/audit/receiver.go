package audit

import (
	"crypto/rand"
	"io"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"
)

const (
	maxHooks    = 256      // addresses that a receiver has; an audit uses some twenty
	maxArrivals = 64       // callbacks kept for each
	maxCallback = 64 << 10 // bytes of one
)

// Receiver is the audit's own end of callbacks: an http.Handler with an address for every question,
// that nobody can guess. Whoever serves it bounds its connections and its time.
type Receiver struct {
	mu    sync.Mutex       // guards the fields below and those of every hook
	hooks map[string]*hook // :: last element of the path → hook
}

// NewReceiver makes a receiver without any address.
func NewReceiver() *Receiver { return &Receiver{hooks: make(map[string]*hook)} }

// hook is one address and what arrived there.
type hook struct {
	receiver *Receiver
	path     string
	status   int
	location string
	arrivals []arrival
	changed  chan struct{} // closed at the next arrival
}

// arrival is one call of a hook.
type arrival struct {
	at     time.Time
	header http.Header
	body   []byte
}

// hook makes an address that is answered with a status, and a Location if there is one.
func (r *Receiver) hook(status int, location string) *hook {
	h := &hook{receiver: r, path: rand.Text(), status: status, location: location, changed: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.hooks) < maxHooks {
		r.hooks[h.path] = h
	}
	return h
}

// ServeHTTP takes one callback.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(io.LimitReader(request.Body, maxCallback))
	if err != nil {
		return // the sender has gone
	}
	r.mu.Lock()
	h, ok := r.hooks[path.Base(request.URL.Path)]
	if ok && len(h.arrivals) < maxArrivals {
		h.arrivals = append(h.arrivals, arrival{at: time.Now(), header: request.Header, body: body})
		close(h.changed)
		h.changed = make(chan struct{})
	}
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, request)
		return
	}
	if h.location != "" {
		w.Header().Set("Location", h.location)
	}
	w.WriteHeader(h.status)
}

// seen returns what has arrived.
func (h *hook) seen() []arrival {
	h.receiver.mu.Lock()
	defer h.receiver.mu.Unlock()
	return slices.Clip(h.arrivals)
}

// wait returns when n calls have arrived, or the time is up; the count tells which.
func (h *hook) wait(done <-chan struct{}, n int, patience time.Duration) int {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		h.receiver.mu.Lock()
		have, changed := len(h.arrivals), h.changed
		h.receiver.mu.Unlock()
		if have >= n {
			return have
		}
		select {
		case <-changed:
		case <-timer.C:
			return have
		case <-done:
			return have
		}
	}
}
