package main_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/tandemtest"
)

// oddly has a value for every flag of serve that is a number, a time, a list or an address, in a form
// that one of flag, variable and file once refused.
var oddly = map[string]string{
	"workers": "1e0", "io-workers": "1_0", "max-queue": "1e6", "max-queue-per-key": "1e5", "max-bytes-per-key": "1_0e6",
	"max-data": "1e4", "max-depth": " 12 ", "max-connections": "5e2",
	"callback-attempts": "4e0", "callback-host-concurrency": "2e1",
	"task-timeout": "0d30s", "retention": "30d", "drain-delay": "0d", "external-timeout": "0d5s",
	"callback-backoff": " 1s", "callback-timeout": "0d10s", "callback-max-age": "1d12h", "external-delay": "0d - 150ms",
	"rate-limit": "5e1 / 60s", "read-limit": "1_000/0d1m",
	"cors-origin": "https://a.example.com, https://b.example.com", "trusted-proxy": "10.0.0.1, ::1 , 10.2.0.0/16",
	"allowed-host":        "a.example.com , b.example.com",
	"allow-callback-cidr": "10.0.0.2, fd00::/8",
	"allow-callback-host": "a.example.com, b.example.com",
	"allow-callback-port": "8080, 8e3",
}

// textual are the flags of serve whose values are words, addresses to listen on, and files.
var textual = []string{
	"help", "mode", "listen", "base-url", "db", "config", "debug", "no-auth", "tls-cert", "tls-key",
	"security-contact", "external-url", "submission-log", "signing-secret",
}

// TestValuesAreWrittenAlike: a value means the same in a flag, in a variable and in the configuration file.
func TestValuesAreWrittenAlike(t *testing.T) {
	t.Parallel()
	help, err := exec.Command(binary, "serve", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(string(help), -1) {
		if _, ok := oddly[match[1]]; !ok && !slices.Contains(textual, match[1]) {
			t.Errorf("--%s is neither in oddly nor in textual", match[1])
		}
	}
	var flags, variables []string
	file, lists := "", ""
	for _, name := range slices.Sorted(maps.Keys(oddly)) {
		value := oddly[name]
		flags = append(flags, "--"+name+"="+value)
		variables = append(variables, "TANDEM_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+value)
		file += name + ": " + value + "\n"
		if strings.Contains(value, ",") {
			value = "[" + strings.ReplaceAll(value, "::1", `"::1"`) + "]"
			value = strings.ReplaceAll(value, "fd00::/8", `"fd00::/8"`)
		}
		lists += name + ": " + value + "\n"
	}
	banners := map[string]string{}
	run := func(way string, extra []string, args ...string) {
		p := start(t, extra, append([]string{
			"serve", "--listen", "127.0.0.1:0", "--mode", "production", "--no-auth",
			"--db", filepath.Join(t.TempDir(), "tandem.db"),
		}, args...)...)
		p.awaitReady(t)
		var shown []string
		for line := range strings.Lines(p.stdout.String()) {
			if regexp.MustCompile(`^  (limit|proxies|allowed) `).MatchString(line) {
				shown = append(shown, line)
			}
		}
		banners[way] = strings.Join(shown, "")
	}
	run("flags", nil, flags...)
	run("variables", variables)
	for way, text := range map[string]string{"file": file, "file with lists": lists} {
		name := filepath.Join(t.TempDir(), "tandem.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run(way, nil, "--config", name)
	}
	want := `  limit      50 POSTs per client in any 60 s
  limit      1000 GETs of data per client in any 60 s
  proxies    10.0.0.1/32 ::1/128 10.2.0.0/16 say who the client is
  allowed    callbacks to public addresses, ports 80 and 443, 8080, 8000
  allowed    callbacks to 10.0.0.2/32 fd00::/8
  allowed    callbacks to private addresses of a.example.com b.example.com
  allowed    pages of https://a.example.com https://b.example.com
`
	for way, banner := range banners {
		if banner != want {
			t.Errorf("%s:\n%s\nwant\n%s", way, banner, want)
		}
	}
}

// TestEmptyVariablesAreNotSet: every variable of serve, empty, changes nothing.
func TestEmptyVariablesAreNotSet(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "load", "audit", "keys list", "copy", "migrate", "sink", "health"} {
		help, err := exec.Command(binary, append(strings.Fields(command), "--help")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		var empty []string
		for _, name := range regexp.MustCompile(`TANDEM_[A-Z_0-9]*[A-Z0-9]`).FindAllString(string(help), -1) {
			empty = append(empty, name+"=")
		}
		if command == "serve" {
			p := start(t, empty, "serve", "--listen", "127.0.0.1:0")
			p.awaitReady(t)
			if len(empty) < 30 || !strings.Contains(p.stdout.String(), "demo mode") {
				t.Errorf("%d variables\n%s", len(empty), p.stdout.String())
			}
			continue
		}
		bogus := strings.Fields(command + " --bogus")
		without, with := start(t, nil, bogus...), start(t, empty, bogus...)
		without.exitCode(t)
		with.exitCode(t)
		if a, b := without.stderr.String(), with.stderr.String(); a != b || !strings.Contains(a, "bogus") {
			t.Errorf("%s: %q with empty variables, %q without", command, b, a)
		}
	}
}

// TestHealthFollowsTheServersSettings: health finds the server by the server's own environment or file.
func TestHealthFollowsTheServersSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := tandemtest.NewCertificate(t, 1, time.Now().Add(-time.Minute)).Write(t, dir) // beyond its dates
	other, _ := tandemtest.NewCertificate(t, 2, time.Now().Add(time.Hour)).Write(t, t.TempDir())
	tls := []string{"TANDEM_TLS_CERT=" + certFile, "TANDEM_TLS_KEY=" + keyFile}
	for _, test := range []struct {
		name    string
		listen  string // %s: the port
		serve   []string
		instead []string // of the environment of health
		want    int
	}{
		{name: "another port", listen: "127.0.0.1:%s"},
		{name: "every address", listen: ":%s"},
		{name: "every IPv4 address", listen: "0.0.0.0:%s"},
		{name: "TLS", listen: ":%s", serve: tls},
		{
			name: "TLS, and the certificate is another", listen: ":%s", serve: tls,
			instead: []string{"TANDEM_TLS_CERT=" + other}, want: 1,
		},
		{
			name: "TLS without the certificate", listen: ":%s", serve: tls,
			instead: []string{"TANDEM_HEALTH_URL=https://127.0.0.1:%s"}, want: 1,
		},
		{
			name: "TLS by a URL", listen: ":%s", serve: tls,
			instead: []string{"TANDEM_HEALTH_URL=https://127.0.0.1:%s/livez", tls[0]},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address, err := freeAddress()
			if err != nil {
				t.Fatal(err)
			}
			_, port, _ := strings.Cut(address, ":")
			env := append([]string{"TANDEM_LISTEN=" + fmt.Sprintf(test.listen, port)}, test.serve...)
			server := start(t, env, "serve")
			server.awaitOutput(t, regexp.MustCompile(`(?m)^  listening `))
			for _, variable := range test.instead {
				if strings.Contains(variable, "%s") {
					variable = fmt.Sprintf(variable, port)
				}
				env = append(env, variable)
			}
			if strings.HasSuffix(test.name, "without the certificate") {
				env = env[len(env)-1:]
			}
			err = poll("an answer of health", func() error { // the server may not be ready yet
				asked := start(t, env, "health", "--timeout", "30s")
				if code := asked.exitCode(t); code != test.want {
					return fmt.Errorf("exit code %d, want %d: %s", code, test.want, asked.stderr.String())
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("from the file", func(t *testing.T) {
		t.Parallel()
		address, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(t.TempDir(), "tandem.yaml")
		if err := os.WriteFile(config, []byte("mode: demo\nlisten: "+address+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		env := []string{"TANDEM_CONFIG=" + config}
		start(t, env, "serve").awaitReady(t)
		if asked := start(t, env, "health"); asked.exitCode(t) != 0 {
			t.Error(asked.stderr.String())
		}
	})
}
