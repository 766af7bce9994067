package server

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tandem"
)

// Handler answers one request or returns why it cannot; then it must not have
// written anything.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Route is one line of the table that everything else is made from.
type Route struct {
	Method, Path string // as http.ServeMux writes them; GET serves HEAD as well
	Handle       Handler
	Access       Access // who may use it; the zero value is the strictest
	Limited      bool   // the rate limit holds for it
	Counts       bool   // it asks the rate limit itself, because one call may count more than once
	Tagged       bool   // its answer has an ETag, and may be a 304

	// What the OpenAPI document says; a route without an id is not in it.
	ID, Tag, Summary, Description string
	Params                        []*huma.Param
	Body                          any // a value of the type of the JSON body; nil: there is none
	Ask                           any // an example of that body
	Status                        int
	Reply                         any    // a value of the type of the answer; nil: see Media
	Media                         string // media type of an answer that is no JSON, or beside it
	Headers                       []string
	Example                       any
	Problems                      []tandem.Code // beside INTERNAL
	Callbacks                     map[string]map[string]*huma.PathItem
}

// OrderProblems are what POST /sync and /async answer when something is wrong with the order.
var OrderProblems = []tandem.Code{
	tandem.CodeInvalidJSON, tandem.CodeInvalidInput, tandem.CodeValidation, tandem.CodeTooLarge,
	tandem.CodeUnsupportedMedia,
	tandem.CodeRequestTimeout, tandem.CodeQueueFull, tandem.CodeQuotaExceeded, tandem.CodeDraining,
	tandem.CodeStoreUnavailable,
}

// routes is the table. /test-callback is in it only where it is served.
func (s *server) routes() []Route {
	table := []Route{
		{
			Method: http.MethodPost, Path: "/sync", Handle: s.handleSync, Access: ForCallers, Limited: true,
			ID: "sync", Tag: tagWork, Summary: "Do work and wait for the result",
			Description: "The request is recorded before its work starts. A caller that hangs up cancels the work.",
			Body:        syncOrder{}, Ask: exampleOrder,
			Status: http.StatusOK, Reply: syncReply{}, Example: exampleSync,
			Problems: append(slices.Clone(OrderProblems), tandem.CodeTaskFailed, tandem.CodeTaskTimeout, tandem.CodeOverloaded),
		},
		{
			Method: http.MethodPost, Path: "/async", Handle: s.handleAsync, Access: ForCallers, Limited: true,
			ID: "async", Tag: tagWork, Summary: "Accept work and call back with the result",
			Description: "A 202 means that the request is committed to disk. The result is sent to callback_url, signed and " +
				"retried; it arrives at least once.",
			Body: asyncOrder{}, Ask: s.exampleAsyncOrder(),
			Status: http.StatusAccepted, Reply: asyncReply{}, Headers: []string{"Location", "Retry-After"},
			Example:   exampleAsync,
			Problems:  append(slices.Clone(OrderProblems), tandem.CodeInvalidCallbackURL, tandem.CodeCallbackBlocked),
			Callbacks: callbackDoc(),
		},
		{
			Method: http.MethodGet, Path: "/requests", Handle: s.handleList, Access: ForReaders, Limited: true,
			ID: "list-requests", Tag: tagHistory, Summary: "List requests, newest first",
			Description: "Without their attempts. A page ends early rather than growing beyond 8 MiB; the Link header with " +
				"rel=\"next\" leads on, with all filters kept. Unknown parameters are refused.",
			Params: listParams(), Status: http.StatusOK, Reply: []tandem.Request{}, Headers: []string{"Link"},
			Problems: []tandem.Code{
				tandem.CodeInvalidCursor, tandem.CodeValidation, tandem.CodeStoreUnavailable, tandem.CodeOverloaded,
			},
		},
		{
			Method: http.MethodGet, Path: "/requests/{id}", Handle: Conditional(s.handleEntry, exactTag), Access: ForReaders,
			Limited: true, Tagged: true,
			ID: "show-request", Tag: tagHistory, Summary: "Show one request with the attempts of its callback",
			Params: []*huma.Param{idParam("The id of the request")}, Status: http.StatusOK, Reply: entry{},
			Problems: []tandem.Code{tandem.CodeNotFound, tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			Method: http.MethodGet, Path: "/stats", Handle: Conditional(s.handleStats, s.figuresTag), Access: ForAdmins,
			Limited: true, Tagged: true,
			ID: "stats", Tag: tagService, Summary: "Show figures about requests, callbacks, the queue and the process",
			Description: "The ETag covers the start of the process and every figure but rate_limiting.reads and, of system, " +
				"timestamp, uptime_seconds, memory, goroutines and connections.",
			Status: http.StatusOK, Reply: statistics{},
			Problems: []tandem.Code{tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			Method: http.MethodGet, Path: "/nodes", Handle: Show(s.handleNodes), Access: ForAdmins, Limited: true,
			ID: "list-nodes", Tag: tagService, Summary: "List the nodes that share the database, the longest there first",
			Description: "On SQLite there is one.",
			Status:      http.StatusOK, Reply: []node{},
			Problems: []tandem.Code{tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			Method: http.MethodGet, Path: "/metrics", Handle: s.handleMetrics(), Access: ForAdmins, Limited: true,
			ID: "metrics", Tag: tagService, Summary: "Show figures for Prometheus",
			Description: "The text format, or what else the Accept header of a scraper prefers. docs/operations.md says what " +
				"each metric means.",
			Status: http.StatusOK, Media: "text/plain", Problems: []tandem.Code{tandem.CodeOverloaded},
		},
		{
			Method: http.MethodGet, Path: "/healthz", Handle: Show(s.handleHealth), Access: ForEverybody,
			ID: "healthz", Tag: tagService, Summary: "Say that the service answers, and which version it is",
			Status: http.StatusOK, Reply: Health{},
		},
		{
			Method: http.MethodGet, Path: "/livez", Handle: Show(s.handleLive), Access: ForEverybody,
			ID: "live", Tag: tagService, Summary: "Say that the process is alive", Status: http.StatusOK, Reply: state{},
		},
		{
			Method: http.MethodGet, Path: "/readyz", Handle: Show(s.handleReady), Access: ForEverybody,
			ID: "ready", Tag: tagService, Summary: "Say whether new work is accepted",
			Status: http.StatusOK, Reply: state{}, Problems: []tandem.Code{tandem.CodeDraining, tandem.CodeStoreUnavailable},
		},
		{
			Method: http.MethodGet, Path: "/{$}", Handle: s.handleIndex, Access: ForEverybody,
			ID: "index", Tag: tagService, Summary: "Say what there is: a page for browsers, JSON for programs",
			Status: http.StatusOK, Reply: overview{}, Media: mediaHTML, Headers: []string{"Vary"},
		},
		{Method: http.MethodGet, Path: "/.well-known/security.txt", Handle: s.handleSecurityTxt, Access: ForEverybody},
		page("/docs", "docs", "Swagger UI", docsPage),
		page("/redoc", "redoc", "ReDoc", redocPage),
		{Method: http.MethodGet, Path: "/docs/{file}", Handle: s.handleAsset, Access: ForEverybody},
		{
			Method: http.MethodGet, Path: "/openapi.json", Handle: s.handleDocument, Access: ForEverybody,
			ID: "openapi-json", Tag: tagPages, Summary: "This document, as JSON", Status: http.StatusOK,
			Media: "application/json",
		},
		{
			Method: http.MethodGet, Path: "/openapi.yaml", Handle: s.handleDocument, Access: ForEverybody,
			ID: "openapi-yaml", Tag: tagPages, Summary: "This document, as YAML", Status: http.StatusOK,
			Media: "application/yaml",
		},
		{
			Method: http.MethodGet, Path: "/problems", Handle: handleProblems, Access: ForEverybody,
			ID: "problems", Tag: tagPages, Summary: "List the codes of errors", Status: http.StatusOK, Media: mediaHTML,
		},
		{
			Method: http.MethodGet, Path: "/problems/{code}", Handle: handleProblem, Access: ForEverybody,
			ID: "problem", Tag: tagPages, Summary: "Explain one code of an error", Status: http.StatusOK, Media: mediaHTML,
			Params: []*huma.Param{{Name: "code", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString},
				Example: tandem.CodeInvalidJSON}},
			Problems: []tandem.Code{tandem.CodeNotFound},
		},
	}
	if s.cfg.Application != nil {
		table = append(table, s.cfg.Application.Routes(s.api())...)
	}
	if s.inbox == nil {
		return table
	}
	return append(table,
		Route{
			Method: http.MethodPost, Path: "/test-callback", Handle: Show(s.handleReceive), Access: ForEverybody,
			ID: "receive-callback", Tag: tagDemo, Summary: "Receive a callback (demo mode)",
			Description: "A receiver to point callback_url at. It remembers the last 1,000 ids until the process ends and " +
				"verifies nothing; `tandem sink` does.",
			Params: []*huma.Param{{Name: "webhook-id", In: "header", Required: true, Description: "The id of the request",
				Schema: &huma.Schema{Type: huma.TypeString}}},
			Body: anyBody{}, Status: http.StatusOK, Reply: receipt{},
			Problems: []tandem.Code{tandem.CodeValidation, tandem.CodeInvalidJSON, tandem.CodeRequestTimeout},
		},
		Route{
			Method: http.MethodGet, Path: "/test-callback/{id}", Handle: Show(s.handleReceived), Access: ForEverybody,
			ID: "show-callback", Tag: tagDemo, Summary: "Show what arrived for one id (demo mode)",
			Params: []*huma.Param{idParam("The webhook-id of the callback")}, Status: http.StatusOK, Reply: arrival{},
			Problems: []tandem.Code{tandem.CodeNotFound, tandem.CodeRateLimited, tandem.CodeOverloaded},
		})
}

// Show adapts a handler that has nothing to say but its answer.
func Show[T any](answer func(*http.Request) (T, error)) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		reply, err := answer(r)
		if err != nil {
			return err
		}
		return WriteReply(w, r, reply)
	}
}

// documented is the path as the document writes it.
func (rt *Route) documented() string { return strings.TrimSuffix(rt.Path, "{$}") }

// mux makes the router: the routes, the methods each path does not have, and
// everything that is no path.
func (s *server) mux(routes []Route) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{} // :: path → methods
	for _, rt := range routes {
		if rt.Limited && !rt.Counts {
			rt.Handle = s.limited(rt.Handle)
		}
		if rt.Method == http.MethodGet {
			rt.Handle = untilAnswered(rt.Handle)
		}
		rt.Handle = s.authorized(rt.Access, rt.Handle)
		mux.Handle(rt.Method+" "+rt.Path, s.adapt(rt.Handle))
		methods[rt.Path] = append(methods[rt.Path], rt.Method)
		if rt.Method == http.MethodGet {
			methods[rt.Path] = append(methods[rt.Path], http.MethodHead)
		}
	}
	for path, have := range methods {
		mux.Handle(path, s.adapt(otherMethods(strings.Join(append(have, http.MethodOptions), ", "))))
	}
	mux.Handle("/", s.adapt(notFound))
	return mux
}

// untilAnswered lets a GET go on when the caller has closed its side of the connection. A program
// that has sent everything may do so and still read the answer, and net/http cannot distinguish it
// from one that has gone. HTTP/2 can.
func untilAnswered(next Handler) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.ProtoMajor == 1 {
			r = r.WithContext(context.WithoutCancel(r.Context()))
		}
		return next(w, r)
	}
}

// adapt is the one way from a handler to net/http.
func (s *server) adapt(handle Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// otherMethods answers for the methods that a path does not have.
func otherMethods(allow string) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allow)
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return tandem.Errorf(tandem.CodeMethodNotAllowed, "%s is not allowed here; there is %s.", shorten(r.Method), allow)
	}
}

// notFound answers for every path that is not in the table.
func notFound(http.ResponseWriter, *http.Request) error {
	return tandem.Errorf(tandem.CodeNotFound, "There is nothing at this path. /docs lists what there is.")
}
