package server

import (
	"net/http"
	"sync"
	"time"

	"tandem"
	"tandem/internal/limit"
)

// Bounds of answers under way. A reader that does not read holds the memory of its answer until it is cut off.
const (
	smallAnswer   = 4 << 10  // bytes; a smaller answer is not counted, and net/http takes it at once
	answerPiece   = 32 << 10 // bytes that a reader has to take within readerTimeout
	readerTimeout = 20 * time.Second
	answersMemory = 64 << 20 // bytes of all answers that are being written
	clientMemory  = answersMemory / 4
)

// budget counts the bytes of answers that are being written, of each client and of all together.
type budget struct {
	mu      sync.Mutex // guards the fields below
	total   int64
	clients map[string]int64 // :: API key or network → its bytes; an entry goes with its last answer
}

func newBudget() *budget { return &budget{clients: make(map[string]int64)} }

// take counts n bytes for a client, or says why it cannot. An answer larger than a whole bound passes when it is alone.
func (b *budget) take(client string, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch held := b.clients[client]; {
	case held > 0 && held+n > clientMemory:
		return &tandem.Error{
			Code: tandem.CodeRateLimited, RetryAfter: time.Second,
			Message: "Earlier answers to this client, which it has not read yet, take up its share of memory. " +
				"Read them, then try again after Retry-After.",
		}
	case b.total > 0 && b.total+n > answersMemory:
		return &tandem.Error{
			Code: tandem.CodeOverloaded, RetryAfter: time.Second,
			Message: "Answers that are being read take up the memory that there is for them. " +
				"Try again after Retry-After.",
		}
	}
	b.add(client, n)
	return nil
}

// force counts n bytes that cannot be refused any more.
func (b *budget) force(client string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(client, n)
}

// add changes what a client holds; mu must be held.
func (b *budget) add(client string, n int64) {
	b.total += n
	if b.clients[client] += n; b.clients[client] == 0 {
		delete(b.clients, client)
	}
}

// hold counts n bytes for the answer to r, in place of what it held before, until its handler has ended.
func hold(w http.ResponseWriter, r *http.Request, n int) error {
	rw, ok := w.(*response)
	if !ok || n <= smallAnswer {
		return nil
	}
	rw.release()
	client := rw.server.clientName(r)
	if err := rw.server.answers.take(client, int64(n)); err != nil {
		return err
	}
	rw.holder, rw.held = client, int64(n)
	return nil
}

// holdResult is hold for the result of work that is done: nothing may refuse it.
func holdResult(w http.ResponseWriter, r *http.Request, n int) {
	rw, ok := w.(*response)
	if !ok || n <= smallAnswer {
		return
	}
	rw.release()
	rw.holder, rw.held = rw.server.clientName(r), int64(n)
	rw.server.answers.force(rw.holder, rw.held)
}

// release returns the bytes that hold has taken.
func (w *response) release() {
	if w.held > 0 {
		w.server.answers.force(w.holder, -w.held)
		w.held = 0
	}
}

// clientName identifies a client as the rate limit does: by API key, else by network.
func (s *server) clientName(r *http.Request) string {
	if key := keyOf(r); key != "" {
		return key
	}
	return limit.Network(s.client(r)).String()
}

// writePieces writes what does not fit into the buffers of net/http. The deadline moves with each
// piece: a reader may be slow, but one that does not read is cut off.
func (w *response) writePieces(p []byte) (written int, err error) {
	control := http.NewResponseController(w.ResponseWriter)
	for len(p) > 0 {
		piece := p[:min(len(p), answerPiece)]
		// An error means that there is no connection, as in tests.
		_ = control.SetWriteDeadline(time.Now().Add(w.server.cfg.readerTimeout))
		n, err := w.ResponseWriter.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}
