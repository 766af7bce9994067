package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"tandem"
)

// kind is what the API says about one code, wherever it comes up: the status of
// the answer, and the text of its help page.
type kind struct {
	Code   tandem.Code
	Status int
	Title  string        // the same for every occurrence (RFC 9457)
	Help   string        // what it means
	Mend   string        // what to do about it
	Retry  time.Duration // Retry-After when the error itself does not say; 0: no such header
}

// statusClientClosed is nginx's status for a caller who hung up. Nobody reads the
// answer; it is for the log.
const statusClientClosed = 499

// kinds is the one table from code to status. A test walks every tandem.Code
// constant, so a new code cannot be forgotten here.
var kinds = []kind{
	{tandem.CodeInvalidJSON, http.StatusBadRequest, "The body is not JSON",
		"The body is empty, cut off, followed by something else, or not JSON (RFC 8259) at all.",
		"Send one JSON object, for example {\"data\": {\"user\": 1}}. The detail names the byte at which " +
			"reading stopped.", 0},
	{tandem.CodeInvalidInput, http.StatusBadRequest, "The input cannot be used",
		"The body is JSON, but data is {}, is nested too deeply, or the body repeats a name in one object " +
			"or holds text that is not UTF-8 or half a surrogate pair.",
		"Give data at least one member, keep its levels within --max-depth, and use every name once per object.", 0},
	{tandem.CodeInvalidCallbackURL, http.StatusBadRequest, "The callback URL cannot be called",
		"callback_url is no absolute http or https URL with a host, or it carries a user name or password.",
		"Use a URL such as https://example.com/hooks/tandem. Put secrets into its query, which no log shows, or check the " +
			"signature; user:password@ is not accepted.", 0},
	{tandem.CodeCallbackBlocked, http.StatusBadRequest, "The callback URL is not allowed",
		"Policy forbids calls to this address: cloud metadata always, and in production private networks and unusual ports.",
		"Use a public address on port 80 or 443, or ask the operator for --allow-callback-cidr, --allow-callback-host or " +
			"--allow-callback-port.", 0},
	{tandem.CodeInvalidCursor, http.StatusBadRequest, "The cursor is not valid",
		"cursor is not one that this server gave out.",
		"Follow the Link header with rel=\"next\" as it is, or start again without a cursor.", 0},
	{tandem.CodeValidation, http.StatusUnprocessableEntity, "A value is missing, of the wrong type or out of range",
		"The request can be read, but one or more of its values cannot be used. errors[] lists every one of them, with its " +
			"location.",
		"Mend what errors[] names; the documentation of the endpoint gives types and ranges.", 0},
	{tandem.CodeCrossOrigin, http.StatusForbidden, "A page of another origin may not send this",
		"The headers say that a browser sent this for a page of another origin (Sec-Fetch-Site, Origin), and that origin " +
			"is not one that the operator has named.",
		"Call from a program, or ask the operator for --cors-origin with the origin of your page.", 0},
	{tandem.CodeHostNotAllowed, http.StatusMisdirectedRequest, "The server does not go by this name",
		"The Host of the request is not a name of this server. A server without API keys answers to addresses, " +
			"localhost and the names that it was given, " +
			"so that no web page can reach it under a name of its own (DNS rebinding).",
		"Call it by its address, or ask the operator for --allowed-host with the name.", 0},
	{tandem.CodeUnauthenticated, http.StatusUnauthorized, "An API key is needed",
		"The request carries no API key, or one that is mistyped, unknown, revoked, replaced or expired. A wrong key " +
			"counts towards the rate limit of its address.",
		"Send Authorization: Bearer and a key that the operator has made with `tandem keys create`.", 0},
	{tandem.CodeForbidden, http.StatusForbidden, "The key does not allow this",
		"The API key is valid but lacks the scope: submit to ask for work, read to see one's own requests, admin for " +
			"everybody's and for the figures of the service.",
		"Ask the operator for a key with the scope that WWW-Authenticate names.", 0},
	{tandem.CodeNotFound, http.StatusNotFound, "There is no such thing here",
		"The path is not one of the API, or no request that this key may see has this id. Finished requests are deleted " +
			"after --retention.",
		"Check the path against /openapi.json and the id against the answer that named it.", 0},
	{tandem.CodeMethodNotAllowed, http.StatusMethodNotAllowed, "The method is not allowed here",
		"The path exists, but not for this method.",
		"Use one of the methods in the Allow header.", 0},
	{tandem.CodeTooLarge, http.StatusRequestEntityTooLarge, "The request is too large",
		"data is larger than --max-data, or the whole body is larger than that and 64 KiB.",
		"Send less, for example a link to the data; or ask the operator for a larger --max-data (at most 16 MiB).", 0},
	{tandem.CodeUnsupportedMedia, http.StatusUnsupportedMediaType, "The body is not declared as JSON",
		"Content-Type is not application/json (or a type that ends in +json) in UTF-8, or the body is compressed.",
		"Send Content-Type: application/json and no Content-Encoding.", 0},
	{tandem.CodeRequestTimeout, http.StatusRequestTimeout, "The body came too slowly",
		"The whole request has to arrive within 15 seconds.",
		"Send the request again, at once and whole.", 0},
	{tandem.CodeTaskFailed, http.StatusBadGateway, "The work failed",
		"The task ran and returned an error. The request is in the history, with its error_code and error_message.",
		"Look at /requests/{request_id}. The same input will probably fail again.", 0},
	{tandem.CodeTaskTimeout, http.StatusGatewayTimeout, "The work took too long",
		"The task ran past --task-timeout and was cancelled.",
		"Ask for less at once, or use POST /async with a longer --task-timeout.", 0},
	{tandem.CodeRateLimited, http.StatusTooManyRequests, "Too many requests from one client",
		"This client has made as many POSTs as --rate-limit allows in one window of time, " +
			"or as many GETs as --read-limit, or it does not read the answers that it has asked for. " +
			"An API key is one client, wherever it calls from; without one, an IPv6 network /64 is one client; " +
			"so is everybody behind one address.",
		"Try again after Retry-After, and look at the RateLimit header to stay below. Behind a proxy of your own, the " +
			"operator has to name it with --trusted-proxy.", time.Second},
	{tandem.CodeOverloaded, http.StatusServiceUnavailable, "Every slot is taken",
		"No slot came free before the deadline of this request, " +
			"or answers that are being read take up the memory that there is for them.",
		"Try again after Retry-After, or use POST /async, which queues.", time.Second},
	{tandem.CodeQueueFull, http.StatusServiceUnavailable, "The queue is full",
		"As many requests as --max-queue allows are unfinished, or as many of this API key (without one, of this " +
			"client) as --max-queue-per-key allows. Nothing was accepted.",
		"Try again after Retry-After.", 5 * time.Second},
	{tandem.CodeQuotaExceeded, http.StatusTooManyRequests, "The key's unfinished requests hold too many bytes",
		"The unfinished requests of this API key (without one, of this client) hold as many bytes of data and " +
			"results as --max-bytes-per-key allows. Nothing was accepted.",
		"Try again after Retry-After, when some of them have ended, or send less data.", 5 * time.Second},
	{tandem.CodeDraining, http.StatusServiceUnavailable, "The server is starting or shutting down",
		"At its start it takes no work yet. At its end it finishes or hands back what was accepted and takes nothing new.",
		"Try again after Retry-After, on another node if there is one.", 5 * time.Second},
	{tandem.CodeStoreUnavailable, http.StatusServiceUnavailable, "The database cannot be used",
		"The database does not take writes or does not answer, for example because the disk is full. Nothing was accepted.",
		"Try again after Retry-After; the operator finds the cause in the log.", 5 * time.Second},
	{tandem.CodeClientClosed, statusClientClosed, "The caller has gone",
		"The caller closed the connection before its answer was ready. Only logs and the history show this.",
		"Wait longer, or use POST /async.", 0},
	{tandem.CodeInternal, http.StatusInternalServerError, "A defect of tandem",
		"Something went wrong that should not have. The log has the cause under the X-Request-ID of the answer.",
		"Report it with the X-Request-ID.", 0},
}

// kindOf finds the entry of a code; a code that is not in the table counts as
// a defect. The index is the code's place in the counters.
func kindOf(code tandem.Code) (int, kind) {
	for i, k := range kinds {
		if k.Code == code {
			return i, k
		}
	}
	return kindOf(tandem.CodeInternal)
}

// problem is the body of every error (RFC 9457, application/problem+json).
type problem struct {
	Type       string              `json:"type" format:"uri-reference" doc:"/problems/<code>: a page that explains it" example:"/problems/VALIDATION_FAILED"`
	Title      string              `json:"title" doc:"The same for every error of this code"`
	Status     int                 `json:"status" minimum:"400" maximum:"599" doc:"The HTTP status"`
	Detail     string              `json:"detail" doc:"What happened this time, and what to do"`
	Instance   string              `json:"instance" format:"uri-reference" doc:"The path that was asked for"`
	Code       tandem.Code         `json:"code" doc:"Stable: decide by this"`
	Errors     []tandem.FieldError `json:"errors,omitempty" doc:"What is wrong with which value"`
	RequestID  string              `json:"request_id,omitempty" doc:"The request it is about, as /requests/{id} knows it"`
	RetryAfter int                 `json:"retry_after,omitempty" minimum:"1" doc:"Seconds, beside the header; on 429 and 503 only"`
}

// tally counts the problems that were answered, by place in kinds.
type tally []atomic.Int64

// fail answers with a problem. What is not a *tandem.Error is a defect: its text
// goes to the log and the caller learns only that.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var known *tandem.Error
	switch {
	case r.Context().Err() != nil && errors.Is(err, context.Canceled):
		// Whatever was cut short by it, the reason is that nobody waits any more.
		known = &tandem.Error{Code: tandem.CodeClientClosed, Message: "The caller has gone.", Err: err}
	case !errors.As(err, &known):
		known = &tandem.Error{
			Code:    tandem.CodeInternal,
			Message: "Something went wrong here. The log has the cause under the X-Request-ID of this answer.",
			Err:     err,
		}
	}
	i, k := kindOf(known.Code)
	s.tally[i].Add(1)
	if k.Status >= http.StatusInternalServerError || known.Err != nil {
		attrs := []slog.Attr{
			slog.String("code", string(k.Code)), slog.String("method", r.Method), slog.String("path", r.URL.Path),
			slog.String("x_request_id", w.Header().Get(headerRequestID)), slog.Any("error", err),
		}
		if known.RequestID != "" {
			attrs = append(attrs, slog.String("request_id", known.RequestID))
		}
		s.log.LogAttrs(r.Context(), logLevel(k.Status), "request failed", attrs...)
	}
	p := problem{
		Type: "/problems/" + string(k.Code), Title: k.Title, Status: k.Status, Detail: known.Message,
		Instance: r.URL.EscapedPath(), Code: k.Code, Errors: known.Fields, RequestID: known.RequestID,
	}
	if wait := cmp.Or(known.RetryAfter, k.Retry); wait > 0 {
		p.RetryAfter = wholeSeconds(wait)
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if k.Status == http.StatusRequestEntityTooLarge || k.Status == http.StatusRequestTimeout {
		w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	}
	writeProblem(w, p)
}

// logLevel makes a defect stand out. What callers do wrong, work that fails and
// refusals while there is too much to do are counted (tandem_http_problems_total)
// and would otherwise flood the log when it is needed most; the store itself says when it
// takes no writes.
func logLevel(status int) slog.Level {
	if status == http.StatusInternalServerError {
		return slog.LevelError
	}
	return slog.LevelDebug
}

// writeProblem is apart from writeJSON because problems have a media type of
// their own. Nobody may keep one: the next try may go better.
func writeProblem(w http.ResponseWriter, p problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(p) //nolint:errchkjson // fails only when the caller has gone: its values are checked JSON
}

// invalid makes the error for values that cannot be used.
func invalid(fields []tandem.FieldError) error {
	message := "A value is missing, of the wrong type or out of range; see errors."
	if len(fields) == 1 {
		message = fields[0].Location + " " + fields[0].Message + "."
	}
	return &tandem.Error{Code: tandem.CodeValidation, Message: message, Fields: fields}
}
