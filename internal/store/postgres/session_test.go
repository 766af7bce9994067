package postgres_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// openLogged opens a node and returns what it logs.
func openLogged(t testing.TB, url string) (*postgres.Store, *tandemtest.Log) {
	t.Helper()
	lines := &tandemtest.Log{}
	s, err := postgres.Open(t.Context(), store.Config{Counted: counted, URL: url,
		Log: slog.New(slog.NewTextHandler(lines, nil))})
	if err != nil {
		t.Fatal(err)
	}
	storetest.CloseAtEnd(t, s)
	return s, lines
}

// databaseOf is the name of the database of a URL.
func databaseOf(t testing.TB, url string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Database
}

// What a database says of sessions that tandem cannot live with does not reach its sessions: those that
// write, those that read, and a handle.
func TestDatabaseThatSaysOtherwise(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		parameter, database, sessions, said string
	}{
		{"synchronous_commit", "off", "on", "synchronous_commit is off for this role or database; tandem turns it on"},
		{"synchronous_commit", "local", "local", ""},
		{"idle_session_timeout", "'600ms'", "0", ""},
		{"idle_in_transaction_session_timeout", "'10ms'", "5s", ""},
		{"statement_timeout", "'2s'", "30s", ""},
		{"lock_timeout", "'1ms'", "10s", ""},
		{"default_transaction_isolation", "serializable", "read committed", ""},
		{"client_encoding", "LATIN1", "UTF8", ""},
		{"enable_indexscan", "on", "on", ""},
		{"jit", "on", "off", ""},
	} {
		t.Run(test.parameter+" "+test.database, func(t *testing.T) {
			t.Parallel()
			url := emptyPostgres(t, tandemtest.Volatile)
			storetest.ExecPostgres(t, url, "ALTER DATABASE "+databaseOf(t, url)+" SET "+test.parameter+" = "+test.database)
			s, lines := openLogged(t, url)
			handle, err := app.OpenHandle(t.Context(), store.HandleConfig{URL: url, Log: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { handle.Close() })
			for session, value := range s.Parameters(t.Context(), handle, test.parameter) {
				if test.parameter == "jit" && session == "handle" {
					continue // its tables are small, and plans do not matter
				}
				if value != test.sessions {
					t.Errorf("the database says %s, sessions for %s have %q, want %s",
						test.database, session, value, test.sessions)
				}
			}
			if test.said != "" && lines.Count(test.said) != 1 {
				t.Errorf("the start did not say: %s", test.said)
			}
		})
	}
}

// A server that does not wait for its disk is said so at the start.
func TestServerWithoutFsyncIsWarnedOf(t *testing.T) {
	t.Parallel()
	_, lines := openLogged(t, emptyPostgres(t, tandemtest.Volatile))
	for _, parameter := range []string{"fsync is off", "full_page_writes is off"} {
		if lines.Count(parameter) != 1 {
			t.Errorf("nothing was said of it: %s", parameter)
		}
	}
}

// What is set on purpose and cannot be right is refused, and so is an encoding that lacks characters.
func TestDatabaseThatCannotKeepPromises(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	text := opened(t, url+"&synchronous_commit=off")
	if !strings.Contains(text, "synchronous_commit=off: what is accepted has to be on disk") {
		t.Error(text)
	}
	name := "latin_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	storetest.ExecPostgres(t, url, "CREATE DATABASE "+name+" ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
	t.Cleanup(func() { storetest.ExecPostgres(t, url, "DROP DATABASE "+name+" WITH (FORCE)") })
	latin := strings.Replace(url, databaseOf(t, url), name, 1)
	if text := opened(t, latin); !strings.Contains(text, "the encoding of the database is LATIN1") {
		t.Error(text)
	}
}

// A URL that follows a failover is read as well as written.
func TestTargetSessionAttributes(t *testing.T) {
	t.Parallel()
	for _, attributes := range []string{"any", "primary", "prefer-standby", "read-write"} {
		t.Run(attributes, func(t *testing.T) {
			t.Parallel()
			s, _ := openLogged(t, emptyPostgres(t, tandemtest.Volatile)+"&target_session_attrs="+attributes)
			r := newAsync()
			accept(t, s, r, store.LaneIO)
			if got := mustRequest(t, s, r.ID); got.Status != tandem.StatusPending {
				t.Errorf("the request is %s", got.Status)
			}
		})
	}
}

// Behind a pooler that keeps sessions apart a node works and is notified of work. Behind another pooler it
// refuses to start, and says why.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	t.Run("session", func(t *testing.T) {
		t.Parallel()
		url := emptyPostgres(t, tandemtest.Volatile)
		s, _ := openLogged(t, tandemtest.Bouncer(t, url, "session"))
		work(t, s, delivered)
		r := newAsync()
		accept(t, s, r, store.LaneIO)
		waitStatus(t, s, r.ID, tandem.StatusCallbackSent)
	})
	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			text := opened(t, tandemtest.Bouncer(t, emptyPostgres(t, tandemtest.Volatile), mode))
			if !strings.Contains(text, "pools transactions or statements") ||
				!strings.Contains(text, "pool_mode = session") {
				t.Errorf("%q", text)
			}
		})
	}
}

// ownedBy makes a role that owns a database and is no superuser. It returns the role and the URL with which
// it connects.
func ownedBy(t testing.TB, url string) (role, owned string) {
	t.Helper()
	role = "owner_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	storetest.ExecPostgres(t, url, "CREATE ROLE "+role+" LOGIN")
	storetest.ExecPostgres(t, url, "ALTER DATABASE "+databaseOf(t, url)+" OWNER TO "+role)
	t.Cleanup(func() {
		storetest.ExecPostgres(t, url, "REASSIGN OWNED BY "+role+" TO postgres; DROP OWNED BY "+role+"; DROP ROLE "+role)
	})
	return role, asRole(t, url, role)
}

// A pool that the server does not let grow waits for its own connections: no call fails.
func TestPoolThatMayNotGrowWaits(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile)
	role, owned := ownedBy(t, url)
	storetest.ExecPostgres(t, url, "ALTER ROLE "+role+" CONNECTION LIMIT 6")
	s, lines := openLogged(t, owned)
	mustStats(t, s) // reads have a connection
	work(t, s, delivered)
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			for range 4 {
				r := newAsync()
				accept(t, s, r, store.LaneIO)
				if _, err := s.Request(context.Background(), r.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	calls.Wait()
	if lines.Count("the database does not take writes") > 0 { // River's own statements do not wait, and say so
		t.Error("the node believes that its database takes no writes")
	}
}

// Reads that get no connection are logged once, and once when they do again.
func TestReadsWithoutConnectionAreLoggedOnce(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile)
	role, owned := ownedBy(t, url)
	s, lines := openLogged(t, owned)
	s.FallSilent(true) // else a heartbeat finds it out first
	storetest.ExecPostgres(t, url, "ALTER ROLE "+role+" CONNECTION LIMIT 0")
	storetest.ExecPostgres(t, url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
	for range 3 {
		if _, err := s.Requests(t.Context(), store.Filter{Limit: 1}); err == nil {
			t.Error("a read succeeded without a connection")
		}
	}
	if n := lines.Count("no connection to read from the database"); n != 1 {
		t.Errorf("it was said %d times, want once", n)
	}
	storetest.ExecPostgres(t, url, "ALTER ROLE "+role+" CONNECTION LIMIT -1")
	tandemtest.WaitFor(t, "reads to succeed", func() bool {
		_, err := s.Requests(t.Context(), store.Filter{Limit: 1})
		return err == nil
	})
	if n := lines.Count("the database can be read again"); n != 1 {
		t.Errorf("that it is over was said %d times, want once", n)
	}
}
