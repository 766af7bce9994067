package server

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"tandem"
)

const (
	inboxIDs  = 1_000    // ids remembered; the oldest is forgotten
	inboxBody = 64 << 10 // bytes kept of a body
	inboxRead = 32 << 20 // bytes read of a body: any result fits
)

// arrival is what came for one id.
type arrival struct {
	ID        string            `json:"id" doc:"The webhook-id: the request's id"`
	Count     int               `json:"count" minimum:"1" doc:"How often it came; more than once is what at-least-once means"`
	FirstAt   time.Time         `json:"first_at"`
	LastAt    time.Time         `json:"last_at"`
	Headers   map[string]string `json:"headers" doc:"Of the last one: those that matter to a receiver"`
	Body      any               `json:"body" doc:"Of the last one: JSON, or a string if it was none"`
	Truncated bool              `json:"truncated" doc:"The body was larger than 64 KiB and is shown in part, as a string"`
}

// receipt answers a callback.
type receipt struct {
	Status string `json:"status" enum:"received"`
	ID     string `json:"id"`
}

// inbox is a receiver for trying callbacks out. It remembers a bounded number
// and does not survive a restart. It verifies nothing: `tandem sink` does.
type inbox struct {
	mu       sync.Mutex          // guards the fields below
	arrivals map[string]*arrival // :: webhook-id → what came
	ids      []string            // a ring, in order of first arrival
	next     int                 // where in ids the next new id goes
}

func newInbox() *inbox { return &inbox{arrivals: make(map[string]*arrival)} }

// put remembers what came; a is complete but for its count and first time.
func (b *inbox) put(a arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if known, ok := b.arrivals[a.ID]; ok {
		a.Count, a.FirstAt = known.Count+1, known.FirstAt
		*known = a
		return
	}
	if len(b.ids) < inboxIDs {
		b.ids = append(b.ids, a.ID)
	} else {
		delete(b.arrivals, b.ids[b.next])
		b.ids[b.next] = a.ID
		b.next = (b.next + 1) % inboxIDs
	}
	a.Count, a.FirstAt = 1, a.LastAt
	b.arrivals[a.ID] = &a
}

// find returns a copy, which later arrivals do not change.
func (b *inbox) find(id string) (arrival, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a, ok := b.arrivals[id]; ok {
		return *a, true
	}
	return arrival{}, false
}

// handleReceive takes a callback in. What is beyond the part kept is read and
// dropped, so that the sender sees its whole callback taken.
func (s *server) handleReceive(r *http.Request) (receipt, error) {
	id := r.Header.Get(tandem.HeaderWebhookID)
	if !isToken(id) {
		return receipt{}, invalid([]tandem.FieldError{{Location: "header.webhook-id",
			Message: "must be 1 to 64 letters, digits, dots, dashes or underscores", Value: shorten(id)}})
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, inboxBody+1))
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(r.Body, inboxRead))
	}
	if err != nil {
		return receipt{}, bodyError(err)
	}
	a := arrival{ID: id, LastAt: time.Now().UTC().Truncate(time.Millisecond), Headers: map[string]string{},
		Truncated: len(body) > inboxBody}
	switch {
	case a.Truncated:
		a.Body = string(body[:inboxBody])
	case json.Valid(body):
		a.Body = json.RawMessage(body)
	default:
		a.Body = string(body)
	}
	for _, name := range []string{contentTypeKey, "User-Agent", tandem.HeaderWebhookID, tandem.HeaderWebhookTimestamp,
		tandem.HeaderWebhookSignature} {
		if value := r.Header.Get(name); value != "" {
			a.Headers[name] = value
		}
	}
	s.inbox.put(a)
	return receipt{"received", id}, nil
}

// handleReceived shows what came.
func (s *server) handleReceived(r *http.Request) (arrival, error) {
	a, ok := s.inbox.find(r.PathValue("id"))
	if !ok {
		return a, tandem.Errorf(tandem.CodeNotFound, "No callback with this id has arrived here, or it was long ago.")
	}
	return a, nil
}
