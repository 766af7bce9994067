package server

import (
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/telemetry"
)

// ParseOrder reads a body with the defaults of Config, without a connection.
func ParseOrder(body string, async bool) (engine.Order, error) {
	b := newReader(DefaultData, DefaultDepth, []string{"compute", "echo", "sleep"})
	s := b.pool.Get().(*scratch)
	if _, err := s.buf.ReadFrom(strings.NewReader(body)); err != nil {
		return engine.Order{}, err
	}
	return b.parse(s, async)
}

// PrefersHTML reports whether the lines of an Accept header like HTML better than JSON.
func PrefersHTML(accept ...string) bool { return prefersHTML(accept) }

// StatusOf is the status that a code is answered with; 0: the code is not in the table.
func StatusOf(code tandem.Code) int {
	if _, k := kindOf(code); k.Code == code {
		return k.Status
	}
	return 0
}

// Instrument wraps a handler as New wraps the API.
func Instrument(next http.Handler, log *slog.Logger) http.Handler {
	s := &server{cfg: Config{Metrics: telemetry.New(telemetry.Config{})}.withDefaults(), log: log,
		tally: make(tally, len(kinds))}
	s.meters = newMeters(s)
	return s.instrument(next)
}

// WithReaderTimeout changes how long a reader may take for a piece of an answer.
func WithReaderTimeout(cfg Config, d time.Duration) Config {
	cfg.readerTimeout = d
	return cfg
}

// AnswersMemory is how many bytes of answers are counted at a time, of all clients and of one.
const (
	AnswersMemory = answersMemory
	ClientMemory  = clientMemory
)

// Figures are how many connections are open, how many may be, and how many were closed and refused.
func Figures(c *Connections) [4]int64 {
	f := c.figures()
	return [4]int64{int64(f.Open), int64(f.Capacity), f.Closed, f.Refused}
}

// Admit asks a table for room, as its listener does.
func Admit(c *Connections, conn net.Conn) bool { return c.admit(conn) }

// SetState tells a table what becomes of a connection, as net/http does.
func SetState(c *Connections, conn net.Conn, state http.ConnState) { c.state(conn, state) }
