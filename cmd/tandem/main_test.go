package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tandem"
)

// patience is how long a test waits for anything.
const patience = 30 * time.Second

// binary is the real tandem, built once by TestMain; tests run it. Only TestConfigurationPage, which reads
// the flags, calls the code of this package directly.
var binary string

func TestMain(m *testing.M) {
	if address := os.Getenv(floorVariable); address != "" {
		fmt.Fprintln(os.Stderr, serveFloor(address))
		os.Exit(1) //nolint:forbidigo // it serves until it is killed
	}
	if os.Getenv(spinVariable) != "" {
		spin()
	}
	os.Exit(func() int { //nolint:forbidigo // what TestMain is for, when something is to be removed after the tests
		dir, err := os.MkdirTemp("", "tandem-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "tandem")
		if runtime.GOOS == "windows" {
			binary += ".exe"
		}
		build := exec.Command("go", "build", "-o", binary)
		build.Stderr = os.Stderr
		// The tests mostly wait for processes and clocks: six run at a time, however few cores there are, unless -parallel says otherwise.
		err = flag.Set("test.parallel", "6")
		races := filepath.Join(dir, "race")
		if flag.Parse(); raced != "" {
			build.Args = append(build.Args, "-race", "-gcflags=modernc.org/...=-d=checkptr=0") // as .ci/run has it
			err = errors.Join(err, os.Setenv(raceVariable, "log_path="+races))
			if run := flag.Lookup("test.run"); run.Value.String() == "" {
				err = errors.Join(err, run.Value.Set(raced))
			}
		}
		if err := errors.Join(err, build.Run()); err != nil {
			fmt.Fprintln(os.Stderr, "prepare tests:", err)
			return 1
		}
		return max(m.Run(), reportRaces(races))
	}())
}

// raceVariable says where the race detector of the binary reports.
const raceVariable = "GORACE"

// reportRaces prints what the race detector found in the binary, and returns an exit code.
func reportRaces(path string) (code int) {
	reports, _ := filepath.Glob(path + ".*") // the pattern is good
	for _, name := range reports {
		text, err := os.ReadFile(name)
		fmt.Fprintf(os.Stderr, "--- FAIL: the race detector in the binary under test: %v\n%s\n", err, text)
		code = 1
	}
	return code
}

// TestScript runs testdata/script/*.txtar: what a user types and sees. A server that should have refused to start ends
// shortly before the time of all tests is up, and its script fails.
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv(raceVariable, os.Getenv(raceVariable))
			env.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+env.Getenv("PATH"))
			for _, name := range []string{"ADDR", "ADDR2"} {
				address, err := freeAddress()
				if err != nil {
					return err
				}
				env.Setenv(name, address)
			}
			_, port, err := net.SplitHostPort(env.Getenv("ADDR"))
			env.Setenv("PORT", port)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":       scriptAwait,
			"awaitport":   scriptAwaitPort,
			"awaitstatus": scriptAwaitStatus,
			"post":        scriptPost,
		},
	})
}

// scriptAwait waits until a GET of a URL is answered 200: await URL.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await URL")
	}
	ts.Check(awaitAnswer(args[0], patience)) // a second try would count where requests are counted
}

// scriptAwaitPort waits until something listens: awaitport HOST:PORT.
func scriptAwaitPort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: awaitport HOST:PORT")
	}
	ts.Check(poll("a listener on "+args[0], func() error {
		conn, err := net.Dial("tcp", args[0])
		if err == nil {
			conn.Close()
		}
		return err
	}))
}

// scriptAwaitStatus waits until the newest request has a status: awaitstatus URL STATUS.
func scriptAwaitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitstatus URL STATUS")
	}
	ts.Check(poll("status "+args[1], func() error { return newestHas(args[0], args[1]) }))
}

// newestHas returns nil when the newest request of a server has a status.
func newestHas(url, status string) error {
	response, err := http.Get(url + "/requests?limit=1")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var newest []tandem.Request
	if err := json.NewDecoder(response.Body).Decode(&newest); err != nil {
		return err
	}
	if len(newest) != 1 || string(newest[0].Status) != status {
		return fmt.Errorf("newest is %+v", newest)
	}
	return nil
}

// scriptPost posts a JSON text and prints status and answer: post URL JSON.
// Without a ! the answer must be a success.
func scriptPost(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: post URL JSON")
	}
	response, err := http.Post(args[0], "application/json", strings.NewReader(args[1]))
	ts.Check(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s\n%s\n", response.Status, body)
	if neg == (response.StatusCode < 300) {
		ts.Fatalf("answered %s", response.Status)
	}
}

// poll calls try until it returns nil, and returns its last error when that takes too long.
func poll(what string, try func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}

// freeAddress finds a loopback port that nobody uses just now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// awaitOK polls a URL until it answers 200.
func awaitOK(url string) error { return awaitAnswer(url, time.Second) }

// awaitAnswer is awaitOK with a limit to each try.
func awaitAnswer(url string, limit time.Duration) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: limit}
	return poll(url, func() error {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// process is a running tandem.
type process struct {
	cmd    *exec.Cmd
	url    string        // of a serve
	exited chan struct{} // closed when it has ended; then err and the output may be read
	err    error
	stdout syncBuffer
	stderr syncBuffer
}

// syncBuffer is a bytes.Buffer that may be read while the process writes.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs the binary with an empty environment but for PATH, what its system and its race detector
// need, and extra variables. It is killed when the test ends, if it still runs then.
func start(t testing.TB, extra []string, args ...string) *process {
	t.Helper()
	return startCommand(t, exec.Command(binary, args...), extra)
}

// startCommand is start for a command line that runs the binary.
func startCommand(t testing.TB, cmd *exec.Cmd, extra []string) *process {
	t.Helper()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	p.cmd.Dir = t.TempDir()
	p.cmd.Env = nil
	for _, name := range []string{"PATH", "SYSTEMROOT", raceVariable} {
		p.cmd.Env = append(p.cmd.Env, name+"="+os.Getenv(name))
	}
	p.cmd.Env = append(p.cmd.Env, extra...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start tandem: %v", err)
	}
	go func() { // ends with the process, for which the cleanup waits
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.kill)
	return p
}

// startServe starts `serve` on a free port and waits until it is ready.
func startServe(t testing.TB, args ...string) *process {
	t.Helper()
	p := start(t, nil, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	p.awaitReady(t)
	return p
}

var (
	listening       = regexp.MustCompile(`(?m)^  listening  (http://\S+)`)
	secureListening = regexp.MustCompile(`(?m)^  listening  (https://\S+)`)
)

// awaitReady reads the address from the banner and waits for /readyz.
func (p *process) awaitReady(t testing.TB) {
	t.Helper()
	p.url = p.awaitOutput(t, listening)[1]
	if err := awaitOK(p.url + "/readyz"); err != nil {
		t.Fatalf("%v\n%s", err, p.stderr.String())
	}
}

// awaitOutput waits until standard output matches, and returns the match and
// its groups.
func (p *process) awaitOutput(t testing.TB, pattern *regexp.Regexp) []string {
	t.Helper()
	var found []string
	err := poll(pattern.String(), func() error {
		if found = pattern.FindStringSubmatch(p.stdout.String()); found != nil {
			return nil
		}
		select {
		case <-p.exited:
			t.Fatalf("tandem ended too early: %v\n%s\n%s", p.err, p.stdout.String(), p.stderr.String())
		default:
		}
		return errors.New("not in the output")
	})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, p.stdout.String(), p.stderr.String())
	}
	return found
}

// kill ends the process with SIGKILL and waits for it.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it has ended already
	<-p.exited
}

// signal sends a signal.
func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal tandem: %v", err)
	}
}

// exitCode waits for the end.
func (p *process) exitCode(t testing.TB) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("tandem does not end\n%s\n%s", p.stdout.String(), p.stderr.String())
		return -1
	}
}

// terminate is the polite signal, where the system has it.
const terminate = syscall.SIGTERM

// post sends a request and delivers the status of the answer; 0: none.
func post(url, body string) <-chan int {
	status := make(chan int, 1)
	go func() { // ends with the request, which ends with the server
		response, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			status <- 0
			return
		}
		response.Body.Close()
		status <- response.StatusCode
	}()
	return status
}
