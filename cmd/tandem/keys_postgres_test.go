package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem/internal/tandemtest"
)

// TestKeysOfAllNodes: two nodes in production on one PostgreSQL, over TLS, with keys made, rotated and revoked
// beside them: what one knows the other knows, and the password of the database shows nowhere.
func TestKeysOfAllNodes(t *testing.T) {
	t.Parallel()
	server := tandemtest.NewGuarded(t)
	database := server.Database(t, "hunter2")
	far := *database
	far.Host = strings.Replace(database.Host, "127.0.0.1", "LOCALHOST", 1) // a name of which nothing is known
	warned := startServe(t, "--db", far.String())
	warned.signal(t, terminate)
	if code := warned.exitCode(t); code != 0 || !strings.Contains(warned.stdout.String(), "WARNING    what is said to the database may travel unencrypted") ||
		!strings.Contains(warned.stderr.String(), "warning: the password of the database stands in the arguments") {
		t.Errorf("without TLS: exit code %d\n%s%s", code, warned.stdout.String(), warned.stderr.String())
	}
	exposed := map[string]string{"a start without TLS": warned.stdout.String() + warned.stderr.String()}
	database.RawQuery = url.Values{
		"sslmode":     {"verify-full"},
		"sslrootcert": {server.Encrypt(t, tandemtest.NewCertificate(t, 1, time.Now().Add(time.Hour)))},
	}.Encode()
	file := filepath.Join(t.TempDir(), "database")
	if err := os.WriteFile(file, []byte(database.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	db := "@" + file

	early := start(t, nil, "serve", "--mode", "production", "--listen", "127.0.0.1:0", "--db", db)
	if code := early.exitCode(t); code != 1 || !strings.Contains(early.stderr.String(), "keys create --name admin --scopes submit,read,admin --db "+db+"\n") {
		t.Errorf("without a key: exit code %d\n%s", code, early.stderr.String())
	}
	exposed["a start without keys"] = early.stderr.String()

	admin, hints := tandemKeys(t, db, "create", "--name", "admin", "--scopes", "admin")
	exposed["keys create"] = hints
	receiver := newCallbacks(t)
	var nodes []*process
	for range 2 {
		nodes = append(nodes, startServe(t, "--mode", "production", "--db", db, "--debug", "--rate-limit", "off", "--read-limit", "off",
			"--allow-callback-cidr", "127.0.0.0/8", "--allow-callback-port", receiver.port))
	}
	everywhere := func(key string, want int) {
		t.Helper()
		for _, p := range nodes {
			eventually(t, p, key, want)
		}
	}
	first, hints := tandemKeys(t, db, "create", "--name", "ci", "--scopes", "submit,read")
	secret := regexp.MustCompile(`whsec_\S+`).FindString(hints)
	everywhere(first, http.StatusOK)
	for i, p := range nodes {
		if !receiver.deliver(t, p, first).verifies(secret) {
			t.Errorf("node %d accepted a request whose callback does not verify with the secret of its key", i)
		}
	}
	second, _ := tandemKeys(t, db, "rotate", "ci")
	everywhere(first, http.StatusUnauthorized)
	everywhere(second, http.StatusOK)
	rotated, _ := tandemKeys(t, db, "rotate-signing", "ci", "--overlap", "0")
	err := poll("a callback with the new signature", func() error {
		if !receiver.deliver(t, nodes[0], second).verifies(rotated) {
			return errors.New("the old one")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tandemKeys(t, db, "revoke", "ci")
	everywhere(second, http.StatusUnauthorized)

	for i, p := range nodes {
		for _, path := range []string{"/stats", "/metrics", "/requests", "/readyz", "/nothing"} {
			_, exposed[fmt.Sprintf("GET %s of node %d", path, i)] = ask(t, http.MethodGet, p.url+path, admin, "")
		}
		p.signal(t, terminate)
		if code := p.exitCode(t); code != 0 {
			t.Errorf("exit code %d\n%s", code, p.stderr.String())
		}
		if log := p.stderr.String(); !strings.Contains(log, "about to stop") {
			t.Errorf("node %d, whose database stands in a file, did not wait for load balancers:\n%s", i, log)
		}
		exposed[fmt.Sprintf("standard output of node %d", i)], exposed[fmt.Sprintf("log of node %d", i)] = p.stdout.String(), p.stderr.String()
		if banner := p.stdout.String(); !strings.Contains(banner, "tandem keys lists, makes and revokes them") || strings.Contains(banner, "WARNING") {
			t.Errorf("node %d said:\n%s", i, banner)
		}
	}
	exposed["keys list"], _ = tandemKeys(t, db, "list")
	if used := regexp.MustCompile(`(?m)^key_\S+ +ci .*`).FindString(exposed["keys list"]); !strings.Contains(used, "revoked") || strings.HasSuffix(strings.TrimSpace(used), "never") {
		t.Errorf("its last use is not recorded: %s", used)
	}
	for where, text := range exposed {
		for what, hidden := range map[string]string{"the password of the database": "hunter2", "a token": first[6:30], "the other token": second[6:30], "a secret": rotated[6:30]} {
			if strings.Contains(text, hidden) {
				t.Errorf("%s shows %s", where, what)
			}
		}
	}
}
