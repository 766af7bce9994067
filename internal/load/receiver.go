// Package load puts a tandem service under load and says what came of it. It
// speaks HTTP only and knows nothing of the service's inside, so that it
// measures a deployment the way a client sees it.
//
// This file is the receiving end: the [Receiver] of callbacks that a measurement
// counts, that `tandem sink` prints, and that tests make misbehave.
package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"sync"
	"time"

	"tandem"
)

// Defaults of a [ReceiverConfig].
const (
	defaultMaxKeys = 1_000_000
	defaultMaxBody = 1 << 20
	maxReading     = 64        // bodies in memory at once; further callbacks wait for their turn
	maxReadingSize = 256 << 20 // bytes of all of them; one body is always read
)

// ReceiverConfig configures a [Receiver].
type ReceiverConfig struct {
	Secret    tandem.Secret // verifies every callback; zero: signatures are not checked
	MaxKeys   int           // ids remembered, about 100 bytes each, to know repeats; beyond, the oldest is forgotten; 0: 1,000,000
	MaxBody   int64         // bytes of one callback, beyond which it is answered 413; 0: 1 MiB
	Behaviour Behaviour     // how it answers; the zero value is a good receiver
	OnArrival func(Arrival) // told of every callback before it is answered, from many goroutines at once; nil: nobody
}

// Behaviour is how a receiver answers. The zero value answers 200 at once.
type Behaviour struct {
	Delay    time.Duration // before every answer
	FailRate float64       // 0..1, share of callbacks treated as Status, Hang or Redirect say; 0 means all of them if one is set
	Status   int           // answered instead of 200; 0: 500 when FailRate asks for failures and nothing else is set
	Hang     bool          // no answer at all: the connection stays open until the sender gives up
	Redirect string        // answered 307 with this Location
}

// Validate reports a behaviour that contradicts itself.
func (b Behaviour) Validate() error {
	switch {
	case b.FailRate < 0 || b.FailRate > 1 || b.FailRate != b.FailRate:
		return fmt.Errorf("fail rate %v: want 0 to 1", b.FailRate)
	case b.Status != 0 && (b.Status < 200 || b.Status > 599):
		return fmt.Errorf("status %d: want 200 to 599", b.Status)
	case b.Delay < 0:
		return fmt.Errorf("delay %v: want zero or more", b.Delay)
	case b.Hang && (b.Status != 0 || b.Redirect != ""), b.Redirect != "" && b.Status != 0:
		return errors.New("status, hang and redirect exclude each other")
	}
	return nil
}

// misbehaves decides for one callback; dice is in [0, 1).
func (b Behaviour) misbehaves(dice float64) bool {
	if b.FailRate > 0 {
		return dice < b.FailRate
	}
	return b.Status != 0 || b.Hang || b.Redirect != ""
}

// Arrival is one callback as it came in. Its texts come from a stranger: they
// may hold anything.
type Arrival struct {
	At        time.Time       // when its body had been read
	Key       string          // the last element of the path
	ID        string          // webhook-id
	Callback  tandem.Callback // its body; zero when Malformed
	Bytes     int             // length of the body
	Checked   bool            // there is a secret
	Signature error           // why the signature is refused; nil: it is good, or was not checked
	Malformed error           // why the body is no callback, or not about the id in the header; nil: it is
	Duplicate bool            // it was answered 2xx before
	Status    int             // the answer it gets; 0: none, it hangs
}

// Counts says what a receiver has seen. Each callback is in Received and in exactly one of the others.
type Counts struct {
	Received     int64 // callbacks, whatever became of them
	Delivered    int64 // good ones that were answered 2xx, each id once
	Duplicates   int64 // good ones that had been delivered already
	BadSignature int64 // answered 401
	Malformed    int64 // answered 400 or 413: no callback
	Misbehaved   int64 // answered badly, or not at all, on purpose
}

// Receiver is an http.Handler that takes whatever callbacks come.
type Receiver struct {
	taker

	mu     sync.Mutex      // guards the fields below
	seen   map[string]bool // the ids that were delivered
	order  []string        // ring of them, oldest at next once it is full
	next   int
	counts Counts
}

// taker is what every receiver has: it reads and checks a callback, and answers it.
type taker struct {
	cfg     ReceiverConfig
	reading chan struct{} // a place per body in memory
}

// NewReceiver makes a receiver; it returns an error when cfg contradicts itself.
func NewReceiver(cfg ReceiverConfig) (*Receiver, error) {
	taker, err := newTaker(cfg)
	if err != nil {
		return nil, err
	}
	return &Receiver{taker: taker, seen: make(map[string]bool)}, nil
}

func newTaker(cfg ReceiverConfig) (taker, error) {
	if err := cfg.Behaviour.Validate(); err != nil {
		return taker{}, fmt.Errorf("configure receiver: %w", err)
	}
	if cfg.MaxKeys <= 0 {
		cfg.MaxKeys = defaultMaxKeys
	}
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.OnArrival == nil {
		cfg.OnArrival = func(Arrival) {}
	}
	return taker{cfg: cfg, reading: make(chan struct{}, min(max(maxReadingSize/cfg.MaxBody, 1), maxReading))}, nil
}

// Counts returns what was seen so far.
func (r *Receiver) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// ServeHTTP takes one callback.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	arrival, ok := r.take(w, req)
	if !ok {
		return
	}
	bad := r.cfg.Behaviour.misbehaves(rand.Float64())
	r.settle(&arrival, bad)
	r.cfg.OnArrival(arrival)
	r.answer(w, req, arrival)
}

// take reads a callback. It is not ok when there is nothing to settle: it was no
// POST, which is answered, or the sender left in the middle of its body, so that nothing has arrived.
func (r *taker) take(w http.ResponseWriter, req *http.Request) (Arrival, bool) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "callbacks come by POST", http.StatusMethodNotAllowed)
		return Arrival{}, false
	}
	return r.read(w, req)
}

// read takes the body and checks it; the body is forgotten when read returns.
// It is not ok when the sender has gone.
func (r *taker) read(w http.ResponseWriter, req *http.Request) (Arrival, bool) {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-req.Context().Done():
		return Arrival{}, false
	}
	a := Arrival{ID: req.Header.Get(tandem.HeaderWebhookID), Key: path.Base(req.URL.Path), Checked: !r.cfg.Secret.IsZero()}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, r.cfg.MaxBody))
	a.At, a.Bytes = time.Now(), len(body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		a.Malformed, a.Status = fmt.Errorf("longer than %d bytes", r.cfg.MaxBody), http.StatusRequestEntityTooLarge
		return a, true
	case err != nil:
		return Arrival{}, false
	}
	if a.Checked {
		a.Signature = r.cfg.Secret.Verify(req.Header, body, a.At)
	}
	if a.Callback, err = parseCallback(body); err != nil {
		a.Malformed = errors.New("the body is not a callback in JSON")
		return a, true
	}
	if _, named := req.Header[http.CanonicalHeaderKey(tandem.HeaderWebhookID)]; !named && !a.Checked {
		a.ID = a.Callback.RequestID // of a service that does not know Standard Webhooks
	}
	if a.ID == "" || a.ID != a.Callback.RequestID {
		a.Malformed = errors.New("webhook-id and request_id differ")
	}
	return a, true
}

// parseCallback reads a callback, with times that may have no zone.
func parseCallback(body []byte) (tandem.Callback, error) {
	var read struct {
		tandem.Callback

		Timestamp anyTime `json:"timestamp"`
		Metadata  struct {
			tandem.CallbackMetadata

			SentAt anyTime `json:"sent_at"`
		} `json:"callback_metadata"`
	}
	if err := json.Unmarshal(body, &read); err != nil {
		return tandem.Callback{}, err
	}
	callback := read.Callback
	callback.Timestamp, callback.Metadata = read.Timestamp.Time, read.Metadata.CallbackMetadata
	callback.Metadata.SentAt = read.Metadata.SentAt.Time
	return callback, nil
}

// anyTime is a time of RFC 3339. One without a zone, as Python writes datetime.utcnow(), is UTC.
type anyTime struct{ time.Time }

// UnmarshalJSON reads it.
func (m *anyTime) UnmarshalJSON(text []byte) error {
	err := m.Time.UnmarshalJSON(text)
	if err == nil {
		return nil
	}
	if naive, wrong := time.Parse(`"2006-01-02T15:04:05"`, string(text)); wrong == nil { // and with any fraction
		m.Time = naive
		return nil
	}
	return err
}

// settle decides the answer and counts it. A callback counts as delivered when
// the answer is decided, before it is on the wire: a sender that dies in between sends
// again, and that is a duplicate here as it is for any receiver.
func (r *Receiver) settle(a *Arrival, bad bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Received++
	a.Duplicate = r.seen[a.ID]
	switch {
	case a.Signature != nil:
		a.Status = http.StatusUnauthorized
		r.counts.BadSignature++
	case a.Malformed != nil:
		if a.Status == 0 {
			a.Status = http.StatusBadRequest
		}
		r.counts.Malformed++
	case bad && !r.cfg.Behaviour.delivers():
		a.Status = r.cfg.Behaviour.status()
		r.counts.Misbehaved++
	default:
		a.Status = http.StatusOK
		if bad {
			a.Status = r.cfg.Behaviour.status()
		}
		if a.Duplicate {
			r.counts.Duplicates++
			return
		}
		r.rememberLocked(a.ID)
		r.counts.Delivered++
	}
}

// rememberLocked keeps an id, in the place of the oldest when there are MaxKeys.
func (r *Receiver) rememberLocked(id string) {
	if len(r.order) < r.cfg.MaxKeys {
		r.order = append(r.order, id)
	} else {
		delete(r.seen, r.order[r.next])
		r.order[r.next] = id
		r.next = (r.next + 1) % len(r.order)
	}
	r.seen[id] = true
}

// delivers reports whether the odd answer is a success all the same (--status 204).
func (b Behaviour) delivers() bool { return b.Status >= 200 && b.Status < 300 }

// status is the answer of a callback that is treated badly; 0: none.
func (b Behaviour) status() int {
	switch {
	case b.Hang:
		return 0
	case b.Redirect != "":
		return http.StatusTemporaryRedirect
	case b.Status != 0:
		return b.Status
	default:
		return http.StatusInternalServerError
	}
}

// answer writes what settle decided.
func (r *taker) answer(w http.ResponseWriter, req *http.Request, a Arrival) {
	if r.cfg.Behaviour.Delay > 0 {
		timer := time.NewTimer(r.cfg.Behaviour.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-req.Context().Done():
			return
		}
	}
	if a.Status == 0 {
		<-req.Context().Done() // until the sender gives up
		return
	}
	if a.Status == http.StatusTemporaryRedirect && r.cfg.Behaviour.Redirect != "" {
		w.Header().Set("Location", r.cfg.Behaviour.Redirect)
	}
	w.WriteHeader(a.Status)
}
