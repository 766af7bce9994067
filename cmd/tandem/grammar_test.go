package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// grammar is the OpenAPI document as a source of requests.
type grammar struct {
	doc      node
	calls    []call
	callback string // the one URL that callbacks go to
}

// node is an object of the document.
type node = map[string]any

// call is one operation.
type call struct {
	method, path string
	params       []node
	body         node // schema; nil: there is none
}

func readGrammar(t *testing.T, callback string) *grammar {
	t.Helper()
	text, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	g := &grammar{callback: callback}
	if err := yaml.Unmarshal(text, &g.doc); err != nil {
		t.Fatal(err)
	}
	paths := g.doc["paths"].(node)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for _, method := range slices.Sorted(maps.Keys(paths[path].(node))) {
			op := paths[path].(node)[method].(node)
			c := call{method: strings.ToUpper(method), path: path}
			params, _ := op["parameters"].([]any)
			for _, param := range params {
				c.params = append(c.params, g.resolve(param.(node)))
			}
			if body, ok := op["requestBody"].(node); ok {
				c.body = body["content"].(node)["application/json"].(node)["schema"].(node)
			}
			g.calls = append(g.calls, c)
		}
	}
	if len(g.calls) < 20 {
		t.Fatalf("%d operations in the document", len(g.calls))
	}
	return g
}

// resolve follows a reference within the document.
func (g *grammar) resolve(n node) node {
	ref, ok := n["$ref"].(string)
	if !ok {
		return n
	}
	found := g.doc
	for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		found = found[name].(node)
	}
	return g.resolve(found)
}

// sower makes requests that are as documented, but for one thing or another. The same seed makes the same ones.
type sower struct {
	*grammar
	random *rand.Rand
	victim int    // the value that will be spoilt is so many away; below 0: none
	body   string // of the last request
}

func (g *grammar) sower(seed uint64) *sower {
	return &sower{grammar: g, random: rand.New(rand.NewPCG(seed, seed))}
}

func (s *sower) chance(percent int) bool { return s.random.IntN(100) < percent }

func pick[T any](s *sower, from []T) T { return from[s.random.IntN(len(from))] }

// What hides in texts: for parsers, databases, shells, templates, logs and terminals.
var nastyTexts = []string{
	"", " ", "\x00", "\x1b[31m", "\r\nX-Evil: 1", "\u202e", "\ufeff", "é́", "𝕏👩‍👩‍👧", "' OR '1'='1", "; DROP TABLE requests;--", "<script>alert(1)</script>", "{{7*7}}", "${jndi:ldap://x}",
	"../../../etc/passwd", "%00", "%s%n", "$(id)", "null", "true", "NaN", "-1", "1e999", "9223372036854775808", "req_" + "00000000000000000000000000000000", strings.Repeat("x", 51), strings.Repeat("é", 300), strings.Repeat("x", 20_000),
}

// What is no valid callback, or leads to this machine; nothing here leaves it.
var nastyURLs = []string{
	"", "http://", "ftp://127.0.0.1/", "http://user:pass@127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:a9fe:a9fe]/", "http://127.0.0.1:0/", "http://127.0.0.1:99999/",
	"http://127.0.0.1:1/%zz", "//127.0.0.1/", "javascript:alert(1)", "http://metadata.google.internal/", "http://0x7f.1/", "http://127.0.0.1:1/\r\nX: y", "http://[fe80::1%25lo]/", "http://localhost:1/" + strings.Repeat("a", 3_000),
}

// Raw JSON that is not what anybody asked for, some of it no JSON at all.
var nastyValues = []string{
	"null", "true", "-1", "0", "11", "1.5", "1e999", "-0", "123456789012345678901234567890", `""`, "[]", "{}", "[null]", `{"a":1,"a":2}`, `{"":""}`, `{"__proto__":{"a":1}}`, "nul", "'a'", "01", "+1", ".5", "NaN", "1 2", `"\ud800"`, `"\x"`, "\"\xff\"", "\"\n\"", "[1,]", "{,}",
	strings.Repeat("[", 200) + strings.Repeat("]", 200), strings.Repeat(`{"a":`, 12) + "1" + strings.Repeat("}", 12), strings.Repeat("[", 5_000), `"` + strings.Repeat("y", 12_000) + `"`, `"` + strings.Repeat("y", 90_000) + `"`,
}

// value makes the JSON text of a schema; when it is its turn, a spoilt one.
func (s *sower) value(schema node, name string) string {
	schema = s.resolve(schema)
	if s.victim--; s.victim == -1 {
		return s.spoilt(schema, name)
	}
	switch {
	case name == "callback_url":
		return quoted(s.callback)
	case name == "task":
		return `"echo"` // the others take time
	case schema["enum"] != nil:
		return quoted(fmt.Sprint(pick(s, schema["enum"].([]any))))
	}
	kind, _ := schema["type"].(string)
	switch kind {
	case "object":
		return s.object(schema)
	case "array":
		items := make([]string, s.between(schema, "minItems", "maxItems", 0, 3))
		for i := range items {
			items[i] = s.value(schema["items"].(node), "")
		}
		return "[" + strings.Join(items, ",") + "]"
	case "integer", "number":
		return fmt.Sprint(s.between(schema, "minimum", "maximum", 0, 1_000))
	case "boolean":
		return pick(s, []string{"true", "false"})
	default:
		if schema["format"] == "date-time" {
			return quoted(pick(s, []string{"2026-01-31T12:00:00Z", "2026-11-22T00:00:00.5+02:00", "1999-12-31T23:59:59Z"}))
		}
		return quoted(strings.Repeat(pick(s, []string{"a", "é", "Z", "0"}), s.between(schema, "minLength", "maxLength", 1, 20)))
	}
}

// object has what is required, and some of what is not. One without properties has some of its own.
func (s *sower) object(schema node) string {
	properties, _ := schema["properties"].(node)
	required, _ := schema["required"].([]any)
	var members []string
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if slices.Contains(required, any(name)) || name == "task" || s.chance(50) {
			members = append(members, quoted(name)+":"+s.value(properties[name].(node), name))
		}
	}
	if len(properties) == 0 {
		for i := range 1 + s.random.IntN(3) {
			members = append(members, fmt.Sprintf(`"m%d":%s`, i, s.value(node{"type": pick(s, []string{"integer", "string", "boolean"})}, "")))
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// spoilt is a value just outside what the schema allows, or far away from it.
func (s *sower) spoilt(schema node, name string) string {
	if name == "callback_url" && s.chance(80) {
		return quoted(pick(s, nastyURLs))
	}
	var near []string
	if least, ok := number(schema["minimum"]); ok {
		near = append(near, fmt.Sprint(least-1))
	}
	if most, ok := number(schema["maximum"]); ok {
		near = append(near, fmt.Sprint(most+1))
	}
	if most, ok := number(schema["maxLength"]); ok {
		near = append(near, quoted(strings.Repeat("x", most+1)))
	}
	if most, ok := number(schema["maxItems"]); ok {
		item := s.value(schema["items"].(node), "")
		near = append(near, "["+strings.Repeat(item+",", most)+item+"]")
	}
	switch {
	case len(near) > 0 && s.chance(50):
		return pick(s, near)
	case s.chance(40):
		return quoted(pick(s, nastyTexts))
	default:
		return pick(s, nastyValues)
	}
}

// between is a number that a schema allows.
func (s *sower) between(schema node, least, most string, low, high int) int {
	if n, ok := number(schema[least]); ok {
		low = n
		high = max(high, n)
	}
	if n, ok := number(schema[most]); ok {
		high = min(high, n)
	}
	return low + s.random.IntN(high-low+1)
}

func number(value any) (int, bool) {
	switch n := value.(type) {
	case int:
		return n, true
	case float64:
		return int(n), true
	default:
		return 0, false
	}
}

// quoted is a text as JSON, which says the same when it is read, unless it is no UTF-8.
func quoted(text string) string {
	encoded, err := json.Marshal(text)
	if err != nil {
		return `""`
	}
	return string(encoded)
}

// request makes the next one.
func (s *sower) request(t *testing.T, base string) *http.Request {
	t.Helper()
	c := pick(s, s.calls)
	for c.body == nil && s.chance(70) { // what is sent can go wrong in more ways than what is asked for
		c = pick(s, s.calls)
	}
	path, query := c.path, url.Values{}
	for _, param := range c.params {
		name, _ := param["name"].(string)
		value := s.parameter(param)
		switch param["in"] {
		case "path":
			path = strings.ReplaceAll(path, "{"+name+"}", url.PathEscape(value))
		case "query":
			if s.chance(30) {
				query.Add(name, value)
			}
		}
	}
	if s.chance(3) {
		query.Add(pick(s, nastyTexts[:24]), pick(s, nastyTexts[:24]))
	}
	method := c.method
	if s.chance(5) {
		method = pick(s, []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"})
	}
	s.body = ""
	if c.body != nil {
		s.victim = s.random.IntN(12) // none, when there are fewer values
		s.body = s.value(c.body, "")
		s.mangle()
	}
	address := base + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	var body io.Reader = strings.NewReader(s.body)
	if s.chance(5) {
		body = io.MultiReader(body) // without a length
	}
	request, err := http.NewRequestWithContext(t.Context(), method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	s.headers(request.Header)
	return request
}

// parameter is a value for a parameter, good or not.
func (s *sower) parameter(param node) string {
	schema, _ := param["schema"].(node)
	s.victim = -2
	if s.chance(40) {
		s.victim = 0
	}
	text := s.value(schema, "")
	var plain string
	if json.Unmarshal([]byte(text), &plain) == nil {
		return plain
	}
	return text
}

// mangle damages the text of a body. One that names a callback keeps its URL whole: what is called must stay here.
func (s *sower) mangle() {
	switch n := s.random.IntN(100); {
	case s.body == "" || n >= 10:
	case n < 3:
		s.body = s.body[:s.random.IntN(len(s.body))]
	case n < 6:
		s.body += pick(s, []string{"}", " x", "{}", "\x00", s.body, strings.Repeat(" ", 80_000)})
	case !strings.Contains(s.body, "callback_url"):
		damaged := []byte(s.body)
		for range 1 + s.random.IntN(4) {
			damaged[s.random.IntN(len(damaged))] = byte(s.random.IntN(256))
		}
		s.body = string(damaged)
	}
}

func (s *sower) headers(header http.Header) {
	header.Set("Content-Type", "application/json")
	if s.chance(5) {
		header.Set("Content-Type", pick(s, []string{"", "text/plain", "application/json; charset=latin1", "application/vnd.x+json", "multipart/form-data; boundary=x", ";;;", "application/json, text/html"}))
	}
	for _, extra := range []struct{ name, value string }{
		{"Webhook-Id", pick(s, []string{"req_1", "", "a b", strings.Repeat("x", 65)})},
		{"X-Request-ID", pick(s, []string{"good", "not good", strings.Repeat("x", 3_000), "<b>"})},
		{"If-None-Match", pick(s, []string{"*", `"x"`, `W/"x", "y"`, `"`, strings.Repeat(`"x",`, 500)})},
		{"Accept", pick(s, []string{"text/html", "*/*;q=x", strings.Repeat("a/b,", 1_000), "application/openmetrics-text"})},
		{"Accept-Encoding", pick(s, []string{"gzip", "identity", "br;q=0"})},
		{"Content-Encoding", pick(s, []string{"gzip", "identity", "x"})},
		{"Origin", pick(s, []string{"null", "https://evil.example", "http://localhost:3000", ":"})},
		{"Sec-Fetch-Site", pick(s, []string{"cross-site", "same-origin", "x"})},
		{"X-Forwarded-For", pick(s, []string{"1.2.3.4", strings.Repeat("1.1.1.1,", 1_000), "x"})},
		{"Authorization", pick(s, []string{"Bearer tdm_x", "Basic eDp5", "Bearer"})},
		{"Range", pick(s, []string{"bytes=0-1", "bytes=-9999999999999999999"})},
		{"Prefer", "respond-async, wait=-1"},
		{"Expect", "100-continue"},
	} {
		if s.chance(4) || extra.name == "Webhook-Id" && s.chance(80) {
			header.Set(extra.name, extra.value)
		}
	}
}
