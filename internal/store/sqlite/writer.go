package sqlite

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"tandem"
	"tandem/internal/store"
)

// probeInterval is how often a store that failed to commit tries whether it can again.
const probeInterval = time.Second

// op is one write. The writer commits many in one transaction.
type op struct {
	apply    func(*tx) error // inside the transaction; run once more, alone, when the batch fails
	urgent   bool            // somebody waits to be accepted: jobs step back
	promised bool            // its caller relies on it to outlive the process
	done     func(error)     // after the commit or the failure, on the writer's goroutine: must not block; may be nil
}

// tx is the transaction of a batch.
type tx struct {
	store  *Store
	deltas store.Deltas     // what this transaction adds
	values map[string]int64 // :: counter → its value once this is committed; nil: none changes

	owned map[string]int64 // :: key → requests of Config.Counted that this transaction adds to its history

	requests, attempts insertion // rows to add

	undo []func() // takes back what apply changed in memory, if the transaction fails

	setBack time.Duration // due times were brought forward by this; 0: they were not
}

// exec runs a statement and returns how many rows it changed.
func (t *tx) exec(text string, args ...any) (int64, error) { return t.store.conn.exec(text, args...) }

// own adds to the requests of Config.Counted of a key in this transaction; "" is nobody's.
func (t *tx) own(key string, delta int64) {
	if key == "" {
		return
	}
	if t.owned == nil {
		t.owned = map[string]int64{}
	}
	t.owned[key] += delta
}

// countOwned writes what own has collected.
func (t *tx) countOwned() error {
	for key, delta := range t.owned {
		_, err := t.exec(`
			INSERT INTO key_totals (key_id, submissions) VALUES (?, ?)
			ON CONFLICT (key_id) DO UPDATE SET submissions = submissions + excluded.submissions`, key, delta)
		if err != nil {
			return err
		}
	}
	return nil
}

// submit hands a write to the writer. Once it returns nil, op.done will be called.
func (s *Store) submit(ctx context.Context, o *op) error {
	s.sendMu.RLock() // the writer drains ops without it, so a full channel cannot block Close for long
	defer s.sendMu.RUnlock()
	if s.closed {
		return store.Stopping()
	}
	select {
	case s.ops <- o:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// do submits a write and waits for its commit. When ctx ends first the write
// may still happen.
func (s *Store) do(ctx context.Context, apply func(*tx) error) error {
	result := make(chan error, 1)
	if err := s.submit(ctx, &op{apply: apply, promised: true, done: func(err error) { result <- err }}); err != nil {
		return err
	}
	return store.Await(ctx, result)
}

// write is the writer: it commits whatever waits in one transaction and takes
// nothing else on while it does, so the batch grows with the load and an idle
// store adds no delay. Each second it looks whether the file is still there. It ends when
// Close has closed ops and all is committed.
func (s *Store) write() {
	defer close(s.stopped)
	probe := time.NewTicker(probeInterval)
	defer probe.Stop()
	batch := make([]*op, 0, store.MaxBatch)
	for commits := 0; ; commits++ {
		batch = batch[:0]
		select {
		case first, ok := <-s.ops:
			if !ok {
				return
			}
			batch = append(batch, first)
		case <-s.failing: // a token while the last commit failed
			select {
			case first, ok := <-s.ops:
				if !ok {
					return
				}
				batch = append(batch, first)
			case <-probe.C:
				batch = append(batch, probeOp)
			}
		case <-probe.C:
			if err := s.moved(); err != nil {
				s.note(err)
			}
			continue
		}
		runtime.Gosched() // a goroutine about to hand in a write does so first: a busy machine makes larger batches
	fill:
		for len(batch) < store.MaxBatch {
			select {
			case next, ok := <-s.ops:
				if !ok {
					break fill // the next receive ends the loop
				}
				batch = append(batch, next)
			default:
				break fill
			}
		}
		s.commitAll(batch)
		over := s.counters.Over() > memoryRows
		if s.memory && (over || commits%256 == 0) { // now and then also for its size in bytes
			store.Notify(s.trimming)
		}
	}
}

// probeOp writes something, to see whether the database takes writes again.
var probeOp = &op{apply: func(tx *tx) error {
	_, err := tx.exec(`
		INSERT INTO settings (name, value) VALUES ('probe', 1)
		ON CONFLICT (name) DO UPDATE SET value = value + 1`)
	return err
}}

// errLocked is a transaction that could not begin: no write is to blame for that.
var errLocked = errors.New("begin transaction")

// commitAll commits a batch; if that fails, each write alone, so that one that
// cannot be stored never fails its neighbours.
func (s *Store) commitAll(batch []*op) {
	urgent := 0
	for _, o := range batch {
		if o.urgent {
			urgent++
		}
	}
	calm := !s.queue.inBurst()
	s.pressure.Store(s.pressure.Load() - s.pressure.Load()/pressureCommits + int64(urgent))
	if calm && s.queue.inBurst() {
		store.Notify(s.queue.wake) // to see it end
	}
	err := s.commit(batch)
	if err != nil && len(batch) > 1 && !errors.Is(err, errLocked) && !errors.Is(err, store.ErrMoved) {
		for _, o := range batch {
			alone := []*op{o}
			s.report(alone, s.commit(alone))
		}
		return
	}
	s.report(batch, err)
}

// report answers those who wait for a commit. What is in a file that lost its name is promised to nobody.
func (s *Store) report(batch []*op, err error) {
	var unsure error
	if moved := s.moved(); err == nil && moved != nil { // it is written, and the next start would not find it
		s.note(moved)
		unsure = fmt.Errorf("%w: %w", store.ErrUnsure, moved)
	}
	for _, o := range batch {
		if o.promised && unsure != nil {
			s.finish(o, unsure)
		} else {
			s.finish(o, err)
		}
	}
}

// finish tells the waiting caller, in words that may be shown.
func (s *Store) finish(o *op, err error) {
	if o.done == nil {
		return
	}
	var known *tandem.Error
	if err != nil && !errors.As(err, &known) && !errors.Is(err, store.ErrExists) {
		err = store.Unavailable(err)
	}
	o.done(err)
}

// moved returns an error if the files are no longer where the next start would find them.
func (s *Store) moved() error {
	if s.file == nil {
		return nil
	}
	return s.file.moved()
}

// lost returns an error while the files are known to have been moved away.
func (s *Store) lost() error {
	if failure := s.failure.Load(); failure != nil && errors.Is(*failure, store.ErrMoved) {
		return *failure
	}
	return nil
}

// commit runs ops in one transaction. When it returns nil they are durable.
func (s *Store) commit(ops []*op) error {
	s.connMu.Lock()
	defer s.connMu.Unlock()
	if s.lost() != nil {
		if err := s.moved(); err != nil {
			s.counters.Failed()
			s.note(err)
			return err
		}
	}
	t := &tx{store: s, deltas: store.Deltas{}, requests: insertion{one: insertRequest}, attempts: insertion{one: insertAttempt}}
	started := time.Now()
	err := t.run(ops)
	if err != nil {
		if _, rollback := t.exec(`ROLLBACK`); rollback != nil {
			s.cfg.Log.Debug("roll back", "error", rollback) // SQLite has rolled back by itself
		}
		for _, undo := range slices.Backward(t.undo) {
			undo()
		}
		s.counters.Failed()
	} else {
		if t.values != nil {
			s.counters.Set(t.values)
		}
		s.counters.Committed(len(ops), time.Since(started))
	}
	if err == nil && t.setBack > 0 {
		s.clock.right()
		s.queue.forget()
		s.cfg.Log.Warn("the clock was set back; what waits is due as before", "by", t.setBack)
	}
	s.note(err)
	return err
}

func (t *tx) run(ops []*op) error {
	if _, err := t.exec(`BEGIN IMMEDIATE`); err != nil {
		return fmt.Errorf("%w: %w", errLocked, err)
	}
	if back := t.store.clock.setBack(); back > 0 {
		if err := bringForward(t, back, t.store.clock.now()); err != nil {
			return err
		}
	}
	for _, o := range ops {
		if err := o.apply(t); err != nil {
			return err
		}
	}
	if err := t.requests.flush(t); err != nil {
		return insertError(err)
	}
	if err := t.attempts.flush(t); err != nil {
		return fmt.Errorf("log attempts: %w", err)
	}
	if err := t.countOwned(); err != nil {
		return fmt.Errorf("count requests of keys: %w", err)
	}
	if len(t.deltas) > 0 {
		var counts []byte
		var err error
		if t.values, counts, err = t.store.counters.With(t.deltas, t.store.clock.now()); err != nil {
			return fmt.Errorf("count: %w", err)
		}
		if _, err = t.exec(`UPDATE totals SET counts = ? WHERE only = 1`, string(counts)); err != nil {
			return fmt.Errorf("count: %w", err)
		}
	}
	if _, err := t.exec(`COMMIT`); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// note remembers whether the database takes writes, for /readyz and the probe.
func (s *Store) note(err error) {
	if sqliteCode(err)&0xff == sqlite3.SQLITE_CONSTRAINT {
		err = nil // one bad row; the database is well
	}
	before := s.failure.Load()
	if err == nil {
		if before != nil {
			s.failure.Store(nil)
			s.cfg.Log.Info("the database takes writes again")
			select {
			case <-s.failing:
			default:
			}
		}
		return
	}
	if before == nil {
		s.cfg.Log.Error("the database does not take writes; new requests are refused until it does", "error", Explain(err))
	}
	s.failure.Store(&err)
	store.Notify(s.failing)
}
