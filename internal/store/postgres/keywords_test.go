package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"tandem/internal/store/postgres"
	"tandem/internal/tandemtest"
)

// A database may be named by keywords and values, as every tool of PostgreSQL takes them. Its password is
// never shown.
func TestPostgresByKeywords(t *testing.T) {
	t.Parallel()
	server := tandemtest.NewGuarded(t)
	database := server.Database(t, "hunter2")
	name := database.Path[1:]
	words := fmt.Sprintf("host=%s port=%s dbname=%s user=%s sslmode=disable",
		database.Hostname(), database.Port(), name, name)
	for _, test := range []struct{ name, want string }{
		{words + " password=hunter2", ""},
		{"  " + words + " password = 'hunter2' pool_max_conns = 9 connect_timeout = 7", ""},
		{
			words + " password=hunter3",
			"open database postgres://" + name + "@" + database.Host + "/" + name +
				": the server does not let this user in",
		},
		{words + " password=hunter2 pool_max_conns = 2", "pool_max_conns 2: want at least 8"},
		{
			"host=127.0.0.1 port=hunter dbname=x password=hunter2",
			"open database postgres://…: the URL cannot be used: ",
		},
		{
			"host=127.0.0.1 port=1 dbname=tandem user=me password='hunter2 x'",
			"open database postgres://me@127.0.0.1:1/tandem: no connection",
		},
	} {
		text := opened(t, test.name)
		if test.want == "" && text != "" || !strings.Contains(text, test.want) ||
			strings.Contains(text, "hunter2") || strings.Contains(text, "hunter3") {
			t.Errorf("%s: %q, want %q, without the password", test.name, text, test.want)
		}
	}
}

// TestIsPostgres: which names are those of a file.
func TestIsPostgres(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"postgres://h/d": true, "postgresql:///d": true,
		"dbname=d": true, "\thost = h dbname=d": true, "service=d": true,
		"tandem.db": false, "file:tandem.db": false, "file:a=b.db?mode=ro": false,
		"/var/lib/a=b.db": false, "./a=b": false, ":memory:": false, "": false,
	} {
		if got := postgres.Names(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]bool{
		"postgres://me:x@h/d": true, "postgres://me@h/d?sslpassword=x": true,
		"host=h password=x": true, "password = 'x'": true, "host=h sslpassword=x": true,
		"postgres://me@h/d": false, "host=h user=password": false, "host=h passfile=x": false, "tandem.db": false,
	} {
		if got := postgres.HasPassword(name); got != want {
			t.Errorf("the password of %q: %v, want %v", name, got, want)
		}
	}
}
