package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"tandem"
)

// probe is one request to send.
type probe struct {
	Method string // GET
	Path   string // with the query; as it goes on the wire
	Body   string // JSON unless Header says otherwise
	Stream io.Reader
	Length int64 // of Stream; -1: not told
	Header map[string]string
	Key    string // another one than Config.APIKey
	NoKey  bool   // none at all
	Host   string // instead of the host of Config.URL
	Hasty  bool   // a 429 or 503 is the answer: do not wait and repeat
	Shown  string // replaces all this in the evidence

	// Either goes out with the second key as well, if there is one: nobody waits for a limit while the other key has
	// calls left.
	Either bool
}

// answer is the answer to a probe, or the error instead.
type answer struct {
	Sent   string // the request, for the evidence
	Status int    // 0: none
	Header http.Header
	Body   []byte // at most 1 MiB of it
	Err    error
	probe  probe
}

// String is the exchange as a line of evidence.
func (a answer) String() string {
	if a.Err != nil {
		return a.Sent + " → no answer: " + oneLine(a.Err.Error())
	}
	text := fmt.Sprintf("%s → %d", a.Sent, a.Status)
	if code := a.code(); code != "" {
		text += " " + oneLine(string(code))
	}
	return text
}

// decode reads the JSON of a 200 into *to, and reports whether there was one.
func (a answer) decode(to any) bool {
	return a.Err == nil && a.Status == http.StatusOK && json.Unmarshal(a.Body, to) == nil
}

// code is the code of a problem; "": it is none.
func (a answer) code() tandem.Code { return a.problem().Code }

// problem is the body of an error (RFC 9457).
type problem struct {
	Type   string      `json:"type"`
	Title  string      `json:"title"`
	Detail string      `json:"detail"`
	Code   tandem.Code `json:"code"`
	Status int         `json:"status"`
}

// problem reads the body of an error; other answers have none.
func (a answer) problem() problem {
	var p problem
	if a.Status < http.StatusBadRequest || json.Unmarshal(a.Body, &p) != nil {
		return problem{}
	}
	return p
}

// refused reports whether the answer blames the input.
func (a answer) refused() bool {
	return slices.Contains([]int{
		http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType,
		http.StatusUnprocessableEntity,
	}, a.Status)
}

// unauthorized reports whether the answer blames the key.
func (a answer) unauthorized() bool {
	return a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden
}

// denied reports whether the answer blames the key or denies the existence.
func (a answer) denied() bool { return a.unauthorized() || a.Status == http.StatusNotFound }

// blamed reports whether the answer blames the caller: 4xx.
func (a answer) blamed() bool { return a.Status >= 400 && a.Status < 500 }

// post is a POST of a JSON text.
func post(path, body string) probe { return probe{Method: http.MethodPost, Path: path, Body: body} }

// hasty takes a 429 or 503 for the answer.
func (p probe) hasty() probe {
	p.Hasty = true
	return p
}

// with adds a header.
func (p probe) with(name, value string) probe {
	p.Header = maps.Clone(p.Header)
	if p.Header == nil {
		p.Header = make(map[string]string)
	}
	p.Header[name] = value
	return p
}

// requestID is the request id in an answer of /sync or /async.
func (a answer) requestID() string {
	var body struct {
		RequestID string `json:"request_id"`
	}
	if json.Unmarshal(a.Body, &body) != nil {
		return ""
	}
	return body.RequestID
}

// rule returns the fault of an answer; "": none.
type rule func(answer) string

// status is the rule for one wanted status.
func status(want int) rule {
	return func(a answer) string {
		if a.Status == want {
			return ""
		}
		return "want " + strconv.Itoa(want)
	}
}

// must makes a rule of a condition.
func must(ok func(answer) bool, wrong string) rule {
	return func(a answer) string {
		if ok(a) {
			return ""
		}
		return wrong
	}
}

// The rules of several checks.
var (
	isRefused = must(answer.refused, "want a refusal as bad input")
	isDenied  = must(answer.denied, "want 401")
	isAny     = must(func(answer) bool { return true }, "")
)

// sends is a check with a list of probes and one rule for every answer.
func sends(r rule, probes func(*target) []probe) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		for _, p := range probes(t) {
			v.judge(t.send(ctx, p), r)
		}
	}
}

// probes is a list of probes, the same for every target.
func probes(all ...probe) func(*target) []probe { return func(*target) []probe { return all } }
