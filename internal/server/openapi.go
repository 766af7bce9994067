package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tandem"
)

// The groups of the documentation.
const (
	tagWork    = "Work"
	tagHistory = "History"
	tagService = "Service"
	tagPages   = "Pages"
	tagDemo    = "Demo"
)

// syncOrder documents the body of POST /sync; [reader] reads it.
type syncOrder struct {
	_          struct{}       `json:"-" additionalProperties:"true"`
	Data       map[string]any `json:"data" minProperties:"1" doc:"The input of the task. At most --max-data bytes (10 KB) and --max-depth levels (10)"`
	Complexity int            `json:"complexity,omitempty" minimum:"1" maximum:"10" default:"1" doc:"How much work; what one unit is depends on the task"`
	Task       string         `json:"task,omitempty" default:"compute" doc:"The work: compute uses a core for about 75 ms × complexity, sleep waits for 50 ms × complexity, echo returns data at once"`
}

// asyncOrder documents the body of POST /async.
type asyncOrder struct {
	_           struct{}       `json:"-" additionalProperties:"true"`
	Data        map[string]any `json:"data" minProperties:"1" doc:"The input of the task. At most --max-data bytes (10 KB) and --max-depth levels (10)"`
	Complexity  int            `json:"complexity,omitempty" minimum:"1" maximum:"10" default:"1" doc:"How much work; what one unit is depends on the task"`
	Task        string         `json:"task,omitempty" default:"compute" doc:"The work: compute uses a core for about 75 ms × complexity, sleep waits for 50 ms × complexity, echo returns data at once"`
	CallbackURL string         `json:"callback_url" format:"uri" doc:"Where the result is sent: http or https, without user name and password"`
}

// anyBody documents a body of any shape.
type anyBody struct {
	_ struct{} `json:"-" additionalProperties:"true"`
}

// What the examples of the document show; the figures are made up.
var (
	exampleID    = "req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f"
	exampleOrder = map[string]any{"data": map[string]any{"user": 1}, "complexity": 2, "task": "compute"}
	exampleSync  = map[string]any{
		"request_id": exampleID, "processing_time_ms": 151.2, "timestamp": "2026-01-31T12:00:00.151Z",
		"result": map[string]any{"sum": 2.718282, "product": 0.577216, "operations": 6, "checksum": "9f86d081884c7d65"},
	}
	exampleAsync = map[string]any{
		"request_id": exampleID, "status": "accepted", "message": "Request accepted for processing. Callback will be sent " +
			"when complete.",
	}
)

// exampleAsyncOrder can be tried out as it is in demo mode, which has a receiver of its own.
func (s *server) exampleAsyncOrder() map[string]any {
	receiver := "https://example.com/hooks/tandem"
	if s.inbox != nil && s.cfg.BaseURL != "" {
		receiver = strings.TrimRight(s.cfg.BaseURL, "/") + "/test-callback"
	}
	return map[string]any{"data": exampleOrder["data"], "complexity": 2, "callback_url": receiver}
}

// commonHeaders are on every answer.
var commonHeaders = []string{"X-Process-Time", "Server-Timing", "X-Request-ID"}

// rateHeaders are on every answer of a route with a rate limit, while there is one.
var rateHeaders = []string{"RateLimit", "RateLimit-Policy"}

// headerDocs describes every header that an answer can have.
// :: name → type and meaning
var headerDocs = map[string]struct{ kind, text string }{
	"X-Process-Time": {huma.TypeNumber, "Seconds from the header of the request to that of the answer"},
	"Server-Timing":  {huma.TypeString, "The same in milliseconds, as browsers show it"},
	"X-Request-ID": {huma.TypeString,
		"Names this exchange in the log: yours, if it has 1 to 64 letters, digits, dots, dashes or underscores, else " +
			"a new one"},
	"ETag": {huma.TypeString, "Send it as If-None-Match to learn whether anything has changed"},
	"Vary": {huma.TypeString, "Names the headers of the request on which the answer depends"},
	"WWW-Authenticate": {huma.TypeString,
		"Bearer, what is wrong with the key, and the scope that it would need (RFC 6750)"},
	"Location":    {huma.TypeString, "Where the request is in the history"},
	"Retry-After": {huma.TypeInteger, "Seconds after which it is worth asking again"},
	"RateLimit": {huma.TypeString,
		"While there is a limit: r requests are left, and in t seconds there are more (IETF draft)"},
	"RateLimit-Policy": {huma.TypeString, "While there is a limit: q requests in any w seconds (IETF draft)"},
	"Link":             {huma.TypeString, "With rel=\"next\": the page after this one (RFC 8288)"},
}

// document makes the OpenAPI document.
func (s *server) document(routes []Route) *huma.OpenAPI {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "tandem", Version: tandem.Version, License: &huma.License{Name: "MIT", Identifier: "MIT"},
			Description: "One engine, two ways to ask it for work: POST /sync waits for the result, POST /async gets it by " +
				"callback. Errors are RFC 9457 problems; decide by their code.",
		},
		Servers: []*huma.Server{{URL: ".", Description: "This server"}},
		Components: &huma.Components{Schemas: registry, Headers: map[string]*huma.Header{},
			SecuritySchemes: securitySchemes()},
		Tags: []*huma.Tag{
			{Name: tagWork, Description: "Ask for work."}, {Name: tagHistory, Description: "What became of it."},
			{Name: tagService, Description: "How the service is."}, {Name: tagPages, Description: "Documentation."},
		},
	}
	if s.inbox != nil {
		doc.Tags = append(doc.Tags, &huma.Tag{Name: tagDemo, Description: "A receiver for trying callbacks out."})
	}
	if app := s.cfg.Application; app != nil {
		doc.Tags = slices.Insert(doc.Tags, 2, &huma.Tag{Name: app.Tag, Description: app.About})
	}
	for name, h := range headerDocs {
		doc.Components.Headers[name] = &huma.Header{
			Description: h.text, Schema: &huma.Schema{Type: h.kind}, Required: slices.Contains(commonHeaders, name),
		}
	}
	for _, rt := range routes {
		if rt.ID != "" {
			doc.AddOperation(operation(registry, rt))
		}
	}
	var nullable []string
	if s.cfg.Application != nil {
		nullable = s.cfg.Application.Nullable
	}
	annotate(registry, s.bodies.tasks, nullable)
	return doc
}

// schemeKey names the one way to say who asks.
const schemeKey = "api_key"

func securitySchemes() map[string]*huma.SecurityScheme {
	return map[string]*huma.SecurityScheme{schemeKey: { //nolint:gosec // a description
		Type: "http", Scheme: "bearer", BearerFormat: "tdm_ and 49 letters and digits",
		Description: "An API key, made with `tandem keys create`. Its scopes are submit, read and admin; a key sees only " +
			"its own requests, unless it has admin. " +
			"Demo mode and --no-auth ask for no key and ignore one that is sent.",
	}}
}

// indented writes the document for people as well: it is served rarely.
func indented(doc *huma.OpenAPI) ([]byte, error) {
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return append(text, '\n'), nil
}

// operation describes one route.
func operation(registry huma.Registry, rt Route) *huma.Operation {
	op := &huma.Operation{
		Method: rt.Method, Path: rt.documented(), OperationID: rt.ID, Tags: []string{rt.Tag}, Summary: rt.Summary,
		Description: rt.Description,
		Parameters:  rt.Params, Callbacks: rt.Callbacks, Responses: map[string]*huma.Response{},
	}
	if rt.Body != nil {
		media := &huma.MediaType{Schema: registry.Schema(reflect.TypeOf(rt.Body), true, rt.ID), Example: rt.Ask}
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": media}}
	}
	headers := slices.Clone(rt.Headers)
	problems := append([]tandem.Code{tandem.CodeInternal, tandem.CodeHostNotAllowed}, rt.Problems...)
	op.Security = []map[string][]string{} // nothing is asked for
	if scope := rt.Access.scope(); scope != "" {
		op.Security = []map[string][]string{{schemeKey: {string(scope)}}}
		problems = append(problems, tandem.CodeUnauthenticated, tandem.CodeForbidden)
	}
	if rt.Method == http.MethodPost {
		problems = append(problems, tandem.CodeCrossOrigin)
	}
	if rt.Limited {
		headers, problems = append(headers, rateHeaders...), append(problems, tandem.CodeRateLimited)
	}
	if rt.Tagged {
		unchanged := []string{"ETag"}
		if rt.Limited {
			unchanged = append(unchanged, rateHeaders...)
		}
		headers = append(headers, "ETag")
		op.Parameters = append(slices.Clone(op.Parameters), tagParam())
		op.Responses["304"] = &huma.Response{Description: "It is still what If-None-Match names",
			Headers: headerRefs(unchanged...)}
	}
	success := &huma.Response{Description: http.StatusText(rt.Status), Headers: headerRefs(headers...)}
	switch {
	case rt.Reply != nil:
		schema := registry.Schema(reflect.TypeOf(rt.Reply), true, rt.ID)
		success.Content = map[string]*huma.MediaType{"application/json": {Schema: schema, Example: rt.Example}}
		if rt.Media != "" {
			success.Content[rt.Media] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
		}
	case rt.Media == "application/json":
		success.Content = map[string]*huma.MediaType{rt.Media: {Schema: &huma.Schema{Type: huma.TypeObject,
			AdditionalProperties: true}}}
	default:
		success.Content = map[string]*huma.MediaType{rt.Media: {Schema: &huma.Schema{Type: huma.TypeString}}}
	}
	op.Responses[strconv.Itoa(rt.Status)] = success
	for _, code := range problems {
		addProblem(registry, op, code, rt.Limited)
	}
	return op
}

// addProblem adds one code to the answers of an operation; codes of the same
// status share one.
func addProblem(registry huma.Registry, op *huma.Operation, code tandem.Code, limited bool) {
	_, k := kindOf(code)
	status := strconv.Itoa(k.Status)
	response := op.Responses[status]
	if response == nil {
		var headers []string
		if k.Retry > 0 {
			headers = append(headers, "Retry-After")
		}
		if k.Status == http.StatusUnauthorized || k.Status == http.StatusForbidden {
			headers = append(headers, "WWW-Authenticate")
		}
		if limited {
			headers = append(headers, rateHeaders...)
		}
		response = &huma.Response{Headers: headerRefs(headers...),
			Content: map[string]*huma.MediaType{"application/problem+json": {
				Schema: registry.Schema(reflect.TypeFor[problem](), true, ""), Examples: map[string]*huma.Example{},
			}}}
		op.Responses[status] = response
	}
	if response.Description != "" {
		response.Description += "; "
	}
	response.Description += string(code) + ": " + k.Title
	example := problem{
		Type: "/problems/" + string(code), Title: k.Title, Status: k.Status, Detail: k.Help,
		Instance: examplePath(op), Code: code, RetryAfter: int(k.Retry.Seconds()),
	}
	response.Content["application/problem+json"].Examples[string(code)] = &huma.Example{Summary: k.Title, Value: example}
}

// examplePath is a path of an operation as a caller may have requested it.
func examplePath(op *huma.Operation) string {
	path := op.Path
	for _, p := range op.Parameters {
		if p.In == "path" {
			path = strings.ReplaceAll(path, "{"+p.Name+"}", fmt.Sprint(p.Example))
		}
	}
	return path
}

// headerRefs refers to the headers of every answer and to more by name.
func headerRefs(more ...string) map[string]*huma.Header {
	refs := make(map[string]*huma.Header, len(commonHeaders)+len(more))
	for _, name := range commonHeaders {
		refs[name] = &huma.Header{Ref: "#/components/headers/" + name}
	}
	for _, name := range more {
		refs[name] = &huma.Header{Ref: "#/components/headers/" + name}
	}
	return refs
}

// idParam is the {id} of a path. Any text is looked up: what is no id is a 404.
func idParam(description string) *huma.Param {
	return &huma.Param{Name: "id", In: "path", Required: true, Description: description,
		Schema: &huma.Schema{Type: huma.TypeString}, Example: exampleID}
}

// tagParam is how a reader names the answer that it has.
func tagParam() *huma.Param {
	return &huma.Param{Name: "If-None-Match", In: "header", Description: "The ETag of an answer that you have",
		Schema: &huma.Schema{Type: huma.TypeString}}
}

// listParams describes the filters of GET /requests.
func listParams() []*huma.Param {
	query := func(name, description string, schema *huma.Schema) *huma.Param {
		return &huma.Param{Name: name, In: "query", Description: description, Schema: schema}
	}
	number := func(least, most float64, standard any) *huma.Schema {
		return &huma.Schema{Type: huma.TypeInteger, Minimum: &least, Maximum: &most, Default: standard}
	}
	moment := &huma.Schema{Type: huma.TypeString, Format: "date-time"}
	return []*huma.Param{
		query("mode", "How the work was asked for", &huma.Schema{Type: huma.TypeString, Enum: anys(tandem.Modes)}),
		query("status", "Where the request stands", &huma.Schema{Type: huma.TypeString, Enum: anys(tandem.Statuses)}),
		query("task", "The name of a task", &huma.Schema{Type: huma.TypeString}),
		query("since", "Made at this time or later (RFC 3339)", moment),
		query("until", "Made before this time (RFC 3339)", moment),
		query("limit", "How many at most", number(1, maxLimit, defaultLimit)),
		query("offset", "How many to leave out; not with cursor", number(0, maxOffset, 0)),
		query("cursor", "Opaque, from the Link header of the page before; not with offset",
			&huma.Schema{Type: huma.TypeString}),
	}
}

// PageParams describes the parameters that every list of an application has.
func PageParams() []*huma.Param {
	return slices.DeleteFunc(listParams(), func(p *huma.Param) bool { return p.Name != "limit" && p.Name != "offset" })
}

// TextParam describes a query parameter.
func TextParam(name, description string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
}

// anys is what huma wants enumerations to be.
func anys[T any](list []T) []any {
	values := make([]any, len(list))
	for i, v := range list {
		values[i] = v
	}
	return values
}

// callbackDoc describes what is sent to callback_url.
func callbackDoc() map[string]map[string]*huma.PathItem {
	header := func(name, description, example string) *huma.Param {
		return &huma.Param{Name: name, In: "header", Required: true, Description: description,
			Schema: &huma.Schema{Type: huma.TypeString}, Example: example}
	}
	op := &huma.Operation{
		Summary: "The result, or why there is none", OperationID: "callback",
		Description: "Signed as Standard Webhooks 1.0.0 describes. It may come more than once: drop repeats by webhook-id. " +
			"Any 2xx means received; 410 stops further tries; 429 and 503 are heeded with their Retry-After; a redirect is a " +
			"failure and is not followed.",
		Parameters: []*huma.Param{
			header("webhook-id", "The request id, the same on every try", exampleID),
			header("webhook-timestamp", "Seconds since 1970, of this try", "1769860800"),
			header("webhook-signature", "One or more v1,<base64 of HMAC-SHA256 over id.timestamp.body>, separated by spaces",
				"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
		},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Callback"}},
		}},
		Responses: map[string]*huma.Response{"2XX": {Description: "Received"}},
	}
	return map[string]map[string]*huma.PathItem{"result": {"{$request.body#/callback_url}": {Post: op}}}
}
