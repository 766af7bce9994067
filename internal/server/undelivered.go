package server

import (
	"context"
	"sync"
	"time"

	"tandem/internal/store"
)

// undeliveredFresh is how long an answer of the store about undelivered callbacks is used again.
const undeliveredFresh = 5 * time.Second

// undelivered caches the store's last answer about undelivered callbacks, for all requests of /stats
// and /metrics: the store counts up to 50,000 callbacks to answer.
type undelivered struct {
	mu   sync.Mutex // guards the fields below; held while the store is asked, so that others wait for that answer
	read time.Time  // monotonic
	last store.Undelivered
}

// now returns what waits. With an error it returns what was last known.
func (u *undelivered) now(ctx context.Context, s store.History) (store.Undelivered, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.read.IsZero() && time.Since(u.read) < undeliveredFresh {
		return u.last, nil
	}
	found, err := s.Undelivered(ctx)
	if err != nil {
		return u.last, err
	}
	u.last, u.read = found, time.Now()
	return found, nil
}
