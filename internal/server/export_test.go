package server

import (
	"log/slog"
	"net/http"
	"strings"

	"tandem"
	"tandem/internal/engine"
)

// ParseOrder reads a body with the defaults of Config, without a connection.
func ParseOrder(body string, async bool) (engine.Order, error) {
	b := newReader(defaultMaxData, defaultMaxDepth, []string{"compute", "echo", "sleep"})
	s := b.pool.Get().(*scratch)
	if _, err := s.buf.ReadFrom(strings.NewReader(body)); err != nil {
		return engine.Order{}, err
	}
	return b.parse(s, async)
}

// StatusOf is the status that a code is answered with; 0: the code is not in the table.
func StatusOf(code tandem.Code) int {
	if _, k := kindOf(code); k.Code == code {
		return k.Status
	}
	return 0
}

// Instrument wraps a handler as New wraps the API.
func Instrument(next http.Handler, log *slog.Logger) http.Handler {
	s := &server{log: log, tally: make(tally, len(kinds))}
	s.meters = newMeters(s)
	return s.instrument(next)
}
