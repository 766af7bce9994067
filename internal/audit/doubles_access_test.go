package audit_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tandem/internal/audit"
	"tandem/internal/tandemtest"
)

func authDoubles() []double {
	// opens answers a stranger as somebody else, where match says so.
	opens := func(match func(*http.Request) bool) func(*front, *http.Request) {
		return func(f *front, r *http.Request) {
			switch {
			case key(r) != "" || !match(r):
			case r.Method == http.MethodPost:
				as(r, f.keys.APIKey)
			default:
				as(r, f.keys.AdminKey)
			}
		}
	}
	// respelled reads another spelling as the usual one, behind the rule that asks for keys.
	respelled := func(match func(u *url.URL) bool) func(*front, *http.Request) {
		return func(f *front, r *http.Request) {
			if key(r) == "" && match(r.URL) {
				r.URL.Path, r.URL.RawPath = strings.ToLower(path.Clean(r.URL.Path)), ""
				as(r, f.keys.AdminKey)
			}
		}
	}
	// becomes takes one key for another.
	becomes := func(match func(f *front, r *http.Request) bool) func(*front, *http.Request) {
		return func(f *front, r *http.Request) {
			if match(f, r) {
				as(r, f.keys.AdminKey)
			}
		}
	}
	unknown := func(f *front, r *http.Request) bool {
		return key(r) != "" && !slices.Contains([]string{f.keys.APIKey, f.keys.SecondKey, f.keys.AdminKey}, key(r))
	}
	hides := func(_ *front, r *http.Request, a *reply) {
		if r.URL.Path == "/openapi.json" {
			a.Body = bytes.Replace(a.Body, []byte(`"/nodes":`), []byte(`"/other":`), 1)
		}
	}
	return []double{
		{check: "auth-required", name: "nothing asks for keys", before: opens(func(*http.Request) bool {
			return true
		})},
		{check: "auth-required", name: "nodes", before: opens(on(http.MethodGet, "/nodes"))},
		{check: "auth-required", name: "nodes, which the document hides", before: opens(on(http.MethodGet, "/nodes")),
			after: hides},
		{check: "auth-required", name: "HEAD", before: opens(on(http.MethodHead, "/requests"))},
		{check: "auth-required", name: "async", before: opens(on(http.MethodPost, "/async"))},
		{check: "auth-required", name: "submissions", before: opens(on(http.MethodGet, "/api/submissions"))},
		{check: "auth-required", name: "two slashes", before: respelled(func(u *url.URL) bool {
			return strings.HasPrefix(u.Path, "//")
		})},
		{check: "auth-required", name: "a dot", before: respelled(func(u *url.URL) bool {
			return strings.HasPrefix(u.Path, "/./")
		})},
		{check: "auth-required", name: "capitals", before: respelled(func(u *url.URL) bool {
			return u.Path != strings.ToLower(u.Path)
		})},
		{check: "auth-required", name: "an encoded letter", before: respelled(func(u *url.URL) bool {
			return u.RawPath != "" || strings.Contains(u.EscapedPath(), "%")
		})},
		{check: "auth-required", name: "from an open path", before: respelled(func(u *url.URL) bool {
			return strings.HasPrefix(u.Path, "/healthz/../")
		})},
		{check: "auth-required", name: "a slash at the end", before: respelled(func(u *url.URL) bool {
			return len(u.Path) > 1 && strings.HasSuffix(u.Path, "/")
		})},
		{check: "auth-required", name: "an extension", level: audit.LevelFull, before: func(f *front, r *http.Request) {
			if bare, found := strings.CutSuffix(r.URL.Path, ".json"); found && bare != "/openapi" {
				r.URL.Path = bare
				as(r, f.keys.AdminKey)
			}
		}},
		{check: "auth-wrong-key", name: "as far as it goes", before: becomes(func(f *front, r *http.Request) bool {
			return unknown(f, r) && strings.HasPrefix(f.keys.APIKey, key(r))
		})},
		{check: "auth-wrong-key", name: "any case", before: becomes(func(f *front, r *http.Request) bool {
			return unknown(f, r) && strings.EqualFold(f.keys.APIKey, key(r))
		})},
		{check: "auth-wrong-key", name: "any on stats", before: becomes(func(f *front, r *http.Request) bool {
			return unknown(f, r) && r.URL.Path == "/stats"
		})},
		{check: "auth-wrong-key", name: "a password", before: becomes(func(_ *front, r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Authorization"), "Basic ")
		})},
		{check: "auth-headers", name: "from this machine", before: opens(func(r *http.Request) bool {
			return r.Header.Get("X-Real-Ip") == "127.0.0.1"
		})},
		{check: "auth-headers", name: "a user of the proxy", before: opens(func(r *http.Request) bool {
			return r.Header.Get("X-Remote-User") != ""
		})},
		{check: "auth-headers", name: "a cookie", before: opens(func(r *http.Request) bool {
			return r.Header.Get("Cookie") != ""
		})},
		{check: "auth-headers", name: "another path", before: func(f *front, r *http.Request) {
			if to := r.Header.Get("X-Original-Url"); to != "" {
				r.URL.Path = to
				as(r, f.keys.AdminKey)
			}
		}},
		{check: "auth-challenge", name: "none", after: drop("/requests", "WWW-Authenticate")},
		{check: "auth-challenge", name: "repeats the key", after: func(_ *front, r *http.Request, a *reply) {
			if a.Status == http.StatusUnauthorized {
				a.Body = append(a.Body, key(r)...)
			}
		}},
		{check: "auth-key-in-url", name: "taken", before: func(_ *front, r *http.Request) {
			if token := r.URL.Query().Get("access_token"); token != "" {
				as(r, token)
			}
		}},
		{check: "auth-scopes", name: "metrics", before: becomes(func(f *front, r *http.Request) bool {
			return r.URL.Path == "/metrics" && key(r) == f.keys.APIKey
		})},
		{check: "auth-scopes", name: "HEAD", before: becomes(func(f *front, r *http.Request) bool {
			return on(http.MethodHead, "/stats")(r) && key(r) == f.keys.APIKey
		})},
		{check: "auth-scopes", name: "the second key", before: becomes(func(f *front, r *http.Request) bool {
			return r.URL.Path == "/nodes" && key(r) == f.keys.SecondKey
		})},
		{check: "auth-scopes", name: "two slashes", before: func(f *front, r *http.Request) {
			if r.URL.Path == "//stats" && key(r) == f.keys.APIKey {
				r.URL.Path = "/stats"
				as(r, f.keys.AdminKey)
			}
		}},
	}
}

func tenantDoubles() []double {
	// sees answers the second key as the first, where match says so.
	sees := func(match func(r *http.Request) bool) func(*front, *http.Request) {
		return func(f *front, r *http.Request) {
			if key(r) == f.keys.SecondKey && match(r) {
				r.URL.Path = path.Clean(r.URL.Path)
				as(r, f.keys.APIKey)
			}
		}
	}
	one := func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/requests/") }
	with := func(at, name string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.URL.Path == at && r.URL.Query().Has(name) }
	}
	exists := func(r *http.Request) bool { return one(r) && !strings.Contains(r.URL.Path, "0000000000000000") }
	var submitted atomic.Int64
	return []double{
		{check: "tenant-request", name: "shown", before: sees(one)},
		{check: "tenant-request", name: "HEAD", before: sees(func(r *http.Request) bool {
			return one(r) && r.Method == http.MethodHead
		})},
		{check: "tenant-request", name: "not modified", before: sees(func(r *http.Request) bool {
			return one(r) && r.Header.Get("If-None-Match") != ""
		})},
		{check: "tenant-request", name: "two slashes", before: sees(func(r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, "//requests/")
		})},
		{check: "tenant-request", name: "forbidden", after: func(f *front, r *http.Request, a *reply) {
			if exists(r) && key(r) == f.keys.SecondKey {
				a.Status = http.StatusForbidden
			}
		}},
		{check: "tenant-request", name: "in other words", after: func(f *front, r *http.Request, a *reply) {
			if exists(r) && key(r) == f.keys.SecondKey {
				a.Body = bytes.Replace(a.Body, []byte(`"detail":"`), []byte(`"detail":"Sorry. `), 1)
			}
		}},
		{check: "tenant-list", name: "shown", before: sees(on(http.MethodGet, "/requests"))},
		{check: "tenant-list", name: "by status", before: sees(with("/requests", "status"))},
		{check: "tenant-list", name: "by task", before: sees(with("/requests", "task"))},
		{check: "tenant-list", name: "by time", before: sees(with("/requests", "until"))},
		{check: "tenant-list", name: "by cursor", before: sees(with("/requests", "cursor"))},
		{check: "tenant-list", name: "by offset", before: sees(with("/requests", "offset"))},
		{check: "tenant-list", name: "HEAD", instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			if !on(http.MethodHead, "/requests")(r) {
				return false
			}
			w.Header().Set("Content-Length", "4711") // of somebody's list
			return true
		}},
		{check: "tenant-submissions", name: "shown", before: sees(on(http.MethodGet, "/api/submissions"))},
		{check: "tenant-submissions", name: "by batch", before: sees(with("/api/submissions", "batch_id"))},
		{check: "tenant-submissions", name: "counted", before: func(_ *front, r *http.Request) {
			if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/api/submit") {
				submitted.Add(1)
			}
		}, after: func(_ *front, r *http.Request, a *reply) {
			var page map[string]any
			if r.URL.Path == "/api/submissions" && json.Unmarshal(a.Body, &page) == nil {
				page["total"] = submitted.Load()
				a.Body, _ = json.Marshal(page)
			}
		}},
		{check: "tenant-fairness", name: "one queue for all", level: audit.LevelFull,
			before: sees(func(*http.Request) bool { return true })},
	}
}

func headerDoubles() []double {
	sets := func(at, name, value string) func(*front, *http.Request, *reply) {
		return func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == at {
				a.Header.Set(name, value)
			}
		}
	}
	return []double{
		{check: "headers-nosniff", name: "on one page", after: drop("/problems", "X-Content-Type-Options")},
		{check: "headers-nosniff", name: "on errors", after: func(_ *front, _ *http.Request, a *reply) {
			if a.Status == http.StatusUnauthorized {
				a.Header.Del("X-Content-Type-Options")
			}
		}},
		{check: "headers-no-store", name: "on stats", after: drop("/stats", "Cache-Control")},
		{check: "headers-no-store", name: "public", after: sets("/requests", "Cache-Control", "public, max-age=60")},
		{check: "headers-no-store", name: "on the answer to work", after: drop("/sync", "Cache-Control")},
		{check: "headers-pages", name: "no policy for the first page", after: drop("/", "Content-Security-Policy")},
		{check: "headers-pages", name: "inline scripts",
			after: sets("/redoc", "Content-Security-Policy",
				"default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")},
		{check: "headers-pages", name: "frames", after: func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == "/docs" {
				a.Header.Del("X-Frame-Options")
				a.Header.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'")
			}
		}},
		{check: "headers-pages", name: "a page of the proxy for errors",
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return r.URL.Path == "/audit-no-such-path" &&
					say(w, http.StatusNotFound, "text/html", "<h1>Not found</h1>")
			}},
		{check: "headers-pages", name: "one code of an error", after: drop("/problems/NOT_FOUND", "Referrer-Policy")},
		{check: "headers-banner", name: "of the proxy", after: sets("/metrics", "Server", "nginx/1.18.0")},
		{check: "headers-banner", name: "on errors", after: sets("/audit-no-such-path", "X-Powered-By", "PHP")},
		{check: "headers-security-txt", name: "none", deploy: careless},
		{check: "headers-security-txt", name: "past", after: func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == "/.well-known/security.txt" {
				a.Body = regexp.MustCompile(`Expires: .*`).ReplaceAll(a.Body, []byte("Expires: 2020-01-01T00:00:00Z"))
			}
		}},
	}
}

func corsDoubles() []double {
	shares := func(
		match func(r *http.Request, origin string) bool, allowed string,
	) func(*front, *http.Request, *reply) {
		return func(_ *front, r *http.Request, a *reply) {
			if origin := r.Header.Get("Origin"); origin != "" && match(r, origin) {
				a.Header.Set("Access-Control-Allow-Origin", strings.ReplaceAll(allowed, "?", origin))
				a.Header.Set("Access-Control-Allow-Credentials", "true")
			}
		}
	}
	at := func(path string) func(*http.Request, string) bool {
		return func(r *http.Request, _ string) bool { return r.URL.Path == path && r.Method != http.MethodOptions }
	}
	ofAny := func(match matcher) func(*http.Request, string) bool {
		return func(r *http.Request, _ string) bool { return match(r) }
	}
	// trusts passes on what a browser marked, without the mark.
	trusts := func(match func(r *http.Request) bool) func(*front, *http.Request) {
		return func(_ *front, r *http.Request) {
			if match(r) {
				r.Header.Del("Origin")
				r.Header.Del("Sec-Fetch-Site")
			}
		}
	}
	// renames hides the name that a browser asked for from the deployment.
	renames := func(match matcher) func(*front, *http.Request) {
		return func(_ *front, r *http.Request) {
			if match(r) {
				r.Host = "localhost"
			}
		}
	}
	return []double{
		{check: "cors-origin", name: "any, where data is", after: shares(at("/requests"), "?")},
		{check: "cors-origin", name: "any, on one request",
			after: shares(func(r *http.Request, _ string) bool {
				return strings.HasPrefix(r.URL.Path, "/requests/")
			}, "?")},
		{check: "cors-origin", name: "everybody, on stats", after: shares(at("/stats"), "*")},
		{check: "cors-origin", name: "null",
			after: shares(func(_ *http.Request, origin string) bool { return origin == "null" }, "?")},
		{check: "cors-origin", name: "a name that begins the same",
			after: shares(func(_ *http.Request, origin string) bool {
				return strings.HasPrefix(origin, "http://127.0.0.1")
			}, "?")},
		{check: "cors-origin", name: "a name that ends the same",
			after: shares(func(_ *http.Request, origin string) bool {
				return strings.HasSuffix(origin, "127.0.0.1")
			}, "?")},
		{check: "cors-preflight", name: "on submissions",
			after: shares(ofAny(on(http.MethodOptions, "/api/submit")), "?")},
		{check: "cors-preflight", name: "on the history",
			after: shares(ofAny(on(http.MethodOptions, "/requests")), "?")},
		{check: "cors-cross-site-post", name: "on batches", before: trusts(on(http.MethodPost, "/api/submit/batch"))},
		{check: "cors-cross-site-post", name: "by origin alone", before: trusts(func(r *http.Request) bool {
			return r.Header.Get("Sec-Fetch-Site") == ""
		})},
		{check: "cors-cross-site-post", name: "a neighbour", before: trusts(func(r *http.Request) bool {
			return r.Header.Get("Sec-Fetch-Site") == "same-site"
		})},
		{check: "cors-cross-site-post", name: "null", before: trusts(func(r *http.Request) bool {
			return r.Header.Get("Origin") == "null"
		})},
		{check: "cors-rebinding", name: "the proxy hides the name", deploy: open,
			before: renames(func(*http.Request) bool { return true })},
		{check: "cors-rebinding", name: "on submissions", deploy: open,
			before: renames(on(http.MethodPost, "/api/submit"))},
		{check: "cors-rebinding", name: "a name that begins the same", deploy: open,
			before: renames(func(r *http.Request) bool {
				return strings.HasPrefix(r.Host, "localhost")
			})},
		{check: "cors-rebinding", name: "a page instead of the problem", deploy: open,
			after: func(_ *front, _ *http.Request, a *reply) {
				if a.Status == http.StatusMisdirectedRequest {
					a.Status = http.StatusOK
				}
			}},
		{check: "cors-rebinding", name: "a host that needs no key", before: func(f *front, r *http.Request) {
			if r.Host == "attacker.invalid" {
				as(r, f.keys.APIKey)
			}
		}},
	}
}

func tlsDoubles() []double {
	// secured puts TLS before the proxy.
	secured := func(days int, lowest uint16) func(*testing.T, *audit.Config, http.Handler) {
		return func(t *testing.T, cfg *audit.Config, proxy http.Handler) {
			t.Helper()
			certificate := tandemtest.NewCertificate(t, 1, time.Now().AddDate(0, 0, days))
			web := httptest.NewUnstartedServer(proxy)
			web.TLS = &tls.Config{Certificates: []tls.Certificate{certificate.Certificate}, MinVersion: lowest}
			// Refused handshakes are the point of the test.
			web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			web.StartTLS()
			t.Cleanup(web.Close)
			cfg.URL, cfg.RootCAs = web.URL, certificate.Pool
		}
	}
	return []double{
		// Plain http under a public name.
		{check: "tls-in-use", name: "not", ask: func(_ *testing.T, cfg *audit.Config, _ http.Handler) {
			cfg.Dial = dialTo(strings.TrimPrefix(cfg.URL, "http://"))
			cfg.URL = "http://tandem.example.com"
		}},
		{check: "tls-versions", name: "1.0", ask: secured(90, tls.VersionTLS10)},
		{check: "tls-versions", name: "1.1", ask: secured(90, tls.VersionTLS11)},
		{check: "tls-certificate", name: "three days", ask: secured(3, tls.VersionTLS12)},
		{check: "tls-hsts", name: "none", ask: secured(90, tls.VersionTLS12)},
		{check: "tls-hsts", name: "for a minute", ask: secured(90, tls.VersionTLS12),
			after: func(_ *front, _ *http.Request, a *reply) {
				a.Header.Set("Strict-Transport-Security", "max-age=60")
			}},
	}
}

func limitDoubles() []double {
	reads := func(match func(*http.Request) bool) func(*front, http.ResponseWriter, *http.Request) bool {
		return func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			if !match(r) {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body)
			return say(w, http.StatusUnprocessableEntity, "application/problem+json", `{"code":"VALIDATION_FAILED"}`)
		}
	}
	return []double{
		{check: "limit-announced-body", name: "read", instead: reads(on(http.MethodPost, "/sync"))},
		{check: "limit-announced-body", name: "read on submissions",
			instead: reads(on(http.MethodPost, "/api/submit"))},
		{check: "limit-streamed-body", name: "read", level: audit.LevelFull, instead: reads(func(r *http.Request) bool {
			return r.ContentLength < 0
		})},
		{check: "limit-header", name: "any", headerBytes: 1 << 20, before: func(_ *front, r *http.Request) {
			r.Header.Del("X-Audit")
		}},
		{check: "limit-page", name: "any", before: func(_ *front, r *http.Request) {
			if r.URL.Query().Get("limit") == "100000" {
				r.URL.RawQuery = ""
			}
		}},
		{check: "limit-page", name: "any offset of submissions", before: func(_ *front, r *http.Request) {
			if r.URL.Path == "/api/submissions" && r.URL.Query().Has("offset") {
				r.URL.RawQuery = ""
			}
		}},
		{check: "limit-methods", name: "TRACE", instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodTrace && say(w, http.StatusOK, "message/http", "TRACE")
		}},
		{check: "limit-methods", name: "DELETE of a request",
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/requests/") &&
					say(w, http.StatusOK, "application/json", "{}")
			}},
		{check: "limit-methods", name: "one that nobody knows", before: func(_ *front, r *http.Request) {
			if r.Method == "BREW" {
				r.Method = http.MethodGet
			}
		}},
		{check: "limit-slow-client", name: "waited for", level: audit.LevelFull,
			ask: func(_ *testing.T, cfg *audit.Config, _ http.Handler) {
				cfg.Timeout = 500 * time.Millisecond
			}},
	}
}

func serviceDoubles() []double {
	adds := func(at, text string) func(*front, *http.Request, *reply) {
		return func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == at && a.Status == http.StatusOK {
				a.Body = append([]byte(`{`+text+`,`), bytes.TrimPrefix(a.Body, []byte("{"))...)
			}
		}
	}
	return []double{
		{check: "health-open", name: "not", instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			return r.URL.Path == "/livez" && say(w, http.StatusUnauthorized, "application/problem+json", "{}")
		}},
		{check: "health-details", name: "the database", after: adds("/readyz", `"database":"db1.internal:5432"`)},
		{check: "stats-restricted", name: "metrics", before: func(f *front, r *http.Request) {
			if r.URL.Path == "/metrics" && key(r) == "" {
				as(r, f.keys.AdminKey)
			}
		}},
		{check: "stats-count", name: "kept by the proxy", after: func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == "/stats" {
				a.Body = regexp.MustCompile(`"total_requests":\d+`).ReplaceAll(a.Body, []byte(`"total_requests":7`))
			}
		}},
		{check: "stats-secrets", name: "the database",
			after: adds("/stats", `"database":"postgres://tandem:hunter2@db/tandem"`)},
		{check: "api-document", name: "hides a route", after: func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == "/openapi.json" {
				a.Body = bytes.Replace(a.Body, []byte(`"/stats":`), []byte(`"/other":`), 1)
			}
		}},
	}
}
