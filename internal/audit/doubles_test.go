package audit_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/audit"
)

// double is a deployment with one thing broken, and the check that must find it.
type double struct {
	check, name string

	// How it is broken: by its configuration, by what stands between it and its receivers, or by a proxy before
	// it that changes a request, changes an answer, or answers itself.
	deploy  *variant // plain
	receive func(http.Handler) http.Handler
	before  func(f *front, r *http.Request)
	after   func(f *front, r *http.Request, a *reply)
	instead func(f *front, w http.ResponseWriter, r *http.Request) bool

	headerBytes int // bytes of header that the proxy reads; 0: as many as net/http does
	level       audit.Level
	ask         func(t *testing.T, cfg *audit.Config, proxy http.Handler) // the last word about what is asked
}

// TestBrokenDeployments: each of them fails the check that is meant for it, and every check has one.
func TestBrokenDeployments(t *testing.T) {
	t.Parallel()
	all := slices.Concat(
		rateDoubles(), ssrfDoubles(), callbackDoubles(), inputDoubles(), errorDoubles(), authDoubles(), tenantDoubles(),
		headerDoubles(), corsDoubles(), tlsDoubles(),
		limitDoubles(), serviceDoubles(),
	)
	if len(all) < 60 {
		t.Errorf("%d broken deployments, want at least 60", len(all))
	}
	for _, check := range audit.Checks() {
		if !slices.ContainsFunc(all, func(d double) bool { return d.check == check.ID }) {
			t.Errorf("no broken deployment is meant for %s", check.ID)
		}
	}
	for _, d := range all {
		t.Run(d.check+"/"+d.name, func(t *testing.T) {
			t.Parallel()
			got := auditDouble(t, d)
			if got.Outcome != audit.Fail {
				t.Errorf("%s, want fail\n%s", got.Outcome, strings.Join(got.Evidence, "\n"))
			}
		})
	}
}

// auditDouble runs the check that is meant for a broken deployment.
func auditDouble(t *testing.T, d double) audit.Entry {
	t.Helper()
	if d.deploy == nil {
		d.deploy = plain
	}
	if d.receive == nil {
		d.receive = func(receiver http.Handler) http.Handler { return receiver }
	}
	whole := d.deploy.start()
	cfg := whole.askBehind(t, "", d.receive)
	cfg.Only, cfg.Level = []string{d.check}, d.level
	var proxy http.Handler
	cfg.URL, proxy = startFront(t, d, whole.URL, cfg)
	if d.ask != nil {
		d.ask(t, &cfg, proxy)
	}
	return onlyEntry(t, cfg)
}

func onlyEntry(t *testing.T, cfg audit.Config) audit.Entry {
	t.Helper()
	report, err := audit.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 1 {
		t.Fatalf("%d findings, want 1", len(report.Findings))
	}
	return report.Findings[0]
}

func rateDoubles() []double {
	problem := func(w http.ResponseWriter, name string) bool {
		w.Header().Set("RateLimit-Policy", `"`+name+`";q=40;w=60`)
		w.Header().Set("RateLimit", `"`+name+`";r=39;t=60`)
		return say(w, http.StatusUnprocessableEntity, "application/problem+json", `{"code":"VALIDATION_FAILED"}`)
	}
	free := func(match func(*http.Request) bool) func(*front, http.ResponseWriter, *http.Request) bool {
		return func(_ *front, w http.ResponseWriter, r *http.Request) bool { return match(r) && problem(w, "post") }
	}
	return []double{
		{check: "rate-limit-announced", name: "headers are dropped", after: drop("/sync", "RateLimit")},
		{check: "rate-limit-reads", name: "no limit", deploy: careless},
		{
			check: "rate-limit-forwarded-for", name: "a name of one's own",
			instead: free(func(r *http.Request) bool { return r.Header.Get("X-Forwarded-For") != "" }),
		},
		{
			check: "rate-limit-batch", name: "counts as one", level: audit.LevelFull,
			before: func(_ *front, r *http.Request) {
				if r.URL.Path == "/api/submit/batch" {
					setBody(r, `{"submissions":[{"firstName":"Audit","lastName":"Audit"}]}`)
				}
			},
		},
		{
			check: "rate-limit-wrong-key", name: "guesses are free", level: audit.LevelFull,
			instead: func(f *front, w http.ResponseWriter, r *http.Request) bool {
				known := key(r) == "" ||
					slices.Contains([]string{f.keys.APIKey, f.keys.SecondKey, f.keys.AdminKey}, key(r))
				return !known && say(w, http.StatusUnauthorized, "application/problem+json", `{"code":"UNAUTHORIZED"}`)
			},
		},
		{check: "rate-limit-enforced", name: "no limit", deploy: careless},
		{check: "rate-limit-enforced", name: "no Retry-After", deploy: tight, after: drop("/sync", "Retry-After")},
		{check: "rate-limit-enforced", name: "a page of the proxy", deploy: tight,
			after: func(_ *front, _ *http.Request, a *reply) {
				if a.Status == http.StatusTooManyRequests {
					a.Body = []byte("<h1>429</h1>")
				}
			}},
		{check: "rate-limit-enforced", name: "not on async", deploy: tight,
			instead: free(on(http.MethodPost, "/async"))},
		{check: "rate-limit-enforced", name: "not on batches", deploy: tight,
			instead: free(on(http.MethodPost, "/api/submit/batch"))},
		{check: "rate-limit-enforced", name: "not for two slashes", deploy: tight,
			instead: free(on(http.MethodPost, "//sync"))},
		{check: "rate-limit-enforced", name: "not for another program", deploy: tight,
			instead: free(func(r *http.Request) bool { return r.UserAgent() == "another" })},
		{check: "rate-limit-reads-enforced", name: "announced only", deploy: tight,
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return strings.HasPrefix(r.URL.Path, "/requests/") && problem(w, "get")
			}},
		{check: "rate-limit-reads-enforced", name: "not for HEAD", deploy: tight,
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return r.Method == http.MethodHead && say(w, http.StatusOK, "application/json", "")
			}},
		{check: "rate-limit-reads-enforced", name: "not on submissions", deploy: tight,
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return r.URL.Path == "/api/submissions" && say(w, http.StatusOK, "application/json", "{}")
			}},
	}
}

// takes is a deployment that accepts a callback URL that it must refuse: it passes on one of the receiver instead.
func takes(parts ...string) func(*front, *http.Request) {
	return func(f *front, r *http.Request) {
		if address := callbackOf(r); slices.ContainsFunc(parts, func(part string) bool {
			return strings.Contains(address, part)
		}) {
			setBody(r, `{"data":{"audit":1},"task":"echo","callback_url":"`+f.keys.CallbackURL+`/nobody"}`)
		}
	}
}

// calls is a deployment that calls what it says it refuses: whatever leads here, read as the C library reads it.
func calls(parts ...string) func(*front, http.ResponseWriter, *http.Request) bool {
	return func(_ *front, _ http.ResponseWriter, r *http.Request) bool {
		address, err := url.Parse(callbackOf(r))
		if err == nil && slices.ContainsFunc(parts, func(part string) bool {
			return strings.Contains(address.Host, part)
		}) {
			post("http://127.0.0.1:" + address.Port() + address.Path)
		}
		return false
	}
}

// post calls an address and drops the answer.
func post(address string) {
	if answer, err := http.Post(address, "application/json", strings.NewReader("{}")); err == nil {
		answer.Body.Close()
	}
}

func ssrfDoubles() []double {
	wordy := func(_ *front, r *http.Request) { r.Header.Set("X-Double", callbackOf(r)) }
	return []double{
		{check: "ssrf-metadata", name: "AWS", before: takes("169.254.169.254")},
		{check: "ssrf-metadata", name: "AWS in IPv6", before: takes("[fd00:ec2::254]")},
		{check: "ssrf-metadata", name: "Google by name", before: takes("metadata.google.internal")},
		{check: "ssrf-metadata", name: "Azure behind 6to4", before: takes("[2002:a83f:8110:")},
		{check: "ssrf-metadata", name: "Alibaba behind NAT64", before: takes("[64:ff9b::6464:64c8]")},
		{check: "ssrf-metadata", name: "Oracle mapped", before: takes("[::ffff:c000:00c0]")},
		{check: "ssrf-notation", name: "metadata in decimal", before: takes("2852039166")},
		{check: "ssrf-private", name: "ten", before: takes("//10.")},
		{check: "ssrf-private", name: "shared address space", before: takes("//100.")},
		{check: "ssrf-private", name: "unique local", before: takes("//[fd")},
		{check: "ssrf-private", name: "localhost", before: takes("//localhost")},
		{check: "ssrf-notation", name: "decimal", before: takes("2130706433")},
		{check: "ssrf-notation", name: "a user", before: takes("@")},
		{check: "ssrf-notation", name: "another scheme", before: takes("file:")},
		{check: "ssrf-port", name: "SSH", before: takes(":22/")},
		{check: "ssrf-port", name: "ports that are drawn", before: func(f *front, r *http.Request) {
			if regexp.MustCompile(`:[1-6]\d{4}/$`).MatchString(callbackOf(r)) {
				takes("audit.invalid")(f, r)
			}
		}},
		{check: "ssrf-arrival", name: "decimal", instead: calls("2130706433")},
		{check: "ssrf-arrival", name: "hexadecimal", instead: calls("0x7f")},
		{check: "ssrf-arrival", name: "localhost", instead: calls("localhost")},
		{check: "ssrf-arrival", name: "IPv6", instead: calls("[::1]")},
		{check: "ssrf-arrival", name: "another port",
			instead: func(f *front, _ http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(callbackOf(r), f.keys.OtherURL) {
					post(callbackOf(r))
				}
				return false
			}},
		{check: "ssrf-arrival", name: "and takes it", before: func(f *front, r *http.Request) {
			if address, err := url.Parse(callbackOf(r)); err == nil && address.Hostname() == "127.1" {
				setBody(r, `{"data":{"audit":1},"task":"echo","callback_url":"`+f.keys.CallbackURL+address.Path+`"}`)
			}
		}},
		{check: "ssrf-redirect", name: "followed",
			instead: func(_ *front, _ http.ResponseWriter, r *http.Request) bool {
				post(callbackOf(r))
				return false
			}},
		{check: "ssrf-own-address", name: "called", before: func(f *front, r *http.Request) {
			if strings.HasSuffix(callbackOf(r), "/healthz") {
				takes("/healthz")(f, r)
			}
		}},
		{check: "ssrf-oracle", name: "names what it is", before: wordy,
			after: func(_ *front, r *http.Request, a *reply) {
				if a.Status == http.StatusBadRequest && strings.Contains(r.Header.Get("X-Double"), "169.254") {
					a.Body = bytes.Replace(a.Body, []byte("callback_url is"), []byte("this metadata address is"), 1)
				}
			}},
		{check: "ssrf-oracle", name: "another code", before: wordy, after: func(_ *front, r *http.Request, a *reply) {
			if strings.Contains(r.Header.Get("X-Double"), "10.255") {
				a.Body = bytes.ReplaceAll(a.Body, []byte("CALLBACK_BLOCKED"), []byte("INVALID_CALLBACK_URL"))
			}
		}},
	}
}

// mangled is a way to the receiver on which something changes callbacks.
func mangled(change func(*http.Request)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			change(r)
			next.ServeHTTP(w, r)
		})
	}
}

func callbackDoubles() []double {
	return []double{
		{check: "callback-signed", name: "no signature", receive: mangled(func(r *http.Request) {
			r.Header.Del(tandem.HeaderWebhookSignature)
		})},
		{check: "callback-signed", name: "another body", receive: mangled(func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("{}"))
		})},
		{check: "callback-signed", name: "an old time", receive: mangled(func(r *http.Request) {
			r.Header.Set(tandem.HeaderWebhookTimestamp, "1600000000")
		})},
		{check: "callback-signed", name: "another id", receive: mangled(func(r *http.Request) {
			r.Header.Set(tandem.HeaderWebhookID, "req_1")
		})},
		{check: "callback-signed", name: "another secret", ask: func(_ *testing.T, cfg *audit.Config, _ http.Handler) {
			cfg.Secret = tandem.NewSecret()
		}},
		{
			check: "breaker-opens", name: "never", level: audit.LevelFull,
			deploy: tireless,
		},
		{
			check: "breaker-opens", name: "holding back costs attempts", level: audit.LevelFull,
			after: func(_ *front, _ *http.Request, a *reply) {
				if bytes.Contains(a.Body, []byte(`"attempts":[]`)) &&
					bytes.Contains(a.Body, []byte(`"status":"completed"`)) {
					a.Body = bytes.Replace(a.Body, []byte(`"callback_attempts":0`), []byte(`"callback_attempts":1`), 1)
				}
			},
		},
	}
}

func inputDoubles() []double {
	// lenient makes an order that is good of one that holds something bad.
	lenient := func(bad string) func(*front, *http.Request) {
		return func(_ *front, r *http.Request) {
			if r.Method == http.MethodPost && strings.Contains(bodyOf(r), bad) {
				setBody(r, `{"data":{"a":1},"task":"echo"}`)
			}
		}
	}
	// loose takes a media type for JSON.
	loose := func(at, media string) func(*front, *http.Request) {
		return func(_ *front, r *http.Request) {
			if r.URL.Path == at && strings.HasPrefix(r.Header.Get("Content-Type"), media) {
				r.Header.Set("Content-Type", "application/json")
			}
		}
	}
	// forgetful drops a parameter of the query.
	forgetful := func(at, name, value string) func(*front, *http.Request) {
		return func(_ *front, r *http.Request) {
			if query := r.URL.Query(); r.URL.Path == at && strings.Contains(query.Get(name), value) {
				query.Del(name)
				r.URL.RawQuery = query.Encode()
			}
		}
	}
	// serves has something at a path that is none of tandem's.
	serves := func(at string) func(*front, http.ResponseWriter, *http.Request) bool {
		return func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, at) && say(w, http.StatusOK, "text/plain", "secret")
		}
	}
	return []double{
		{check: "input-json", name: "text behind it", before: lenient(`}}}`)},
		{check: "input-json", name: "not a number", before: lenient("NaN")},
		{check: "input-json", name: "bad UTF-8", before: lenient("\xff")},
		{check: "input-duplicate-names", name: "in the order", before: lenient(`"task":"compute"`)},
		{check: "input-duplicate-names", name: "in data", before: lenient(`"a":2`)},
		{check: "input-depth", name: "any", before: lenient("[[[[")},
		{check: "input-types", name: "any task", before: lenient("rm -rf")},
		{check: "input-types", name: "any complexity", before: lenient(`:11`)},
		{check: "input-media-type", name: "text on submissions", before: loose("/api/submit", "text/plain")},
		{check: "input-media-type", name: "a form on async",
			before: loose("/async", "application/x-www-form-urlencoded")},
		{check: "input-media-type", name: "a form on batches",
			before: loose("/api/submit/batch", "multipart/form-data")},
		{check: "input-query", name: "an unknown filter", before: forgetful("/api/submissions", "no-such-filter", "")},
		{check: "input-query", name: "a bad time", before: forgetful("/requests", "since", "yesterday")},
		{check: "input-query", name: "a cursor that is none", before: forgetful("/requests", "cursor", "nonsense")},
		{check: "input-path", name: "pprof", instead: serves("/debug/pprof/")},
		{check: "input-path", name: "vars behind two slashes", instead: serves("//debug/vars")},
		{check: "input-path", name: "a repository", instead: serves("/.git/HEAD")},
		{check: "input-path", name: "the database", instead: serves("/tandem.db")},
		{check: "input-path", name: "its journal", instead: serves("/tandem.db-wal")},
		{check: "input-path", name: "the environment", instead: serves("/.env")},
		{check: "input-path", name: "the machine",
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return strings.HasSuffix(r.URL.Path, "/etc/passwd") && say(w, http.StatusOK, "text/plain", "root:x:0:0")
			}},
		{check: "input-injection", name: "in a filter", before: forgetful("/requests", "task", "OR")},
		{check: "input-injection", name: "in a batch", before: forgetful("/api/submissions", "batch_id", "UNION")},
	}
}

func errorDoubles() []double {
	// adds writes something into answers of one status.
	adds := func(status int, text string) func(*front, *http.Request, *reply) {
		return func(_ *front, _ *http.Request, a *reply) {
			if a.Status == status {
				a.Body = bytes.Replace(a.Body, []byte(`"detail":"`), []byte(`"detail":"`+text), 1)
			}
		}
	}
	shows := func(at, text string) func(*front, *http.Request, *reply) {
		return func(_ *front, r *http.Request, a *reply) {
			if r.URL.Path == at && a.Status == http.StatusOK {
				a.Body = append(a.Body, text...)
			}
		}
	}
	fails := func(at, part string) func(*front, http.ResponseWriter, *http.Request) bool {
		return func(_ *front, w http.ResponseWriter, r *http.Request) bool {
			return r.URL.Path == at && strings.Contains(r.URL.RawQuery, part) &&
				say(w, http.StatusInternalServerError, "application/problem+json", `{"code":"INTERNAL"}`)
		}
	}
	return []double{
		{check: "error-problems", name: "pages of the proxy", after: func(_ *front, _ *http.Request, a *reply) {
			if a.Status == http.StatusNotFound {
				a.Header.Set("Content-Type", "text/html")
			}
		}},
		{check: "error-problems", name: "no code", after: func(_ *front, _ *http.Request, a *reply) {
			a.Body = bytes.Replace(a.Body, []byte(`"code":"INVALID_JSON"`), []byte(`"kode":""`), 1)
		}},
		{check: "error-problems", name: "no Allow", after: drop("/sync", "Allow")},
		{check: "error-markup", name: "the path in a page",
			instead: func(_ *front, w http.ResponseWriter, r *http.Request) bool {
				return strings.Contains(r.URL.Path, "<script>") &&
					say(w, http.StatusNotFound, "text/html", "no "+r.URL.Path)
			}},
		{check: "error-request-id", name: "comes back", after: func(_ *front, r *http.Request, a *reply) {
			a.Header.Set("X-Request-ID", r.Header.Get("X-Request-ID"))
		}},
		{check: "error-5xx", name: "a null byte in a filter", instead: fails("/requests", "task=%00")},
		{check: "error-5xx", name: "bad UTF-8 in a batch", instead: fails("/api/submissions", "batch_id=%ff")},
		{check: "error-5xx", name: "a cursor", instead: fails("/requests", "cursor=-1")},
		{check: "error-internals", name: "a stack",
			after: adds(http.StatusUnprocessableEntity, "goroutine 7 [running] ")},
		{check: "error-internals", name: "SQL", after: adds(http.StatusNotFound, "SQLSTATE 42P01 ")},
		{check: "error-addresses", name: "of the database", after: adds(http.StatusNotFound, "dial 10.3.0.7:5432 ")},
		{check: "error-addresses", name: "of the upstream",
			after: adds(http.StatusUnauthorized, "upstream [fd00:1::7]:8000 ")},
		{check: "error-addresses", name: "of a receiver", after: func(_ *front, _ *http.Request, a *reply) {
			a.Body = bytes.Replace(a.Body, []byte(`"error":"`), []byte(`"error":"dial tcp 10.1.2.3:80: `), 1)
		}},
		{check: "error-secrets", name: "a signing secret in the history",
			after: shows("/requests", `"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"`)},
		{check: "error-secrets", name: "a key in a list of nodes",
			after: shows("/nodes", `"tdm_`+strings.Repeat("a", 40)+`"`)},
		{check: "error-secrets", name: "a password in a page",
			after: shows("/docs", "postgres://tandem:hunter2@db/tandem")},
		{check: "error-secrets", name: "a key in a header", after: func(_ *front, r *http.Request, a *reply) {
			a.Header.Set("X-Caller", key(r))
		}},
	}
}

// matcher picks requests.
type matcher = func(*http.Request) bool

// on picks those of one method and path.
func on(method, path string) matcher {
	return func(r *http.Request) bool { return r.Method == method && r.URL.Path == path }
}

// drop takes a header off the answers of one path.
func drop(path, name string) func(*front, *http.Request, *reply) {
	return func(_ *front, r *http.Request, a *reply) {
		if r.URL.Path == path {
			a.Header.Del(name)
		}
	}
}

// bodyOf is what a request carries, which can still be read afterwards; one without a length is left alone.
func bodyOf(r *http.Request) string {
	if r.Body == nil || r.ContentLength < 0 {
		return ""
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	setBody(r, string(text))
	return string(text)
}

func setBody(r *http.Request, text string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	r.Header.Del("Content-Length")
}

// callbackOf is the callback URL in an order; "" if there is none.
func callbackOf(r *http.Request) string {
	var order struct {
		CallbackURL string `json:"callback_url"`
	}
	if r.Method != http.MethodPost || r.URL.Path != "/async" || json.Unmarshal([]byte(bodyOf(r)), &order) != nil {
		return ""
	}
	return order.CallbackURL
}
