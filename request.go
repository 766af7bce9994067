package tandem

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Mode says how the caller wants the answer.
type Mode string

// The two ways to ask for work.
const (
	ModeSync  Mode = "sync"  // the caller waits on the connection
	ModeAsync Mode = "async" // the result goes to the caller's callback URL
)

// Modes lists every mode.
var Modes = []Mode{ModeSync, ModeAsync}

// Status is where a request stands. [Status.CanBecome] is the table of moves.
type Status string

// The statuses of a request.
const (
	StatusPending        Status = "pending"         // on disk, waiting for a slot
	StatusProcessing     Status = "processing"      // its work runs (a sync request starts here)
	StatusCompleted      Status = "completed"       // the work ended well; the end for sync
	StatusCallbackSent   Status = "callback_sent"   // the receiver answered 2xx
	StatusCallbackFailed Status = "callback_failed" // every attempt is used up, or it expired
	StatusFailed         Status = "failed"          // the work failed; see ErrorCode
)

// Statuses lists every status in the order of a request's life.
var Statuses = []Status{
	StatusPending, StatusProcessing, StatusCompleted, StatusCallbackSent, StatusCallbackFailed, StatusFailed,
}

// :: status → statuses it may become
var transitions = map[Status][]Status{
	StatusPending: {StatusProcessing},
	// back to pending: released by a shutdown, found running after a crash, or
	// to be run again because it was not done.
	StatusProcessing:     {StatusPending, StatusCompleted, StatusFailed},
	StatusCompleted:      {StatusCallbackSent, StatusCallbackFailed},
	StatusCallbackSent:   {},
	StatusCallbackFailed: {},
	StatusFailed:         {}, // the callback about it is in CallbackStatus
}

// CanBecome reports whether a request may move from s to next.
func (s Status) CanBecome(next Status) bool { return slices.Contains(transitions[s], next) }

// Valid reports whether s is one of [Statuses].
func (s Status) Valid() bool { _, ok := transitions[s]; return ok }

// CallbackStatus is the fate of an async request's callback; empty for sync.
type CallbackStatus string

// The fates of a callback.
const (
	CallbackPending CallbackStatus = "pending" // not yet due, being tried, or waiting for a retry
	CallbackSent    CallbackStatus = "sent"    // the receiver answered 2xx
	CallbackFailed  CallbackStatus = "failed"  // marked as failed
)

// Reasons a request failed, as its ErrorCode in the history. They are stable.
const (
	FailedTask         = "task_failed"   // the task returned an error
	FailedPanic        = "task_panicked" // the task panicked
	FailedTimeout      = "task_timeout"  // the task ran past --task-timeout
	FailedNoSlot       = "no_slot"       // a sync request found no free slot before its deadline
	FailedClientClosed = "client_closed" // a sync caller hung up
	FailedInterrupted  = "interrupted"   // the process ended while a sync request was running
)

// Request is one piece of work and everything known about it. The zero value
// of a time means "not yet".
type Request struct {
	ID               string          `json:"request_id"`                // req_ + 32 hex digits, sortable by time
	Mode             Mode            `json:"mode"`                      // sync or async
	Task             string          `json:"task"`                      // name of the task
	Status           Status          `json:"status"`                    // where it stands
	CallbackStatus   CallbackStatus  `json:"callback_status,omitempty"` // async only
	Data             json.RawMessage `json:"input_data"`                // the caller's JSON object, as received
	Complexity       int             `json:"complexity"`                // 1..10
	BatchID          string          `json:"batch_id,omitempty"`        // of requests sent together
	KeyID            string          `json:"key_id,omitempty"`          // the caller's API key; "" without keys
	Result           json.RawMessage `json:"result,omitempty"`          // of the task
	ProcessingTimeMS float64         `json:"processing_time_ms"`        // time in the task, milliseconds; 0 until it ended
	CallbackURL      string          `json:"callback_url,omitempty"`    // async only
	CallbackAttempts int             `json:"callback_attempts"`         // counted attempts
	CreatedAt        time.Time       `json:"created_at"`                // UTC, whole milliseconds: the time inside ID
	StartedAt        time.Time       `json:"started_at,omitzero"`       // UTC, when the task last started
	CompletedAt      time.Time       `json:"completed_at,omitzero"`     // UTC, when the task ended, well or not
	ErrorCode        string          `json:"error_code,omitempty"`      // one of the Failed… constants
	ErrorMessage     string          `json:"error_message,omitempty"`   // for people
	Attempts         []Attempt       `json:"attempts,omitempty"`        // log of the callback, oldest first

	// Runs is how many runs of the work have used up an attempt; 0 once it has ended.
	Runs int `json:"-"`

	// Owner is the tenant for fair sharing: the API key, or, on a server without keys, OwnerNetwork and a number made of
	// the caller's network. Requests with "" have one share together.
	Owner string `json:"-"`
}

// OwnerNetwork begins the owners of requests without an API key.
const OwnerNetwork = "net-"

// KeyOf is the API key of an owner; "" if it is not one.
func KeyOf(owner string) string {
	if strings.HasPrefix(owner, OwnerNetwork) {
		return ""
	}
	return owner
}

// Unfinished reports whether anything is still to be done for the request:
// its work, or its callback.
func (r *Request) Unfinished() bool {
	switch r.Status {
	case StatusPending, StatusProcessing:
		return true
	case StatusCompleted, StatusFailed:
		return r.CallbackStatus == CallbackPending
	default:
		return false
	}
}

// idPrefix starts every request id.
const idPrefix = "req_"

// ID formats a UUID version 7 (RFC 9562, section 5.7) as a request id. Ids sort by their creation time, as the history
// does.
func ID(uuid7 [16]byte) string { return idPrefix + hex.EncodeToString(uuid7[:]) }

// IDTime returns the time inside a request id, UTC, to the millisecond. A foreign id is an error.
func IDTime(id string) (time.Time, error) {
	order, err := IDOrder(id)
	if err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(order >> orderBits).UTC(), nil
}

// orderBits is how many bits of an id's order divide its millisecond.
const orderBits = 12

// IDOrder returns a number by which requests sort as their ids do: the millisecond, and the 12 bits after it, for the
// order of ids within one millisecond (RFC 9562, section 6.2, method 3). No process makes two ids of one order; two
// processes may. A foreign id is an error.
func IDOrder(id string) (int64, error) {
	digits, ok := strings.CutPrefix(id, idPrefix)
	var raw [16]byte
	n, err := 0, error(nil)
	if ok = ok && len(digits) == 2*len(raw); ok {
		n, err = hex.Decode(raw[:], []byte(digits))
	}
	const version = 7
	if !ok || err != nil || n != len(raw) || raw[6]>>4 != version || digits != strings.ToLower(digits) {
		return 0, fmt.Errorf("request id %.60q: want %s and the 32 lower-case hex digits of a UUID version 7", id, idPrefix)
	}
	head := binary.BigEndian.Uint64(raw[:8])
	return int64(head>>16<<orderBits | head&(1<<orderBits-1)), nil
}

// OrderOf returns the least order of an id made at t or later. Times outside the range of an id (1970 to the year
// 10889) are clamped.
func OrderOf(t time.Time) int64 {
	const most = 1 << 48
	ms := min(max(t.UnixMilli(), 0), most)
	if t.After(time.UnixMilli(ms)) { // a part of a millisecond: ids of ms itself are earlier than t
		ms = min(ms+1, most)
	}
	return ms << orderBits
}
