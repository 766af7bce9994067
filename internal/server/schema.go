package server

import (
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"tandem"
)

// rootDocs describes the types of package tandem, which knows nothing of OpenAPI, and members whose
// descriptions are too long for a tag.
// :: schema.property → description
var rootDocs = map[string]string{
	"Request.request_id": "req_ and 32 hex digits; sortable by time",
	"Request.mode":       "How the work was asked for",
	"Request.task":       "The name of the task",
	"Request.status": "pending → processing → completed (the end for sync) → callback_sent or " +
		"callback_failed; or failed",
	"Request.callback_status":    "The fate of the callback; async only",
	"Request.input_data":         "data, as received",
	"Request.batch_id":           "Submissions that came together",
	"Request.key_id":             "The API key that asked for it; absent where nobody is asked for one",
	"Request.complexity":         "How much work was asked for",
	"Request.result":             "What the task returned",
	"Request.processing_time_ms": "Time in the task, milliseconds; 0 until it ended",
	"Request.callback_url":       "Where the result is sent; async only",
	"Request.callback_attempts":  "Attempts that counted",
	"Request.created_at":         "When it was accepted, UTC",
	"Request.started_at":         "When the task last started, UTC",
	"Request.completed_at":       "When the task ended, UTC",
	"Request.error_code":         "Why the work failed; stable",
	"Request.error_message":      "The same for people",
	"Request.attempts":           "The log of the callback, oldest first",

	"Attempt.number":      "1, 2, …; an expiry, which sends nothing, repeats the last number",
	"Attempt.started_at":  "UTC",
	"Attempt.duration_ms": "The whole exchange, milliseconds",
	"Attempt.status_code": "What the receiver answered",
	"Attempt.outcome":     "How it ended",
	"Attempt.error":       "For people",
	"Attempt.next_at": "When the next attempt was due; of the last one, when it is due now, postponed or not: " +
		"absent if there is none, or it is under way",

	"CallbackService.domains": "Destination (host:port; scheme://host:port where it is called by both schemes) " +
		"→ its circuit breaker, as this node knows it, and what waits for it, on all nodes; " +
		"at most 1,000 that this node knows, failing ones first, and 1,000 that callbacks wait for, " +
		"the longest wait first. Of a host that gives no answer all nodes know within seconds",
	"Domain.state": "The worst, where answers 5xx have opened a breaker for single paths " +
		"or API keys only",
	"Domain.undelivered": "Callbacks, of all nodes, that have failed or been rescheduled and wait for it; " +
		"up to 5 s old",
	"Domain.undelivered_more": "There may be more than undelivered: counting stops at 50,000, " +
		"shared among destinations",
	"Domain.oldest_undelivered_at": "When the work of the first of them ended; null: none waits",

	"FieldError.location": "body.complexity, query.limit, header.Content-Type",
	"FieldError.message":  "What was expected",
	"FieldError.value":    "What was found, shortened",

	"Callback.type":               "Whether the work ended well",
	"Callback.request_id":         "Also the webhook-id",
	"Callback.result":             "Of request.completed",
	"Callback.error":              "Of request.failed",
	"Callback.processing_time_ms": "Time in the task, milliseconds",
	"Callback.timestamp":          "When the work ended, UTC",

	"CallbackError.code":            "Stable",
	"CallbackError.message":         "For people",
	"CallbackMetadata.attempt":      "1..max_attempts",
	"CallbackMetadata.max_attempts": "After this many the callback is given up",
	"CallbackMetadata.sent_at":      "UTC, of this try",
	"Entry.attempts":                "The log of the callback, oldest first; empty for sync",
	"Statistics.request_statistics": "Requests and their work",
	"Statistics.callback_service":   "Callbacks and their destinations",
	"Statistics.rate_limiting":      "Whether a caller is slowed down",
	"Statistics.queue":              "What is still to be done",
	"Statistics.system":             "The process",
	"Percentiles.p95":               "Milliseconds",
	"Percentiles.p99":               "Milliseconds",
	"Arrival.last_at":               "When it last came, UTC",
	"Arrival.first_at":              "When it first came, UTC",
	"Receipt.id":                    "The webhook-id",
	"SystemStatistics.connections":  "Of HTTP, within --max-connections",
	"SystemStatistics.memory":       "As the Go runtime counts it",
	"CallbackService.global_stats":  "All destinations together",
	"QueueStatistics.capacity":      "--max-queue: beyond it POST answers 503",
	"RequestStatistics.sync_requests": "Accepted by POST /sync, " +
		"submissions included", "RequestStatistics.async_requests": "Accepted by POST /async",
}

// Enumerations of the types of package tandem.
// :: schema.property → values
func enums(tasks []string) map[string][]any {
	reasons := []any{
		tandem.FailedTask, tandem.FailedPanic, tandem.FailedTimeout, tandem.FailedNoSlot, tandem.FailedClientClosed,
		tandem.FailedInterrupted,
	}
	callbackFates := []any{tandem.CallbackPending, tandem.CallbackSent, tandem.CallbackFailed}
	outcomes := []any{
		tandem.OutcomeDelivered, tandem.OutcomeHTTPError, tandem.OutcomeRedirect, tandem.OutcomeGone, tandem.OutcomeThrottled,
		tandem.OutcomeTimeout, tandem.OutcomeConnect, tandem.OutcomeTLS, tandem.OutcomeBlocked, tandem.OutcomeExpired,
	}
	codes := make([]any, 0, len(kinds))
	for _, k := range kinds {
		codes = append(codes, k.Code)
	}
	table := map[string][]any{
		"Attempt.outcome": outcomes, "Problem.code": codes, "CallbackError.code": reasons,
		"Callback.type": {tandem.EventCompleted, tandem.EventFailed}, "Callback.status": {tandem.StatusCompleted,
			tandem.StatusFailed},
		"SyncOrder.task": anys(tasks), "AsyncOrder.task": anys(tasks),
	}
	for _, schema := range []string{"Request", "Entry"} {
		table[schema+".mode"] = anys(tandem.Modes)
		table[schema+".status"] = anys(tandem.Statuses)
		table[schema+".callback_status"] = callbackFates
		table[schema+".error_code"] = reasons
	}
	return table
}

// annotate finishes what reflection made: descriptions and enumerations of the
// root's types, arrays that are never null, objects that may grow members in
// later versions. nullable are objects that may be null.
func annotate(registry huma.Registry, tasks, nullable []string) {
	registry.Schema(reflect.TypeFor[tandem.Callback](), true, "")
	values := enums(tasks)
	for name, schema := range registry.Map() {
		schema.AdditionalProperties = nil
		for property, p := range schema.Properties {
			p.Nullable = p.Nullable && p.Type != huma.TypeArray
			key := name + "." + property
			if p.Description == "" {
				p.Description = rootDocs[key]
			}
			if name == "Entry" && p.Description == "" {
				p.Description = rootDocs["Request."+property]
			}
			if enum, ok := values[key]; ok {
				p.Enum = enum
			}
			if slices.Contains(nullable, key) { // huma has no word for an object or null
				p.AnyOf, p.Ref = []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}, ""
			}
		}
	}
}
