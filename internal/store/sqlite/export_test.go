package sqlite

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tandem/internal/store"
)

// LimitPages makes the database full at n pages of 4 KiB; 0 takes the limit away.
func (s *Store) LimitPages(n int) error {
	if n == 0 {
		n = 1 << 30
	}
	s.connMu.Lock()
	defer s.connMu.Unlock()
	_, _, err := s.conn.text(fmt.Sprintf(`PRAGMA max_page_count = %d`, n))
	return err
}

// Pages returns the size of the database in pages.
func (s *Store) Pages() (n int, err error) {
	s.connMu.Lock()
	defer s.connMu.Unlock()
	pages, _, err := s.conn.text(`PRAGMA page_count`)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(pages)
}

// Held returns how many jobs wait in memory, and how many bytes they hold.
func (s *Store) Held() (ready int, bytes int64) {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	for _, l := range s.queue.lanes {
		ready += l.ready.Len()
	}
	return ready, s.queue.readyBytes
}

// The bounds and rules that tests check from outside.
const (
	MaxReady      = maxReady
	MaxReadyBytes = maxReadyBytes
	MemoryRows    = memoryRows
)

// Counters returns how many counters begin with a group's name.
func (s *Store) Counters(group string) (n int) {
	for name := range s.counters.Values() {
		if strings.HasPrefix(name, group) {
			n++
		}
	}
	return n
}

// NextChunk exposes the sizing of deletions.
func NextChunk(rows int, took time.Duration) int { return nextChunk(rows, took) }

// ShiftClock moves the wall clock that the store reads; what passes by the
// monotonic clock stays as it is.
func (s *Store) ShiftClock(by time.Duration) { s.clock.shift.Add(int64(by)) }

// OnCommitted has f called between the commit of a job's result and handing its
// request on. To be set before Work.
func (s *Store) OnCommitted(f func(id string, from store.Lane)) { s.queue.committed = f }

// Running is how many jobs of a lane have been dispatched and not yet handed on.
func (s *Store) Running(lane store.Lane) int {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	return s.queue.lanes[lane].running
}

// OnRefilling has f called when rows of a lane are about to be read from an index. To be set before Work.
func (s *Store) OnRefilling(f func(store.Lane)) { s.queue.refilling = f }

// SetPatience is how long a write waits for another program's lock on the database.
func (s *Store) SetPatience(d time.Duration) error {
	s.connMu.Lock()
	defer s.connMu.Unlock()
	s.conn.(*directConn).conn.SetBusyTimeout(d)
	return nil
}

// DatabasePath reads a value of --db that names a file.
func DatabasePath(url string) (string, error) { return databasePath(url) }

// CountOwners reads what every owner has unfinished.
func (s *Store) CountOwners(ctx context.Context) error {
	_, err := s.used(ctx)
	return err
}

// UndeliveredWithin is Undelivered with other limits.
func (s *Store) UndeliveredWithin(ctx context.Context, sites, counted int) (store.Undelivered, error) {
	limits := store.DefaultUndeliveredLimits
	limits.Sites, limits.Counted = sites, counted
	return s.undelivered(ctx, limits)
}
