// Package postgres keeps requests in a PostgreSQL database that any number of nodes share. River dispatches the work.
//
// It hides connections, batches, the queue and how nodes take over from each other. It promises what store.Store
// promises, whichever node dies. app opens it.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tandem"
	"tandem/internal/store"
)

const (
	defaultConns   = 20               // connections of a node, unless the URL says pool_max_conns
	migrationConns = 4                // one that waits for its turn, and some that change the schema
	minConns       = 8                // fewer than this and the parts of a node wait for each other
	oldestPostgres = 15               // major version
	connectTimeout = 5 * time.Second  // unless the URL says connect_timeout
	writeTimeout   = 10 * time.Second // one transaction; a database that takes longer counts as gone
	readTimeout    = 30 * time.Second // one statement that reads
	idleTimeout    = 5 * time.Second  // between two statements of a transaction; the server then ends it, and lets go of what it holds
	silenceTimeout = 10 * time.Second // of the network, while the server waits for it
)

// Store is the store that any number of nodes share. River dispatches the
// work: see river.go and docs/decisions/0017-nodes-on-postgresql.md.
type Store struct {
	cfg  store.Config
	node string // who we are, anew with every start

	pool  *pool // writers, River and the heartbeat
	reads *pool // read-only, so that readers never keep writers waiting

	sendMu  sync.RWMutex // held for reading to send to writers, for writing to close
	closed  bool         // guarded by sendMu
	accepts *lineup      // requests to be accepted, which somebody waits for
	results *lineup      // everything else that is written
	writers []*writer
	writing sync.WaitGroup // the writers' goroutines

	stop    context.CancelFunc // ends tend and announce
	tending sync.WaitGroup

	failure   atomic.Pointer[error] // the last write failed with this; nil: it succeeded
	away      atomic.Bool           // the last heartbeat had no answer
	unread    atomic.Bool           // the last read got no connection
	accepting atomic.Int64          // calls of Accept under way, for MaxQueue
	working   atomic.Bool           // Work was called
	others    store.Counters        // of the other nodes, as of the last look around
	wakes     wakes
	held      *heldJobs
	callers   *callers
	queues    *queues
	traces    traces
	quotas    *store.Quotas
	capacity  atomic.Pointer[store.Capacity] // of Work; empty before

	silent atomic.Bool // a fault point, false but in tests: no heartbeat, no sweep
}

// Open connects, brings the schema up to date and joins the nodes that
// share the database. Errors are for people, and hold no password.
func Open(ctx context.Context, cfg store.Config) (_ *Store, err error) {
	if cfg, err = cfg.WithDefaults(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, node: uuid.NewString(), accepts: newLineup(), results: newLineup(),
		held: newHeldJobs(), callers: newCallers(), queues: newQueues(),
	}
	s.quotas = store.NewQuotas(cfg, s.unfinished, s.used)
	s.wakes.init()
	s.capacity.Store(&store.Capacity{})
	defer func() {
		if err != nil {
			s.release()
			err = fmt.Errorf("open database %s: %w", WithoutPassword(cfg.URL), Explain(err))
		}
	}()
	if s.pool, s.reads, err = connectPools(ctx, cfg.URL); err != nil {
		return nil, err
	}
	if err := migrate(ctx, cfg.URL, cfg.Log); err != nil {
		return nil, err
	}
	if err := s.inspect(ctx); err != nil {
		return nil, err
	}
	if _, err := s.heartbeat(ctx); err != nil {
		return nil, err
	}
	if err := refuseUnfinished(s.pool.QueryRow(ctx, selectMark, copyUnfinished)); err != nil { // after the heartbeat: of this and a copy that begins now, one sees the other
		s.leave(ctx)
		return nil, err
	}
	if err := s.lookAround(ctx); err != nil {
		return nil, err
	}
	cfg.Nodes.SetList(s.nodes)
	s.startWriters()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.tending.Go(func() { s.beat(running) })
	s.tending.Go(func() { s.tend(running) })
	s.tending.Go(func() { s.announce(running) })
	return s, nil
}

// steadyPlans have statements planned the same way whatever PostgreSQL knows of the size of tables. The queue is empty
// one moment and long the next, and a plan is kept: one that was made for an empty table goes
// through all of it for each row of a batch. So every statement that writes many rows names their keys as an array, which is
// looked up in the index (= ANY), and joins what it finds by hashing; what reads looks up each row by its key.
func steadyPlans(join string) map[string]string {
	settings := map[string]string{"enable_seqscan": "off", "enable_nestloop": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
	settings[join] = "on"
	return settings
}

// connectPools returns a pool for writing and one for reading, which share the connections that
// the URL allows. Neither has connected when it returns without an error but for one of the first.
func connectPools(ctx context.Context, url string) (pool, reads *pool, err error) {
	cfg, err := parseURL(url)
	if err != nil {
		return nil, nil, err
	}
	all := cfg.MaxConns
	reading := cfg.Copy()
	reading.MaxConns = max(all/4, 2)
	setDefaults(cfg, steadyPlans("enable_hashjoin"))
	setDefaults(reading, steadyPlans("enable_nestloop"))
	setDefaults(reading, map[string]string{"default_transaction_read_only": "on"})
	reading.MinConns = max(reading.MinConns, 1) // else the writers may take all that the server has
	cfg.MaxConns = all - reading.MaxConns
	if pool, err = newPool(ctx, cfg); err != nil {
		return nil, nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, nil, err
	}
	if reads, err = newPool(ctx, reading); err != nil {
		pool.Close()
		return nil, nil, err
	}
	return pool, reads, nil
}

// Close commits what waits, leaves the other nodes and lets go of the database.
// It may be called more than once.
func (s *Store) Close() error {
	s.sendMu.Lock()
	first := !s.closed
	if first {
		s.closed = true
		close(s.accepts.ops)
		close(s.results.ops)
	}
	s.sendMu.Unlock()
	s.writing.Wait()
	if !first {
		s.tending.Wait()
		return nil
	}
	s.stop()
	s.tending.Wait()
	bound, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.leave(bound)
	s.release()
	return nil
}

func (s *Store) release() {
	if s.pool == nil {
		return
	}
	var closing sync.WaitGroup // pgx waits for each connection, if the server does not answer for 15 s
	closing.Go(s.pool.Close)
	closing.Go(s.reads.Close)
	closing.Wait()
}

// SigningSecret returns the secret kept in the database, the same for all nodes whichever is first. It goes
// there by COPY, because parameters of statements may be logged by the server.
func (s *Store) SigningSecret(ctx context.Context, fresh tandem.Secret) (tandem.Secret, bool, error) {
	var text string
	keep := func(ctx context.Context, tx pgx.Tx, _ store.Deltas) error {
		err := tx.QueryRow(ctx, `SELECT value FROM settings WHERE name = 'signing_secret'`).Scan(&text)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		text = fresh.Reveal()
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"settings"}, []string{"name", "value"},
			pgx.CopyFromRows([][]any{{"signing_secret", text}}))
		return err
	}
	err := s.do(ctx, keep)
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok && cause.Code == "23505" {
		err = s.do(ctx, keep) // another node was first, at the same moment
	}
	if err != nil {
		return tandem.Secret{}, false, fmt.Errorf("keep the signing secret: %w", err)
	}
	secret, err := tandem.ParseSecret(text)
	return secret, text == fresh.Reveal(), err // not whether a row was inserted: the answer to a first try may have been lost
}

// now is the time by the clock of the database, which all nodes go by.
func (s *Store) now() time.Time { return time.Now().Add(s.cfg.Nodes.Skew()) }

// note remembers whether the database takes writes, for /readyz.
func (s *Store) note(err error) {
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok && (strings.HasPrefix(cause.Code, "22") || strings.HasPrefix(cause.Code, "23")) {
		err = nil // one bad row; the database is well
	}
	if errors.Is(err, errTwice) {
		err = nil
	}
	switch { // several may note at a time; one of them says so
	case err == nil && s.failure.Load() != nil && s.failure.Swap(nil) != nil:
		s.cfg.Log.Info("the database takes writes again")
	case err != nil && s.failure.Swap(&err) == nil:
		s.cfg.Log.Error("the database does not take writes; new requests are refused until it does", "error", Explain(err))
	}
}
