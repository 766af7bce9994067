package server

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"tandem"
)

const (
	headerRequestID = "X-Request-Id" // the canonical form of X-Request-ID
	maxToken        = 64             // characters of an X-Request-ID or webhook-id from outside
)

// response adds the headers that every answer carries. They are set when the
// header is written, because only then is the time known.
type response struct {
	http.ResponseWriter
	start  time.Time
	status int     // 0: the header is not written yet
	server *server // whose memory the answer takes
	sent   int     // bytes of the body

	holder string // the client that holds memory for this answer
	held   int64  // bytes of it
}

// WriteHeader stamps and writes the header.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
		w.stamp(time.Since(w.start))
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write writes the header first, if nobody has.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.sent += len(p); w.sent > smallAnswer {
		return w.writePieces(p)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// stamp sets X-Process-Time, in seconds, and Server-Timing, in milliseconds. The
// keys are in canonical form, and one slice holds both values.
func (w *response) stamp(took time.Duration) {
	var buf [48]byte
	inSeconds := string(strconv.AppendFloat(buf[:0], took.Seconds(), 'f', 6, 64))
	timing := string(strconv.AppendFloat(append(buf[:0], "app;dur="...), float64(took)/float64(time.Millisecond), 'f',
		3, 64))
	values := []string{inSeconds, timing}
	header := w.Header()
	header["X-Process-Time"] = values[0:1:1]
	header["Server-Timing"] = values[1:2:2]
}

// instrument wraps the whole API: the headers of every answer, a problem
// instead of a dead connection when a handler panics, and a line in the debug log.
func (s *server) instrument(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rw := &response{ResponseWriter: w, start: time.Now(), server: s}
		id := r.Header.Get(headerRequestID)
		if !isToken(id) {
			id = newRequestID()
		}
		header := w.Header()
		header[headerRequestID] = []string{id}
		header["X-Content-Type-Options"] = nosniff
		if r.TLS != nil {
			header["Strict-Transport-Security"] = httpsOnly
		}
		if s.leaving() {
			header["Connection"] = closing
		}
		s.meters.inFlight.Add(1)
		defer s.finish(rw, r)
		next.ServeHTTP(rw, r)
	})
}

// They are shared by many answers and never written to. Browsers that were here over TLS come back
// over TLS for a year.
var (
	closing   = []string{"close"}
	nosniff   = []string{"nosniff"}
	httpsOnly = []string{"max-age=31536000"}
)

// finish turns a panic into a problem, counts the answer and logs it. It is deferred
// directly, so that recover sees the panic.
func (s *server) finish(w *response, r *http.Request) {
	cause := recover()
	w.release()
	inFlight := s.meters.inFlight.Add(-1) + 1
	if cause == http.ErrAbortHandler { //nolint:errorlint // the documented sentinel is compared by identity
		panic(cause)
	}
	if cause != nil {
		s.log.ErrorContext(r.Context(), "handler panicked", "panic", cause, "method", r.Method, "path", r.URL.Path,
			"x_request_id", w.Header().Get(headerRequestID), "stack", string(debug.Stack()))
		if w.status != 0 {
			panic(http.ErrAbortHandler) // half an answer is out: the caller must see it break off
		}
		s.fail(w, r, &tandem.Error{Code: tandem.CodeInternal,
			Message: "Something went wrong here. The log has the cause under the X-Request-ID of this answer."})
	}
	took := time.Since(w.start)
	s.meters.answered(r.Pattern, w.status, took)
	if s.log.Enabled(r.Context(), slog.LevelDebug) {
		s.log.DebugContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path, "status", w.status,
			"took", took, "in_flight", inFlight, "x_request_id", w.Header().Get(headerRequestID))
	}
}

// newRequestID makes an id for logs. It need not be secret, so the fast
// generator will do. The letter in front keeps it from reading as a number.
func newRequestID() string {
	const digits = "0123456789abcdef"
	text := [17]byte{'x'}
	n := rand.Uint64()
	for i := 1; i < len(text); i++ {
		text[i] = digits[n&15]
		n >>= 4
	}
	return string(text[:])
}

// isToken reports whether an id from outside is harmless in logs and headers:
// 1 to 64 of A-Z a-z 0-9 . _ -
func isToken(s string) bool {
	if len(s) == 0 || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
