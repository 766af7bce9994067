package tandem

import (
	"errors"
	"fmt"
	"time"
)

// Code names a kind of error. Codes are part of the HTTP contract and never
// change their meaning; /problems/<code> explains each one.
type Code string

// The codes a caller can see.
const (
	CodeInvalidJSON        Code = "INVALID_JSON"         // not JSON at all
	CodeInvalidInput       Code = "INVALID_INPUT"        // JSON, but `data` cannot be used
	CodeInvalidCallbackURL Code = "INVALID_CALLBACK_URL" // not a callable URL
	CodeCallbackBlocked    Code = "CALLBACK_BLOCKED"     // forbidden by policy
	CodeInvalidCursor      Code = "INVALID_CURSOR"       // not issued by this server
	CodeValidation         Code = "VALIDATION_FAILED"    // a field missing, of the wrong type or out of range
	CodeUnauthenticated    Code = "UNAUTHENTICATED"      // no API key, or an unknown one
	CodeForbidden          Code = "FORBIDDEN"            // the key lacks the scope
	CodeCrossOrigin        Code = "CROSS_ORIGIN"         // a browser sent it for a page of somebody else
	CodeNotFound           Code = "NOT_FOUND"
	CodeHostNotAllowed     Code = "HOST_NOT_ALLOWED" // Host is not a name of this server
	CodeMethodNotAllowed   Code = "METHOD_NOT_ALLOWED"
	CodeTooLarge           Code = "PAYLOAD_TOO_LARGE"
	CodeUnsupportedMedia   Code = "UNSUPPORTED_MEDIA_TYPE"
	CodeRequestTimeout     Code = "REQUEST_TIMEOUT" // the body came too slowly
	CodeTaskFailed         Code = "TASK_FAILED"
	CodeTaskTimeout        Code = "TASK_TIMEOUT"
	CodeRateLimited        Code = "RATE_LIMITED"      // this client has asked too often
	CodeOverloaded         Code = "OVERLOADED"        // no slot before the deadline
	CodeQueueFull          Code = "QUEUE_FULL"        // --max-queue unfinished requests
	CodeQuotaExceeded      Code = "QUOTA_EXCEEDED"    // --max-bytes-per-key of unfinished requests
	CodeDraining           Code = "SHUTTING_DOWN"     // no new work is accepted
	CodeStoreUnavailable   Code = "STORE_UNAVAILABLE" // the database does not take writes
	CodeClientClosed       Code = "CLIENT_CLOSED"     // seen in logs only: the caller has gone
	CodeInternal           Code = "INTERNAL"          // a defect of tandem
)

// Error is the only error shown to users. Err, when set, is for the log.
type Error struct {
	Code       Code
	Message    string        // the event, its subject, the next step
	Fields     []FieldError  // one entry per invalid field
	RequestID  string        // the request it is about, if there is one
	RetryAfter time.Duration // on 429 and 503: when it is worth trying again; whole seconds
	Err        error         // the cause; logged, never shown
}

// FieldError describes one invalid part of a request.
type FieldError struct {
	Location string `json:"location"`        // body.complexity, query.limit, header.Content-Type
	Message  string `json:"message"`         // the expectation
	Value    any    `json:"value,omitempty"` // the value received, shortened
}

// Errorf makes an Error with a message for people. A %w verb sets the cause, and its text becomes part of the message:
// use it only for texts fit for strangers.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Error returns the message with its code, for logs.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s (%v)", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first *Error in err's chain, CodeInternal if
// there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
