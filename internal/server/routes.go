package server

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tandem"
)

// handler answers one request or returns why it cannot; then it must not have
// written anything.
type handler func(w http.ResponseWriter, r *http.Request) error

// route is one line of the table that everything else is made from.
type route struct {
	method, path string // as http.ServeMux writes them; GET serves HEAD as well
	handle       handler
	access       access // who may use it; the zero value is the strictest
	limited      bool   // the rate limit holds for it
	counts       bool   // it asks the rate limit itself, because one call may count more than once
	tagged       bool   // its answer has an ETag, and may be a 304

	// What the OpenAPI document says; a route without an id is not in it.
	id, tag, summary, description string
	params                        []*huma.Param
	body                          any // a value of the type of the JSON body; nil: there is none
	ask                           any // an example of that body
	status                        int
	reply                         any    // a value of the type of the answer; nil: see media
	media                         string // media type of an answer that is no JSON, or beside it
	headers                       []string
	example                       any
	problems                      []tandem.Code // beside INTERNAL
	callbacks                     map[string]map[string]*huma.PathItem
}

// What POST /sync and /async answer when something is wrong with the order.
var orderProblems = []tandem.Code{
	tandem.CodeInvalidJSON, tandem.CodeInvalidInput, tandem.CodeValidation, tandem.CodeTooLarge, tandem.CodeUnsupportedMedia,
	tandem.CodeRequestTimeout, tandem.CodeQueueFull, tandem.CodeQuotaExceeded, tandem.CodeDraining,
	tandem.CodeStoreUnavailable,
}

// routes is the table. /test-callback is in it only where it is served.
func (s *server) routes() []route {
	table := []route{
		{
			method: http.MethodPost, path: "/sync", handle: s.handleSync, access: forCallers, limited: true,
			id: "sync", tag: tagWork, summary: "Do work and wait for the result",
			description: "The request is recorded before its work starts. A caller that hangs up cancels the work.",
			body:        syncOrder{}, ask: exampleOrder,
			status: http.StatusOK, reply: syncReply{}, example: exampleSync,
			problems: append(slices.Clone(orderProblems), tandem.CodeTaskFailed, tandem.CodeTaskTimeout, tandem.CodeOverloaded),
		},
		{
			method: http.MethodPost, path: "/async", handle: s.handleAsync, access: forCallers, limited: true,
			id: "async", tag: tagWork, summary: "Accept work and call back with the result",
			description: "A 202 means that the request is committed to disk. The result is sent to callback_url, signed and retried; it arrives at least once.",
			body:        asyncOrder{}, ask: s.exampleAsyncOrder(),
			status: http.StatusAccepted, reply: asyncReply{}, headers: []string{"Location", "Retry-After"},
			example:   exampleAsync,
			problems:  append(slices.Clone(orderProblems), tandem.CodeInvalidCallbackURL, tandem.CodeCallbackBlocked),
			callbacks: callbackDoc(),
		},
		{
			method: http.MethodGet, path: "/requests", handle: s.handleList, access: forReaders, limited: true,
			id: "list-requests", tag: tagHistory, summary: "List requests, newest first",
			description: "Without their attempts. A page ends early rather than growing beyond 8 MiB; the Link header with rel=\"next\" leads on, with all filters kept. Unknown parameters are refused.",
			params:      listParams(), status: http.StatusOK, reply: []tandem.Request{}, headers: []string{"Link"},
			problems: []tandem.Code{
				tandem.CodeInvalidCursor, tandem.CodeValidation, tandem.CodeStoreUnavailable, tandem.CodeOverloaded,
			},
		},
		{
			method: http.MethodGet, path: "/requests/{id}", handle: conditional(s.handleEntry, exactTag), access: forReaders, limited: true, tagged: true,
			id: "show-request", tag: tagHistory, summary: "Show one request with the attempts of its callback",
			params: []*huma.Param{idParam("The id of the request")}, status: http.StatusOK, reply: entry{},
			problems: []tandem.Code{tandem.CodeNotFound, tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			method: http.MethodGet, path: "/stats", handle: conditional(s.handleStats, s.figuresTag), access: forAdmins, limited: true, tagged: true,
			id: "stats", tag: tagService, summary: "Show figures about requests, callbacks, the queue and the process",
			description: "The ETag covers the start of the process and every figure but rate_limiting.reads and, of system, timestamp, uptime_seconds, memory, goroutines and connections.",
			status:      http.StatusOK, reply: statistics{},
			problems: []tandem.Code{tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			method: http.MethodGet, path: "/nodes", handle: show(s.handleNodes), access: forAdmins, limited: true,
			id: "list-nodes", tag: tagService, summary: "List the nodes that share the database, the longest there first",
			description: "On SQLite there is one.",
			status:      http.StatusOK, reply: []node{},
			problems: []tandem.Code{tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			method: http.MethodGet, path: "/metrics", handle: s.handleMetrics(), access: forAdmins, limited: true,
			id: "metrics", tag: tagService, summary: "Show figures for Prometheus",
			description: "The text format, or what else the Accept header of a scraper prefers. docs/operations.md says what each metric means.",
			status:      http.StatusOK, media: "text/plain", problems: []tandem.Code{tandem.CodeOverloaded},
		},
		{
			method: http.MethodGet, path: "/healthz", handle: show(s.handleHealth), access: forEverybody,
			id: "healthz", tag: tagService, summary: "Say that the service answers, and which version it is", status: http.StatusOK, reply: health{},
		},
		{
			method: http.MethodGet, path: "/livez", handle: show(s.handleLive), access: forEverybody,
			id: "live", tag: tagService, summary: "Say that the process is alive", status: http.StatusOK, reply: state{},
		},
		{
			method: http.MethodGet, path: "/readyz", handle: show(s.handleReady), access: forEverybody,
			id: "ready", tag: tagService, summary: "Say whether new work is accepted",
			status: http.StatusOK, reply: state{}, problems: []tandem.Code{tandem.CodeDraining, tandem.CodeStoreUnavailable},
		},
		{
			method: http.MethodGet, path: "/{$}", handle: s.handleIndex, access: forEverybody,
			id: "index", tag: tagService, summary: "Say what there is: a page for browsers, JSON for programs",
			status: http.StatusOK, reply: overview{}, media: mediaHTML, headers: []string{"Vary"},
		},
		{method: http.MethodGet, path: "/.well-known/security.txt", handle: s.handleSecurityTxt, access: forEverybody},
		page("/docs", "docs", "Swagger UI", docsPage),
		page("/redoc", "redoc", "ReDoc", redocPage),
		{method: http.MethodGet, path: "/docs/{file}", handle: s.handleAsset, access: forEverybody},
		{
			method: http.MethodGet, path: "/openapi.json", handle: s.handleDocument, access: forEverybody,
			id: "openapi-json", tag: tagPages, summary: "This document, as JSON", status: http.StatusOK, media: "application/json",
		},
		{
			method: http.MethodGet, path: "/openapi.yaml", handle: s.handleDocument, access: forEverybody,
			id: "openapi-yaml", tag: tagPages, summary: "This document, as YAML", status: http.StatusOK, media: "application/yaml",
		},
		{
			method: http.MethodGet, path: "/problems", handle: handleProblems, access: forEverybody,
			id: "problems", tag: tagPages, summary: "List the codes of errors", status: http.StatusOK, media: mediaHTML,
		},
		{
			method: http.MethodGet, path: "/problems/{code}", handle: handleProblem, access: forEverybody,
			id: "problem", tag: tagPages, summary: "Explain one code of an error", status: http.StatusOK, media: mediaHTML,
			params:   []*huma.Param{{Name: "code", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Example: tandem.CodeInvalidJSON}},
			problems: []tandem.Code{tandem.CodeNotFound},
		},
	}
	table = append(table, s.submissionRoutes()...)
	if s.inbox == nil {
		return table
	}
	return append(table,
		route{
			method: http.MethodPost, path: "/test-callback", handle: show(s.handleReceive), access: forEverybody,
			id: "receive-callback", tag: tagDemo, summary: "Receive a callback (demo mode)",
			description: "A receiver to point callback_url at. It remembers the last 1,000 ids until the process ends and verifies nothing; `tandem sink` does.",
			params:      []*huma.Param{{Name: "webhook-id", In: "header", Required: true, Description: "The id of the request", Schema: &huma.Schema{Type: huma.TypeString}}},
			body:        anyBody{}, status: http.StatusOK, reply: receipt{},
			problems: []tandem.Code{tandem.CodeValidation, tandem.CodeInvalidJSON, tandem.CodeRequestTimeout},
		},
		route{
			method: http.MethodGet, path: "/test-callback/{id}", handle: show(s.handleReceived), access: forEverybody,
			id: "show-callback", tag: tagDemo, summary: "Show what arrived for one id (demo mode)",
			params: []*huma.Param{idParam("The webhook-id of the callback")}, status: http.StatusOK, reply: arrival{},
			problems: []tandem.Code{tandem.CodeNotFound, tandem.CodeRateLimited, tandem.CodeOverloaded},
		})
}

// show adapts a handler that has nothing to say but its answer.
func show[T any](answer func(*http.Request) (T, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		reply, err := answer(r)
		if err != nil {
			return err
		}
		return writeReply(w, r, reply)
	}
}

// documented is the path as the document writes it.
func (rt *route) documented() string { return strings.TrimSuffix(rt.path, "{$}") }

// mux makes the router: the routes, the methods each path does not have, and
// everything that is no path.
func (s *server) mux(routes []route) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{} // :: path → methods
	for _, rt := range routes {
		if rt.limited && !rt.counts {
			rt.handle = s.limited(rt.handle)
		}
		if rt.method == http.MethodGet {
			rt.handle = untilAnswered(rt.handle)
		}
		rt.handle = s.authorized(rt.access, rt.handle)
		mux.Handle(rt.method+" "+rt.path, s.adapt(rt.handle))
		methods[rt.path] = append(methods[rt.path], rt.method)
		if rt.method == http.MethodGet {
			methods[rt.path] = append(methods[rt.path], http.MethodHead)
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
func untilAnswered(next handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.ProtoMajor == 1 {
			r = r.WithContext(context.WithoutCancel(r.Context()))
		}
		return next(w, r)
	}
}

// adapt is the one way from a handler to net/http.
func (s *server) adapt(handle handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// otherMethods answers for the methods that a path does not have.
func otherMethods(allow string) handler {
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
