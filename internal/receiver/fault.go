package receiver

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// This file holds faults of a destination beyond a Behaviour, partly below HTTP. Only tests use it.

// Hang reads everything and never answers.
func Hang(_ http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	<-req.Context().Done()
}

// Answer gives every request the same answer: a status and header lines such as "Retry-After: 2".
func Answer(status int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, line := range header {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Set(name, value)
		}
		w.Header().Set("Connection", "close")
		w.WriteHeader(status)
	}
}

// RetryAfter answers 503 and asks for a pause of so many seconds.
func RetryAfter(seconds int) http.HandlerFunc {
	return Answer(http.StatusServiceUnavailable, "Retry-After: "+strconv.Itoa(seconds))
}

// Reset resets the connection.
func Reset(w http.ResponseWriter, req *http.Request) {
	raw(w, req, "", func(_ context.Context, conn net.Conn) error {
		return conn.(*net.TCPConn).SetLinger(0) // close sends RST
	})
}

// CloseEarly answers half a status line and closes.
func CloseEarly(w http.ResponseWriter, req *http.Request) { raw(w, req, "HTTP/1.1 2", nil) }

// Drip answers 200 at once and then an endless body, byte by byte.
func Drip(w http.ResponseWriter, req *http.Request) {
	raw(w, req, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", drip)
}

// DripHead answers its head byte by byte, without ever ending it.
func DripHead(w http.ResponseWriter, req *http.Request) {
	raw(w, req, "HTTP/1.1 200 OK\r\nX-Slow: ", drip)
}

func drip(ctx context.Context, conn net.Conn) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := conn.Write([]byte{'x'}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Flood answers 200 with endless headers.
func Flood(w http.ResponseWriter, req *http.Request) {
	line := []byte("X-Flood: " + strings.Repeat("x", 4<<10) + "\r\n")
	raw(w, req, "HTTP/1.1 200 OK\r\n", func(_ context.Context, conn net.Conn) error {
		for {
			if _, err := conn.Write(line); err != nil {
				return err
			}
		}
	})
}

// raw takes the connection over from HTTP once the request is read, writes a text and continues with more, until the
// sender closes the connection or the server's base context ends. The connection is closed after it.
func raw(
	w http.ResponseWriter, req *http.Request, text string, more func(ctx context.Context, conn net.Conn) error,
) {
	_, _ = io.Copy(io.Discard, req.Body)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(req.Context(), func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err = io.WriteString(conn, text); err == nil && more != nil {
		_ = more(req.Context(), conn) // the sender has closed the connection, or the test has ended
	}
}
