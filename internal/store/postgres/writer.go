package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tandem"
	"tandem/internal/store"
)

// writersPerLine is how many transactions of a line may be under way: while one waits
// for its commit the next is being filled.
const writersPerLine = 2

// op is one write. A writer commits many in one transaction. What it is, is the one field that is set.
type op struct {
	accept []row                                                           // requests to insert
	mark   *workMark                                                       // work that has begun
	settle *settlement                                                     // what a step returned
	apply  func(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error // anything else; run once more, alone, when the batch fails
	done   func(error)                                                     // after the commit or the failure; must not block
	after  func()                                                          // after the commit, before done; may be nil
	unsure bool                                                            // a transaction with it may have been committed though it failed

	// gone: nobody waits for it any more, so it need not be begun. Set for accepts only.
	gone atomic.Bool
}

// lineup is where writes wait for a writer.
type lineup struct{ ops chan *op }

func newLineup() *lineup { return &lineup{ops: make(chan *op, store.MaxBatch)} }

// writer commits what waits in a line, as much as there is at a time.
type writer struct {
	store    *Store
	line     *lineup
	number   int            // of its row of counters that stays
	row      atomic.Int64   // writer of the one that moves, as far as is known; it never falls
	counters store.Counters // as committed
	known    atomic.Bool    // counters are those of its row
	doubtful atomic.Bool    // the last commit may have happened: its row knows, counters do not
	busy     chan struct{}  // one token: held from before a commit until counters say what it added
}

func (s *Store) startWriters() {
	for _, line := range []*lineup{s.accepts, s.results} {
		for range writersPerLine {
			w := &writer{store: s, line: line, number: len(s.writers), busy: make(chan struct{}, 1)}
			w.row.Store(movingFrom(w.number))
			s.writers = append(s.writers, w)
		}
	}
	for _, w := range s.writers {
		s.writing.Go(w.run)
	}
}

// submit hands a write to a line. Once it returns nil, op.done will be called.
func (s *Store) submit(ctx context.Context, line *lineup, o *op) error {
	s.sendMu.RLock() // writers drain the line without it, so a full line cannot block Close for long
	defer s.sendMu.RUnlock()
	if s.closed {
		return store.Stopping()
	}
	select {
	case line.ops <- o:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// await submits a write and waits for its commit. When ctx ends first the write may still happen.
func (s *Store) await(ctx context.Context, line *lineup, o *op) error {
	result := make(chan error, 1)
	o.done = func(err error) { result <- err }
	if err := s.submit(ctx, line, o); err != nil {
		return err
	}
	return store.Await(ctx, result)
}

func (s *Store) do(ctx context.Context, apply func(context.Context, pgx.Tx, store.Deltas) error) error {
	return s.await(ctx, s.results, &op{apply: apply})
}

// run ends when Close has closed the line and all is committed.
func (w *writer) run() {
	batch := make([]*op, 0, store.MaxBatch)
	for first := range w.line.ops {
		batch = append(batch[:0], first)
		runtime.Gosched() // a goroutine about to hand in a write does so first
	fill:
		for len(batch) < store.MaxBatch {
			select {
			case next, ok := <-w.line.ops:
				if !ok {
					break fill // the next receive ends the loop
				}
				batch = append(batch, next)
			default:
				break fill
			}
		}
		w.commitAll(batch)
		clear(batch)
	}
}

// commitAll commits a batch; if that fails because of a row, each write alone, so
// that one that cannot be stored never fails its neighbours.
func (w *writer) commitAll(batch []*op) {
	if batch = w.waitedFor(batch); len(batch) == 0 {
		return
	}
	err := w.commit(batch)
	if err == nil || !worthAnother(err, len(batch)) {
		for _, o := range batch {
			w.finish(o, err)
		}
		return
	}
	for _, o := range batch {
		if len(w.waitedFor([]*op{o})) == 0 { // it may have left meanwhile: the batch took its time
			continue
		}
		err := w.commit([]*op{o})
		if errors.Is(err, store.ErrExists) && o.unsure {
			err = nil // by the transaction that seemed to fail
		}
		w.finish(o, err)
	}
}

// errGone says that nothing was tried, because nobody waits for it any more.
var errGone = errors.New("its caller has left")

// waitedFor drops writes from a batch if their callers have left. When the database answers late, this keeps
// tandem from inserting requests that it has refused already.
func (w *writer) waitedFor(batch []*op) []*op {
	return slices.DeleteFunc(batch, func(o *op) bool {
		gone := o.gone.Load()
		if gone {
			w.finish(o, errGone)
		}
		return gone
	})
}

// errAway says that nothing was tried, because the last heartbeat had no answer.
var errAway = errors.New("the database does not answer")

// worthAnother reports whether writes that failed together may succeed alone, or on another
// connection. They may not when there is no connection to be had, when time has run out (by our clock or the
// server's), or when the server has no room: each alone would only wait once more.
func worthAnother(err error, writes int) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAway) {
		return false
	}
	cause, ok := errors.AsType[*pgconn.PgError](err)
	if ok && (cause.Code == "55P03" || cause.Code == "57014" || strings.HasPrefix(cause.Code, "53")) {
		return false
	}
	return writes > 1 || !ok || lostConnection(err) || strings.HasPrefix(cause.Code, "40")
}

// finish tells the waiting caller, in words that may be shown.
func (w *writer) finish(o *op, err error) {
	if err == nil && o.after != nil {
		o.after()
	}
	if o.done == nil {
		return
	}
	var known *tandem.Error
	if err != nil && !errors.As(err, &known) && !errors.Is(err, store.ErrExists) {
		refused := store.Unavailable(err)
		if o.unsure {
			refused.Message = "the database went away while it was told to keep this, which may have happened or not; try again later"
			refused.Err = fmt.Errorf("%w: %w", store.ErrUnsure, err)
		}
		err = refused
	}
	o.done(err)
}

// commit runs writes in one transaction. When it returns nil they are durable.
func (w *writer) commit(ops []*op) error {
	if w.store.away.Load() {
		return errAway
	}
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	err := w.transaction(ctx, ops)
	if errors.Is(err, errFolded) { // other nodes took us for dead; what we counted is in the sum already
		err = w.transaction(ctx, ops)
	}
	if time.Since(started) > lateCommit/2 { // or what was fetched meanwhile hides the jobs that it has inserted
		w.store.queues.lookAll()
	}
	if err != nil {
		w.counters.Failed()
	} else {
		w.counters.Committed(writesOf(ops), time.Since(started))
	}
	w.store.note(err)
	return err
}

func writesOf(ops []*op) int {
	n := 0
	for _, o := range ops {
		n += max(len(o.accept), 1)
	}
	return n
}

// errFolded says that a writer's row of counters is not there any more.
var errFolded = errors.New("the row of counters is gone")

func (w *writer) transaction(ctx context.Context, ops []*op) error {
	tx, err := w.store.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit there is nothing to roll back
	if !w.known.Load() {
		if err := w.readCounters(ctx, tx); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
	}
	t := &batchTx{Tx: tx, store: w.store, deltas: store.Deltas{}}
	if err := t.apply(ctx, ops); err != nil {
		return err
	}
	maps.DeleteFunc(t.deltas, func(_ string, delta int64) bool { return delta == 0 })
	values, row := map[string]int64(nil), w.row.Load()
	if len(t.deltas) > 0 {
		var counts []byte
		if values, counts, err = w.counters.With(t.deltas, w.store.now()); err != nil {
			return fmt.Errorf("count: %w", err)
		}
		tag, err := tx.Exec(ctx, `
			UPDATE counters
			SET writer = writer + 1, counts = $3
			WHERE node = $1 AND writer = $2`, w.store.node, row, string(counts))
		if err != nil {
			return fmt.Errorf("count: %w", err)
		}
		if tag.RowsAffected() == 0 {
			w.forget()
			return errFolded
		}
		row++
	}
	w.busy <- struct{}{}
	defer func() { <-w.busy }()
	if err := tx.Commit(ctx); err != nil {
		w.known.Store(false) // it may have been committed
		w.doubtful.Store(true)
		for _, o := range ops {
			o.unsure = true
		}
		return fmt.Errorf("commit: %w", err)
	}
	w.known.Store(true)
	w.doubtful.Store(false)
	w.row.Store(row)
	if values != nil {
		w.counters.Set(values)
	}
	return nil
}

// recount finds out what came of a commit whose answer was lost, for as long as no other of this writer does: until
// then /stats would lack what it counted.
func (w *writer) recount(ctx context.Context) error {
	select {
	case w.busy <- struct{}{}:
		defer func() { <-w.busy }()
	default:
		return nil // by the commit under way
	}
	var text string
	row := w.row.Load()
	err := w.store.pool.QueryRow(ctx, `
		SELECT counts
		FROM counters
		WHERE node = $1 AND writer IN ($2, $3)
		FOR UPDATE SKIP LOCKED`, w.store.node, row, row+1).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // by the transaction that holds it, that commit itself maybe
	}
	if err != nil {
		return fmt.Errorf("find out whether a commit has happened: %w", err)
	}
	values := map[string]int64{}
	if err := addCounts(values, text); err != nil {
		return fmt.Errorf("find out whether a commit has happened: %w", err)
	}
	w.counters.Set(values)
	w.doubtful.Store(false)
	return nil
}

// forget takes what was counted so far as no longer ours.
func (w *writer) forget() {
	w.known.Store(false)
	w.doubtful.Store(false)
	w.counters.Set(nil)
}

// readCounters makes sure that the writer's rows are there, and takes over what the moving one says.
func (w *writer) readCounters(ctx context.Context, tx pgx.Tx) error {
	// The update also keeps the row from being folded.
	_, err := tx.Exec(ctx, `
		INSERT INTO counters (node, writer, counts) VALUES ($1, $2, '{}')
		ON CONFLICT (node, writer) DO UPDATE SET counts = counters.counts`, w.store.node, w.number)
	if err != nil {
		return err
	}
	row, text := w.row.Load(), ""
	err = tx.QueryRow(ctx, `
		SELECT writer, counts
		FROM counters
		WHERE node = $1 AND writer >= $2 AND writer < $3
		ORDER BY writer DESC
		LIMIT 1
		FOR UPDATE`, w.store.node, row, movingFrom(w.number+1)).Scan(&row, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		row, text = row+2, "{}" // beyond one that was folded
		_, err = tx.Exec(ctx, `
			INSERT INTO counters (node, writer, counts)
			VALUES ($1, $2, $3)`, w.store.node, row, text)
	}
	if err != nil {
		return err
	}
	w.row.Store(row)
	values := map[string]int64{}
	if err := addCounts(values, text); err != nil {
		return err
	}
	w.counters.Set(values)
	return nil
}

// unfinished is how many requests are not over: ours as of the last commit, those of other nodes as of the last look
// around.
func (s *Store) unfinished() int64 {
	sum := s.others.Unfinished()
	for _, w := range s.writers {
		sum += w.counters.Unfinished()
	}
	return sum
}

// wakes are the lanes whose nodes are to be told that there is work: now, or soon.
type wakes struct {
	mu     sync.Mutex
	at     map[wake]struct{} // at most maxWakes
	notify chan struct{}
}

// wake is a moment in steps of wakeStep since the epoch.
type wake struct {
	lane store.Lane
	step int64
}

const (
	wakeStep  = 10 * time.Millisecond
	wakeAhead = time.Minute          // what is due later than this is found by polling
	wakeRest  = 3 * time.Millisecond // between two announcements
	maxWakes  = 4096                 // kept in memory; what is beyond is found by polling
)

func (k *wakes) init() {
	k.at, k.notify = map[wake]struct{}{}, make(chan struct{}, 1)
}

// add has a lane's nodes woken after a while.
func (k *wakes) add(lane store.Lane, delay time.Duration) {
	if lane == store.LaneNone || delay > wakeAhead {
		return
	}
	at := wake{lane: lane}
	if delay > 0 {
		at.step = int64((time.Duration(time.Now().Add(delay).UnixNano()) + wakeStep) / wakeStep)
	}
	k.mu.Lock()
	if delay <= 0 || len(k.at) < maxWakes {
		k.at[at] = struct{}{}
	}
	k.mu.Unlock()
	store.Notify(k.notify)
}

// wakeAll has the nodes of every lane woken.
func (s *Store) wakeAll() {
	for _, lane := range store.Lanes {
		s.wakes.add(lane, 0)
	}
}

// due takes out the lanes to wake now and says how long it is until the next.
func (k *wakes) due() (lanes []string, next time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, next := time.Now(), wakeAhead
	seen := map[store.Lane]bool{}
	for at := range k.at {
		wait := time.Duration(at.step)*wakeStep - time.Duration(now.UnixNano())
		if wait > 0 {
			next = min(next, wait)
			continue
		}
		delete(k.at, at)
		if !seen[at.lane] {
			seen[at.lane] = true
			lanes = append(lanes, string(at.lane))
		}
	}
	return lanes, next
}

// announce tells all nodes, our own included, which lanes have work. It does so apart from the
// transactions that put the work there: commits that notify wait for each other.
func (s *Store) announce(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		lanes, next := s.wakes.due()
		if len(lanes) > 0 {
			bounded, cancel := context.WithTimeout(ctx, beatTimeout) // nobody may wait: there is polling
			_, err := s.pool.Exec(bounded, `
				SELECT pg_notify(current_schema() || '.river_insert', json_build_object('queue', lane)::text)
				FROM unnest($1::text[]) AS lane`, lanes)
			cancel()
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.Debug("announce work; it is found by polling", "error", err)
			}
			next = wakeRest
		}
		timer.Reset(next)
		if len(lanes) > 0 {
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.wakes.notify:
		case <-timer.C:
		}
	}
}
