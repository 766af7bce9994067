package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/store"
)

const (
	beatInterval  = 2 * time.Second // how often a node says that it lives
	beatTimeout   = 2 * time.Second
	unsteadyAfter = 5 * time.Second        // a gap between signs of life as long as that is one
	awayInterval  = 500 * time.Millisecond // the same while the database does not answer
	sweepInterval = 3 * time.Second        // how often it looks for those that do not
	deadAfter     = 8 * time.Second        // by the clock of the database
	lookAhead     = 2 * time.Second        // how old the counters of other nodes may be
	deepSweep     = 20                     // every so many sweeps also look for requests whose job is gone
	deepRest      = 50                     // and no Sooner than so many times as long as one takes

	// lateTraces is for how long after a node has gone what it began may be committed.
	lateTraces = 2*writeTimeout + 2*sweepInterval
)

// heartbeat says that this node lives, tells the others what they are to know, hears what they have told, and returns whether
// they did not know of it. It also shows whether the database takes writes.
func (s *Store) heartbeat(ctx context.Context) (fresh bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	asked := time.Now()
	rows, err := s.pool.Query(ctx, `
		WITH beat AS (
			INSERT INTO nodes (id, since, name, seen_at, version, steady_since, address, state)
			VALUES ($1, now(), $2, now(), $3, now(), $4, $5)
			ON CONFLICT (id) DO UPDATE
			SET seen_at = now(), state = excluded.state,
			    steady_since = CASE WHEN nodes.seen_at < now() - $6::bigint * interval '1 microsecond' THEN now() ELSE nodes.steady_since END
			RETURNING since = seen_at AS fresh
		)
		SELECT clock_timestamp(), fresh, coalesce(others.id, ''), others.state, coalesce((extract(epoch FROM now() - others.seen_at) * 1000)::bigint, 0)
		FROM beat LEFT JOIN nodes AS others ON others.id <> $1 AND others.seen_at > now() - $7::bigint * interval '1 microsecond'
		LIMIT $8`,
		s.node, store.Machine(), tandem.Version, s.cfg.Nodes.Address(), s.cfg.Nodes.Published(), unsteadyAfter.Microseconds(), deadAfter.Microseconds(), store.MaxNodes)
	if err != nil {
		return false, fmt.Errorf("say that this node lives: %w", err)
	}
	var others []store.State
	var node string
	var told []byte
	var age int64
	var said time.Time
	_, err = pgx.ForEachRow(rows, []any{&said, &fresh, &node, &told, &age}, func() error {
		if node != "" {
			others = append(others, store.State{Node: node, Told: told, Age: time.Duration(age) * time.Millisecond})
		}
		told = nil
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("say that this node lives: %w", err)
	}
	s.cfg.Nodes.Receive(others)
	if s.cfg.Nodes.ReadClock(asked, time.Now(), said) {
		s.cfg.Log.Warn("the clock of this machine is compared with that of the database, by which all nodes go", "behind", s.cfg.Nodes.Skew())
	}
	return fresh, nil
}

// rejoin is for a node that the others took for dead: what it had counted is in the sum, so
// those of its writers whose row was folded have counted nothing.
func (s *Store) rejoin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	for _, w := range s.writers { // no commit is under way: rows and memory say the same
		select {
		case w.busy <- struct{}{}:
			defer func() { <-w.busy }()
		case <-ctx.Done():
			return fmt.Errorf("rejoin the other nodes: wait for commits under way: %w", ctx.Err())
		}
	}
	var last []int64 // and the next, because the last commit may have happened
	for _, w := range s.writers {
		last = append(last, w.row.Load(), w.row.Load()+1)
	}
	rows, err := s.pool.Query(ctx, `
		SELECT writer >> 48
		FROM counters
		WHERE node = $1 AND writer = ANY ($2)`, s.node, last)
	if err != nil {
		return fmt.Errorf("rejoin the other nodes: %w", err)
	}
	kept, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("rejoin the other nodes: %w", err)
	}
	for _, w := range s.writers {
		if !slices.Contains(kept, movingFrom(w.number)>>movingBits) {
			w.forget()
		}
	}
	s.cfg.Log.Warn("the other nodes had taken this one for dead; it takes part again")
	return nil
}

// beat is the heartbeat, apart from everything that may have to wait. When there is no answer to it, the
// database is away: until there is one, everything else that needs the database fails at once instead of waiting.
func (s *Store) beat(ctx context.Context) {
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	for rejoining := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.silent.Load() {
			continue
		}
		fresh, err := s.heartbeat(ctx)
		if lostConnection(err) && !errors.Is(err, context.DeadlineExceeded) { // an old connection, more likely than not
			s.pool.Reset()
			fresh, err = s.heartbeat(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		switch away := noAnswer(err); {
		case away == s.away.Swap(away):
		case away:
			tick.Reset(awayInterval)
		default:
			tick.Reset(beatInterval)
		}
		if err == nil && (fresh || rejoining) {
			err = s.rejoin(ctx)
			rejoining = err != nil
		}
		if ctx.Err() == nil {
			s.note(err)
		}
	}
}

// tend looks at what other nodes count, and after those that are dead.
func (s *Store) tend(ctx context.Context) {
	look, sweep := time.NewTicker(lookAhead), time.NewTicker(sweepInterval)
	defer look.Stop()
	defer sweep.Stop()
	expired := time.Now()
	for sweeps, nextDeep := 1, deepSweep; ; {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			err = s.lookAround(ctx)
		case <-sweep.C:
			if s.silent.Load() {
				continue
			}
			deep, began := sweeps >= nextDeep, time.Now()
			err = s.sweep(ctx, deep)
			if err == nil && (deep || s.held.inDoubt()) {
				err = s.reclaim(ctx)
			}
			if err == nil && (deep || s.callers.inDoubt()) {
				err = s.endStrays(ctx)
			}
			maxAge := s.capacity.Load().MaxAge
			if err == nil && maxAge > 0 && time.Since(expired) > store.ExpireInterval(maxAge) {
				expired = time.Now()
				err = s.expireParked(ctx, maxAge)
			}
			if deep {
				nextDeep = sweeps + max(deepSweep, int(deepRest*time.Since(began)/sweepInterval))
			}
			sweeps++
		}
		if err != nil && ctx.Err() == nil && s.failure.Load() == nil {
			s.cfg.Log.Error("look after other nodes; trying again", "error", err)
		}
	}
}

// lookAround reads the counters of all nodes but this one, and of this one what it does not know for certain.
func (s *Store) lookAround(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	sum, err := counted(ctx, s.pool, s.node)
	if err != nil {
		return fmt.Errorf("read the counters of other nodes: %w", err)
	}
	s.others.Set(sum)
	for _, w := range s.writers {
		if !w.doubtful.Load() {
			continue
		}
		if err := w.recount(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leave tells the other nodes that this one has ended, so that they need not wait to see it.
func (s *Store) leave(ctx context.Context) {
	if _, err := s.pool.Exec(ctx, `DELETE FROM nodes WHERE id = $1`, s.node); err != nil {
		s.cfg.Log.Warn("leave the other nodes; they will notice", "error", err)
	}
}

// sweep takes over what dead nodes have left. One node does at a time; nothing of
// it depends on which of them is River's leader, and it waits for nothing that a transaction holds: a dead node's may
// be open for as long as idleTimeout. A deep one also finds requests whose job is gone.
func (s *Store) sweep(ctx context.Context, deep bool) error {
	w := sweeping{store: s, deep: deep}
	if err := s.do(ctx, w.run); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	s.traces.swept(w.nodes, len(w.dead) > 0)
	for _, node := range w.dead {
		s.cfg.Log.Warn("a node is dead; others take over its work", "node", node)
	}
	if w.interrupted+w.again > 0 {
		s.cfg.Log.Info("took over from dead nodes", "interrupted", w.interrupted, "again", w.again)
		s.wakeAll()
	}
	return nil
}

// traces says whether there may be work of nodes that are no more. A look for it steps over all that nodes
// have worked on since the oldest transaction that somebody keeps open.
type traces struct {
	mu    sync.Mutex // guards the fields below
	nodes []string   // those there were at the last sweep; nil: it is the first
	until time.Time  // until then look
}

// expected reports whether to look, when there are these nodes now.
func (t *traces) expected(nodes []string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missLocked(nodes) || time.Now().Before(t.until)
}

// missLocked reports whether one that there was, or may have been, is not among these.
func (t *traces) missLocked(nodes []string) bool {
	return t.nodes == nil || slices.ContainsFunc(t.nodes, func(node string) bool {
		return !slices.Contains(nodes, node)
	})
}

// swept is called after a sweep that has left these nodes; nil: another node sweeps. gone says whether the
// sweep declared a node dead.
func (t *traces) swept(nodes []string, gone bool) {
	if nodes == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if gone || t.nodes != nil && t.missLocked(nodes) {
		t.until = time.Now().Add(lateTraces)
	}
	t.nodes = nodes
}

// sweeping is one sweep.
type sweeping struct {
	store              *Store
	deep               bool
	dead               []string
	nodes              []string // those that are left
	interrupted, again int64
}

func (w *sweeping) run(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error {
	w.dead, w.nodes, w.interrupted, w.again = nil, nil, 0, 0
	// The row in which fold sums up is the lock: an advisory one could be taken by every role that may connect.
	var ours bool
	err := tx.QueryRow(ctx, `SELECT true FROM counters WHERE node = '' FOR UPDATE SKIP LOCKED`).Scan(&ours)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // another node sweeps
	}
	if err != nil {
		return err
	}
	// A node that was cut off a moment ago knows nothing of others' silence: it may have been the database's.
	rows, err := tx.Query(ctx, `
		DELETE FROM nodes
		WHERE seen_at < now() - $1::bigint * interval '1 microsecond' AND EXISTS (
			SELECT FROM nodes AS own
			WHERE own.id = $2 AND own.seen_at > now() - $3::bigint * interval '1 microsecond'
			      AND own.steady_since < now() - $4::bigint * interval '1 microsecond')
		RETURNING id`,
		deadAfter.Microseconds(), w.store.node, unsteadyAfter.Microseconds(), (2 * beatInterval).Microseconds())
	if err != nil {
		return err
	}
	if w.dead, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return err
	}
	if rows, err = tx.Query(ctx, `SELECT id FROM nodes`); err != nil {
		return err
	}
	if w.nodes, err = pgx.AppendRows([]string{}, rows, pgx.RowTo[string]); err != nil {
		return err
	}
	if !w.deep && len(w.dead) == 0 && !w.store.traces.expected(w.nodes) {
		return nil
	}
	if err := w.interrupt(ctx, tx, deltas); err != nil {
		return err
	}
	if err := w.resume(ctx, tx, deltas); err != nil {
		return err
	}
	if len(w.dead) == 0 && !w.deep { // nodes that have left are folded in time: their rows count all the same
		return nil
	}
	return w.fold(ctx, tx)
}

// interrupt ends the sync requests of nodes that are no more.
func (w *sweeping) interrupt(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error {
	tag, err := tx.Exec(ctx, `
		UPDATE requests
		SET status = 'failed', error_code = $1, error_message = $2, completed_at = now()
		WHERE id = ANY (ARRAY(
			SELECT id
			FROM requests
			WHERE status = 'processing' AND job_id IS NULL AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = node)
			FOR UPDATE SKIP LOCKED))`,
		tandem.FailedInterrupted, "the server stopped while this request was running")
	if err != nil {
		return fmt.Errorf("end interrupted requests: %w", err)
	}
	n := tag.RowsAffected()
	w.interrupted = n
	deltas.Interrupt(n)
	return nil
}

// lostJobs are those that River believes a dead node runs, and those that wait for a caller
// on a dead node to finish them.
const lostJobs = `
	SELECT id
	FROM river_job
	WHERE state = 'running' AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = attempted_by[array_upper(attempted_by, 1)])
	UNION
	SELECT job_id
	FROM requests
	WHERE status = 'processing' AND job_id IS NOT NULL AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = node)
	      AND NOT EXISTS (SELECT FROM river_job WHERE river_job.id = job_id AND state = 'running')`

// goneJobs are those that requests name and River does not have, or will not run.
const goneJobs = `
	UNION
	SELECT job_id
	FROM requests
	WHERE job_id IS NOT NULL AND NOT EXISTS (
		SELECT FROM river_job WHERE river_job.id = job_id AND state NOT IN ('completed', 'discarded', 'cancelled'))`

// resume dispatches again what nodes that are no more were working on.
func (w *sweeping) resume(ctx context.Context, tx pgx.Tx, deltas store.Deltas) error {
	which := lostJobs
	if w.deep {
		which += goneJobs
	}
	again, err := handOutAgain(ctx, tx, deltas, which)
	if err != nil {
		return fmt.Errorf("hand out again what dead nodes were working on: %w", err)
	}
	w.again = again
	return nil
}

// foldMoving takes the moving rows of nodes that are no more, foldKept then the rows that stay, of writers
// without a moving one. A row that a transaction holds is left for the next deep sweep.
const (
	foldMoving = `
	DELETE FROM counters
	WHERE (node, writer) IN (
		SELECT node, writer
		FROM counters
		WHERE writer >= 32768 AND node = ANY (ARRAY(
			SELECT node
			FROM counters
			WHERE writer < 32768 AND node <> '' AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = node)))
		FOR UPDATE SKIP LOCKED)
	RETURNING counts`
	foldKept = `
	DELETE FROM counters
	WHERE (node, writer) IN (
		SELECT node, writer
		FROM counters AS kept
		WHERE writer < 32768 AND node <> '' AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = node) AND NOT EXISTS (
			SELECT
			FROM counters AS moving
			WHERE moving.node = kept.node
			      AND moving.writer >= (kept.writer + 1) << 48 AND moving.writer < (kept.writer + 2) << 48)
		FOR UPDATE SKIP LOCKED)
	RETURNING counts`
)

// fold adds the counters of nodes that are no more to those of node "".
func (w *sweeping) fold(ctx context.Context, tx pgx.Tx) error {
	var texts []string
	for _, statement := range []string{foldMoving, foldKept} {
		rows, err := tx.Query(ctx, statement)
		if err != nil {
			return fmt.Errorf("fold counters: %w", err)
		}
		more, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("fold counters: %w", err)
		}
		texts = append(texts, more...)
	}
	if len(texts) == 0 {
		return nil
	}
	var base string
	if err := tx.QueryRow(ctx, `SELECT counts FROM counters WHERE node = '' FOR UPDATE`).Scan(&base); err != nil {
		return fmt.Errorf("fold counters: %w", err)
	}
	sum := map[string]int64{}
	for _, text := range append(texts, base) {
		if err := addCounts(sum, text); err != nil {
			return fmt.Errorf("fold counters: %w", err)
		}
	}
	store.DropOldHours(sum, w.store.now())
	counts, err := json.Marshal(sum)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE counters SET counts = $1 WHERE node = ''`, string(counts))
	}
	if err != nil {
		return fmt.Errorf("fold counters: %w", err)
	}
	return nil
}

// nodes lists the nodes that are not known to be dead, longest first.
func (s *Store) nodes(ctx context.Context) ([]store.Node, error) {
	var nodes []store.Node
	err := s.reading(ctx, func(ctx context.Context) error {
		rows, err := s.reads.Query(ctx, `SELECT id, name, version, address, since, seen_at, id = $1 FROM nodes ORDER BY since, id`, s.node)
		if err != nil {
			return err
		}
		nodes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[store.Node])
		return err
	})
	return nodes, err
}
