package tandem

import (
	"encoding/json"
	"time"
)

// Outcome says how one attempt to deliver a callback ended.
type Outcome string

// The outcomes of an attempt. [Outcome.Permanent] reports the ones a retry cannot help.
const (
	OutcomeDelivered Outcome = "delivered"     // 2xx
	OutcomeHTTPError Outcome = "http_error"    // any other 4xx or 5xx
	OutcomeRedirect  Outcome = "redirect"      // 3xx, never followed
	OutcomeGone      Outcome = "gone"          // 410: the receiver wants no more
	OutcomeThrottled Outcome = "throttled"     // 429 or 503
	OutcomeTimeout   Outcome = "timeout"       // no full answer in time
	OutcomeConnect   Outcome = "connect_error" // no connection, or it broke
	OutcomeTLS       Outcome = "tls_error"     // handshake or certificate
	OutcomeBlocked   Outcome = "blocked"       // the egress guard refused the address
	OutcomeExpired   Outcome = "expired"       // too old to be worth sending; nothing was sent
)

// Permanent reports whether trying again cannot help.
func (o Outcome) Permanent() bool {
	return o == OutcomeGone || o == OutcomeBlocked || o == OutcomeExpired
}

// Attempt is one try to deliver a callback.
type Attempt struct {
	Number     int       `json:"number"`                // 1, 2, …; an expiry sends nothing and repeats the last number
	StartedAt  time.Time `json:"started_at"`            // UTC
	DurationMS float64   `json:"duration_ms"`           // the whole exchange, milliseconds
	StatusCode int       `json:"status_code,omitempty"` // answer of the receiver; 0: none
	Outcome    Outcome   `json:"outcome"`               // how it ended
	Error      string    `json:"error,omitempty"`       // for people; reveals nothing about forbidden addresses
	NextAt     time.Time `json:"next_at,omitzero"`      // when the next try is due; zero: there is none
}

// The types of callback.
const (
	EventCompleted = "request.completed"
	EventFailed    = "request.failed"
)

// Callback is the body of the POST to a caller's callback URL.
type Callback struct {
	Type             string           `json:"type"`               // EventCompleted or EventFailed
	RequestID        string           `json:"request_id"`         // also the webhook-id: the same on every try
	Status           Status           `json:"status"`             // completed or failed
	Result           json.RawMessage  `json:"result,omitempty"`   // of EventCompleted
	Error            *CallbackError   `json:"error,omitempty"`    // of EventFailed
	ProcessingTimeMS float64          `json:"processing_time_ms"` // time in the task, milliseconds
	Timestamp        time.Time        `json:"timestamp"`          // UTC, when the work ended
	Metadata         CallbackMetadata `json:"callback_metadata"`
}

// CallbackError says why the work failed.
type CallbackError struct {
	Code    string `json:"code"`    // one of the Failed… constants
	Message string `json:"message"` // for people
}

// CallbackMetadata tells the tries of one callback apart.
type CallbackMetadata struct {
	Attempt     int       `json:"attempt"`      // 1..MaxAttempts
	MaxAttempts int       `json:"max_attempts"` // then the callback is marked as failed
	SentAt      time.Time `json:"sent_at"`      // UTC, of this try
}
