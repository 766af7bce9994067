package submissions_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"tandem"
	"tandem/internal/submissions"
)

// FuzzSubmissions holds the parser of submissions to its promises: bad input is a 4xx, and
// what it lets through are names that encoding/json reads as well, without anything that has no place in one.
func FuzzSubmissions(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `[]`, `{"firstName":"Ada","lastName":"Lovelace"}`,
		`{"submissions":[{"firstName":"Ada","lastName":"Lovelace"}]}`,
		`{"submissions":[]}`, `{"submissions":[1,{}]}`, `{"firstName":" \u0000","lastName":"\ud83d\ude00"}`,
		"{\"firstName\":\"\xff\",\"lastName\":\"x\"}",
		`{"firstName":"e\u0301\u200d","lastName":"\u202eadA"}`,
		`{"submissions":[{"firstName":"A","lastName":"B"},{"firstName":"A","firstName":"B"}]}`,
		`{"first\u004eame":"A","lastName":"B"}`, `{"submissions":` + strings.Repeat("[", 10_001),
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, body string, batch bool) {
		names, ok, err := submissions.ParseNames(body, batch)
		if !ok {
			return // FuzzBody of the server holds its reader to the same promise
		}
		if err != nil {
			var known *tandem.Error
			if !errors.As(err, &known) {
				t.Fatalf("an error that is no problem: %v", err)
			}
			if known.Code != tandem.CodeValidation {
				t.Fatalf("bad input answered with %s: %v", known.Code, err)
			}
			return
		}
		if !json.Valid([]byte(body)) || len(names) == 0 || len(names) > 20 {
			t.Fatalf("%d names of %q", len(names), body)
		}
		for _, name := range names {
			if name == "" || name != strings.TrimSpace(name) || !utf8.ValidString(name) || utf8.RuneCountInString(name) > 500 ||
				strings.ContainsFunc(name, unicode.IsControl) {
				t.Fatalf("%q is let through", name)
			}
		}
	})
}
