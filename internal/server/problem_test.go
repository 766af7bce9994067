package server_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/server"
)

// codes reads every constant of type tandem.Code from the source, so that none
// can be forgotten.
func codes(t *testing.T) []tandem.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []tandem.Code
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, tandem.Code(text))
		return true
	})
	if len(found) < 15 {
		t.Fatalf("found only %v", found)
	}
	return found
}

func TestEveryCodeHasAStatusAndAPage(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	index := svc.get("/problems").body
	for _, code := range codes(t) {
		if status := server.StatusOf(code); status < 400 || status > 599 {
			t.Errorf("%s: status %d", code, status)
		}
		a := svc.get("/problems/" + string(code))
		if a.status != http.StatusOK || !strings.Contains(a.body, "<code>"+string(code)+"</code>") ||
			!strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d %s", code, a.status, a.body)
		}
		if !strings.Contains(index, `"problems/`+string(code)+`"`) {
			t.Errorf("%s is not in the index", code)
		}
	}
}

func TestPagesTakeNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for _, path := range []string{"/", "/docs", "/redoc", "/problems", "/problems/INTERNAL"} {
		a := svc.do(http.MethodGet, path, "", "Accept: text/html")
		policy := a.header.Get("Content-Security-Policy")
		if a.status != http.StatusOK || !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "http") {
			t.Errorf("%s: %d %q", path, a.status, policy)
		}
		if strings.Contains(a.body, `="http`) || strings.Contains(a.body, `="//`) ||
			strings.Contains(a.body, "<script>") || strings.Contains(a.body, "style=") {
			t.Errorf("%s takes something from elsewhere or has inline code: %s", path, a.body)
		}
		parts := strings.Split(a.body, `docs/`)[1:]
		if len(parts) == 0 {
			t.Errorf("%s has no style", path)
		}
		for _, part := range parts {
			file, _, _ := strings.Cut(part, `"`)
			for _, encoding := range []string{"gzip", "identity"} {
				b := svc.do(http.MethodGet, "/docs/"+file, "", "Accept-Encoding: "+encoding)
				if b.status != http.StatusOK || b.header.Get("Content-Type") == "" || len(b.body) < 100 {
					t.Errorf("%s: %d, %d bytes", file, b.status, len(b.body))
				}
				if strings.Contains(b.body, "https://cdn.") {
					t.Errorf("%s loads something from a CDN", file)
				}
				if zipped := strings.HasPrefix(b.body, "\x1f\x8b"); zipped != (b.header.Get("Content-Encoding") == "gzip") ||
					zipped && encoding != "gzip" {
					t.Errorf("%s with %s: compressed %v, %v", file, encoding, zipped, b.header)
				}
			}
		}
	}
}
