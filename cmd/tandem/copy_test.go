//go:build unix

package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/receiver"
	"tandem/internal/tandemtest"
)

// TestCopyKilled moves a deployment to PostgreSQL, by a copy that is killed on its way: what was unfinished ends
// there, and its callbacks are signed with the secret that their receivers know.
func TestCopyKilled(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	called := map[string]int{} // :: request id → callbacks; guarded by mu
	from := filepath.Join(t.TempDir(), "tandem.db")
	secret := tandem.NewSecret()
	callbacks, err := receiver.New(receiver.Config{Secret: secret, OnArrival: func(a receiver.Arrival) {
		mu.Lock()
		defer mu.Unlock()
		called[a.ID]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	hooks := httptest.NewServer(callbacks)
	t.Cleanup(hooks.Close)

	p := start(t, nil, "serve", "--listen", "127.0.0.1:0", "--db", from)
	p.awaitReady(t)
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, p.stderr.String())
	}
	replaceSecret(t, from, secret)
	p = start(t, nil, "serve", "--listen", "127.0.0.1:0", "--db", from, "--io-workers", "1", "--workers", "1")
	p.awaitReady(t)
	var promised []string
	for range 60 {
		promised = append(promised, askAsync(t, p.url, hooks.URL))
	}
	p.kill()
	addHistory(t, from, 2_000)

	to := tandemtest.Postgres(t, tandemtest.Durable)
	named := "@" + filepath.Join(t.TempDir(), "database")
	if err := os.WriteFile(named[1:], []byte(to), 0o600); err != nil {
		t.Fatal(err)
	}
	migrated := start(t, nil, "migrate", "--db", named)
	if code := migrated.exitCode(t); code != 0 {
		t.Fatalf("migrate: exit code %d\n%s", code, migrated.stderr.String())
	}
	arguments := []string{"copy", "--from", "file:" + from, "--to", named}
	beforeKeys(t, to, `PERFORM pg_sleep(3600)`)
	killed := start(t, nil, arguments...)
	awaitRequests(t, to, killed, 2_000)
	killed.kill()
	execTarget(t, to, `
		SELECT pg_terminate_backend(pid)
		FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	refused := start(t, nil, "serve", "--listen", "127.0.0.1:0", "--db", to)
	if code := refused.exitCode(t); code != 1 || !strings.Contains(refused.stderr.String(),
		"a copy into this database is not finished; run `tandem copy --from file:"+from) {
		t.Errorf("serve in between: exit code %d\n%s", code, refused.stderr.String())
	}
	beforeKeys(t, to, `UPDATE requests SET complexity = 2 WHERE id = (SELECT id FROM requests ORDER BY id LIMIT 1)`)
	differs := start(t, nil, arguments...)
	if code := differs.exitCode(t); code != 3 ||
		!strings.Contains(differs.stderr.String(), "the target differs from the source") {
		t.Errorf("copy into a target that changes: exit code %d\n%s", code, differs.stderr.String())
	}
	execTarget(t, to, `DROP FUNCTION before_keys CASCADE`)
	again := start(t, nil, arguments...)
	if code := again.exitCode(t); code != 0 {
		t.Fatalf("copy once more: exit code %d\n%s%s", code, again.stdout.String(), again.stderr.String())
	}
	out := again.stdout.String()
	for _, want := range []string{
		`^an unfinished copy of file:\S+ was in the target, which was emptied\n`,
		`(?m)^ *20\d\d +20\d\d +callback_sent *$`,
		`(?m)^source sha256:[0-9a-f]{64}$`, `(?m)^both sides are the same$`, `(?m)^next: tandem serve --db ` + regexp.QuoteMeta(named) + `,`, `(?m)^do not serve file:`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("its output does not match %s:\n%s", want, out)
		}
	}

	target := start(t, nil, "serve", "--listen", "127.0.0.1:0", "--db", to)
	target.awaitReady(t)
	err = poll("all callbacks", func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range promised {
			if called[id] == 0 {
				return fmt.Errorf("%s: nobody was called", id)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v\n%s", err, target.stderr.String())
	}
	if counts := callbacks.Counts(); counts.BadSignature+counts.Malformed > 0 {
		t.Errorf("callbacks with a bad signature or body: %+v", counts)
	}
	if strings.Contains(target.stdout.String(), "whsec_") {
		t.Error("the target made a secret of its own")
	}
}

// replaceSecret gives a file that nobody uses another signing secret.
func replaceSecret(t *testing.T, path string, secret tandem.Secret) {
	t.Helper()
	execFile(t, path, `UPDATE settings SET value = ? WHERE name = 'signing_secret'`, secret.Reveal())
}

func execFile(t *testing.T, path, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	result, err := db.Exec(statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%d rows changed, %v: %s", n, err, statement)
	}
}

// addHistory adds requests that have ended, from a while ago, with their result.
func addHistory(t *testing.T, path string, requests int) {
	t.Helper()
	execFile(t, path, `
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
		INSERT INTO requests (seq, id, mode, task, status, callback_status, complexity, callback_url, data, result)
		SELECT (1700000000000 + i) << 12, printf('req_%012x7000%016x', 1700000000000 + i, i), 'async', 'echo', 'callback_sent', 'sent', 1, '',
		       CAST(printf('{"n": %d}', i) AS BLOB), CAST(printf('{"n": %d}', i) AS BLOB)
		FROM n`, requests)
}

// askAsync asks for work that takes a moment, and returns its id.
func askAsync(t *testing.T, url, callback string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"data": map[string]any{"n": 1}, "task": "sleep", "complexity": 10, "callback_url": callback + "/hook"})
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(url+"/async", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		RequestID string `json:"request_id"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusAccepted {
		t.Fatalf("%s, %v", response.Status, err)
	}
	return answer.RequestID
}

func execTarget(t *testing.T, to, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%v: %s", err, statement)
	}
}

// beforeKeys has the target do something when all requests are copied and API keys are about to be.
func beforeKeys(t *testing.T, to, statement string) {
	t.Helper()
	execTarget(t, to, `
		CREATE OR REPLACE FUNCTION before_keys() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN `+statement+`; RETURN NULL; END $$;
		CREATE OR REPLACE TRIGGER before_keys BEFORE INSERT ON keys EXECUTE FUNCTION before_keys()`)
}

// awaitRequests waits until a copy has written so many requests.
func awaitRequests(t *testing.T, to string, p *process, requests int) {
	t.Helper()
	err := poll("the requests", func() error {
		select {
		case <-p.exited:
			t.Fatalf("it ended too early: %v\n%s", p.err, p.stderr.String())
		default:
		}
		conn, err := pgx.Connect(t.Context(), to)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		var copied int
		err = conn.QueryRow(t.Context(), `SELECT count(*) FROM requests`).Scan(&copied)
		if err == nil && copied < requests {
			err = fmt.Errorf("%d were copied", copied)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
