package tandemtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Shutdown is how a PostgreSQL is stopped.
type Shutdown string

// The ways in which a PostgreSQL is stopped, by the signal that asks for them.
const (
	Fast      Shutdown = "INT"  // connections are ended, everything is written
	Immediate Shutdown = "QUIT" // at once: the next start recovers as after a crash
)

// Server is a throwaway PostgreSQL of one test, which may restart it.
type Server struct{ throwaway *throwaway }

// NewPostgres starts a PostgreSQL that ends with the test. Where PostgreSQL is not installed the test is skipped.
func NewPostgres(t testing.TB, kind Durability) *Server {
	t.Helper()
	s, ended := launchPostgres(t, kind, "")
	t.Cleanup(func() {
		s.alive.Close()
		if err := ended(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return &Server{throwaway: s}
}

// Database returns the URL of an empty database.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return s.throwaway.create(ctx, t, "")
}

// Restart stops the server and returns when it takes connections again.
func (s *Server) Restart(t testing.TB, how Shutdown) {
	t.Helper()
	before, err := s.started()
	must(t, "ask when PostgreSQL was started", err)
	_, err = fmt.Fprintln(s.throwaway.alive, how)
	must(t, "restart PostgreSQL", err)
	Eventually(t, "PostgreSQL is back", func() bool {
		now, err := s.started()
		return err == nil && now.After(before)
	})
}

// started is when the server began to run.
func (s *Server) started() (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.throwaway.url("postgres"))
	if err != nil {
		return at, err
	}
	defer conn.Close(ctx)
	return at, conn.QueryRow(ctx, `SELECT pg_postmaster_start_time()`).Scan(&at)
}
