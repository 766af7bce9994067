package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"tandem/internal/term"
)

// newLogger writes JSON for machines; lines for people when one watches, or debugs. A line that cannot be
// written is dropped, and the next one is tried again: the server outlives the reader of its log.
func newLogger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	if debug || term.IsTerminal(w) {
		return slog.New(newConsole(term.Escape(w), level))
	}
	return slog.New(slog.NewJSONHandler(term.Escape(w), &slog.HandlerOptions{Level: level, ReplaceAttr: withUnits}))
}

// withUnits writes durations as 5s, which JSON has as a number of nanoseconds.
func withUnits(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// console is a log for people: the time of day, the level if it is a warning or
// worse, what happened, and the attributes.
type console struct {
	line       *line
	attributes slog.Handler // writes them into line.text
}

// line is the one that is being written; all handlers made from one console share it.
type line struct {
	mu   sync.Mutex // guards text and the writer
	text bytes.Buffer
	w    io.Writer
}

func newConsole(w io.Writer, level slog.Level) *console {
	shared := &line{w: w}
	return &console{shared, slog.NewTextHandler(&shared.text, &slog.HandlerOptions{Level: level, ReplaceAttr: readable})}
}

// readable leaves out what the beginning of the line says, and rounds durations.
func readable(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.DurationValue(a.Value.Duration().Round(10 * time.Microsecond))
	}
	return a
}

// Enabled is the level of the log.
func (c *console) Enabled(ctx context.Context, level slog.Level) bool {
	return c.attributes.Enabled(ctx, level)
}

// Handle writes one line.
func (c *console) Handle(ctx context.Context, r slog.Record) error {
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	text := &c.line.text
	text.Reset()
	text.WriteString(r.Time.Format("15:04:05.000 "))
	if r.Level >= slog.LevelWarn {
		text.WriteString(r.Level.String() + " ")
	}
	if strings.ContainsFunc(r.Message, unicode.IsControl) { // net/http passes on what it was sent
		r.Message = strconv.Quote(r.Message)
	}
	text.WriteString(r.Message + "  ")
	if err := c.attributes.Handle(ctx, r); err != nil {
		return err
	}
	_, err := c.line.w.Write(text.Bytes())
	return err
}

// WithAttrs returns a console that writes these attributes on every line.
func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &console{c.line, c.attributes.WithAttrs(attrs)}
}

// WithGroup returns a console whose attributes are in a group.
func (c *console) WithGroup(name string) slog.Handler {
	return &console{c.line, c.attributes.WithGroup(name)}
}
