package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/store"
)

// keysPutOff is when a callback is tried again whose API key could not be read.
const keysPutOff = time.Second

// deliver makes one try to deliver a callback, or finds that there is no use in
// it, or no place for it now. Waiting for a place holds none of the engine's slots.
func (e *Engine) deliver(claiming context.Context, job store.Job) store.Next {
	r := &job.Request
	begun, skew := time.Now(), e.cfg.Nodes.Skew()
	deadline := begun.Add(r.CompletedAt.Add(e.cfg.Retry.MaxAge).Sub(begun.Add(skew))) // by this machine's clock
	if !begun.Before(deadline) {
		return e.expire(r, begun.Add(skew))
	}
	if err := e.cfg.Keys.LookUp(e.working, r.KeyID); err != nil { // signed by another secret it would be refused
		e.log.Warn("callback rescheduled: its API key cannot be read", "request_id", r.ID, "error", err)
		return store.Postpone(earlier(begun.Add(keysPutOff), deadline), "")
	}
	place, err := e.cfg.Egress.Reserve(claiming, r.CallbackURL, r.Owner)
	if err != nil {
		return e.noPlace(claiming, r, err, deadline)
	}
	number := r.CallbackAttempts + 1
	sent := time.Now().Add(skew).UTC() // receivers look at it
	body, err := e.callbackBody(r, number, sent)
	if err != nil {
		place.Release()
		return e.unsendable(r, number, sent, err)
	}
	result := place.Post(e.working, e.callbackHeader(r, sent, body), body)
	job.Answered()
	site, path := place.Destinations()
	var next store.Next
	switch {
	case result.Interrupted:
		next = store.Release()
	case result.Reschedule != nil:
		next = e.noPlace(claiming, r, result.Reschedule, deadline)
	default:
		next = e.afterPost(r, number, result, site, deadline, skew)
	}
	return next.Freeing(site, path)
}

// afterPost says what comes after an exchange that took place.
func (e *Engine) afterPost(
	r *tandem.Request, number int, result egress.Result, site string, deadline time.Time, skew time.Duration,
) store.Next {
	ended := result.StartedAt.Add(result.Duration)
	attempt := tandem.Attempt{
		Number:     number,
		StartedAt:  result.StartedAt.Add(skew).UTC(),
		DurationMS: milliseconds(result.Duration),
		StatusCode: result.StatusCode,
		Outcome:    result.Outcome,
		Error:      result.Message,
	}
	delivered := result.Outcome == tandem.OutcomeDelivered
	again := !delivered && !result.Outcome.Permanent() && number < e.cfg.Retry.Attempts
	var at time.Time // with its monotonic reading, which the store goes by
	if again {
		at = ended.Add(e.cfg.Retry.Delay(number, rand.Float64(), result.RetryAfter))
		at = e.cfg.Retry.Within(ended, at, deadline)
		attempt.NextAt = at.Add(skew).UTC()
	}
	called := Run{Request: *r, Took: ended.Add(skew).Sub(r.CreatedAt)}
	e.emit(Event{Step: Called, Run: called, At: ended, Attempt: attempt})
	switch {
	case delivered:
		return store.Delivered(attempt)
	case again:
		return store.Redeliver(attempt, at, site)
	}
	e.log.Warn("callback given up", "request_id", r.ID, "host", result.Host, "attempts", number,
		"outcome", result.Outcome, "status_code", result.StatusCode, "error", result.Message)
	return store.GiveUp(attempt)
}

// expire gives up a callback that is too old; nothing is sent.
func (e *Engine) expire(r *tandem.Request, now time.Time) store.Next {
	to, _ := e.cfg.Egress.Receiver(r.CallbackURL, r.Owner) // no host where policy refuses the URL by now
	e.log.Warn("callback expired", "request_id", r.ID, "host", to.Host,
		"attempts", r.CallbackAttempts, "max_age", e.cfg.Retry.MaxAge)
	return store.GiveUp(tandem.Attempt{
		Number:    r.CallbackAttempts,
		StartedAt: now.UTC(),
		Outcome:   tandem.OutcomeExpired,
		Error:     fmt.Sprintf("Not delivered within %s after the work ended.", e.cfg.Retry.MaxAge),
	})
}

// noPlace says what comes next when the destination has no place now, or a probe of it has failed.
// Neither counts as an attempt.
func (e *Engine) noPlace(claiming context.Context, r *tandem.Request, err error, deadline time.Time) store.Next {
	putOff, isPutOff := errors.AsType[*egress.Reschedule](err)
	switch {
	case isPutOff && putOff.Held: // it stays parked until there is room
		return store.Postpone(time.Time{}, putOff.Destination)
	case isPutOff:
		return store.Postpone(e.cfg.Retry.Within(time.Now(), putOff.Until, deadline), putOff.Destination)
	case claiming.Err() != nil:
		return store.Release()
	default: // a URL that a stricter policy than the one at its acceptance refuses, or cannot read
		return e.unsendable(r, r.CallbackAttempts+1, e.now(), err)
	}
}

// unsendable gives up a callback that no try could send. The reason goes to the log only.
func (e *Engine) unsendable(r *tandem.Request, number int, at time.Time, err error) store.Next {
	e.log.Error("callback cannot be sent", "request_id", r.ID, "error", err)
	return store.GiveUp(tandem.Attempt{
		Number: number, StartedAt: at, Outcome: tandem.OutcomeBlocked, Error: "The callback cannot be sent.",
	})
}

// callbackBody is what the receiver gets, the same on every try but for its metadata.
func (e *Engine) callbackBody(r *tandem.Request, number int, sent time.Time) ([]byte, error) {
	callback := tandem.Callback{
		Type:             tandem.EventCompleted,
		RequestID:        r.ID,
		Status:           r.Status,
		Result:           r.Result,
		ProcessingTimeMS: r.ProcessingTimeMS,
		Timestamp:        r.CompletedAt,
		// Attempts may have been lowered since the first try.
		Metadata: tandem.CallbackMetadata{Attempt: number, MaxAttempts: max(e.cfg.Retry.Attempts, number), SentAt: sent},
	}
	if r.Status == tandem.StatusFailed {
		callback.Type = tandem.EventFailed
		callback.Result = nil
		callback.Error = &tandem.CallbackError{Code: r.ErrorCode, Message: r.ErrorMessage}
	}
	var body bytes.Buffer
	body.Grow(len(r.Result) + 512)
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // the result goes out as the task wrote it
	if err := encoder.Encode(callback); err != nil {
		return nil, fmt.Errorf("encode callback: %w", err)
	}
	return bytes.TrimRight(body.Bytes(), "\n"), nil
}

// callbackHeader signs body with every secret of the key that asked, newest first, so
// that receivers can verify while a secret is being rotated.
func (e *Engine) callbackHeader(r *tandem.Request, sent time.Time, body []byte) http.Header {
	secrets := e.cfg.Keys.SigningSecrets(r.KeyID, time.Now()) // not sent, which may be by another clock
	if len(secrets) == 0 {
		secrets = e.cfg.Secrets
	}
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		signatures[i] = secret.Sign(r.ID, sent, body)
	}
	header := make(http.Header, 5)
	header.Set("Content-Type", "application/json")
	header.Set("User-Agent", "tandem/"+tandem.Version)
	header.Set(tandem.HeaderWebhookID, r.ID)
	header.Set(tandem.HeaderWebhookTimestamp, fmt.Sprint(sent.Unix()))
	header.Set(tandem.HeaderWebhookSignature, strings.Join(signatures, " "))
	return header
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
