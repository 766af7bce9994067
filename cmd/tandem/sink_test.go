//go:build unix

package main_test

import (
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"tandem"
)

// TestSinkSanitises sends what a stranger may: escape sequences, a line break
// and a very long text in fields that the sink prints.
func TestSinkSanitises(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "sink", "--listen", "127.0.0.1:0")
	address := p.awaitOutput(t, regexp.MustCompile(`on (http://127\.0\.0\.1:\d+)`))[1]
	const id = "req_\u009b31m" // a C1 control character is valid in a header
	body := `{"request_id":"` + id + `","type":"\u001b[2J two\nlines ` + strings.Repeat("x", 500) + `"}`
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(tandem.HeaderWebhookID, id)
	response, err := new(http.Client).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("answered %s, want 200", response.Status)
	}
	p.signal(t, syscall.SIGINT)
	if got := p.exitCode(t); got != 0 {
		t.Errorf("exit code %d, want 0", got)
	}
	out := p.stdout.String()
	if strings.ContainsAny(out, "\x1b\u009b") {
		t.Errorf("control characters came through: %q", out)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines, want 3 (start, one callback, counts): %q", len(lines), out)
	}
	if !strings.Contains(lines[1], "req_�31m �[2J_two�lines_xxx") || len([]rune(lines[1])) > 250 {
		t.Errorf("the callback's line: %q", lines[1])
	}
}
