package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// revalidate lets the caller keep an answer, but use it only after asking
// whether it still holds. A proxy keeps none: it may serve others.
var revalidate = []string{"private, no-cache"}

// Conditional adapts a handler whose answer people ask for again and again. It
// carries an entity tag, and a caller that names that tag in If-None-Match is told in a
// few bytes that nothing has changed. The answer is made anew every time and only
// then compared: no cache is involved, so a 304 is never stale.
func Conditional[T any](answer func(*http.Request) (T, error), tag func(reply T, body []byte) (string, error)) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		reply, err := answer(r)
		if err != nil {
			return err
		}
		body, err := render(reply)
		if err != nil {
			return err
		}
		current, err := tag(reply, body)
		if err != nil {
			return err
		}
		header := w.Header()
		header["Etag"] = []string{current}
		if namesTag(r.Header["If-None-Match"], current) {
			header["Cache-Control"] = revalidate
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		if err := hold(w, r, len(body)); err != nil {
			delete(header, "Etag")
			return err
		}
		writeBody(w, http.StatusOK, revalidate, body)
		return nil
	}
}

// render makes the JSON of an answer, complete before anything is written, so that
// an error can still be answered as one.
func render(reply any) ([]byte, error) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(reply); err != nil {
		return nil, fmt.Errorf("render answer: %w", err)
	}
	return body.Bytes(), nil
}

// exactTag is the strong tag of an answer: two answers with the same tag are the
// same, byte for byte, whichever process gave them.
func exactTag[T any](_ T, body []byte) (string, error) { return `"` + digest(body) + `"`, nil }

// figuresTag is the weak tag of /stats. It covers every figure but those that
// change with each look and say nothing about requests: the time and the uptime,
// which a reader knows from the Date of the answer, memory, goroutines, connections and the
// limit on reading. It also covers the start of the process, so that a restart is always seen.
func (s *server) figuresTag(reply statistics, _ []byte) (string, error) {
	reply.System = systemStatistics{Version: reply.System.Version, Mode: reply.System.Mode, Timestamp: s.started}
	reply.RateLimiting.Reads = RateFigures{}
	covered, err := render(reply)
	return `W/"` + digest(covered) + `"`, err
}

// digest is 128 bits of SHA-256 in hex: nobody finds two texts with the same.
func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// namesTag reports whether an If-None-Match names a tag, by weak comparison
// (RFC 9110, 13.1.2). What cannot be read names nothing.
func namesTag(lines []string, tag string) bool {
	tag = strings.TrimPrefix(tag, "W/")
	for _, rest := range lines {
		for {
			rest = strings.TrimLeft(rest, " \t,")
			if rest == "*" {
				return true
			}
			opaque, found := strings.CutPrefix(strings.TrimPrefix(rest, "W/"), `"`)
			end := strings.IndexByte(opaque, '"')
			if !found || end < 0 {
				break
			}
			if `"`+opaque[:end]+`"` == tag {
				return true
			}
			rest = opaque[end+1:]
		}
	}
	return false
}
