package server

import (
	"bytes"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/store"
)

// Application is what an application adds to the API. Its routes get what all routes have: keys, rate limits, checks of
// the origin, metrics, and their place in the OpenAPI document.
type Application struct {
	Tag, About string // of its routes in the OpenAPI document
	Routes     func(*API) []Route
	Counters   []Counter     // in /metrics
	Nullable   []string      // schema.property of objects that may be null
	AnswerTime time.Duration // within which every answer of its routes is decided
}

// answerTime is 0 where there is no application.
func (a *Application) answerTime() time.Duration {
	if a == nil {
		return 0
	}
	return a.AnswerTime
}

// Counter is a metric of an application that only grows.
type Counter struct {
	Name, Help string
	Label      string // "": it has none
	Stored     bool   // it is of the store's counters, and left out while they cannot be read
	Read       func(stats *store.Stats, put func(value int64, label ...string))
}

// API is what the routes of an application may use.
type API struct {
	Engine  *engine.Engine
	Store   store.History
	Debug   bool      // what debug_mode says
	Started time.Time // when the server was made

	// MaxPosts is how many POSTs the rate limit ever lets through together; 0: it has no bound.
	MaxPosts int

	server *server
}

func (s *server) api() *API {
	return &API{
		Engine: s.cfg.Engine, Store: s.cfg.Store, Debug: s.cfg.Debug, Started: s.started,
		MaxPosts: s.cfg.RateLimit.Calls, server: s,
	}
}

// Allow asks the rate limit for n calls, for a route that Counts. 0 asks whether there is any left.
func (a *API) Allow(w http.ResponseWriter, r *http.Request, n int) error {
	return a.server.allow(w, r, n)
}

// Caller is the API key that asks, "" where nobody is asked for one, and whose share of the capacity the call takes.
func (a *API) Caller(r *http.Request) (keyID, owner string) { return keyOf(r), a.server.ownerOf(r) }

// Health is the answer of GET /healthz.
func (a *API) Health(r *http.Request) (Health, error) { return a.server.handleHealth(r) }

// Object reads the body of r, which must be a JSON object within the server's limits, and returns the members of
// these names.
func (a *API) Object(w http.ResponseWriter, r *http.Request, names ...string) (Object, error) {
	b := a.server.bodies
	s := b.pool.Get().(*scratch)
	defer b.release(s)
	if err := b.read(s, w, r); err != nil {
		return nil, err
	}
	found, err := s.members(names...)
	return found.object(names), err
}

// Object is some members of a JSON object. A member that is missing or null is nil.
// :: name → value
type Object map[string][]byte

// object copies what was found: the next body takes its memory.
func (f *fields) object(names []string) Object {
	o := make(Object, len(names))
	for i := range f.more {
		o[names[i]] = bytes.Clone(f.more[i].value)
	}
	return o
}

// ParseObject finds members in a part of a body that has been read.
func ParseObject(text []byte, names ...string) (found Object, isObject bool, err error) {
	members, isObject, err := scan(jsontext.NewDecoder(bytes.NewReader(text)), text, names...)
	return members.object(names), isObject, err
}

// Text reads a JSON string.
func Text(value []byte) (string, bool) { return text(value) }

// Wrong is a member, with what was expected of it. Its value is shortened.
func Wrong(location, expected string, value []byte) tandem.FieldError {
	return tandem.FieldError{Location: location, Message: expected, Value: shown(value)}
}

// Invalid is the error for a body or query whose fields are wrong.
func Invalid(fields ...tandem.FieldError) error { return invalid(fields) }

// Owned is the key whose requests alone the caller may see; "": everybody's.
func Owned(r *http.Request) string { return owned(r) }

// ParsePage reads a query that may have limit, offset, and what more has, each with what reads its value
// and returns what was expected of one that cannot be used.
func ParsePage(raw string, more map[string]func(f *store.Filter, value string) string) (store.Filter, error) {
	names := filters{"limit": filterFields["limit"], "offset": filterFields["offset"]}
	maps.Copy(names, more)
	return parseQuery(raw, names)
}

// WeakTag makes the weak tag of an answer from what is to count of it, and the start of the process.
func (a *API) WeakTag(covered any) (string, error) {
	text, err := render(covered)
	return `W/"` + digest(strconv.AppendInt(text, a.Started.UnixNano(), 10)) + `"`, err
}

// WriteReply writes what a handler has to say.
func WriteReply(w http.ResponseWriter, r *http.Request, reply any) error {
	body, err := render(reply)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost { // its work is done
		holdResult(w, r, len(body))
	} else if err := hold(w, r, len(body)); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}
