package audit

import (
	"crypto/rand"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
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
	arrived  chan struct{} // closed by the first arrival
}

// arrival is one call of a hook.
type arrival struct {
	at     time.Time
	header http.Header
	body   []byte
}

// cutOff is the status of a hook that breaks the first attempt off and takes the next one. A sender may repeat an
// attempt at once, on another connection; attempts are further apart than cutOffFor.
const (
	cutOff    = 0
	cutOffFor = 500 * time.Millisecond
)

// hook makes an address that is answered with a status, and a Location if there is one.
func (r *Receiver) hook(status int, location string) *hook {
	h := &hook{receiver: r, path: rand.Text(), status: status, location: location, arrived: make(chan struct{})}
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
	first := ok && (len(h.arrivals) == 0 || time.Since(h.arrivals[0].at) < cutOffFor)
	if ok && len(h.arrivals) < maxArrivals {
		if len(h.arrivals) == 0 {
			close(h.arrived)
		}
		h.arrivals = append(h.arrivals, arrival{at: time.Now(), header: request.Header, body: body})
	}
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, request)
		return
	}
	if h.location != "" {
		w.Header().Set("Location", h.location)
	}
	switch {
	case h.status == cutOff && first:
		panic(http.ErrAbortHandler)
	case h.status == cutOff:
		w.WriteHeader(http.StatusOK)
	default:
		w.WriteHeader(h.status)
	}
}

// texts are the headers and bodies of all that has arrived; of no receiver there are none.
func (r *Receiver) texts() []string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, h := range r.hooks {
		for _, a := range h.arrivals {
			all = append(all, string(a.body)+strings.Join(slices.Collect(flatten(a.header)), "\n"))
		}
	}
	return all
}

// seen returns what has arrived.
func (h *hook) seen() []arrival {
	h.receiver.mu.Lock()
	defer h.receiver.mu.Unlock()
	return slices.Clip(h.arrivals)
}

// wait returns when something has arrived, or the time is up; the count shows which.
func (h *hook) wait(done <-chan struct{}, patience time.Duration) int {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-h.arrived:
	case <-timer.C:
	case <-done:
	}
	return len(h.seen())
}
