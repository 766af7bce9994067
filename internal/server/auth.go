package server

import (
	"cmp"
	"context"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tandem"
	"tandem/internal/limit"
)

// Access says who may use a route of a server that has API keys.
type Access int

// The kinds of access. The zero value is the strictest, so that a new line of the table is not
// open to everybody because nobody thought about it.
const (
	ForAdmins    Access = iota // keys with the scope admin
	ForReaders                 // keys with the scope read (or admin, who sees everything)
	ForCallers                 // keys with the scope submit
	ForEverybody               // no key is asked for
)

// scope is what a key needs for a route; "": nothing.
func (a Access) scope() tandem.Scope {
	switch a {
	case ForEverybody:
		return ""
	case ForCallers:
		return tandem.ScopeSubmit
	case ForReaders:
		return tandem.ScopeRead
	default:
		return tandem.ScopeAdmin
	}
}

// Challenges of RFC 6750, section 3. The realm is a constant: it says nothing about the deployment.
const (
	challengeMissing = `Bearer realm="tandem"`
	challengeWrong   = challengeMissing + `, error="invalid_token"`
	challengeScope   = challengeMissing + `, error="insufficient_scope", scope=`
)

// authorized lets through to next who has a key with the scope. It comes before the rate limit,
// which goes by key, and before anything of the body is read.
func (s *server) authorized(who Access, next Handler) Handler {
	scope := who.scope()
	if s.cfg.Keys == nil || scope == "" {
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		key, err := s.authenticate(w, r)
		if err != nil {
			return err
		}
		if !key.Allows(scope) {
			w.Header().Set("WWW-Authenticate", challengeScope+`"`+string(scope)+`"`)
			return tandem.Errorf(tandem.CodeForbidden, "This API key lacks the scope %s.", scope)
		}
		return next(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, key)))
	}
}

// authenticate finds the key that a request carries. One that is wrong costs its address a
// POST, whatever the method, so that guessing soon comes to an end; one that is missing costs nothing.
func (s *server) authenticate(w http.ResponseWriter, r *http.Request) (*tandem.Key, error) {
	header := r.Header["Authorization"]
	if len(header) == 0 {
		w.Header().Set("WWW-Authenticate", challengeMissing)
		return nil, tandem.Errorf(tandem.CodeUnauthenticated,
			"An API key is needed here: send it as Authorization: Bearer tdm_…")
	}
	key, err := s.keyIn(header)
	if err == nil {
		return key, nil
	}
	if refused := s.charge(w, r, cmp.Or(s.posts, s.gets), 1); refused != nil {
		return nil, refused
	}
	w.Header().Set("WWW-Authenticate", challengeWrong)
	return nil, err
}

// keyIn reads the values of Authorization.
func (s *server) keyIn(header []string) (*tandem.Key, error) {
	const scheme = "Bearer "
	value := header[0]
	if len(header) > 1 || len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return nil, tandem.Errorf(tandem.CodeUnauthenticated, "Authorization has to be sent once, as Bearer and an API key.")
	}
	token, err := tandem.ParseToken(strings.Trim(value[len(scheme):], " "))
	if err != nil {
		return nil, tandem.Errorf(tandem.CodeUnauthenticated,
			"This is no API key: its form or its checksum is wrong. Was it copied whole?")
	}
	return s.cfg.Keys.Authenticate(token, time.Now())
}

// callerKey is where the context of a request keeps its *tandem.Key.
type callerKey struct{}

// caller is the key that a request was let through with; nil where nobody is asked for one.
func caller(r *http.Request) *tandem.Key {
	key, _ := r.Context().Value(callerKey{}).(*tandem.Key)
	return key
}

// keyOf is the id of that key; "" where there is none.
func keyOf(r *http.Request) string {
	if key := caller(r); key != nil {
		return key.ID
	}
	return ""
}

// networks is how many owners there are on a server without API keys. A hash of the network picks
// one, so that the queue has a bounded number of owners and no address is kept.
const networks = 256

// ownerOf is whose share of the capacity a request takes: that of its key, or of a number made of
// the network that it comes from, which is the same on every node and after every start.
func (s *server) ownerOf(r *http.Request) string {
	if key := keyOf(r); key != "" {
		return key
	}
	address := limit.Network(s.client(r)).As16()
	return tandem.OwnerNetwork + strconv.Itoa(int(crc32.ChecksumIEEE(address[:])%networks))
}

// owned is the id of the key to whose requests a request is confined; "": it sees everything.
func owned(r *http.Request) string {
	if key := caller(r); key != nil && !key.Allows(tandem.ScopeAdmin) {
		return key.ID
	}
	return ""
}
