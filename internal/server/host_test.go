package server_test

import (
	"net/http"
	"testing"

	"tandem"
	"tandem/internal/server"
)

// A web page that points a name of its own at this machine sends that name in Host, and says same-origin.
func TestPagesThatRebindTheirNameAreRefused(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.AllowedHosts = []string{"tandem.example.com", "Node_1"} })
	port := svc.URL[len("http://127.0.0.1:"):]
	for host, passes := range map[string]bool{
		"127.0.0.1:" + port: true, "127.0.0.1": true, "192.0.2.1:1": true,
		"[::1]:" + port: true, "[::1]": true, "[fe80::1%25eth0]": true,
		"localhost:" + port: true, "LocalHost": true, "localhost.": true, "localhost.:" + port: true,
		"tandem.example.com": true, "TANDEM.example.com.:443": true, "node_1:8000": true,
		"rebound.attacker.example:" + port: false, "attacker.example": false, "localhost.attacker.example": false,
		"127.0.0.1.attacker.example": false, "a.localhost": false, "tandem.example.com.attacker.example": false,
		"xtandem.example.com": false, "2130706433": false, "0x7f.1": false, "127.1": false,
		"localhost..": false, ".": false,
	} {
		for _, tt := range []struct{ method, path string }{
			{http.MethodGet, "/requests"}, {http.MethodPost, "/async"},
			{http.MethodGet, "/readyz"}, {http.MethodOptions, "/sync"},
		} {
			a := svc.do(tt.method, tt.path, "", "Host: "+host, "Sec-Fetch-Site: same-origin", "Origin: http://"+host)
			if refused := a.status == http.StatusMisdirectedRequest; refused == passes {
				t.Errorf("%s %s with Host %s: %d %s", tt.method, tt.path, host, a.status, a.body)
			} else if refused && a.problem(t).Code != tandem.CodeHostNotAllowed {
				t.Errorf("%s %s with Host %s: %s", tt.method, tt.path, host, a.body)
			}
		}
	}
}

func TestCallersWithoutHostAreNoBrowsersAndPass(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	if response, err := svc.raw("GET /livez HTTP/1.0\r\n\r\n"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", response, err)
	}
}

// With API keys a page has nothing to gain: it has no key.
func TestServersWithKeysAnswerToAnyName(t *testing.T) {
	t.Parallel()
	svc, keys := withKeys(t, nil)
	reader := newKey(t, keys, "reader", "read")
	bearer := "Authorization: Bearer " + reader.Token.Reveal()
	if a := svc.do(http.MethodGet, "/requests", "", "Host: any.example", bearer); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAllowedHostsAreNames(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"tandem.example.com": true, "tandem": true, "node_1": true, "xn--mnchen-3ya.example": true,
		"": false, ".": false, "*": false, "*.example.com": false, "https://example.com": false,
		"example.com:8000": false, "a b": false, "münchen.example": false,
	} {
		if err := server.ValidHosts([]string{name}); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
