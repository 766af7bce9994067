package postgres_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// with adds parameters to a URL.
func with(address *url.URL, parameters ...string) string {
	changed := *address
	changed.RawQuery = strings.Join(parameters, "&")
	return changed.String()
}

// opened is what opening a database says, as a node and by a handle; "" where it can be opened.
func opened(t testing.TB, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := postgres.Open(ctx, store.Config{Counted: counted, URL: address, Log: quiet()})
	if err != nil {
		return err.Error()
	}
	t.Cleanup(func() { s.Close() })
	k, err := app.OpenHandle(ctx, store.HandleConfig{URL: address, Log: quiet()})
	if err != nil {
		return err.Error()
	}
	t.Cleanup(func() { k.Close() })
	return ""
}

// TestPostgresURLs opens a server that asks for passwords and, at last, for TLS.
func TestPostgresURLs(t *testing.T) {
	t.Parallel()
	server := tandemtest.NewGuarded(t)
	checkPasswords(t, server)
	checkUnusable(t, server)
	checkTLS(t, server)
}

// checkTLS: what each sslmode demands of a server and its certificate, and what is said when it does not have it.
func checkTLS(t *testing.T, server *tandemtest.Guarded) {
	t.Helper()
	database := server.Database(t, "hunter2")
	if text := opened(t, with(database, "sslmode=disable")); text != "" {
		t.Fatalf("without TLS: %s", text)
	}
	check := func(what, address, want string) {
		t.Helper()
		text := opened(t, address)
		if want == "" && text != "" || !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", what, text, want)
		}
		if strings.Contains(text, "hunter2") || strings.Contains(text, "\n") {
			t.Errorf("%s: the password is shown, or more than a line: %s", what, text)
		}
	}
	check("a server without TLS", with(database, "sslmode=require"), "server refused TLS connection")

	good := tandemtest.NewCertificate(t, 1, time.Now().Add(time.Hour))
	authority := "sslrootcert=" + server.Encrypt(t, good)
	another, _ := tandemtest.NewCertificate(t, 2, time.Now().Add(time.Hour)).Write(t, t.TempDir())
	named := *database
	named.Host = strings.Replace(database.Host, "127.0.0.1", "localhost", 1)
	const (
		untrusted = "from an authority that is not trusted here; name the right one with sslrootcert=FILE: "
		misnamed  = "the server's certificate is for another name"
	)
	for _, test := range []struct {
		name, address, want string
	}{
		{"require", with(database, "sslmode=require"), ""},
		{"prefer", with(database), ""},
		{"disable", with(database, "sslmode=disable"), "does not let this user in; check user, password and pg_hba.conf: no pg_hba.conf entry for host"},
		{"require, another authority", with(database, "sslmode=require", "sslrootcert="+another), untrusted},
		{"verify-ca", with(database, "sslmode=verify-ca", authority), ""},
		{"verify-ca, by a name", with(&named, "sslmode=verify-ca", authority), ""},
		{"verify-ca, another authority", with(database, "sslmode=verify-ca", "sslrootcert="+another), untrusted},
		{"verify-full", with(database, "sslmode=verify-full", authority), ""},
		{"verify-full, by a name", with(&named, "sslmode=verify-full", authority), misnamed},
		{"verify-full, another authority", with(database, "sslmode=verify-full", "sslrootcert="+another), untrusted},
		{"verify-full, the authorities of the system", with(database, "sslmode=verify-full"), untrusted},
		{"no such mode", with(database, "sslmode=verify"), "the URL cannot be used: failed to configure TLS (sslmode is invalid)"},
		{"no such file", with(database, "sslmode=verify-full", "sslrootcert=missing.pem"), "unable to read CA file: open missing.pem"},
	} {
		check(test.name, test.address, test.want)
	}
	conn, err := pgx.Connect(t.Context(), with(database, "sslmode=require"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var encrypted, plain int
	err = conn.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl AND backend_start > pg_conf_load_time())
		FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
		WHERE application_name = 'tandem'`).Scan(&encrypted, &plain)
	if err != nil || encrypted < 10 || plain != 0 {
		t.Errorf("%d connections are encrypted, %d are not, %v", encrypted, plain, err)
	}

	server.Encrypt(t, tandemtest.NewCertificate(t, 3, time.Now().Add(-time.Minute)))
	check("an expired certificate", with(database, "sslmode=verify-full", authority), "the server's certificate is")
}

// checkPasswords: where a password may stand.
func checkPasswords(t *testing.T, server *tandemtest.Guarded) {
	t.Helper()
	database := server.Database(t, "hunter2")
	user := database.User.Username()
	passwords := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(passwords, []byte("127.0.0.1:*:*:"+user+":hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		who       *url.Userinfo
		parameter string
		want      string
	}{
		"before the host": {url.UserPassword(user, "hunter2"), "", ""},
		"as a parameter":  {url.User(user), "password=hunter2", ""},
		"in a file":       {url.User(user), "passfile=" + passwords, ""},
		"nowhere":         {url.User(user), "passfile=missing", "does not let this user in"},
		"a wrong one":     {url.UserPassword(user, "hunter3"), "", "does not let this user in; check user, password and pg_hba.conf: password authentication failed"},
	} {
		address := *database
		address.User = test.who
		text := opened(t, with(&address, test.parameter))
		if test.want == "" && text != "" || !strings.Contains(text, test.want) || strings.Contains(text, "hunter") {
			t.Errorf("%s: %q, want %q", name, text, test.want)
		}
	}
}

// checkUnusable: what keeps a database from being used is said on one plain line, without its password.
func checkUnusable(t *testing.T, server *tandemtest.Guarded) {
	t.Helper()
	ready := func() *url.URL {
		database := server.Database(t, "hunter2")
		if err := postgres.Migrate(t.Context(), with(database)); err != nil {
			t.Fatal(err)
		}
		return database
	}
	empty := func() *url.URL { return server.Database(t, "hunter2") }
	missing, foreign := *empty(), *empty()
	full, standby, newer, newerRiver, locked := empty(), ready(), ready(), ready(), ready()
	missing.Path += "x"
	foreign.Path = newer.Path
	server.Exec(t,
		"ALTER DATABASE "+full.Path[1:]+" CONNECTION LIMIT 0",
		"ALTER DATABASE "+standby.Path[1:]+" SET default_transaction_read_only = on")
	for database, statement := range map[*url.URL]string{
		newer:      `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`,
		newerRiver: `INSERT INTO river_migration (line, version) VALUES ('main', 999)`,
	} {
		storetest.ExecPostgres(t, with(database), statement)
	}
	lock, err := pgx.Connect(t.Context(), with(locked))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close(context.Background())
	if _, err := lock.Exec(t.Context(), `BEGIN; LOCK TABLE nodes`); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ address, want string }{
		"missing database":   {with(&missing), "there is no such database; make it first (createdb): "},
		"another's":          {with(&foreign), "this user may not do that; let it own the database: permission denied"},
		"no connection left": {with(full), "the server has no connection left; raise its max_connections or lower pool_max_conns: too many connections"},
		"a standby":          {with(standby), "the server takes no writes; if it is a standby, name the primary: "},
		"newer schema":       {with(newer), "its schema is version 999, this tandem knows up to "},
		"newer River":        {with(newerRiver), "its schema of River is version 999, this tandem knows up to "},
		"a lock":             {with(locked, "lock_timeout=50"), "a lock was not to be had within lock_timeout, 10s unless the URL says otherwise: "},
		"a slow statement":   {with(locked, "statement_timeout=300"), "a statement took longer than statement_timeout, 30s unless the URL says otherwise: "},
		"nobody listens":     {"postgres://me:hunter2@127.0.0.1:1/db", "open database postgres://me:xxxxx@127.0.0.1:1/db: no connection; check that the server runs and that host, port and sslmode are right: "},
		"a slash in it":      {"postgres://me:hunter2/x@127.0.0.1/db", "open database postgres://…: the URL cannot be read; give postgres://USER:PASSWORD@HOST:PORT/DATABASE, and a password with %40 for @"},
		"a bracket":          {"postgres://me:hunter2@[/db", "the URL cannot be read"},
		"two ports":          {"postgres://me:hunter2@a,b,c/db?port=1,2", "the URL cannot be used: could not match 2 port numbers to 3 hosts"},
		"connections":        {"postgres://me:hunter2@127.0.0.1:1/db?pool_max_conns=many", "the URL cannot be used: "},
		"few connections":    {"postgres://me:hunter2@127.0.0.1:1/db?pool_max_conns=2", "pool_max_conns 2: want at least 8"},
	} {
		text := opened(t, test.address)
		if !strings.Contains(text, test.want) || strings.Contains(text, "hunter2") || strings.Contains(text, "\n") {
			t.Errorf("%s: %q, want %q, on one line and without the password", name, text, test.want)
		}
	}
	for version, want := range map[int]string{14: "the server is PostgreSQL 14; tandem needs 15 or newer", 15: "<nil>", 18: "<nil>"} {
		if got := fmt.Sprint(postgres.TooOld(version)); got != want {
			t.Errorf("version %d: %s, want %s", version, got, want)
		}
	}
}

// TestPlainText: of which URLs the answer may be read on the way.
func TestPlainText(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"tandem.db":                           false,
		"postgres://me@db.example.com/tandem": true, // as much TLS as the server likes
		"postgres://me@db.example.com/tandem?sslmode=disable":         true,
		"postgres://me@db.example.com/tandem?sslmode=allow":           true,
		"postgres://me@db.example.com/tandem?sslmode=require":         false,
		"postgres://me@db.example.com/tandem?sslmode=verify-full":     false,
		"postgres://me@127.0.0.1/tandem?sslmode=disable":              false,
		"postgres://me@[::1]/tandem?sslmode=disable":                  false,
		"postgres://me@localhost/tandem?sslmode=disable":              false,
		"postgres://me@localhost,10.0.0.1/tandem?sslmode=disable":     true,
		"postgres:///tandem?host=/run/postgresql":                     false,
		"postgres://me@10.0.0.1/tandem?sslmode=verify":                false, // it cannot be used
		"postgresql://me@10.0.0.1/tandem?sslmode=disable&a=localhost": true,
	} {
		if got := postgres.PlainText(address); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}
