package submissions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rivo/uniseg"

	"tandem"
	"tandem/internal/server"
)

const (
	maxBatch      = 10  // submissions in one batch
	maxNameLength = 50  // characters of a name, as people count them
	maxNamePoints = 500 // Unicode code points of a name: one character can have many
)

// person is the content of a submission.
type person struct {
	FirstName string `json:"firstName"`
	LastName  string `json:"lastName"`
}

// data is the person as the engine and the history keep it.
func (p person) data() (json.RawMessage, error) {
	text, err := jsontext.AppendQuote([]byte(`{"firstName":`), p.FirstName)
	if err == nil {
		text, err = jsontext.AppendQuote(append(text, `,"lastName":`...), p.LastName)
	}
	if err != nil { // invalid UTF-8, impossible after reading the body
		return nil, fmt.Errorf("encode submission: %w", err)
	}
	return append(text, '}'), nil
}

// person reads the body of r as one submission.
func (h *handlers) person(w http.ResponseWriter, r *http.Request) (person, error) {
	found, err := h.api.Object(w, r, "firstName", "lastName")
	if err != nil {
		return person{}, err
	}
	p, wrong := personOf(found, "body.")
	if wrong != nil {
		return person{}, server.Invalid(wrong...)
	}
	return p, nil
}

// people reads the body of r as a batch.
func (h *handlers) people(w http.ResponseWriter, r *http.Request) ([]person, error) {
	found, err := h.api.Object(w, r, "submissions")
	if err != nil {
		return nil, err
	}
	return peopleOf(found["submissions"])
}

// peopleOf makes a batch of an array. One invalid entry refuses all of them, and is reported with its index.
func peopleOf(array []byte) ([]person, error) {
	refuse := func(message string, value any) ([]person, error) {
		return nil, server.Invalid(tandem.FieldError{Location: "body.submissions", Message: message, Value: value})
	}
	switch {
	case array == nil:
		return refuse("is required", nil)
	case array[0] != '[':
		return nil, server.Invalid(server.Wrong("body.submissions", "must be an array", array))
	}
	entries, err := elements(array)
	if err != nil {
		return nil, err
	}
	if len(entries) < 1 || len(entries) > maxBatch {
		return refuse("must have 1 to "+strconv.Itoa(maxBatch)+" entries", len(entries))
	}
	var people []person
	var wrong []tandem.FieldError
	for i, entry := range entries {
		location := "body.submissions[" + strconv.Itoa(i) + "]"
		inner, isObject, err := server.ParseObject(entry, "firstName", "lastName")
		switch {
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", location, err)
		case !isObject:
			wrong = append(wrong, server.Wrong(location, "must be a JSON object", entry))
			continue
		}
		p, faults := personOf(inner, location+".")
		people, wrong = append(people, p), append(wrong, faults...)
	}
	if wrong != nil {
		return nil, server.Invalid(wrong...)
	}
	return people, nil
}

// elements returns the elements of a valid JSON array, as slices of it.
func elements(array []byte) ([][]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(array))
	if _, err := dec.ReadToken(); err != nil {
		return nil, fmt.Errorf("read array: %w", err)
	}
	var list [][]byte
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("read array: %w", err)
		}
		end := dec.InputOffset()
		list = append(list, array[end-int64(len(value)):end])
	}
	return list, nil
}

// personOf reads and validates the names.
func personOf(found server.Object, prefix string) (p person, wrong []tandem.FieldError) {
	for _, field := range []struct {
		name   string
		target *string
	}{{"firstName", &p.FirstName}, {"lastName", &p.LastName}} {
		value := found[field.name]
		name, isText := server.Text(value)
		var expected string
		switch {
		case value == nil:
			expected = "is required"
		case !isText:
			expected = "must be a string"
		default:
			*field.target, expected = cleanName(name)
		}
		if expected != "" {
			wrong = append(wrong, server.Wrong(prefix+field.name, expected, value))
		}
	}
	return p, wrong
}

// cleanName trims a name, and returns the violated rule if it is unusable. Length is in characters as people see them
// (grapheme clusters).
func cleanName(text string) (name, expected string) {
	name = strings.TrimSpace(text)
	switch {
	case strings.IndexFunc(name, isVisible) < 0:
		return name, "must not be blank"
	case strings.ContainsFunc(text, isControl):
		return name, "must not contain control characters"
	case utf8.RuneCountInString(name) > maxNamePoints:
		return name, "must have at most " + strconv.Itoa(maxNamePoints) + " code points"
	case uniseg.GraphemeClusterCount(name) > maxNameLength:
		return name, "must have at most " + strconv.Itoa(maxNameLength) + " characters"
	default:
		return name, ""
	}
}

// isVisible reports whether a character shows: marks and joiners alone show nothing, nor do filler letters and the
// blank symbol.
func isVisible(r rune) bool {
	const brailleBlank = '\u2800'
	return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S) &&
		!unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) && r != brailleBlank
}

// isControl reports control characters, line and paragraph separators.
func isControl(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) }
