package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	guide     = "../../docs/API_ENDPOINTS.md"
	guideHost = "127.0.0.1:8000" // stands for the server in the guide
	keysHost  = "127.0.0.1:8001" // stands for one that asks for API keys
)

// A transcript is a fenced block of the guide, "```console", that starts with a
// curl command and goes on with what `curl -i` would print: the status, the
// headers worth showing, and the body, indented if it is JSON. A comment
// <!-- until TEXT --> in front of the block has it asked again until the answer
// contains the text.
var (
	transcripts = regexp.MustCompile("(?s)(?:<!-- until ([^\n]*?) -->\n)?```console\n" +
		"(\\$ curl (?:[^\n]*\\\\\n)*[^\n]*)\n(.*?)```")
	words      = regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s\\]+`)
	fickleKeys = `processing_time|processingTime|avg_processing_time|processing_time_ms|sync_avg_processing_time_ms|` +
		`async_avg_processing_time_ms|duration_ms|uptime_seconds|requests_per_second|` +
		`p50|p95|p99|heap_bytes|total_bytes|goroutines|oldest_age_seconds`
	fickle     = regexp.MustCompile(`"(` + fickleKeys + `)": [-+.0-9e]+`)
	moments    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	names      = regexp.MustCompile(`\$[A-Z]+|req_[0-9a-f]{32}|batch_[0-9a-f]{32}|"[0-9a-f]{32}"|cursor=[^&>\s]+`)
	signatures = regexp.MustCompile(`v1,[A-Za-z0-9+/=]+`)
	stamps     = regexp.MustCompile(`"Webhook-Timestamp": "\d+"`)
)

// shownHeaders are the headers that a transcript shows when they are there.
var shownHeaders = []string{"Content-Type", "ETag", "Location", "Link", "Allow", "Retry-After", "WWW-Authenticate"}

// TestGuide replays every transcript of the guide, in order, against one server and one with API keys,
// and compares everything but times, figures and ids. With -update it writes
// what was answered into the guide.
func TestGuide(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.Tasks = nil })
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	locked, keys := withKeys(t, func(s *setup) { s.engine.Tasks = nil })
	replay := &replay{services: map[string]*service{guideHost: svc, keysHost: locked}, real: map[string]string{
		"$CALLER": newKey(t, keys, "caller", "submit").Token.Reveal(),
		"$READER": newKey(t, keys, "reader", "read").Token.Reveal(),
	}}
	count := 0
	updated := transcripts.ReplaceAllStringFunc(string(text), func(block string) string {
		count++
		part := transcripts.FindStringSubmatch(block)
		until, command, want := part[1], part[2], part[3]
		got := replay.run(t, command, until)
		got = replay.bind(want, got)
		if !*update {
			if diff := cmp.Diff(steady(want), steady(got)); diff != "" {
				t.Errorf("%s\n%s", command, diff)
			}
		}
		return strings.TrimSuffix(block, want+"```") + got + "```"
	})
	if count < 10 {
		t.Errorf("found only %d transcripts", count)
	}
	if *update {
		if err := os.WriteFile(guide, []byte(updated), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// replay keeps what the names in the guide stand for.
type replay struct {
	services map[string]*service // :: host in the guide → ours
	real     map[string]string   // :: id, cursor or API key in the guide → ours
}

// bind pairs the names of an expected answer with those of the real one, by
// order of appearance, and returns the answer in the guide's names.
func (p *replay) bind(want, got string) string {
	theirs, ours := names.FindAllString(want, -1), names.FindAllString(got, -1)
	for i := range min(len(theirs), len(ours)) {
		if _, bound := p.real[theirs[i]]; !bound {
			p.real[theirs[i]] = ours[i]
		}
	}
	for theirs, ours := range p.real {
		got = strings.ReplaceAll(got, ours, theirs)
	}
	return got
}

// run does what a curl command says and writes the answer down.
func (p *replay) run(t *testing.T, command, until string) string {
	t.Helper()
	host := guideHost
	if strings.Contains(command, keysHost) {
		host = keysHost
	}
	svc := p.services[host]
	method, url, body, headers := curl(t, p.translate(command))
	var a answer
	svc.until(command, func() bool {
		a = svc.do(method, url, body, headers...)
		return strings.Contains(a.body, until)
	})
	var out strings.Builder
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\n", a.status, http.StatusText(a.status))
	for _, name := range shownHeaders {
		if value := a.header.Get(name); value != "" {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	if a.body != "" {
		out.WriteString("\n" + indent(a.body))
	}
	return strings.ReplaceAll(out.String(), svc.Listener.Addr().String(), host)
}

func (p *replay) translate(command string) string {
	command = names.ReplaceAllStringFunc(command, func(name string) string {
		if ours, ok := p.real[name]; ok {
			return ours
		}
		return name
	})
	for host, svc := range p.services {
		command = strings.ReplaceAll(command, host, svc.Listener.Addr().String())
	}
	return command
}

// indent makes JSON readable and leaves everything else as it is.
func indent(body string) string {
	var out bytes.Buffer
	if json.Indent(&out, []byte(strings.TrimSpace(body)), "", "  ") != nil {
		return strings.TrimRight(body, "\n") + "\n"
	}
	return out.String() + "\n"
}

// steady replaces everything that differs from run to run.
func steady(text string) string {
	text = fickle.ReplaceAllString(text, `"$1": 0`)
	text = moments.ReplaceAllString(text, "TIME")
	text = stamps.ReplaceAllString(text, `"Webhook-Timestamp": "0"`)
	return signatures.ReplaceAllString(text, "v1,SIGNATURE")
}

// unquote takes the quotation marks of the shell away.
func unquote(word string) string {
	if strings.HasPrefix(word, `"`) {
		return strings.Trim(word, `"`)
	}
	return strings.Trim(word, "'")
}

// curl reads the few options that the guide uses.
func curl(t *testing.T, command string) (method, path, body string, headers []string) {
	t.Helper()
	method = http.MethodGet
	args := words.FindAllString(command, -1)[2:] // after "$ curl"
	for i := 0; i < len(args); i++ {
		argument := unquote(args[i])
		next := func() string {
			i++
			if i == len(args) {
				t.Fatalf("%s: %s lacks its value", command, argument)
			}
			return unquote(args[i])
		}
		switch {
		case argument == "-i":
		case argument == "-X":
			method = next()
		case argument == "-H":
			headers = append(headers, next())
		case argument == "-d":
			body = next()
			if method == http.MethodGet {
				method = http.MethodPost
			}
		case strings.HasPrefix(argument, "http://"):
			_, rest, _ := strings.Cut(argument, "://")
			_, path, _ = strings.Cut(rest, "/")
			path = "/" + path
		default:
			t.Fatalf("%s: %q is not understood", command, argument)
		}
	}
	return method, path, body, headers
}
