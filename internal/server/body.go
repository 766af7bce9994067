package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"tandem"
	"tandem/internal/engine"
)

const (
	envelope       = 64 << 10 // bytes of a body beside data
	keepBuffer     = 64 << 10 // a larger buffer is not kept for the next request
	shownValue     = 100      // bytes of a value repeated in an error
	decoderDepth   = 10_000   // jsontext reads no deeper
	minComplexity  = 1
	maxComplexity  = 10
	defaultTask    = "compute"
	contentTypeKey = "Content-Type"
)

// reader reads the bodies of orders in one pass and without
// reflection. It checks form only; that a callback URL may be called is the
// engine's business.
type reader struct {
	maxData  int64
	maxDepth int
	tasks    []string  // sorted
	pool     sync.Pool // of *scratch
}

// scratch is what reading one body needs and the next can use again.
type scratch struct {
	buf bytes.Buffer
	dec jsontext.Decoder
}

// fields are the members of a body that mean something, as found: slices of
// the body, nil when missing or null.
type fields struct {
	data, complexity, task, callbackURL []byte   // of orders
	more                                []member // of what an application takes
}

// member is a member of an object. Its name is in quotes, its value nil when missing or null.
type member struct {
	name  string
	value []byte
}

func newReader(maxData int64, maxDepth int, tasks []string) *reader {
	return &reader{maxData: maxData, maxDepth: maxDepth, tasks: tasks,
		pool: sync.Pool{New: func() any { return new(scratch) }}}
}

// order reads the body of r. The order shares no memory with buffers that are used again.
func (b *reader) order(w http.ResponseWriter, r *http.Request, async bool) (engine.Order, error) {
	s := b.pool.Get().(*scratch)
	defer b.release(s)
	if err := b.read(s, w, r); err != nil {
		return engine.Order{}, err
	}
	return b.parse(s, async)
}

func (b *reader) release(s *scratch) {
	if s.buf.Cap() <= keepBuffer {
		b.pool.Put(s)
	}
}

// checkMediaType lets application/json and its relatives in UTF-8 through.
func checkMediaType(header http.Header) error {
	given := header.Get(contentTypeKey)
	if given != "application/json" { // anything but the usual spelling
		media, params, err := mime.ParseMediaType(given)
		charset, named := params["charset"]
		unicode := !named || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "utf8")
		if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") || !unicode {
			return &tandem.Error{
				Code: tandem.CodeUnsupportedMedia, Message: "Send the body as Content-Type: application/json, in UTF-8.",
				Fields: []tandem.FieldError{{Location: "header.Content-Type", Message: "must be application/json",
					Value: shorten(given)}},
			}
		}
	}
	if encoding := header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return &tandem.Error{
			Code: tandem.CodeUnsupportedMedia, Message: "Send the body uncompressed.",
			Fields: []tandem.FieldError{{Location: "header.Content-Encoding", Message: "must be absent or identity",
				Value: shorten(encoding)}},
		}
	}
	return nil
}

// read fills the buffer with the body, but never with more than the limit.
func (b *reader) read(s *scratch, w http.ResponseWriter, r *http.Request) error {
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	limit := b.maxData + envelope
	s.buf.Reset()
	if r.ContentLength > limit {
		return tooLarge("The body has %d bytes; at most %d are read.", r.ContentLength, limit)
	}
	if _, err := s.buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		return bodyError(err)
	}
	return nil
}

// bodyError says why a body could not be read.
func bodyError(err error) error {
	var over *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &over):
		return tooLarge("The body has more than %d bytes.", over.Limit)
	case errors.As(err, &timeout) && timeout.Timeout():
		return &tandem.Error{Code: tandem.CodeRequestTimeout, Message: "The body did not arrive in time. Send it whole.",
			Err: err}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &tandem.Error{Code: tandem.CodeInvalidJSON, Message: "The body ended before its announced length.", Err: err}
	default: // bad chunking, or the connection broke
		return &tandem.Error{Code: tandem.CodeInvalidJSON, Message: "The body could not be read to its end.", Err: err}
	}
}

func tooLarge(format string, args ...any) error {
	return tandem.Errorf(tandem.CodeTooLarge, format, args...)
}

// byteOrderMark is what some editors put in front of UTF-8; it may be ignored (RFC 8259, 8.1).
var byteOrderMark = []byte("\uFEFF")

// members finds the members of the body in the buffer, which must be an object. They
// are good for as long as the scratch is. names are those that mean something beside the members of orders.
func (s *scratch) members(names ...string) (fields, error) {
	if bytes.HasPrefix(s.buf.Bytes(), byteOrderMark) {
		s.buf.Next(len(byteOrderMark))
	}
	body := s.buf.Bytes()
	if len(body) == 0 {
		return fields{}, tandem.Errorf(tandem.CodeInvalidJSON, "The body is empty. Send a JSON object.")
	}
	s.dec.Reset(&s.buf)
	found, isObject, err := scan(&s.dec, body, names...)
	switch {
	case err != nil:
		return fields{}, diagnose(body, err)
	case !isObject:
		return fields{}, invalid([]tandem.FieldError{{Location: "body", Message: "must be a JSON object",
			Value: shown(body)}})
	}
	return found, nil
}

// parse makes an order of the body in s.buf.
func (b *reader) parse(s *scratch, async bool) (engine.Order, error) {
	found, err := s.members()
	if err != nil {
		return engine.Order{}, err
	}
	if err := b.checkData(found.data); err != nil {
		return engine.Order{}, err
	}
	return b.build(found, async)
}

// scan walks the top level of the body. The decoder is strict: an error may mean
// that it is not JSON, repeats a name, holds invalid UTF-8 or nests too
// deeply, and diagnose tells which. Values are sliced from body by offset, because
// what the decoder returns is valid only until its next read.
func scan(dec *jsontext.Decoder, body []byte, names ...string) (found fields, isObject bool, err error) {
	for _, name := range names {
		found.more = append(found.more, member{name: `"` + name + `"`})
	}
	isObject = dec.PeekKind() == '{'
	if !isObject {
		if err := dec.SkipValue(); err != nil {
			return found, false, err
		}
		return found, false, scanEnd(dec)
	}
	if _, err := dec.ReadToken(); err != nil {
		return found, true, err
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadValue()
		if err != nil {
			return found, true, err
		}
		target := found.member(name)
		value, err := dec.ReadValue()
		if err != nil {
			return found, true, err
		}
		if target != nil && string(value) != "null" {
			end := dec.InputOffset()
			*target = body[end-int64(len(value)) : end]
		}
	}
	if _, err := dec.ReadToken(); err != nil { // the closing brace, or what stands in its place
		return found, true, err
	}
	return found, true, scanEnd(dec)
}

// errTrailing says that the body goes on after its value.
var errTrailing = errors.New("something follows the JSON value")

func scanEnd(dec *jsontext.Decoder) error {
	switch _, err := dec.ReadToken(); err {
	case io.EOF: //nolint:errorlint // jsontext returns io.EOF itself
		return nil
	case nil:
		return errTrailing
	default:
		return err
	}
}

// member returns where the value of a name, still in quotes, is to be kept; nil
// for a name that means nothing here.
func (f *fields) member(name []byte) *[]byte {
	if bytes.IndexByte(name, '\\') >= 0 {
		plain, err := jsontext.AppendUnquote(nil, name)
		if err != nil {
			return nil // cannot be: the decoder has read it
		}
		name = append(append([]byte{'"'}, plain...), '"')
	}
	switch string(name) {
	case `"data"`:
		return &f.data
	case `"complexity"`:
		return &f.complexity
	case `"task"`:
		return &f.task
	case `"callback_url"`:
		return &f.callbackURL
	}
	for i := range f.more {
		if f.more[i].name == string(name) {
			return &f.more[i].value
		}
	}
	return nil
}

// diagnose tells why the strict decoder refused a body, by reading it again
// with ever fewer rules. It runs on the error path only.
func diagnose(body []byte, cause error) error {
	where := position(cause)
	dec := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := walk(dec); err != nil {
		if dec.StackDepth() >= decoderDepth {
			return tandem.Errorf(tandem.CodeInvalidInput, "The body is nested more than %d levels deep.", decoderDepth)
		}
		return &tandem.Error{Code: tandem.CodeInvalidJSON, Message: "The body is not one JSON value" + position(err) +
			".", Err: cause}
	}
	dec = jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true))
	if err := walk(dec); err != nil {
		if utf8.Valid(body) {
			return tandem.Errorf(tandem.CodeInvalidInput,
				"The body holds half a surrogate pair, such as \\ud83d without the \\ude00 that completes it%s.",
				position(err))
		}
		return tandem.Errorf(tandem.CodeInvalidInput, "The body holds text that is not UTF-8%s.", position(err))
	}
	return tandem.Errorf(tandem.CodeInvalidInput, "The body names a member twice in one object%s.", where)
}

// walk reads exactly one value, token by token: the depth of a token is bounded by
// jsontext, and nothing is kept.
func walk(dec *jsontext.Decoder) error {
	for {
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		if dec.StackDepth() == 0 {
			return scanEnd(dec)
		}
	}
}

// position says where a decoder stopped, in words that never contain more than
// a little of the caller's text.
func position(err error) string {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return ""
	}
	at := fmt.Sprintf(" (at byte %d", syntax.ByteOffset)
	if syntax.JSONPointer != "" {
		at += fmt.Sprintf(", in %q", shorten(string(syntax.JSONPointer)))
	}
	return at + ")"
}

// checkData applies what is answered with 413 and 400 and so comes before the
// errors of single fields. That data is missing or no object is one of those.
func (b *reader) checkData(data []byte) error {
	switch {
	case len(data) == 0 || data[0] != '{':
		return nil
	case int64(len(data)) > b.maxData:
		return tooLarge("data has %d bytes; at most %d are allowed.", len(data), b.maxData)
	case len(bytes.TrimSpace(data[1:len(data)-1])) == 0:
		return tandem.Errorf(tandem.CodeInvalidInput, "data is {}. Give it at least one member.")
	}
	if levels := depth(data); levels > b.maxDepth {
		return tandem.Errorf(tandem.CodeInvalidInput, "data is nested %d levels deep; at most %d are allowed.", levels,
			b.maxDepth)
	}
	return nil
}

// depth counts the levels of a valid JSON value: {} is one, [{}] is two.
func depth(value []byte) int {
	level, deepest := 0, 0
	for i := 0; i < len(value); i++ {
		switch value[i] {
		case '{', '[':
			level++
			deepest = max(deepest, level)
		case '}', ']':
			level--
		case '"':
			for i++; value[i] != '"'; i++ {
				if value[i] == '\\' {
					i++
				}
			}
		}
	}
	return deepest
}

// build makes the order, or reports everything that is wrong with the fields at once.
func (b *reader) build(found fields, async bool) (engine.Order, error) {
	order := engine.Order{Task: defaultTask, Complexity: minComplexity}
	var wrong []tandem.FieldError
	refuse := func(field, message string, value []byte) {
		wrong = append(wrong, tandem.FieldError{Location: "body." + field, Message: message, Value: shown(value)})
	}
	switch {
	case found.data == nil:
		refuse("data", "is required", nil)
	case found.data[0] != '{':
		refuse("data", "must be a JSON object", found.data)
	default:
		order.Data = bytes.Clone(found.data)
	}
	if found.complexity != nil {
		n, ok := integer(found.complexity)
		if !ok || n < minComplexity || n > maxComplexity {
			refuse("complexity", "must be an integer from 1 to 10", found.complexity)
		}
		order.Complexity = n
	}
	if found.task != nil {
		name, ok := text(found.task)
		if _, known := slices.BinarySearch(b.tasks, name); !ok || !known {
			refuse("task", "must be one of "+strings.Join(b.tasks, ", "), found.task)
		}
		order.Task = name
	}
	if async {
		url, ok := text(found.callbackURL)
		switch {
		case found.callbackURL == nil:
			refuse("callback_url", "is required", nil)
		case !ok:
			refuse("callback_url", "must be a string", found.callbackURL)
		}
		order.CallbackURL = url
	}
	if wrong != nil {
		return engine.Order{}, invalid(wrong)
	}
	return order, nil
}

// integer reads a JSON number without a fraction: 2, 2.0 and 2e0 are the same
// number to most JSON libraries, so they are here. The result is meaningful
// from 1 to 10 only; anything far away is refused.
func integer(value []byte) (int, bool) {
	if len(value) == 1 && value[0] >= '0' && value[0] <= '9' {
		return int(value[0] - '0'), true
	}
	var f float64
	if json.Unmarshal(value, &f) != nil || string(value) == "null" || f < -1000 || f > 1000 || f != float64(int(f)) {
		return 0, false
	}
	return int(f), true
}

// text reads a JSON string.
func text(value []byte) (string, bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value[1 : len(value)-1]), true
	}
	plain, err := jsontext.AppendUnquote(nil, value)
	return string(plain), err == nil
}

// shown is a value as an error repeats it: itself while it is short, else the
// beginning of its text. A number such as 1e999 becomes text too, or the error
// could not be read by those who sent it.
func shown(value []byte) any {
	var probe any
	switch {
	case value == nil:
		return nil
	case len(value) <= shownValue && json.Unmarshal(value, &probe) == nil:
		return json.RawMessage(bytes.Clone(value))
	default:
		return shorten(string(value))
	}
}

// shorten cuts a text for an error, between characters.
func shorten(s string) string {
	if len(s) <= shownValue {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:shownValue], "") + "…"
}
