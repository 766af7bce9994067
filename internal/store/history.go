package store

import "tandem"

// ChunkRows is how many rows one transaction of retention deletes at most.
const ChunkRows = 256

// NotFound is what Request says of an id that no request has.
func NotFound(id string) error {
	return tandem.Errorf(tandem.CodeNotFound, "There is no request %.60q; it may have been older than the retention.", id)
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
