package main_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// tandemKeys runs `tandem keys` on a database and returns what it prints, without white space around it.
func tandemKeys(t testing.TB, db string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(binary, append([]string{"keys", "--db", db}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("tandem keys %v: %v\n%s", args, err, errs.String())
	}
	return strings.TrimSpace(out.String()), strings.TrimSpace(errs.String())
}

// ask sends a request with a key and returns status and body.
func ask(t *testing.T, method, address, key, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := (&http.Client{}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// eventually waits until a request with a key has a status.
func eventually(t *testing.T, p *process, key string, want int) {
	t.Helper()
	err := poll(fmt.Sprint("status ", want), func() error {
		if status, body := ask(t, http.MethodGet, p.url+"/requests", key, ""); status != want {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// callback is what a receiver got.
type callback struct {
	header http.Header
	body   []byte
}

func (c callback) verifies(secret string) bool {
	parsed, err := tandem.ParseSecret(secret)
	return err == nil && parsed.Verify(c.header, c.body, time.Now()) == nil
}

// signedBy is verifies by the clock of whoever has signed.
func (c callback) signedBy(t testing.TB, secret string) bool {
	t.Helper()
	seconds, err := strconv.ParseInt(c.header.Get(tandem.HeaderWebhookTimestamp), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := tandem.ParseSecret(secret)
	return err == nil && parsed.Verify(c.header, c.body, time.Unix(seconds, 0)) == nil
}

// callbacks is a receiver that waits to be asked what it got.
type callbacks struct {
	url, port string
	received  chan callback
}

func newCallbacks(t testing.TB) *callbacks {
	t.Helper()
	c := &callbacks{received: make(chan callback, 1)}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c.received <- callback{r.Header, body}
	}))
	t.Cleanup(receiver.Close)
	address, err := url.Parse(receiver.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.url, c.port = receiver.URL, address.Port()
	return c
}

// deliver asks for work with a key and returns its callback.
func (c *callbacks) deliver(t *testing.T, p *process, key string) callback {
	t.Helper()
	status, body := ask(t, http.MethodPost, p.url+"/async", key, `{"data":{"n":1},"task":"echo","callback_url":"`+c.url+`"}`)
	if status != http.StatusAccepted {
		t.Fatalf("POST /async: %d %s", status, body)
	}
	select {
	case got := <-c.received:
		return got
	case <-time.After(patience):
		t.Fatal("no callback")
		return callback{}
	}
}

// TestKeysWhileServing makes, rotates and revokes keys beside a running server, which follows;
// callbacks verify with the secrets that were shown; and nothing secret is found where it does not belong.
func TestKeysWhileServing(t *testing.T) {
	t.Parallel()
	receiver := newCallbacks(t)
	db := filepath.Join(t.TempDir(), "tandem.db")
	admin, _ := tandemKeys(t, db, "create", "--plain", "--name", "admin", "--scopes", "admin")
	p := startServe(t, "--mode", "production", "--db", db, "--debug", "--rate-limit", "off", "--read-limit", "off",
		"--allow-callback-cidr", "127.0.0.0/8", "--allow-callback-port", receiver.port)

	first, hints := tandemKeys(t, db, "create", "--name", "ci", "--scopes", "submit,read")
	secret := regexp.MustCompile(`whsec_\S+`).FindString(hints)
	eventually(t, p, first, http.StatusOK)
	if !receiver.deliver(t, p, first).verifies(secret) {
		t.Error("a callback does not verify with the secret that was shown")
	}
	rotated, _ := tandemKeys(t, db, "rotate-signing", "ci", "--overlap", "1h")
	err := poll("a callback with the new signature", func() error {
		got := receiver.deliver(t, p, first)
		if !got.verifies(secret) {
			t.Error("during the overlap a callback does not verify with the old secret")
		}
		if !got.verifies(rotated) {
			return errors.New("only the old one")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	second, _ := tandemKeys(t, db, "rotate", "ci")
	eventually(t, p, first, http.StatusUnauthorized)
	eventually(t, p, second, http.StatusOK)
	if _, own := ask(t, http.MethodGet, p.url+"/requests", second, ""); !strings.Contains(own, `"status"`) {
		t.Errorf("after a rotation its requests are not there: %s", own)
	}
	tandemKeys(t, db, "revoke", "ci")
	eventually(t, p, second, http.StatusUnauthorized)

	exposed := map[string]string{"standard output": p.stdout.String(), "the log": p.stderr.String()}
	for _, path := range []string{"/stats", "/api/stats", "/metrics", "/requests", "/openapi.json", "/nothing"} {
		_, exposed["GET "+path] = ask(t, http.MethodGet, p.url+path, admin, "")
		_, exposed["GET "+path+" with a revoked key"] = ask(t, http.MethodGet, p.url+path, second, "")
	}
	exposed["keys list"], _ = tandemKeys(t, db, "list")
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	exposed["the whole log"] = p.stderr.String()
	if !strings.Contains(exposed["the whole log"], "GET") || !strings.Contains(exposed["keys list"], "revoked") {
		t.Error("nothing was logged or listed: the test shows nothing")
	}
	for where, text := range exposed {
		for _, hidden := range []string{admin, first, second, secret, rotated} {
			if part := hidden[6:30]; strings.Contains(text, part) {
				t.Errorf("%s shows a secret", where)
			}
		}
	}
	list := firstOf(tandemKeys(t, db, "list"))
	used := regexp.MustCompile(`(?m)^key_\S+ +admin .*`).FindString(list)
	if strings.HasSuffix(strings.TrimSpace(used), "never") {
		t.Errorf("its last use is not recorded: %s", used)
	}
}

func firstOf(stdout, _ string) string { return stdout }

// TestKeysCrash kills `tandem keys create` at any moment: a key is there or it is not, and one whose
// token was printed is there.
func TestKeysCrash(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "tandem.db")
	tandemKeys(t, db, "create", "--plain", "--name", "first", "--scopes", "read")
	tokens := map[string]string{} // :: name → what was printed before the end
	killed := 0
	for n := range 40 {
		name := fmt.Sprint("n", n)
		var out bytes.Buffer
		cmd := exec.Command(binary, "keys", "--db", db, "create", "--plain", "--name", name, "--scopes", "submit,read")
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(rand.N(40*time.Millisecond), func() { cmd.Process.Kill() }) // an error: it has ended
		if cmd.Wait() != nil {
			killed++
		}
		timer.Stop()
		tokens[name] = strings.TrimSpace(out.String())
	}
	if killed == 0 {
		t.Error("none was killed: the test shows nothing")
	}
	opened, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: db})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	list, err := opened.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range list {
		if len(opened.SigningSecrets(key.ID, time.Now())) != 1 || len(key.Scopes) == 0 {
			t.Errorf("half a key: %+v", key)
		}
	}
	for name, printed := range tokens {
		if printed == "" {
			continue
		}
		token, err := tandem.ParseToken(printed)
		if err != nil {
			t.Errorf("%s: %q was printed", name, printed)
			continue
		}
		if key, err := opened.Authenticate(token, time.Now()); err != nil || key.Name != name {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
	file, err := sql.Open("sqlite", "file:"+filepath.ToSlash(db)+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	checkIntegrity(t, file)
	t.Logf("%d of %d killed, %d keys", killed, len(tokens), len(list))
}

// TestAuditWithKeys: the checks of authentication and of tenants pass against production, on either kind of database.
func TestAuditWithKeys(t *testing.T) {
	t.Parallel()
	for kind, empty := range map[string]func(t *testing.T) string{
		"file":     func(t *testing.T) string { return filepath.Join(t.TempDir(), "tandem.db") },
		"postgres": func(t *testing.T) string { return tandemtest.Postgres(t, tandemtest.Volatile) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			auditWithKeys(t, empty(t))
		})
	}
}

func auditWithKeys(t *testing.T, db string) {
	t.Helper()
	var env []string
	for name, variable := range map[string]string{"one": "TANDEM_API_KEY", "two": "TANDEM_SECOND_API_KEY"} {
		token, _ := tandemKeys(t, db, "create", "--plain", "--name", name, "--scopes", "submit,read")
		env = append(env, variable+"="+token)
	}
	admin, _ := tandemKeys(t, db, "create", "--plain", "--name", "admin", "--scopes", "admin")
	p := startServe(t, "--mode", "production", "--db", db, "--rate-limit", "1000/60s")
	audit := start(t, append(env, "TANDEM_ADMIN_KEY="+admin), "audit", "--url", p.url, "--json", "-",
		"--only", "auth-required,auth-wrong-key,auth-headers,auth-challenge,auth-key-in-url,auth-scopes,"+
			"tenant-request,tenant-list,tenant-submissions,input-query,input-injection,api-document")
	code := audit.exitCode(t)
	var report struct {
		Findings []struct {
			ID     string `json:"id"`
			Result string `json:"result"`
		} `json:"findings"`
	}
	if err := json.Unmarshal([]byte(audit.stdout.String()), &report); err != nil {
		t.Fatalf("%v\n%s", err, audit.stdout.String())
	}
	if code != 0 || len(report.Findings) != 12 {
		t.Errorf("exit code %d, %d findings\n%s", code, len(report.Findings), audit.stderr.String())
	}
	for _, f := range report.Findings {
		if f.Result != "pass" {
			t.Errorf("%s: %s", f.ID, f.Result)
		}
	}
}
