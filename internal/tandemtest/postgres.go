package tandemtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Durability says whether a throwaway PostgreSQL waits for its disk.
type Durability int

// The kinds of throwaway PostgreSQL.
const (
	Volatile Durability = iota // fsync is off: for tests to which it makes no difference
	Durable                    // as in production
	Measured                   // as Durable, with pg_stat_statements, and memory for a history of millions
)

// settings are those in which the kinds differ.
func (d Durability) settings() []string {
	switch d {
	case Durable:
		return []string{"-c", "shared_buffers=64MB"}
	case Measured:
		return []string{"-c", "shared_buffers=512MB", "-c", "shared_preload_libraries=pg_stat_statements"}
	default:
		return []string{"-c", "shared_buffers=64MB", "-c", "fsync=off", "-c", "synchronous_commit=off", "-c",
			"full_page_writes=off"}
	}
}

// servers are the throwaway servers of this process, started when the first test asks for one.
var servers = struct {
	sync.Mutex

	running map[Durability]*throwaway
}{running: map[Durability]*throwaway{}}

// throwaway is a PostgreSQL in a temporary folder, which is also where its socket is. It belongs to a shell that
// stops it by its process id and removes the folder when the pipe to its standard input
// closes: that is when this process ends, however it ends.
type throwaway struct {
	folder    string
	port      string   // "": the default, in the name of the socket only
	alive     *os.File // the other end of the pipe
	mu        sync.Mutex
	templates map[string]bool // databases that others are made from
}

// Postgres returns the URL of an empty database on a throwaway PostgreSQL, which all tests of a test binary share.
// Where PostgreSQL is not installed the test is skipped.
func Postgres(t testing.TB, kind Durability) string {
	t.Helper()
	return PostgresFrom(t, kind, "", nil)
}

// PostgresFrom is Postgres, but the database is a copy of one that fill has filled. Databases
// of one name are filled once for all tests.
func PostgresFrom(t testing.TB, kind Durability, name string, fill func(url string) error) string {
	t.Helper()
	s := startPostgres(t, kind)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	must(t, "make the template "+name, s.template(ctx, name, fill))
	return s.create(ctx, t, name)
}

// create makes a database that goes with the test, a copy of the template if one is named.
func (s *throwaway) create(ctx context.Context, t testing.TB, template string) string {
	t.Helper()
	database := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	create := "CREATE DATABASE " + database
	if template != "" {
		create += " TEMPLATE " + pgx.Identifier{template}.Sanitize()
	}
	must(t, "create database", s.exec(ctx, create))
	t.Cleanup(func() {
		if err := s.exec(context.Background(), "DROP DATABASE "+database+" WITH (FORCE)"); err != nil {
			t.Errorf("drop database: %v", err)
		}
	})
	return s.url(database)
}

func (s *throwaway) url(database string) string {
	query := url.Values{"host": {s.folder}, "user": {"postgres"}}
	if s.port != "" {
		query.Set("port", s.port)
	}
	return "postgres:///" + database + "?" + query.Encode()
}

func (s *throwaway) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

func (s *throwaway) template(ctx context.Context, name string, fill func(url string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" || s.templates[name] {
		return nil
	}
	if err := s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return err
	}
	if err := fill(s.url(name)); err != nil {
		return err
	}
	s.templates[name] = true
	return nil
}

// supervise runs as the owner of the folder: $1 is the folder, $2 where the programs are, the rest are settings. A
// line that it reads is the name of a signal, with which the server is ended and after which it is started again.
const supervise = `
	folder=$1 programs=$2
	shift 2
	cd "$folder"
	"$programs/initdb" -D data -U postgres -A trust -E UTF8 --locale=C -N </dev/null >log 2>&1
	while
		"$programs/postgres" -D data -k "$folder" -c listen_addresses= -c max_connections=400 -c jit=off \
			 -c log_min_messages=fatal "$@" </dev/null >>log 2>&1 &
		server=$!
		read -r signal
	do
		kill -"$signal" $server
		wait $server
	done
	kill -TERM $server # one that has hardly begun ignores INT, as what runs in the background does
	kill -INT $server
	wait $server
	rm -rf "$folder"`

func startPostgres(t testing.TB, kind Durability) *throwaway {
	t.Helper()
	servers.Lock()
	defer servers.Unlock()
	if servers.running[kind] == nil {
		servers.running[kind], _ = launchPostgres(t, kind, "")
	}
	return servers.running[kind]
}

// launchPostgres starts one more server. It stops when its pipe is closed, for which ended waits.
// It listens on a port of the loopback interface if one is named.
func launchPostgres(t testing.TB, kind Durability, port string) (s *throwaway, ended func() error) {
	t.Helper()
	programs, ok := postgresPrograms()
	if !ok {
		t.Skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
	}
	folder, err := os.MkdirTemp("", "tandem-postgres-") //nolint:usetesting // it outlives the test
	must(t, "make a folder for PostgreSQL", err)
	settings := kind.settings()
	if port != "" {
		settings = append(settings, "-c", "listen_addresses=127.0.0.1", "-c", "port="+port)
	}
	cmd := exec.Command("sh", append([]string{"-c", supervise, "sh", folder, programs}, settings...)...)
	must(t, "give the folder away", unprivileged(cmd, folder))
	reading, writing, err := os.Pipe()
	must(t, "make a pipe", err)
	cmd.Stdin = reading
	must(t, "start PostgreSQL", cmd.Start())
	reading.Close()
	s = &throwaway{folder: folder, port: port, alive: writing, templates: map[string]bool{}}
	if err := s.awaitStart(); err != nil {
		writing.Close()
		waited := cmd.Wait()
		t.Fatalf("start PostgreSQL: %v", errors.Join(err, waited))
	}
	return s, cmd.Wait
}

// awaitStart returns when the server takes connections.
func (s *throwaway) awaitStart() error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(3 * Patience)
	for {
		<-tick.C
		err := s.exec(context.Background(), "SELECT 1")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(s.folder, "log"))
			return fmt.Errorf("it does not answer: %w\n%s", err, log)
		}
	}
}

// postgresPrograms returns the folder of initdb and postgres: that of PATH, or the newest of Debian's.
func postgresPrograms() (string, bool) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if program, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(program), true
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", false
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), true
}
