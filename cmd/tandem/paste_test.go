//go:build unix

package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

var (
	sinkLine    = regexp.MustCompile(`(?m)^TANDEM_SIGNING_SECRET=whsec_\S+ \\\n  (\S.*) sink$`)
	sinkAddress = regexp.MustCompile(`on (http://\S+),`)
)

// TestBannerPastes pastes what the banner prints: the sink verifies what the server signs, and the
// lines to try it do.
func TestBannerPastes(t *testing.T) {
	t.Parallel()
	p := startServe(t)
	line := p.awaitOutput(t, sinkLine)[0]
	sink := startCommand(t, exec.Command("sh", "-c", "exec env "+line+" --listen 127.0.0.1:0"), nil)
	address := sink.awaitOutput(t, sinkAddress)[1]
	<-post(p.url+"/async", `{"data":{"n":1},"task":"echo","callback_url":"`+address+`"}`)
	sink.awaitOutput(t, regexp.MustCompile(`request\.completed attempt 1/3, signature ok, answer 200`))

	_, lines, found := strings.Cut(p.stdout.String(), "\ntry it, then look at the history:\n")
	if !found {
		t.Fatalf("nothing to try in\n%s", p.stdout.String())
	}
	out := paste(t, lines)
	for _, want := range []string{`"status":"accepted"`, `"callback_url":"` + p.url + `/test-callback"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in the answers\n%s", want, out)
		}
	}
}

// TestReadmePastes pastes the README's curl lines, in order, with a server and a sink where it has them.
func TestReadmePastes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	p := startServe(t)
	sink := start(t, nil, "sink", "--listen", "127.0.0.1:0")
	there := strings.NewReplacer("http://127.0.0.1:8000", p.url, "http://127.0.0.1:9000", sink.awaitOutput(t, sinkAddress)[1])
	var out strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(curl .*?)```").FindAllStringSubmatch(string(text), -1) {
		out.WriteString(paste(t, there.Replace(block[1])))
	}
	for _, want := range []string{`"result":{`, `"status":"accepted"`, `"mode":"async"`, `"request_statistics":{`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in the answers\n%s", want, out.String())
		}
	}
	sink.awaitOutput(t, regexp.MustCompile(`request\.completed attempt 1/3, .*answer 200`))
}

// paste gives lines to a shell and returns what it printed.
func paste(t *testing.T, lines string) string {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIPPED: curl is not installed, and it is curl's lines that are tested")
	}
	var out bytes.Buffer
	cmd := exec.Command("sh", "-e", "-c", lines)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s\n%s", err, lines, out.String())
	}
	return out.String()
}

// TestLinesNameTheProgram: lines to paste call the program as its caller did, and not by the path
// that `go run` invents and removes.
func TestLinesNameTheProgram(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ called, want string }{
		{"./bin/tandem", "./bin/tandem"},
		{"tandem", "tandem"},
		{"/tmp/go-build123/b001/exe/tandem", "go run ./cmd/tandem"},
		{"/var/cache/go-build/0f/0f9c-d/tandem", "go run ./cmd/tandem"},
		{"/opt/go-builder/tandem", "/opt/go-builder/tandem"},
	} {
		t.Run(test.called, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(binary, "serve", "--listen", "127.0.0.1:0")
			cmd.Args[0] = test.called
			if got := startCommand(t, cmd, nil).awaitOutput(t, sinkLine)[1]; got != test.want {
				t.Errorf("the sink line calls %q, want %q", got, test.want)
			}
		})
	}
}
