package load_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"tandem/internal/load"
)

// The schema is made from the types of report.go and their comments, so that it
// cannot say anything else than they do; what a Go type cannot say stands in the tables here.

var schemaPath = filepath.FromSlash("../../api/load-report.schema.json")

// signed are the numbers that may be negative; all others count or last.
var signed = map[string]bool{
	"Target.clock_offset_milliseconds": true,
	// A delivery lag is corrected by the clock's offset, which is known to half a round trip.
	"Latency.min_milliseconds": true, "Latency.mean_milliseconds": true, "Latency.p50_milliseconds": true,
	"Latency.p90_milliseconds": true,
	"Latency.p95_milliseconds": true, "Latency.p99_milliseconds": true, "Latency.p999_milliseconds": true,
	"Latency.max_milliseconds": true,
}

// words are the strings that are one of a few.
var words = map[string][]string{
	"Report.schema":       {load.SchemaVersion},
	"Settings.on_429":     {load.On429Count, load.On429Respect},
	"Settings.completion": {load.CompletionCallback, load.CompletionPoll},
	"Callbacks.breaker":   {load.BreakerClosed, load.BreakerOpen, load.BreakerHalfOpen},
	"Phase.name":          {load.PhaseSync, load.PhaseAsync, load.PhaseMixed},
	"Phase.loop":          {"closed", "open"},
	"Insight.topic": {load.TopicAnswer, load.TopicThroughput, load.TopicResult, load.TopicCallbacks,
		load.TopicErrors, load.TopicCost, load.TopicChoice},
	"ThresholdResult.unit": {load.UnitMilliseconds, load.UnitPerSecond, load.UnitPercent, load.UnitCount, load.UnitCores,
		load.UnitMegabytes},
}

// most are upper bounds.
var most = map[string]float64{
	"Side.success_rate_percent": 100, "Settings.sync_ratio": 1, "Settings.sink_fail_rate": 1,
}

// comments reads what report.go says about each type and field: :: Type or Type.Field → text.
func comments(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "report.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		declaration, ok := node.(*ast.GenDecl)
		if !ok || declaration.Tok != token.TYPE {
			return true
		}
		spec := declaration.Specs[0].(*ast.TypeSpec)
		found[spec.Name.Name] = oneLine(declaration.Doc)
		if fields, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range fields.Fields.List {
				found[spec.Name.Name+"."+field.Names[0].Name] = oneLine(cmp.Or(field.Doc, field.Comment))
			}
		}
		return false
	})
	return found
}

func oneLine(group *ast.CommentGroup) string { return strings.Join(strings.Fields(group.Text()), " ") }

// schemaOf describes a type; structs go into definitions.
func schemaOf(t *testing.T, of reflect.Type, place string, texts map[string]string,
	definitions map[string]any) map[string]any {
	t.Helper()
	switch of.Kind() {
	case reflect.Pointer:
		return schemaOf(t, of.Elem(), place, texts, definitions)
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		schema := map[string]any{"type": "string"}
		if words[place] != nil {
			schema["enum"] = words[place]
		}
		return schema
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
		schema := map[string]any{"type": "integer"}
		if of.Kind() == reflect.Float64 {
			schema["type"] = "number"
		}
		if !signed[place] {
			schema["minimum"] = 0
		}
		if limit, ok := most[place]; ok {
			schema["maximum"] = limit
		}
		return schema
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t, of.Elem(), place, texts, definitions)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t, of.Elem(), place, texts, definitions)}
	case reflect.Struct:
		if of == reflect.TypeFor[time.Time]() {
			return map[string]any{"type": "string", "format": "date-time"}
		}
		if definitions[of.Name()] == nil {
			definitions[of.Name()] = map[string]any{} // seen, for types that hold themselves
			definitions[of.Name()] = object(t, of, texts, definitions)
		}
		return map[string]any{"$ref": "#/$defs/" + of.Name()}
	default:
		t.Fatalf("%s is a %v", place, of)
		return nil
	}
}

func object(t *testing.T, of reflect.Type, texts map[string]string, definitions map[string]any) map[string]any {
	t.Helper()
	properties, required := map[string]any{}, []string{}
	for field := range of.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" {
			t.Fatalf("%s.%s has no JSON name", of.Name(), field.Name)
		}
		property := schemaOf(t, field.Type, of.Name()+"."+name, texts, definitions)
		if text := texts[of.Name()+"."+field.Name]; text != "" {
			property["description"] = text
		}
		properties[name] = property
		if options != "omitzero" {
			required = append(required, name)
		}
	}
	return map[string]any{
		"description": texts[of.Name()], "type": "object", "properties": properties, "required": required,
		"additionalProperties": false,
	}
}

// TestSchema: api/load-report.schema.json says what report.go says.
func TestSchema(t *testing.T) {
	t.Parallel()
	definitions, texts := map[string]any{}, comments(t)
	schemaOf(t, reflect.TypeFor[load.Report](), "", texts, definitions)
	for _, table := range []map[string]bool{signed, keysOf(words), keysOf(most)} {
		for place := range table {
			typeName, field, _ := strings.Cut(place, ".")
			definition, _ := definitions[typeName].(map[string]any)
			properties, _ := definition["properties"].(map[string]any)
			if properties[field] == nil {
				t.Errorf("there is no %s", place)
			}
		}
	}
	text, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "Report of tandem load, " + load.SchemaVersion,
		"$ref":    "#/$defs/Report",
		"$defs":   definitions,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.NewBufferString(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(text)) +
		"\n").Bytes()
	golden(t, schemaPath, text)
}

func keysOf[V any](m map[string]V) map[string]bool {
	keys := map[string]bool{}
	for key := range m {
		keys[key] = true
	}
	return keys
}

// compiled is the schema as a validator.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// valid decodes a document, changes it and validates it.
func valid(t *testing.T, schema *jsonschema.Schema, text []byte, edit func(document map[string]any)) error {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	edit(document.(map[string]any))
	return schema.Validate(document)
}

func encoded(t *testing.T, r *load.Report) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := r.Encode(&text); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// TestSchemaAccepts: what Encode writes keeps the schema, whatever is missing from the report.
func TestSchemaAccepts(t *testing.T) {
	t.Parallel()
	schema := compiled(t)
	full := sleepy.report(t)
	full.Thresholds = append(full.Thresholds, evaluate(t, "async.accept.p99<10ms", full),
		load.ThresholdResult{Expression: "x", Metric: "async.accept.p99"})
	part := busy.report(t)
	part.Phases, part.Comparison, part.Insights, part.Interrupted = part.Phases[:1], nil, nil, true
	part.Phases[0].Sync.Errors, part.Phases[0].Sync.Series, part.Phases[0].Server = nil, nil, nil
	bare := &load.Report{Settings: load.Settings{On429: load.On429Count, Completion: load.CompletionCallback}}
	for name, r := range map[string]*load.Report{"full": full, "part": part, "bare": bare} {
		if err := valid(t, schema, encoded(t, r), func(map[string]any) {}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSchemaAcceptsRuns: the reports of real runs, good and bad, keep the schema, and can be shown in every form.
func TestSchemaAcceptsRuns(t *testing.T) {
	t.Parallel()
	schema := compiled(t)
	threshold, err := load.ParseThreshold("async.end_to_end.p99<1s")
	if err != nil {
		t.Fatal(err)
	}
	refusing := func(w http.ResponseWriter, _ *http.Request, n int64) bool {
		if n%5 == 0 {
			http.Error(w, "not now", http.StatusTooManyRequests)
		}
		return n%5 == 0
	}
	for name, run := range map[string]func(t *testing.T) *load.Report{
		"all phases": func(t *testing.T) *load.Report {
			t.Helper()
			return (&fake{}).start(t).run(t,
				load.Config{Requests: 40, SyncRatio: 0.5, Drain: 10 * time.Second, Thresholds: []load.Threshold{threshold}})
		},
		"open loop, refusals, no callbacks": func(t *testing.T) *load.Report {
			t.Helper()
			f := (&fake{post: refusing, callbacks: func(int64) int { return 0 }}).start(t)
			return f.run(t, load.Config{Phases: []string{load.PhaseAsync}, Requests: 40, Rate: 1000,
				Thresholds: []load.Threshold{threshold}})
		},
		"everything refused": func(t *testing.T) *load.Report {
			t.Helper()
			f := (&fake{post: func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
				w.WriteHeader(http.StatusInternalServerError)
				return true
			}}).start(t)
			return f.run(t, load.Config{Requests: 10, Thresholds: []load.Threshold{threshold}})
		},
		"polled": func(t *testing.T) *load.Report {
			t.Helper()
			return (&fake{callbacks: func(int64) int { return 0 }}).start(t).run(t, load.Config{
				Phases: []string{load.PhaseAsync}, Requests: 5, Callback: load.CallbackConfig{Poll: true},
				Drain: 100 * time.Millisecond,
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t)
			if err := valid(t, schema, encoded(t, r), func(map[string]any) {}); err != nil {
				t.Error(err)
			}
			var text bytes.Buffer
			if err := load.WriteText(&text, r); err != nil {
				t.Error(err)
			}
			fits(t, text.String())
			restsOnFigures(t, r)
			parse(t, r)
		})
	}
}

// TestSchemaRefuses: a document that is wrong in one place does not pass.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	schema, text := compiled(t), encoded(t, sleepy.report(t))
	at := func(value any, path ...any) map[string]any {
		for _, step := range path {
			switch step := step.(type) {
			case string:
				value = value.(map[string]any)[step]
			case int:
				value = value.([]any)[step]
			}
		}
		return value.(map[string]any)
	}
	for name, edit := range map[string]func(map[string]any){
		"another schema":      func(d map[string]any) { d["schema"] = "tandem.load/2" },
		"no phases":           func(d map[string]any) { delete(d, "phases") },
		"one member too many": func(d map[string]any) { d["extra"] = 1 },
		"too many deep inside": func(d map[string]any) {
			at(d, "phases", 0, "sync", "response_time")["p98_milliseconds"] = 1
		},
		"a text for a number":  func(d map[string]any) { at(d, "phases", 0, "sync")["sent"] = "many" },
		"half a request":       func(d map[string]any) { at(d, "phases", 0, "sync")["sent"] = 1.5 },
		"a negative count":     func(d map[string]any) { at(d, "phases", 1, "callbacks")["missing"] = -1 },
		"more than everything": func(d map[string]any) { at(d, "phases", 0, "sync")["success_rate_percent"] = 100.5 },
		"an unknown phase":     func(d map[string]any) { at(d, "phases", 0)["name"] = "warm-up" },
		"null for a list":      func(d map[string]any) { d["warnings"] = nil },
		"no time of day":       func(d map[string]any) { d["started_at"] = "yesterday" },
		"an unknown topic":     func(d map[string]any) { at(d, "insights", 0)["topic"] = "weather" },
	} {
		if valid(t, schema, text, edit) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDecodeReport: what was encoded comes back, and nothing else is taken for a report.
func TestDecodeReport(t *testing.T) {
	t.Parallel()
	text := encoded(t, sleepy.report(t))
	r, err := load.DecodeReport(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if again := encoded(t, r); !bytes.Equal(again, text) {
		t.Error("a report that was decoded is encoded differently")
	}
	later := bytes.Replace(text, []byte(`"tool":`), []byte(`"new_member": {"of": "a later version"}, "tool":`), 1)
	if _, err := load.DecodeReport(bytes.NewReader(later)); err != nil {
		t.Errorf("a member that is not known: %v", err)
	}
	for name, wrong := range map[string]string{
		"nothing":          "",
		"no JSON":          "Target http://127.0.0.1:8000",
		"a list":           "[]",
		"another document": `{"openapi": "3.1.0"}`,
		"a later schema":   strings.Replace(string(text), load.SchemaVersion, "tandem.load/2", 1),
		"two reports":      string(text) + string(text),
		"half a report":    string(text[:len(text)/2]),
	} {
		if _, err := load.DecodeReport(strings.NewReader(wrong)); err == nil ||
			!strings.HasPrefix(err.Error(), "decode report: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeReport: whatever a file holds, the report that comes of it can be shown.
func FuzzDecodeReport(f *testing.F) {
	for _, text := range []string{
		`{"schema":"tandem.load/1"}`,
		`{"schema":"tandem.load/1","phases":[{"name":"sync","sync":{"response_time":{"count":1}}}],"insights":[{}]}`,
		`{"schema":"tandem.load/1","phases":[{"name":"async","async":{"series":[{}],` +
			`"response_time":{"count":3,"hdr_v2_base64":"HISTFAAAAB"}},"callbacks":{}}]}`,
		`{"schema":"tandem.load/1","phases":[{"name":"mixed"},{"name":"async"}],"settings":{"rate_per_second":-1e308}}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := load.DecodeReport(strings.NewReader(text))
		if err != nil {
			return
		}
		var shown bytes.Buffer
		if err := load.WriteText(&shown, r); err != nil {
			t.Fatal(err)
		}
		fits(t, shown.String())
		if err := load.WriteHTML(&shown, r); err != nil && !strings.Contains(err.Error(), "decode histogram") {
			t.Fatal(err)
		}
		both := []load.NamedReport{{Name: "a", Report: r}, {Name: "b", Report: r}}
		if _, err := load.CompareReports(both, -1); err != nil && !strings.Contains(err.Error(), "no metric in common") {
			t.Fatal(err)
		}
		_ = fmt.Sprint(load.Insights(r), load.Compare(r))
	})
}
