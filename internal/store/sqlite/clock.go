package sqlite

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tandem"
)

// minStep is how far the wall clock has to be set back to be noticed; less
// than that is drift, which a retry may wait out.
const minStep = time.Second

// clock is the wall clock, by which due times are kept because they outlive the
// process. It notices that somebody has set it back, by the time that has really
// passed: else all that waits would wait for as long again. A step forward is
// followed; it cannot be told from a machine that slept, and makes what waits due.
type clock struct {
	shift atomic.Int64 // nanoseconds added to the wall clock: 0, but in tests

	mu   sync.Mutex // guards the fields below
	seen time.Time  // when the clock was last found right, with its monotonic reading
	wall time.Time  // what the wall clock said then
}

// now returns the wall clock alone, without a monotonic reading.
func (c *clock) now() time.Time { return time.Now().Round(0).Add(time.Duration(c.shift.Load())) }

// right says that the wall clock is taken as it is now.
func (c *clock) right() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.wall = time.Now(), c.now()
}

// setBack returns by how much the wall clock was set back since it was right; 0: it was not.
func (c *clock) setBack() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, wall := time.Now(), c.now()
	back := now.Sub(c.seen) - wall.Sub(c.wall)
	if back < minStep {
		c.seen, c.wall = now, wall
		return 0
	}
	return back
}

// dueAt turns a time from a step, which says by its monotonic reading how long to
// wait, into the wall clock's. It is called in the transaction that keeps it.
func (c *clock) dueAt(at time.Time) time.Time {
	if at.IsZero() {
		return c.now()
	}
	return c.now().Add(time.Until(at))
}

// bringForward moves all that waits to where it belongs after the clock was set back to now.
func bringForward(tx *tx, back time.Duration, now time.Time) error {
	_, err := tx.exec(`
		UPDATE requests
		SET due_at = due_at - ?1
		WHERE seq IN (
			SELECT seq
			FROM requests INDEXED BY requests_queue
			WHERE lane IS NOT NULL AND waits_for IS NULL AND due_at > ?2
			UNION ALL
			SELECT seq
			FROM requests INDEXED BY requests_parked
			WHERE waits_for IS NOT NULL AND due_at > ?2
		)`, back.Microseconds(), micros(now))
	if err != nil {
		return fmt.Errorf("bring due times forward by %v: %w", back, err)
	}
	tx.setBack = back
	return nil
}

// behindHistory returns by how much the clock, which says now, is behind the newest request: it
// was set back while no process watched.
func behindHistory(tx *tx, now time.Time) (time.Duration, error) {
	newest, found, err := tx.store.conn.text(`SELECT id FROM requests ORDER BY seq DESC LIMIT 1`)
	if err != nil {
		return 0, fmt.Errorf("read the newest request: %w", err)
	}
	if !found {
		return 0, nil
	}
	made, err := tandem.IDTime(newest)
	return max(made.Sub(now), 0), err
}
