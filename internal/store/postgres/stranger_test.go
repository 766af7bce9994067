package postgres_test

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// strangerOf makes a role that may connect to a database, as every role may, and nothing else. It
// returns the URL with which that role connects.
func strangerOf(t testing.TB, database string) string {
	t.Helper()
	role := "stranger_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	storetest.ExecPostgres(t, database, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() { storetest.ExecPostgres(t, database, "DROP ROLE "+role) })
	return asRole(t, database, role)
}

// asRole is the URL of a database with another user.
func asRole(t testing.TB, database, role string) string {
	t.Helper()
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	query.Set("user", role)
	address.RawQuery = query.Encode()
	return address.String()
}

// Every role that may connect can send notifications. Those of River that pause queues, cancel jobs or
// end a leadership change nothing, and what is malformed is not logged.
func TestNotificationsOfStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	stranger := strangerOf(t, url)
	s, lines := openLogged(t, url)
	workWith(t, s, everyLane, delivered)
	tandemtest.WaitFor(t, "the node to listen", func() bool {
		return storetest.AskPostgres(t, url, `
			SELECT count(*)::text
			FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE 'LISTEN%'`) == "1"
	})
	pause := [2]string{"river_control", `{"action":"pause","queue":"*"}`}
	for range 3 {
		for _, notification := range [][2]string{
			pause,
			{"river_control", `no JSON`},
			{"river_insert", `no JSON`},
			{"river_insert", `{"queue":"another"}`},
			{"river_leadership", `{"action":"request_resign"}`},
		} {
			storetest.ExecPostgres(t, stranger, `SELECT pg_notify('public.' || $1, $2)`, notification[0], notification[1])
		}
		r := newAsync()
		accept(t, s, r, store.LaneIO)
		tandemtest.WaitFor(t, "work in spite of notifications that pause queues", func() bool {
			// Again and again: no pause ends by itself.
			storetest.ExecPostgres(t, stranger, `SELECT pg_notify('public.' || $1, $2)`, pause[0], pause[1])
			return mustRequest(t, s, r.ID).Status == tandem.StatusCallbackSent
		})
	}
	if n := lines.Count("level=ERROR"); n > 0 {
		t.Errorf("%d errors were logged", n)
	}
}

// Every role that may connect can take every advisory lock. None of them keeps a node from starting, from
// changing the schema, or from taking over from dead nodes.
func TestAdvisoryLocksOfStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile) // without a schema
	held := beginPostgres(t, strangerOf(t, url))
	t.Cleanup(func() { held.Conn().Close(context.Background()) })
	_, err := held.Exec(t.Context(), `SELECT pg_advisory_lock(7236000 + n) FROM generate_series(1, 100) AS n`)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := openLogged(t, url)
	storetest.ExecPostgres(t, url, `
		INSERT INTO nodes (id, name, version, since, seen_at)
		VALUES ('dead', '', '', now(), now() - interval '1 hour')`)
	storetest.ExecPostgres(t, url, `UPDATE nodes SET steady_since = now() - interval '1 hour' WHERE id <> 'dead'`)
	tandemtest.WaitFor(t, "the dead node to be removed", func() bool {
		if err := s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		return storetest.AskPostgres(t, url, `SELECT count(*)::text FROM nodes`) == "1"
	})
}

// A start that changes the schema waits for another that does, and says for whom. One that finds
// nothing to change waits for nobody.
func TestStartSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	url := tandemtest.Postgres(t, tandemtest.Volatile)
	storetest.ExecPostgres(t, url, `CREATE TABLE schema_lock ()`)
	lock := beginPostgres(t, url+"&application_name=another")
	defer lock.Conn().Close(context.Background())
	hold := func() {
		if _, err := lock.Exec(t.Context(), `LOCK TABLE schema_lock IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			t.Fatal(err)
		}
	}
	hold()
	lines := &tandemtest.Log{}
	migrated := make(chan error, 1)
	go func() {
		migrated <- postgres.MigrateLogged(context.Background(), url, slog.New(slog.NewTextHandler(lines, nil)))
	}()
	tandemtest.WaitFor(t, "the start to say what it waits for", func() bool {
		return lines.Count("waiting for another node that changes the schema") == 1
	})
	if lines.Count(": another, user postgres, from this machine") != 1 {
		t.Error("it does not say which session that is")
	}
	select {
	case err := <-migrated:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Fatal(err)
	}
	lock = beginPostgres(t, url)
	defer lock.Conn().Close(context.Background())
	hold()
	openLogged(t, url)
}

// The start says when every role may connect, and how to take that away.
func TestStartSaysWhoMayConnect(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	const warning = "every role of the server may connect to this database"
	statement := `REVOKE CONNECT ON DATABASE "` + databaseOf(t, url) + `" FROM PUBLIC`
	_, lines := openLogged(t, url)
	if lines.Count(warning) != 1 || lines.Count(strings.ReplaceAll(statement, `"`, `\"`)) != 1 {
		t.Errorf("want a warning with %s:\n%s", statement, lines)
	}
	storetest.ExecPostgres(t, url, statement)
	if _, lines := openLogged(t, url); lines.Count(warning) != 0 {
		t.Error("it is said although only the owner may connect")
	}
}
