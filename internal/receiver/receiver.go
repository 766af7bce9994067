// Package receiver receives callbacks: it verifies, counts and, when asked, misbehaves. `tandem sink`, the demo, load,
// audit and the tests share it. It faces strangers, so its reading and its memory are bounded.
package receiver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"sync"
	"time"

	"tandem"
)

// DefaultMaxBody is the default of Config.MaxBody.
const DefaultMaxBody = 1 << 20

const (
	defaultMaxKeys = 1_000_000
	maxReading     = 64        // bodies in memory at once; further callbacks wait for a permit
	maxReadingSize = 256 << 20 // bytes of all of them; one body is always read
	gracePeriod    = 500 * time.Millisecond
)

// Config configures a [Receiver].
type Config struct {
	Secret    tandem.Secret  // verifies every callback; zero: signatures are not checked
	MaxKeys   int            // ids remembered to recognize repeats, 100 bytes each, the newest; 0: 1,000,000
	MaxBody   int64          // bytes of one callback; a longer one is answered 413; 0: DefaultMaxBody
	Behaviour Behaviour      // how it answers; the zero value is a good receiver
	Seed      uint64         // of the choice of callbacks to treat badly; 0: random
	Count     func(*Arrival) // counts a callback and may change its status; nil: Receiver.Counts does
	OnArrival func(Arrival)  // called for each callback before its answer, concurrently; nil: nobody
}

// Behaviour is how a receiver answers. The zero value answers 200 at once.
type Behaviour struct {
	Delay    time.Duration // before every answer
	FailRate float64       // 0..1, share of callbacks treated as Status, Hang or Redirect say; 0: all, if one is set
	Status   int           // answered instead of 200; 0: 500 when FailRate asks for failures and nothing else is set
	Hang     bool          // no answer at all: the connection stays open until the sender closes it
	Redirect string        // answered 307 with this Location
}

// Validate reports contradictions.
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

// status is the answer to a callback treated badly; 0: none.
func (b Behaviour) status() int {
	switch {
	case b.Hang:
		return 0
	case b.Redirect != "":
		return http.StatusTemporaryRedirect
	default:
		return cmp.Or(b.Status, http.StatusInternalServerError)
	}
}

// Outcome is the receiver's decision about a callback.
type Outcome int

// The outcomes.
const (
	Good         Outcome = iota
	BadSignature         // answered 401
	Malformed            // answered 400 or 413: no callback
	Misbehaved           // answered badly, or not at all, on purpose
)

// Arrival is one callback as it came in. Its texts come from a stranger: they may hold anything.
type Arrival struct {
	At        time.Time       // when its body had been read
	Key       string          // the last element of the path
	ID        string          // webhook-id
	Callback  tandem.Callback // its body; zero when Malformed
	Bytes     int             // length of the body
	Checked   bool            // there is a secret
	Signature error           // why the signature is refused; nil: it is good, or was not checked
	Malformed error           // why the body is no callback, or not about the id in the header; nil: it is
	Outcome   Outcome         //
	Duplicate bool            // it was answered 2xx before
	Status    int             // the answer it gets; 0: none, it hangs
}

// Counts are the counters of a receiver. Each callback is in Received and in exactly one of the others.
type Counts struct {
	Received     int64 // all callbacks
	Delivered    int64 // good ones answered 2xx, each id once
	Duplicates   int64 // good ones delivered before
	BadSignature int64
	Malformed    int64
	Misbehaved   int64
}

// Receiver is an http.Handler for callbacks of any sender.
type Receiver struct {
	cfg     Config
	reading chan struct{} // a permit per body in memory

	mu     sync.Mutex      // guards the fields below
	seen   map[string]bool // delivered ids
	order  []string        // ring of them, oldest at next once it is full
	next   int
	counts Counts
	dice   *rand.Rand
}

// New makes a receiver; it returns an error when cfg contradicts itself.
func New(cfg Config) (*Receiver, error) {
	if err := cfg.Behaviour.Validate(); err != nil {
		return nil, fmt.Errorf("configure receiver: %w", err)
	}
	r := &Receiver{cfg: cfg, seen: make(map[string]bool)}
	if cfg.MaxKeys <= 0 {
		r.cfg.MaxKeys = defaultMaxKeys
	}
	if cfg.MaxBody <= 0 {
		r.cfg.MaxBody = DefaultMaxBody
	}
	if cfg.Count == nil {
		r.cfg.Count = r.count
	}
	if cfg.OnArrival == nil {
		r.cfg.OnArrival = func(Arrival) {}
	}
	r.reading = make(chan struct{}, min(max(maxReadingSize/r.cfg.MaxBody, 1), maxReading))
	r.dice = rand.New(rand.NewPCG(cmp.Or(cfg.Seed, rand.Uint64()), 0))
	return r, nil
}

// Counts returns the counters so far.
func (r *Receiver) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// ServeHTTP takes one callback.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "callbacks come by POST", http.StatusMethodNotAllowed)
		return
	}
	arrival, ok := r.read(w, req)
	if !ok {
		return
	}
	r.judge(&arrival)
	r.cfg.Count(&arrival)
	r.cfg.OnArrival(arrival)
	r.answer(w, req, arrival)
}

// read reads and checks a callback; its body is forgotten when read returns. It is not ok when the sender has closed
// the connection before the end of the body: nothing has arrived then.
func (r *Receiver) read(w http.ResponseWriter, req *http.Request) (Arrival, bool) {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-req.Context().Done():
		return Arrival{}, false
	}
	a := Arrival{
		ID: req.Header.Get(tandem.HeaderWebhookID), Key: path.Base(req.URL.Path), Checked: !r.cfg.Secret.IsZero(),
	}
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
	if a.Callback, err = parse(body); err != nil {
		a.Malformed = errors.New("the body is not a callback in JSON")
		return a, true
	}
	if _, named := req.Header[http.CanonicalHeaderKey(tandem.HeaderWebhookID)]; !named && !a.Checked {
		a.ID = a.Callback.RequestID // of a service without Standard Webhooks
	}
	if a.ID == "" || a.ID != a.Callback.RequestID {
		a.Malformed = errors.New("webhook-id and request_id differ")
	}
	return a, true
}

// parse reads a callback. Its times may have no zone.
func parse(body []byte) (tandem.Callback, error) {
	var read struct {
		tandem.Callback

		Timestamp Time `json:"timestamp"`
		Metadata  struct {
			tandem.CallbackMetadata

			SentAt Time `json:"sent_at"`
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

// Time is a time of RFC 3339. One without a zone, as Python writes datetime.utcnow(), is UTC.
type Time struct{ time.Time }

// UnmarshalJSON reads it.
func (t *Time) UnmarshalJSON(text []byte) error {
	err := t.Time.UnmarshalJSON(text)
	if err == nil {
		return nil
	}
	if naive, wrong := time.Parse(`"2006-01-02T15:04:05"`, string(text)); wrong == nil { // and with any fraction
		t.Time = naive
		return nil
	}
	return err
}

// judge decides the outcome and the answer.
func (r *Receiver) judge(a *Arrival) {
	bad, status := r.misbehaves(), r.cfg.Behaviour.status()
	switch {
	case a.Signature != nil:
		a.Outcome, a.Status = BadSignature, http.StatusUnauthorized
	case a.Malformed != nil:
		a.Outcome, a.Status = Malformed, cmp.Or(a.Status, http.StatusBadRequest)
	case !bad:
		a.Status = http.StatusOK
	case status/100 == 2: // an odd success (--status 204)
		a.Status = status
	default:
		a.Outcome, a.Status = Misbehaved, status
	}
}

// misbehaves decides whether a callback is treated badly.
func (r *Receiver) misbehaves() bool {
	b := r.cfg.Behaviour
	if b.FailRate == 0 {
		return b.Status != 0 || b.Hang || b.Redirect != ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dice.Float64() < b.FailRate
}

// count counts a callback. It is delivered when the answer is decided, before it is on the wire: a sender dying in
// between sends again, and the repeat is a duplicate here as for any receiver.
func (r *Receiver) count(a *Arrival) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Received++
	a.Duplicate = r.seen[a.ID]
	switch {
	case a.Outcome == BadSignature:
		r.counts.BadSignature++
	case a.Outcome == Malformed:
		r.counts.Malformed++
	case a.Outcome == Misbehaved:
		r.counts.Misbehaved++
	case a.Duplicate:
		r.counts.Duplicates++
	default:
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

// answer writes the answer.
func (r *Receiver) answer(w http.ResponseWriter, req *http.Request, a Arrival) {
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
		<-req.Context().Done() // until the sender closes the connection
		return
	}
	if a.Status == http.StatusTemporaryRedirect && r.cfg.Behaviour.Redirect != "" {
		w.Header().Set("Location", r.cfg.Behaviour.Redirect)
	}
	w.WriteHeader(a.Status)
}

// Serve serves a receiver until ctx ends; hanging connections are closed after a grace period. Errors of strangers are
// not logged.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	stopped := make(chan error, 1)
	cancel := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), gracePeriod)
		defer cancel()
		err := server.Shutdown(grace)
		if err != nil {
			err = server.Close()
		}
		stopped <- err
	})
	if err := server.Serve(listener); cancel() { // ctx has not ended
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return <-stopped
}
