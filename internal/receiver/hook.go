package receiver

import (
	"context"
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
	maxHooks = 256      // addresses; an audit uses some twenty
	maxCalls = 64       // kept of each hook
	maxCall  = 64 << 10 // bytes of one
)

// Hooks is an http.Handler with an unguessable address for every question. It keeps the calls.
type Hooks struct {
	mu    sync.Mutex       // guards the field below and the calls of every hook
	hooks map[string]*Hook // :: last element of the path → hook
}

// Hook is one address.
type Hook struct {
	Path string

	hooks    *Hooks
	status   int
	location string
	calls    []Call
	called   chan struct{} // closed by the first call
}

// Call is one request received by a hook.
type Call struct {
	At     time.Time
	Header http.Header
	Body   []byte
}

// CutOff is the status of a hook for breaking off the first attempt and answering 200 to the next one. A sender may
// repeat an attempt at once, on another connection; attempts are further apart than cutOffFor.
const (
	CutOff    = 0
	cutOffFor = 500 * time.Millisecond
)

// New makes an address. It answers with a status, and with a Location unless it is empty.
func (h *Hooks) New(status int, location string) *Hook {
	hook := &Hook{hooks: h, Path: rand.Text(), status: status, location: location, called: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hooks == nil {
		h.hooks = make(map[string]*Hook)
	}
	if len(h.hooks) < maxHooks {
		h.hooks[hook.Path] = hook
	}
	return hook
}

// ServeHTTP takes one call, by any method.
func (h *Hooks) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, maxCall))
	if err != nil {
		return // the sender has closed the connection
	}
	h.mu.Lock()
	hook, ok := h.hooks[path.Base(req.URL.Path)]
	first := ok && (len(hook.calls) == 0 || time.Since(hook.calls[0].At) < cutOffFor)
	if ok && len(hook.calls) < maxCalls {
		if len(hook.calls) == 0 {
			close(hook.called)
		}
		hook.calls = append(hook.calls, Call{At: time.Now(), Header: req.Header, Body: body})
	}
	h.mu.Unlock()
	switch {
	case !ok:
		http.NotFound(w, req)
	case hook.status == CutOff && first:
		panic(http.ErrAbortHandler)
	case hook.status != CutOff:
		if hook.location != "" {
			w.Header().Set("Location", hook.location)
		}
		w.WriteHeader(hook.status)
	}
}

// Texts returns the headers and body of each call; nil hooks have none.
func (h *Hooks) Texts() []string {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var texts []string
	for _, hook := range h.hooks {
		for _, call := range hook.calls {
			var text strings.Builder
			_, _ = text.Write(call.Body)
			_ = call.Header.Write(&text) // to memory: it cannot fail
			texts = append(texts, text.String())
		}
	}
	return texts
}

// Calls returns the calls so far.
func (k *Hook) Calls() []Call {
	k.hooks.mu.Lock()
	defer k.hooks.mu.Unlock()
	return slices.Clip(k.calls)
}

// Wait returns whether a call has arrived before the timeout, or before ctx ends.
func (k *Hook) Wait(ctx context.Context, timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-k.called:
	case <-timer.C:
	case <-ctx.Done():
	}
	return len(k.Calls()) > 0
}
