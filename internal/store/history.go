package store

import (
	"encoding/base64"

	"tandem"
)

// ChunkRows is how many rows one transaction of retention deletes at most.
const ChunkRows = 256

// NotFound is what Request says of an id that no request has.
func NotFound(id string) error {
	return tandem.Errorf(tandem.CodeNotFound, "There is no request %.60q; it may have been older than the retention.", id)
}

// NotWorkedOn is what Finish says of a request that its caller does not work on, or no longer.
func NotWorkedOn(id string) error {
	return tandem.Errorf(tandem.CodeNotFound, "request %s is not being worked on by its caller", id)
}

// Last is the request that the page before the cursor ended with; it is not called without a cursor.
func (f *Filter) Last() (id string, err error) {
	text, err := base64.RawURLEncoding.DecodeString(f.Cursor)
	if err == nil {
		_, err = tandem.IDOrder(string(text))
	}
	if err != nil {
		return "", tandem.Errorf(tandem.CodeInvalidCursor,
			"cursor %.60q is not one that this server gave out; start again without it", f.Cursor)
	}
	return string(text), nil
}

// Pager fills a page with the requests that a filter finds.
type Pager struct {
	Page   Page
	Filter *Filter

	bytes int // of data and results on the page
}

// Add puts a request on the page. It reports false if that is full: then the request begins the next page.
func (p *Pager) Add(r tandem.Request) bool {
	p.bytes += len(r.Data) + len(r.Result)
	n := len(p.Page.Requests)
	if n == p.Filter.Limit || p.Filter.MaxBytes > 0 && n > 0 && p.bytes > p.Filter.MaxBytes {
		p.Page.Next = base64.RawURLEncoding.EncodeToString([]byte(p.Page.Requests[n-1].ID))
		return false
	}
	p.Page.Requests = append(p.Page.Requests, r)
	return true
}

// WaitsForNextAttempt reports whether the last attempt of a request says when the next one is due. That may
// be outdated: an open circuit breaker or a busy destination may have postponed it since. So a store shows
// when it is due now, and nothing if that is past.
func WaitsForNextAttempt(r *tandem.Request) bool {
	return r.CallbackStatus == tandem.CallbackPending && len(r.Attempts) > 0 &&
		!r.Attempts[len(r.Attempts)-1].NextAt.IsZero()
}

// CountsAll reports whether a filter finds every request of Config.Counted, or every one of a key: then Page.Total is
// known.
func (f *Filter) CountsAll(cfg *Config) bool {
	return cfg.Counts(f.Task) && f.Mode == "" && f.Status == "" && f.Batch == "" && f.Since.IsZero() && f.Until.IsZero()
}
