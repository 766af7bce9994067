package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
)

func TestDocumentIsTheGoldenOne(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.Tasks, s.server.BaseURL = nil, "http://127.0.0.1:8000" })
	got := fetch(t, svc.URL+"/openapi.yaml")
	if *update {
		if err := os.WriteFile(goldenDocument, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenDocument)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the document is not %s (run with -update if it should be):\n%s", goldenDocument, diff)
	}
}

// fetch gets a document without the checking client, which needs the golden
// copy that is perhaps only being made.
func fetch(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", url, response.Status, err)
	}
	return string(text)
}

func TestDocumentIsValid(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.Tasks = nil })
	doc, err := libopenapi.NewDocument([]byte(svc.get("/openapi.json").body))
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, problems := v.ValidateDocument(); !ok {
		for _, p := range problems {
			t.Error(p)
		}
	}
}

func TestDocumentDescribesEverything(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.Tasks = nil })
	var doc struct {
		Paths map[string]map[string]struct {
			Summary   string                     `json:"summary"`
			Responses map[string]json.RawMessage `json:"responses"`
			Callbacks map[string]json.RawMessage `json:"callbacks"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	svc.get("/openapi.json").decode(t, &doc)
	for path, operations := range doc.Paths {
		for method, op := range operations {
			if op.Summary == "" || op.Responses["500"] == nil {
				t.Errorf("%s %s has no summary or says nothing of a 500", method, path)
			}
		}
	}
	if doc.Paths["/async"]["post"].Callbacks["result"] == nil {
		t.Error("the callback is not described")
	}
	for name, schema := range doc.Components.Schemas {
		for property, p := range schema.Properties {
			if p["$ref"] == nil && p["description"] == nil && p["enum"] == nil && p["const"] == nil {
				t.Errorf("%s.%s is not described: %v", name, property, p)
			}
		}
	}
}

// Tools such as Spectral check examples against their formats: braces are in no URI reference (RFC 3986, 2).
func TestExamplesNamePathsThatCanBeRequested(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	instances := regexp.MustCompile(`"instance": "([^"]*)"`).FindAllStringSubmatch(svc.get("/openapi.json").body, -1)
	if len(instances) < 50 {
		t.Fatalf("only %d examples", len(instances))
	}
	for _, found := range instances {
		if strings.ContainsAny(found[1], "{}<>") || !strings.HasPrefix(found[1], "/") {
			t.Errorf("instance %s", found[1])
		}
	}
}

// In demo mode the example of /async can be sent as it is, and its callback arrives.
func TestTheExampleOfAsyncCallsOurOwnReceiver(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"http://127.0.0.1:8000/": "http://127.0.0.1:8000/test-callback", "": "https://example.com/hooks/tandem",
	} {
		svc := start(t, func(s *setup) { s.server.BaseURL = base })
		if text := svc.get("/openapi.yaml").body; !strings.Contains(text, "callback_url: "+want+"\n") {
			t.Errorf("base %q: the document does not show %s", base, want)
		}
	}
}
