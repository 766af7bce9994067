package main_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"tandem/internal/tandemtest"
)

// TestFilesArePrivate: whatever the umask allows, nobody but their owner reads the files that hold secrets.
func TestFilesArePrivate(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there are no modes")
	}
	dir := t.TempDir()
	args := []string{"serve", "--listen", "127.0.0.1:0", "--db", filepath.Join(dir, "tandem.db"), "--submission-log", filepath.Join(dir, "submissions.log")}
	p := startCommand(t, exec.Command("sh", append([]string{"-c", `umask 0; exec "$0" "$@"`, binary}, args...)...), nil)
	p.awaitReady(t)
	if status := <-post(p.url+"/api/submit", `{"firstName":"Ada","lastName":"Lovelace"}`); status != http.StatusOK {
		t.Fatalf("answered %d", status)
	}
	want := []string{"submissions.log", "tandem.db", "tandem.db-shm", "tandem.db-wal", "tandem.db.lock"}
	for _, name := range want {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		} else if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o, want 600", name, mode)
		}
	}
	p.signal(t, terminate)
	p.exitCode(t)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error { // and those that a test does not know
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLogsTellNoSecrets: what is secret in a URL, and what a terminal would obey, is in no log, whoever writes it there.
func TestLogsTellNoSecrets(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	client := &http.Client{Timeout: patience}
	hidden := []string{"\x1b[31m", "\r\nforged", "\u009b31m", "\u202e", "\u2028", "\x7f"}
	for name, args := range map[string][]string{
		"JSON": {"--mode", "production", "--no-auth", "--rate-limit", "off", "--callback-attempts", "1"},
		"text": {"--debug", "--callback-attempts", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startServe(t, append([]string{"--db", filepath.Join(t.TempDir(), "tandem.db")}, args...)...)
			callbacks := []string{
				"http://user:" + secret + "@127.0.0.1:1/", "http://127.0.0.1:1/?token=" + secret, "http://169.254.169.254/?token=" + secret,
				"http://localhost:1/a?b=" + secret + "#" + secret, "http://" + secret + "%zz/", "ftp://user:" + secret + "@example.com/",
				"http://127.0.0.1:99999/?" + secret, "http://[::1]:1/?" + secret,
			}
			for _, text := range hidden {
				callbacks = append(callbacks, "http://127.0.0.1:1/"+text, "http://"+text+".internal/", "http://127.0.0.1:1/"+url.PathEscape(text))
			}
			for _, callback := range callbacks {
				body, err := json.Marshal(map[string]any{"data": map[string]any{"a": 1}, "task": "echo", "callback_url": callback})
				if err != nil {
					t.Fatal(err)
				}
				if status := <-post(p.url+"/async", string(body)); status >= 500 {
					t.Errorf("%q: answered %d", callback, status)
				}
			}
			for _, text := range hidden {
				request, err := http.NewRequest(http.MethodGet, p.url+"/requests/"+url.PathEscape(text)+"?token="+secret, nil)
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("User-Agent", "a "+url.PathEscape(text)+" of "+secret)
				request.Header.Set("X-Request-ID", secret+" "+strings.Trim(text, "\r\n\x1b\x7f")+"!")
				request.Header.Set("Authorization", "Bearer "+secret)
				response, err := client.Do(request)
				if err != nil {
					continue // net/http does not send every such header
				}
				response.Body.Close()
			}
			p.signal(t, terminate)
			p.exitCode(t)
			log := p.stderr.String()
			if name == "text" && (!strings.Contains(log, "INVALID_CALLBACK_URL") || !strings.Contains(log, `path="/requests/\x1b[31m"`)) {
				t.Errorf("what was sent is not logged at all, so this shows nothing:\n%s", log)
			}
			for line := range strings.Lines(log) {
				line = strings.TrimSuffix(line, "\n")
				if strings.Contains(line, secret) {
					t.Errorf("a secret: %s", line)
				}
				if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("what cannot be seen: %q", line)
				}
				if strings.HasPrefix(line, "forged") || name == "JSON" && !json.Valid([]byte(line)) {
					t.Errorf("a line that is none of ours: %s", line)
				}
			}
		})
	}
}

// TestServeTLS: with a certificate the banner says https, and plain HTTP is not answered with data.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "\u009b31m\u202e\U000e0041") // what must not come out of a log as it is
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	certificate := tandemtest.NewCertificate(t, 1, time.Now().Add(time.Hour))
	certificate.Write(t, dir)
	p := start(t, nil, "serve", "--listen", "127.0.0.1:0", "--tls-cert", filepath.Join(dir, "cert.pem"), "--tls-key", filepath.Join(dir, "key.pem"))
	address := strings.TrimPrefix(p.awaitOutput(t, secureListening)[1], "https://")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: certificate.Pool}, ForceAttemptHTTP2: true}, Timeout: patience}
	defer client.CloseIdleConnections()
	err := poll("an answer", func() error {
		response, err := client.Get("https://" + address + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
			return fmt.Errorf("%s %s", response.Proto, response.Status)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Get("http://" + address + "/requests")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusBadRequest || bytes.Contains(body, []byte("[")) {
		t.Errorf("plain HTTP: %s %s (%v)", response.Status, body, err)
	}
	if err := os.Remove(filepath.Join(dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	err = poll("a complaint about the certificate", func() error {
		client.CloseIdleConnections() // the next one shakes hands
		response, err := client.Get("https://" + address + "/livez")
		if err != nil {
			return err
		}
		response.Body.Close()
		if !strings.Contains(p.stderr.String(), "cannot be used") {
			return errors.New("none yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.signal(t, terminate)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
	told := false
	for line := range strings.Lines(p.stderr.String()) {
		var entry struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		told = told || strings.Contains(entry.Error, dir)
		if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("what cannot be seen: %q", line)
		}
	}
	if !told {
		t.Errorf("the log does not name the file:\n%s", p.stderr.String())
	}
}
