package audit

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"tandem"
)

const (
	documentPath = "/openapi.json"
	maxRoutes    = 200 // operations taken from a document
	maxValues    = 12  // values taken of a parameter
)

// unknownID has the form of a request's id, but no request has it.
const unknownID = "req_00000000000000000000000000000000"

// operation is one method of one path.
type operation struct {
	Method, Path string // the path as the document writes it, with {…}
	Queries      []parameter
	JSON         bool // it takes a JSON body
	Admin        bool // it is for keys with the scope admin
}

// parameter is one of a query, with allowed values.
type parameter struct {
	Name   string
	Values []string // of an enum
}

// openPaths need no key. Every other path needs one, even if the document disagrees.
var openPaths = []string{
	"/", "/docs", "/redoc", "/openapi.json", "/openapi.yaml", "/problems", "/problems/{code}", "/health", "/healthz",
	"/livez", "/readyz",
}

// adminPaths belong to the operator.
var adminPaths = []string{"/stats", "/api/stats", "/metrics", "/nodes"}

// knownOperations are those of every tandem. The audit asks for them even where the document hides them.
func knownOperations() []operation {
	known := []operation{
		{Method: http.MethodPost, Path: "/sync", JSON: true},
		{Method: http.MethodPost, Path: "/async", JSON: true},
	}
	for _, path := range slices.Concat([]string{"/requests", "/requests/{id}"}, adminPaths, openPaths) {
		known = append(known, operation{Method: http.MethodGet, Path: path})
	}
	return known
}

// open reports whether an operation needs no key.
func (op operation) open() bool { return slices.Contains(openPaths, op.Path) }

var placeholder = regexp.MustCompile(`\{[^}]*\}?`)

// target is the path with its parameters filled in.
func (op operation) target(id string) string {
	return placeholder.ReplaceAllStringFunc(op.Path, func(name string) string {
		if name == "{code}" {
			return string(tandem.CodeNotFound)
		}
		return url.PathEscape(id)
	})
}

// ask is the operation as a harmless request: a body lacks every member.
func (op operation) ask(id string) probe {
	p := probe{Method: op.Method, Path: op.target(id)}
	if op.Method == http.MethodPost {
		p.Body = `{}`
	}
	return p
}

// readDocument reads the deployment's own document.
func (t *target) readDocument(ctx context.Context) {
	t.operations = knownOperations()
	a := t.send(ctx, probe{Path: documentPath})
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	switch {
	case a.Err != nil || a.Status != http.StatusOK:
		t.unread = a.String()
	case json.Unmarshal(a.Body, &document) != nil || document.Paths == nil:
		t.unread = a.String() + ", which is no OpenAPI document"
	default:
		for path, methods := range document.Paths {
			for method, text := range methods {
				t.add(path, strings.ToUpper(method), text)
			}
		}
	}
	for _, op := range knownOperations() {
		if t.unread == "" && document.Paths[op.Path][strings.ToLower(op.Method)] == nil {
			t.hidden = append(t.hidden, op)
		}
	}
	slices.SortFunc(t.operations, func(a, b operation) int {
		return strings.Compare(a.Path+" "+a.Method, b.Path+" "+b.Method)
	})
}

// add takes one operation of the document.
func (t *target) add(path, method string, text json.RawMessage) {
	var documented struct {
		Parameters []struct {
			Name   string `json:"name"`
			In     string `json:"in"`
			Schema struct {
				Enum []string `json:"enum"`
			} `json:"schema"`
		} `json:"parameters"`
		RequestBody struct {
			Content map[string]any `json:"content"`
		} `json:"requestBody"` //nolint:tagliatelle // OpenAPI's
		Security []map[string][]string `json:"security"`
	}
	usable := strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '?' || r == '#'
	})
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	if !usable || !slices.Contains(methods, method) || json.Unmarshal(text, &documented) != nil {
		return // a path item has other members beside methods
	}
	op := operation{Method: method, Path: path, JSON: documented.RequestBody.Content["application/json"] != nil}
	for _, p := range documented.Parameters {
		if p.In == "query" {
			op.Queries = append(op.Queries, parameter{p.Name, p.Schema.Enum[:min(len(p.Schema.Enum), maxValues)]})
		}
	}
	for _, scheme := range documented.Security {
		for _, scopes := range scheme {
			op.Admin = op.Admin || slices.Contains(scopes, string(tandem.ScopeAdmin))
		}
	}
	at := slices.IndexFunc(t.operations, func(known operation) bool {
		return known.Method == method && known.Path == path
	})
	switch {
	case at >= 0:
		t.operations[at] = op
	case len(t.operations) < maxRoutes:
		t.operations = append(t.operations, op)
	default:
		t.unread = fmt.Sprintf("the document lists more than %d operations", maxRoutes)
	}
}

// admin reports whether an operation belongs to the operator.
func (op operation) admin() bool { return op.Admin || slices.Contains(adminPaths, op.Path) }

// guarded are the operations behind a key, with HEAD beside every GET.
func (t *target) guarded() []operation {
	var all []operation
	for _, op := range t.operations {
		if op.open() {
			continue
		}
		all = append(all, op)
		if op.Method == http.MethodGet {
			op.Method = http.MethodHead
			all = append(all, op)
		}
	}
	return all
}

// writes are the operations forbidden to foreign pages.
func (t *target) writes() []operation {
	return slices.DeleteFunc(slices.Clone(t.operations), func(op operation) bool { return op.Method == http.MethodGet })
}

// spellings are other ways to write a path, equal to some proxy or router. A quick audit tries the most dangerous ones.
func (t *target) spellings(path string) []string {
	first, rest := path[1:2], path[2:]
	segment, below, _ := strings.Cut(path[1:], "/")
	if below != "" {
		below = "/" + below
	}
	encoded := fmt.Sprintf("%%%02x", first[0])
	all := []string{
		"/" + path, "/." + path, "/" + strings.ToUpper(segment) + below, "/" + encoded + rest, "/healthz/.." + path,
		path + "/",
	}
	if t.cfg.Level == LevelFull {
		all = append(all,
			path+"//", path+"/.", path+";a=b", path+"%20", path+"%00", path+".json", path+"%3f", path+"%23", path+"?",
			path+"?a",
			"/healthz/..;"+path, "/healthz%2f.."+path, "/%2e"+path, "/%2f"+path[1:], "/%25"+encoded[1:]+rest,
			"/\\"+path[1:], "/docs/../"+path[1:],
		)
	}
	return all
}

// seen is the answer of one operation.
type seen struct {
	operation
	answer
}

// sweep asks once for every readable route, with the right key, and as a browser where no key is needed. All checks
// share the answers.
func (t *target) sweep(ctx context.Context) []seen {
	if t.swept != nil {
		return t.swept
	}
	var all []seen
	for _, op := range t.operations {
		if op.Method != http.MethodGet {
			continue
		}
		p := op.ask(t.ownID(ctx))
		switch {
		case op.open():
			p.NoKey = true
			all = append(all, seen{op, t.send(ctx, p)})
			p = p.with("Accept", "text/html")
		case op.admin() && t.cfg.AdminKey != "":
			p.Key = t.cfg.AdminKey
		case !t.open && t.cfg.APIKey == "":
			continue
		}
		all = append(all, seen{op, t.send(ctx, p)})
	}
	t.swept = all
	return all
}

// ownID is a request of the caller's own, made when it is first needed; unknownID if there can be none.
func (t *target) ownID(ctx context.Context) string {
	if t.mine == "" && t.has(NeedCaller) {
		t.mine = cmp.Or(t.send(ctx, post("/sync", echoBody)).requestID(), unknownID)
	}
	return cmp.Or(t.mine, unknownID)
}

// echoBody is work without cost.
const echoBody = `{"data":{"audit":1},"task":"echo"}`

// checkDocument reports whether the audit knew all routes. A missing document is no flaw; hidden routes are.
func checkDocument(_ context.Context, t *target, v *verdict) {
	if t.unread != "" {
		v.doubtf("%s: only the %d operations that every tandem has were asked for", t.unread, len(t.operations))
		return
	}
	for _, op := range t.hidden {
		v.failf("GET %s does not list %s %s", documentPath, op.Method, op.Path)
	}
	v.passf("GET %s lists %d operations, and all of them are asked for", documentPath, len(t.operations))
}
