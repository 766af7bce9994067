package storetest_test

import (
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// line is the way from a node to its PostgreSQL, by a socket of its own. It can be cut.
type line struct {
	socket string // the server's

	running sync.WaitGroup

	mu   sync.Mutex // guards the fields below
	cut  bool
	open map[net.Conn]bool
}

// newLine returns a line to a database, and the URL by which it is reached through it.
func newLine(t testing.TB, database string) (*line, string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "line") //nolint:usetesting // short: the name of a socket may not be long
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	port := query.Get("port")
	if port == "" {
		port = "5432"
	}
	name := ".s.PGSQL." + port
	l := &line{socket: filepath.Join(query.Get("host"), name), open: map[net.Conn]bool{}}
	query.Set("host", folder)
	parsed.RawQuery = query.Encode()
	listener, err := net.Listen("unix", filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	l.running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			l.running.Go(func() { l.carry(near) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.set(true)
		l.running.Wait()
		os.RemoveAll(folder)
	})
	return l, parsed.String()
}

// set cuts the line or restores it.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for conn := range l.open {
			conn.Close()
		}
	}
}

// carry passes on what comes on a connection, until either end or the line is closed.
func (l *line) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("unix", l.socket)
	if err != nil {
		return
	}
	defer far.Close()
	l.mu.Lock()
	if l.cut {
		l.mu.Unlock()
		return
	}
	l.open[near], l.open[far] = true, true
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { io.Copy(far, near); far.Close() })
	both.Go(func() { io.Copy(near, far); near.Close() })
	both.Wait()
	l.mu.Lock()
	delete(l.open, near)
	delete(l.open, far)
	l.mu.Unlock()
}
