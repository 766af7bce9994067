//go:build unix

package main_test

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// TestExitCode checks the codes that scripts rely on; what is printed is in testdata/script.
func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		line string
		want int
	}{
		{"version", 0},
		{"serve --help", 0},
		{"", 2},
		{"frobnicate", 2},
		{"serve --bogus", 2},
		{"serve --db mysql://localhost/x", 2},
		{"serve --db postgres://127.0.0.1:1/x", 1},
		{"migrate --db tandem.db", 2},
		{"migrate --db postgres://127.0.0.1:1/x", 1},
		{"copy", 2},
		{"copy --to tandem2.db", 2},
		{"copy --from :memory: --to postgres://127.0.0.1:1/x", 2},
		{"copy --from missing.db --to postgres://127.0.0.1:1/x", 1},
		{"serve --config missing.yaml", 2},
		{"sink --status 99", 2},
		{"health --url nonsense", 2},
		{"health --url http://127.0.0.1:1", 1},
		{"load --demo-mode --production-mode", 2},
		{"load --threshold p99<10", 2},
		{"load --production-mode --url http://127.0.0.1:1 -n 51", 2},
		{"load --url http://127.0.0.1:1", 1},
		{"load --demo-mode --phases sync -n 8 -c 4", 0},
		{"load --demo-mode --phases sync -n 8 -c 4 --threshold sync.response.p50<1us", 3},
		{"load --demo-mode --phases sync -n 8 -c 4 --task no-such-task", 1},
		{"load --demo-mode --output missing/report.json", 1},
		{"audit --list", 0},
		{"audit --only nonsense", 2},
		{"audit --url http://127.0.0.1:1", 1},
		{"compare one.json", 2},
		{"compare missing-1.json missing-2.json", 1},
		{"serve --listen 192.0.2.1:1", 1},
		{"serve --listen 127.0.0.1:0 --db missing/tandem.db", 1},
	} {
		t.Run(test.line, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, strings.Fields(test.line)...)
			if got := p.exitCode(t); got != test.want {
				t.Errorf("exit code %d, want %d\n%s", got, test.want, p.stderr.String())
			}
		})
	}
}

// TestSignalDrains stops a server while a caller waits: the caller gets its
// answer, and the exit code is 0.
func TestSignalDrains(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p := startServe(t)
			answer := post(p.url+"/sync", `{"data":{"n":1},"task":"sleep","complexity":10}`)
			awaitProcessing(t, p.url)
			p.signal(t, sig)
			if got := <-answer; got != http.StatusOK {
				t.Errorf("the caller who waited got %d, want 200", got)
			}
			if got := p.exitCode(t); got != 0 {
				t.Errorf("exit code %d, want 0\n%s", got, p.stderr.String())
			}
			if want := "stopped by signal: " + sig.String(); !strings.Contains(p.stderr.String(), want) {
				t.Errorf("the log does not tell why it stops (%q)\n%s", want, p.stderr.String())
			}
		})
	}
}

// TestSecondSignal cuts the drain short: the caller is refused, and the exit
// code tells the signal. A second signal right after the first is the same one.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		sig  syscall.Signal
		want int
	}{{syscall.SIGTERM, 143}, {syscall.SIGINT, 130}} {
		t.Run(test.sig.String(), func(t *testing.T) {
			t.Parallel()
			p := startServe(t, "--workers", "1")
			body := `{"data":{"n":1},"task":"compute","complexity":10}` // about 0.75 s each
			var answers []<-chan int
			for range 12 {
				answers = append(answers, post(p.url+"/sync", body))
			}
			awaitProcessing(t, p.url)
			p.signal(t, test.sig)
			p.signal(t, test.sig)
			select {
			case <-p.exited:
				t.Fatal("the repeat of the first signal was taken for a second one")
			case <-time.After(700 * time.Millisecond):
			}
			p.signal(t, test.sig)
			if got := p.exitCode(t); got != test.want {
				t.Errorf("exit code %d, want %d\n%s", got, test.want, p.stderr.String())
			}
			refused := 0
			for _, answer := range answers {
				if <-answer == http.StatusServiceUnavailable {
					refused++
				}
			}
			if refused == 0 {
				t.Error("nobody was refused: the drain was not cut short")
			}
		})
	}
}

// TestDrainDelay tells a server to stop that is to linger: /readyz says so at once, everybody is served
// as before but on connections that end, and a second signal ends it.
func TestDrainDelay(t *testing.T) {
	t.Parallel()
	p := startServe(t, "--drain-delay", "1h")
	p.signal(t, syscall.SIGTERM)
	if err := poll("/readyz to say 503", func() error {
		response, err := http.Get(p.url + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusServiceUnavailable {
			return errors.New(response.Status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(p.url+"/sync", "application/json", strings.NewReader(`{"data":{"n":1},"task":"echo"}`))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK || !response.Close {
		t.Errorf("POST /sync answered %s, and closes the connection: %t; want 200 and true", response.Status, response.Close)
	}
	<-time.After(2 * sameSignal)
	p.signal(t, syscall.SIGTERM)
	if got := p.exitCode(t); got != 143 {
		t.Errorf("exit code %d, want 143\n%s", got, p.stderr.String())
	}
	if want := `"for":"1h0m0s"`; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("the log does not tell for how long: %s\n%s", want, p.stderr.String())
	}
}

// sameSignal is how long the binary takes further signals for the first one.
const sameSignal = 500 * time.Millisecond

// TestDemo runs what a newcomer runs first, to its end, in a pipe, and reads what it leaves. It
// is not parallel: the demo computes on every core, at a low priority.
func TestDemo(t *testing.T) { //nolint:paralleltest // see above
	if testing.Short() {
		t.Skip("takes about 20 s")
	}
	p := start(t, nil, "demo")
	select {
	case <-p.exited:
	case <-time.After(5 * time.Minute): // on a machine that is busy with other tests
	}
	if got := p.exitCode(t); got != 0 {
		t.Fatalf("exit code %d\n%s%s", got, p.stdout.String(), p.stderr.String())
	}
	out := p.stdout.String()
	for _, want := range []string{
		`(?m)^1\. Work that waits: `,
		`(?m)^  sync +2400 requests +\d+\.\d s$`,
		`(?m)^  async +2400 requests +\d+\.\d s$`,
		`(?m)^  p50 \(half of the callers\)( +[\d.]+ m?s){2} `,
		`(?m)^  completed per second( +[\d.,]+/s){2} `,
		`(?m)^  delivered +2,400$`,
		`(?m)^  missing +0$`,
		`(?m)^  with a bad signature +0$`,
		`(?m)^2\. Work that computes: `,
		`(?m)^In short, with async:\n  work that waits +callers are free [\d.]+× sooner, and [\d.]+× as much gets done$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line like %s in\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if columns := utf8.RuneCountInString(line) - 1; columns > 80 && !strings.HasPrefix(line, "report: ") {
			t.Errorf("%d columns, want at most 80: %s", columns, line)
		}
	}
	if strings.ContainsRune(out+p.stderr.String(), '\x1b') {
		t.Error("escape codes in a pipe")
	}
	if p.stderr.String() != "" {
		t.Errorf("on standard error: %s", p.stderr.String())
	}
	pages := []string{"demo-report.html", "demo-report-compute.html"}
	if strings.Contains(out, "left out: this machine is busy") { // with other tests: nothing computes
		pages = pages[:1]
	} else if !strings.Contains(out, "\n  work that computes   callers are free ") {
		t.Errorf("no summary of the second part in\n%s", out)
	}
	for _, name := range pages {
		page, err := os.ReadFile(filepath.Join(p.cmd.Dir, name))
		if err != nil || !strings.Contains(string(page), "</html>") {
			t.Errorf("%s: %v, %d bytes, want a whole page", name, err, len(page))
		}
	}
	if left, err := filepath.Glob(filepath.Join(p.cmd.Dir, ".demo-report*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoInterrupted ends the demo with Ctrl-C in the middle of a trial.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "demo")
	p.awaitOutput(t, regexp.MustCompile(`callers +64`))
	p.signal(t, syscall.SIGINT)
	if got := p.exitCode(t); got != 130 {
		t.Errorf("exit code %d, want 130\n%s%s", got, p.stdout.String(), p.stderr.String())
	}
	if got := p.stderr.String(); got != "tandem: stopped by signal: interrupt\n" {
		t.Errorf("on standard error: %q", got)
	}
}

// awaitProcessing waits until the server has begun to work.
func awaitProcessing(t *testing.T, url string) {
	t.Helper()
	if err := poll("a request being processed", func() error {
		return newestHas(url, "processing")
	}); err != nil {
		t.Fatal(err)
	}
}

// Connections that may use up all file descriptors leave callbacks and the database none: the log says so at the start.
func TestWarningOfFewDescriptors(t *testing.T) {
	t.Parallel()
	const script = `ulimit -n 2000 && exec "$0" serve --listen 127.0.0.1:0 --max-connections "$1"`
	for connections, want := range map[string]bool{"1001": true, "1000": false} { // beside 1,000 for everything else
		p := startCommand(t, exec.Command("sh", "-c", script, binary, connections), nil)
		p.awaitReady(t)
		if warned := strings.Contains(p.stderr.String(), "limit of open files"); warned != want {
			t.Errorf("--max-connections %s with a limit of 2,000: warned %t\n%s", connections, warned, p.stderr.String())
		}
	}
}
