// Package store is what survives a crash: the history of every request and the
// queue of what is still to be done, which are one thing here. A request's row
// says where it stands, which lane it waits in and when it is due; there is no
// second queue that could disagree with it.
//
// The package hides databases, transactions and batches. It promises that what
// a method reports as done is committed and fsynced (see [Store.Accept]), that
// every move of a request obeys tandem.Status.CanBecome, and that work is
// dispatched at least once. The engine calls Accept, Finish and Work; the HTTP
// server reads the history; app opens and closes it.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"tandem"
)

// Store keeps requests. Its methods may be called from any number of goroutines.
// Errors that a caller can act on are *tandem.Error: CodeQueueFull, CodeQuotaExceeded,
// CodeStoreUnavailable, CodeNotFound, CodeInvalidCursor.
type Store interface {
	History

	// Accept commits new requests of one owner, all of them or none: pending in a lane that
	// hands them out (async), or processing, because the caller does the work itself. Of the
	// latter those in LaneNone are never dispatched (sync), and those in another lane
	// only if they are not finished within CallerLease, or found after a crash.
	// It returns nil only when the rows are durable. After an error there
	// is no row, unless ctx ended first or it is ErrUnsure: then there may be all, now or later. The caller
	// should Finish those in processing; rows that appear only after that are ended as interrupted by the
	// store. ErrExists asks for other ids.
	Accept(ctx context.Context, lane Lane, requests ...*tandem.Request) error

	// Finish commits what came of work that the caller of Accept did itself, and
	// returns when that is durable: job is the lane and the request as they were accepted, next
	// what a Step would have returned. CodeNotFound after Accept returned nil: somebody else has finished it.
	// After any other answer of Accept it says only that there is no row yet.
	Finish(ctx context.Context, job Job, next Next) error

	// Work dispatches due jobs and commits what step returns for each, until ctx
	// ends; then it dispatches nothing more, waits for the steps that run, commits
	// their results and returns. It never cancels the context it gives to step: who
	// owns step decides how long a job may go on. Work is called once.
	Work(ctx context.Context, capacity Capacity, step Step) error

	// SigningSecret returns the secret kept in the database. If there is none it
	// keeps and returns fresh, and made is true.
	SigningSecret(ctx context.Context, fresh tandem.Secret) (secret tandem.Secret, made bool, err error)

	// Retain deletes finished requests that were made before the given time, in
	// small chunks between other writes, and returns how many. It stops early, without
	// an error, when ctx ends.
	Retain(ctx context.Context, before time.Time) (int, error)

	// Close commits what waits and lets go of the database. Work must have returned.
	Close() error
}

// History is what a store can be asked. Nothing of it changes anything.
type History interface {
	// Request returns one request with its attempts, or CodeNotFound.
	Request(ctx context.Context, id string) (tandem.Request, error)

	// Requests returns a page of the history, newest first, without attempts.
	Requests(ctx context.Context, filter Filter) (Page, error)

	// Stats returns the counters, as of the last commit. It does not scan the table.
	Stats(ctx context.Context) (Stats, error)

	// Undelivered looks for callbacks that could not be delivered yet. Its cost has a bound, however many
	// there are, but it is not for every request that somebody makes.
	Undelivered(ctx context.Context) (Undelivered, error)
}

// ErrExists says that a request of the same id, or of the same order (see
// tandem.IDOrder), is there already.
var ErrExists = errors.New("a request of this id exists")

// ErrUnsure says that a write may have happened: the answer to its commit was lost, with the database.
var ErrUnsure = errors.New("it may have been written")

// ErrMoved says that what is written is in no file that the next start would find. A store logs it once.
var ErrMoved = errors.New("the database was moved away under the running server")

// Lane is a queue of jobs that compete for the same slots.
type Lane string

// The lanes.
const (
	LaneNone    Lane = ""        // nothing to dispatch
	LaneCPU     Lane = "cpu"     // work that computes
	LaneIO      Lane = "io"      // work that waits
	LaneDeliver Lane = "deliver" // callbacks
)

// Lanes lists the lanes that dispatch jobs.
var Lanes = []Lane{LaneCPU, LaneIO, LaneDeliver}

// CallerLease is how long a request that was accepted processing in a lane is left
// to its caller. Then it is dispatched: its caller has not been able to finish it.
const CallerLease = time.Minute

// Capacity bounds what is dispatched at once.
type Capacity struct {
	Jobs  map[Lane]int // :: lane → jobs whose step may run at the same time; a lane without an entry dispatches nothing
	Bytes int64        // data and results of all handed-out jobs together; 0: 256 MiB. One job is always let through

	// Room returns how many parked callbacks of an owner may be with a destination at the same time:
	// 0 while its circuit breaker is open, 1 while it is probed. It must not block. nil: any number.
	Room func(destination, owner string) int
	// MaxAge is the age, since its work ended, at which a parked callback is dispatched whatever Room says, so that
	// Step can mark it as failed; 0: never.
	MaxAge time.Duration
}

// Job is one thing to do for a request: its work (cpu, io) or one try of its callback (deliver).
type Job struct {
	Lane    Lane
	Request tandem.Request // without its log of attempts, and with Data for work or Result for a callback only; not to be modified
	// Parked is the destination that a callback was parked for (see [Postpone]); "": none.
	Parked string
	// Started is to be called, from Step, when work (cpu, io) begins, at most once: until then its row says pending.
	Started func()
	// Answered is to be called, from Step, when the exchange of a callback has ended, at most once: its destination
	// may take another one while the result is committed.
	Answered func()
}

// Step does a job and says what comes next. It must return soon after the
// engine cancels it, and it must not panic.
type Step func(ctx context.Context, job Job) Next

// Outcome is how the work of a request ended.
type Outcome struct {
	Result       json.RawMessage // of work that ended well
	ErrorCode    string          // one of the tandem.Failed… constants; "" means it ended well
	ErrorMessage string
	StartedAt    time.Time     // UTC
	CompletedAt  time.Time     // UTC
	Processing   time.Duration // in the task
}

// Status is the status of a request whose work ended this way.
func (o *Outcome) Status() tandem.Status {
	if o.ErrorCode != "" {
		return tandem.StatusFailed
	}
	return tandem.StatusCompleted
}

// Filter selects a page of the history. Zero fields do not filter.
type Filter struct {
	Mode         tandem.Mode
	Status       tandem.Status
	Task         string
	Key          string    // the API key that asked
	Batch        string    // not together with Mode, Status or Task
	Since, Until time.Time // Since <= created_at < Until
	Limit        int       // 1..1000
	Offset       int       // 0..10000; not together with Cursor
	Cursor       string    // Page.Next of the page before
	MaxBytes     int       // a page ends early rather than holding more data and results than this, but holds at least one request; 0: no bound
}

// Page is a part of the history.
type Page struct {
	Requests []tandem.Request
	Next     string // cursor of the page after this one; "" at the end
	Total    int64  // in the history, for a filter on Config.Counted and at most a key, whatever is on the page; else 0
}

// Stats are the counters of a store. Totals count since the database was made
// and are not reduced by retention; gauges say how many there are now.
type Stats struct {
	Requests map[tandem.Mode]int64           // total accepted, by mode
	Now      map[tandem.Status]int64         // gauge, pending and processing only
	Ended    map[tandem.Status]int64         // total that ever became completed, failed, callback_sent or callback_failed
	Callback map[tandem.CallbackStatus]int64 // total sent and failed, those that report failed work included
	Failures map[string]int64                // total by error code of the request
	Attempts map[tandem.Outcome]int64        // total attempts by outcome
	Work     map[tandem.Mode]WorkTime        // time in the task, of work that ended

	Counted Counted

	Queue       map[Lane]int64 // gauge: jobs waiting or dispatched, by lane
	Unfinished  int64          // gauge: what --max-queue bounds
	Capacity    int64          // --max-queue
	OldestDue   time.Time      // when the job that has waited longest became due; zero: none waits
	Unavailable error          // the last write failed and none has succeeded since; nil: all is well
	Commits     Commits        // since the store was opened
}

// Commits says how transactions that write have gone.
type Commits struct {
	Count  int64         // that succeeded
	Failed int64         // that failed and left nothing behind
	Writes int64         // accepted requests, results, attempts and the like, in those that succeeded
	Time   time.Duration // spent on those that succeeded, their fsync included
}

// Counted are the counters of the requests whose task is Config.Counted.
type Counted struct {
	Accepted int64    // total
	Kept     int64    // gauge: those in the history
	Recent   int64    // accepted in the current hour (UTC) and the 23 before it
	Ended    int64    // total that completed
	Work     WorkTime // of those that ended, well or not
}

// WorkTime is a total from which an average is made.
type WorkTime struct {
	Count int64
	Total time.Duration
}
