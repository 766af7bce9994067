package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/server"
)

// FuzzBody holds the parser of bodies against encoding/json, which reads
// everything twice and allows more.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		``, ` `, `{}`, `[]`, `null`, `{"data":{}}`, `{"data":{"a":1}}`,
		`{"data":{"a":1},"complexity":2.0,"task":"echo","callback_url":"http://x/"}`,
		`{"data":{"a":1},"data":{"a":1}}`, `{"d\u0061ta":{"a":"\\\"["}}`, "{\"data\":{\"a\":\"\xff\"}}",
		`{"data":{"a":"\ud800"}}`,
		`{"data":{"a":1}}x`, `{"data":{"a":1}`, `{"complexity":1e999}`, `{"data":` + strings.Repeat(`{"a":`, 12) + `1` +
			strings.Repeat(`}`, 13),
		strings.Repeat("[", 10_001), `{"x":` +
			strings.Repeat("[", 10_001), `{"data":{"a":[[[[[[[[[1]]]]]]]]]}}`, "\xef\xbb\xbf{}",
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, body string, async bool) {
		order, err := server.ParseOrder(body, async)
		body = strings.TrimPrefix(body, "\uFEFF") // tandem takes one; encoding/json does not
		if err != nil {
			var known *tandem.Error
			if !errors.As(err, &known) {
				t.Fatalf("an error that is no problem: %v", err)
			}
			if status := server.StatusOf(known.Code); status < 400 || status > 499 {
				t.Fatalf("bad input answered with %d: %v", status, err)
			}
			if valid := json.Valid([]byte(body)); valid && known.Code == tandem.CodeInvalidJSON {
				t.Fatalf("called no JSON, but it is: %v", err)
			} else if !valid && known.Code == tandem.CodeValidation {
				t.Fatalf("called JSON, but it is not: %v", err)
			}
			return
		}
		var plain struct {
			Data        json.RawMessage `json:"data"`
			Complexity  *float64        `json:"complexity"`
			Task        string          `json:"task"`
			CallbackURL string          `json:"callback_url"`
		}
		if err := json.Unmarshal([]byte(exactNames(t, body)), &plain); err != nil {
			t.Fatalf("accepted, but encoding/json says %v", err)
		}
		if !bytes.Equal(order.Data, plain.Data) {
			t.Fatalf("data is %s, want %s", order.Data, plain.Data)
		}
		if plain.Complexity != nil && float64(order.Complexity) != *plain.Complexity || order.Complexity < 1 ||
			order.Complexity > 10 {
			t.Fatalf("complexity %d of %s", order.Complexity, body)
		}
		if plain.Task != "" && order.Task != plain.Task || async && order.CallbackURL != plain.CallbackURL {
			t.Fatalf("%+v of %s", order, body)
		}
	})
}

// exactNames removes the members that encoding/json would take for ours because
// it ignores case.
func exactNames(t *testing.T, body string) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &members); err != nil {
		t.Fatalf("accepted, but encoding/json says %v", err)
	}
	kept := []string{}
	for _, name := range []string{"data", "complexity", "task", "callback_url"} {
		if value, ok := members[name]; ok {
			kept = append(kept, `"`+name+`":`+string(value))
		}
	}
	return "{" + strings.Join(kept, ",") + "}"
}
