package server_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/engine"
	"tandem/internal/keys"
	"tandem/internal/limit"
	"tandem/internal/server"
	"tandem/internal/store"
)

// withKeys is a service that asks for API keys, and its keys.
func withKeys(t testing.TB, change func(*setup)) (*service, *keys.Keys) {
	t.Helper()
	return withKeysIn(t, filepath.Join(t.TempDir(), "tandem.db"), change)
}

// withKeysIn is withKeys with a database of the test's choice.
func withKeysIn(t testing.TB, url string, change func(*setup)) (*service, *keys.Keys) {
	t.Helper()
	keys, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: url, Create: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	})
	svc := start(t, func(s *setup) {
		s.store.URL, s.server.Keys, s.engine.Keys = url, keys, keys
		if change != nil {
			change(s)
		}
	})
	return svc, keys
}

func newKey(t testing.TB, k *keys.Keys, name string, scopes ...tandem.Scope) keys.Made {
	t.Helper()
	made, err := k.Create(t.Context(), keys.NewKey{Name: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// bearer is the header of a token.
func bearer(made keys.Made) string { return "Authorization: Bearer " + made.Token.Reveal() }

// access is the decision for every route. A new one fails TestAccessOfRoutes until it is here.
// :: scope → routes
var access = map[tandem.Scope][]string{
	"submit": {"POST /sync", "POST /async", "POST /api/submit", "POST /api/submit/batch"},
	"read":   {"GET /requests", "GET /requests/{id}", "GET /api/submissions"},
	"admin":  {"GET /stats", "GET /api/stats", "GET /metrics", "GET /nodes"},
	"": {
		"GET /", "GET /healthz", "GET /livez", "GET /readyz", "GET /health", "GET /.well-known/security.txt",
		"GET /docs", "GET /docs/{file}", "GET /redoc", "GET /openapi.json", "GET /openapi.yaml", "GET /problems",
		"GET /problems/{code}",
		"POST /test-callback", "GET /test-callback/{id}", // demo mode only, where nobody is asked for a key
	},
}

func TestAccessOfRoutes(t *testing.T) {
	t.Parallel()
	got := map[tandem.Scope][]string{}
	for _, rt := range server.Routes(sample(t).API()) {
		got[rt.Scope] = append(got[rt.Scope], rt.Method+" "+rt.Path)
	}
	sorted := cmp.Transformer("sorted", func(list []string) []string { return slices.Sorted(slices.Values(list)) })
	if diff := cmp.Diff(access, got,
		cmp.FilterValues(func(a, b []string) bool { return !slices.IsSorted(a) || !slices.IsSorted(b) },
			sorted)); diff != "" {
		t.Errorf("(-decided +in the table):\n%s", diff)
	}
}

// bodies are what the routes that take one are sent.
var bodies = map[string]string{
	"/sync":             `{"data":{"a":1},"task":"echo"}`,
	"/async":            `{"data":{"a":1},"task":"echo","callback_url":"http://127.0.0.1:1/"}`,
	"/api/submit":       `{"firstName":"Ada","lastName":"Lovelace"}`,
	"/api/submit/batch": `{"submissions":[{"firstName":"Ada","lastName":"Lovelace"}]}`,
	"/test-callback":    `{}`,
}

// TestAccess asks every route, as the table has it, with every kind of key.
func TestAccess(t *testing.T) {
	t.Parallel()
	svc, k := withKeys(t, nil)
	good := newKey(t, k, "all", tandem.Scopes...)
	revoked, rotated := newKey(t, k, "revoked", tandem.Scopes...), newKey(t, k, "rotated", tandem.Scopes...)
	if _, err := k.Revoke(t.Context(), "revoked"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Rotate(t.Context(), "rotated", tandem.NewToken(), 0); err != nil {
		t.Fatal(err)
	}
	expired, err := k.Create(t.Context(), keys.NewKey{Name: "expired", Scopes: tandem.Scopes,
		ExpiresAt: time.Now().Add(50 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	svc.until("a key has expired", func() bool { return !time.Now().Before(expired.Key.ExpiresAt) })
	token := good.Token.Reveal()
	id := requestID(t, svc.do(http.MethodPost, "/sync", bodies["/sync"], bearer(good)))

	const missing, wrong = `Bearer realm="tandem"`, `Bearer realm="tandem", error="invalid_token"`
	for _, c := range []struct {
		name, header, challenge string
		scopes                  []tandem.Scope // nil: nobody's
	}{
		{"no key", "X-Nothing: 1", missing, nil},
		{"an empty header", "Authorization: ", wrong, nil},
		{"no token", "Authorization: Bearer ", wrong, nil},
		{"no scheme", "Authorization: " + token, wrong, nil},
		{"another scheme", "Authorization: Basic " + token, wrong, nil},
		{"two tokens", "Authorization: Bearer " + token + " " + token, wrong, nil},
		{"a token cut short", "Authorization: Bearer " + token[:len(token)-1], wrong, nil},
		{"a token mistyped", "Authorization: Bearer " + strings.ToLower(token), wrong, nil},
		{"SQL", "Authorization: Bearer tdm_' OR '1'='1", wrong, nil},
		{"unknown", "Authorization: Bearer " + tandem.NewToken().Reveal(), wrong, nil},
		{"revoked", bearer(revoked), wrong, nil},
		{"rotated away", bearer(rotated), wrong, nil},
		{"expired", bearer(expired), wrong, nil},
		{"submit", bearer(newKey(t, k, "submit", "submit")), "", []tandem.Scope{"submit"}},
		{"read", bearer(newKey(t, k, "read", "read")), "", []tandem.Scope{"read"}},
		{"admin", bearer(newKey(t, k, "admin", "admin")), "", []tandem.Scope{"admin", "read"}},
		{"all", bearer(good), "", tandem.Scopes},
		{"all, in other letters", "Authorization: bEARER " + token, "", tandem.Scopes},
	} {
		for _, rt := range server.Routes(sample(t).API()) {
			path := strings.NewReplacer("{id}", id, "{code}", "INVALID_JSON", "{file}", "docs.js").Replace(rt.Path)
			headers := []string{c.header, "webhook-id: a"}
			methods := []string{rt.Method}
			if rt.Method == http.MethodGet {
				methods = append(methods, http.MethodHead)
			}
			for _, method := range methods {
				what := fmt.Sprintf("%s %s with %s", method, rt.Path, c.name)
				got := svc.do(method, path, bodies[path], headers...)
				challenge := got.header.Get("Www-Authenticate")
				switch {
				case rt.Scope == "" || slices.Contains(c.scopes, rt.Scope):
					if got.status == http.StatusUnauthorized || got.status == http.StatusForbidden || got.status >= 500 ||
						challenge != "" {
						t.Errorf("%s: %d %q, want it let through", what, got.status, challenge)
					}
				case c.scopes == nil:
					if got.status != http.StatusUnauthorized || challenge != c.challenge {
						t.Errorf("%s: %d %q, want 401 %q", what, got.status, challenge, c.challenge)
					}
				default:
					want := `Bearer realm="tandem", error="insufficient_scope", scope="` + string(rt.Scope) + `"`
					if got.status != http.StatusForbidden || challenge != want {
						t.Errorf("%s: %d %q, want 403 %q", what, got.status, challenge, want)
					}
				}
				if strings.Contains(got.body, token[:20]) {
					t.Errorf("%s: the answer repeats the key", what)
				}
			}
		}
	}
}

// requestID is the request that a sync answer names.
func requestID(t testing.TB, a answer) string {
	t.Helper()
	var reply struct {
		ID string `json:"request_id"`
	}
	a.decode(t, &reply)
	if reply.ID == "" {
		t.Fatalf("no request_id: %d %s", a.status, a.body)
	}
	return reply.ID
}

// TestTenants: a key sees its own, an admin everybody's, and what belongs to another cannot be told
// from what does not exist.
func TestTenants(t *testing.T) {
	t.Parallel()
	svc, k := withKeys(t, nil)
	a, b := newKey(t, k, "a", "submit", "read"), newKey(t, k, "b", "submit", "read")
	admin := newKey(t, k, "admin", "admin")
	own := map[string][]string{} // :: key → its requests
	batches := map[string]string{}
	for _, made := range []keys.Made{a, b} {
		for _, path := range []string{"/sync", "/async"} {
			own[made.Key.ID] = append(own[made.Key.ID], requestID(t, svc.do(http.MethodPost, path, bodies[path], bearer(made))))
		}
		var batch struct {
			ID      string `json:"batch_id"`
			Results []struct {
				ID string `json:"submissionId"` //nolint:tagliatelle // the submissions API is camelCase
			} `json:"results"`
		}
		svc.do(http.MethodPost, "/api/submit/batch", bodies["/api/submit/batch"], bearer(made)).decode(t, &batch)
		batches[made.Key.ID] = batch.ID
		own[made.Key.ID] = append(own[made.Key.ID], batch.Results[0].ID)
	}
	type list struct {
		Total       int               `json:"total"`
		Count       int               `json:"count"`
		Submissions []submissionEntry `json:"submissions"`
	}
	for _, pair := range [][2]keys.Made{{a, b}, {b, a}} {
		me, other := pair[0], pair[1]
		for _, id := range own[other.Key.ID] {
			mine := svc.do(http.MethodGet, "/requests/"+own[me.Key.ID][0], "", bearer(me))
			foreign := svc.do(http.MethodGet, "/requests/"+id, "", bearer(me), "If-None-Match: "+mine.header.Get("Etag"))
			const nobody = "req_00000000000070008000000000000000"
			unknown := svc.do(http.MethodGet, "/requests/"+nobody, "", bearer(me))
			if mine.status != http.StatusOK || foreign.status != http.StatusNotFound {
				t.Errorf("own request %d, another's %d", mine.status, foreign.status)
			}
			if diff := cmp.Diff(strings.ReplaceAll(unknown.body, nobody, id), foreign.body); diff != "" {
				t.Errorf("another's request is told from one that does not exist:\n%s", diff)
			}
			if etag := svc.do(http.MethodGet, "/requests/"+id, "", bearer(me),
				"If-None-Match: *"); etag.status != http.StatusNotFound {
				t.Errorf("with If-None-Match: * another's request is %d", etag.status)
			}
		}
		for _, query := range []string{"", "?limit=1000", "?mode=sync", "?mode=async&task=echo", "?task=submission",
			"?status=completed", "?since=2020-01-01T00:00:00Z"} {
			body := svc.do(http.MethodGet, "/requests"+query, "", bearer(me)).body
			for _, id := range own[other.Key.ID] {
				if strings.Contains(body, id) {
					t.Errorf("GET /requests%s shows another's request", query)
				}
			}
			if strings.Contains(body, other.Key.ID) {
				t.Errorf("GET /requests%s names another's key", query)
			}
		}
		var all, batch, foreign list
		svc.do(http.MethodGet, "/api/submissions", "", bearer(me)).decode(t, &all)
		svc.do(http.MethodGet, "/api/submissions?batch_id="+batches[me.Key.ID], "", bearer(me)).decode(t, &batch)
		svc.do(http.MethodGet, "/api/submissions?batch_id="+batches[other.Key.ID], "", bearer(me)).decode(t, &foreign)
		if all.Total != 1 || all.Count != 1 || batch.Total != 1 || foreign.Total != 0 || foreign.Count != 0 {
			t.Errorf("submissions: %d of %d, in the batch %d, in another's %d", all.Count, all.Total, batch.Total, foreign.Total)
		}
	}
	var everything []tandem.Request
	svc.do(http.MethodGet, "/requests", "", bearer(admin)).decode(t, &everything)
	got := map[string][]string{}
	for _, r := range slices.Backward(everything) {
		got[r.KeyID] = append(got[r.KeyID], r.ID)
	}
	if diff := cmp.Diff(own, got); diff != "" {
		t.Errorf("what an admin sees (-want +got):\n%s", diff)
	}
	for _, id := range own[a.Key.ID] {
		if found := svc.do(http.MethodGet, "/requests/"+id, "", bearer(admin)); found.status != http.StatusOK {
			t.Errorf("an admin sees a request with %d", found.status)
		}
	}
	var total list
	svc.do(http.MethodGet, "/api/submissions", "", bearer(admin)).decode(t, &total)
	if total.Total != 2 || total.Count != 2 {
		t.Errorf("an admin sees %d of %d submissions", total.Count, total.Total)
	}
}

// submissionEntry is what of an entry the tests of access look at.
type submissionEntry struct {
	ID string `json:"submissionId"` //nolint:tagliatelle // the submissions API is camelCase
}

// TestWrongKeysCostTheirAddress: guessing comes to an end, whatever is asked with the guesses, and locks nobody
// out who has a key.
func TestWrongKeysCostTheirAddress(t *testing.T) {
	t.Parallel()
	svc, keys := withKeys(t, func(s *setup) {
		s.server.RateLimit = limit.Quota{Calls: 4, Window: time.Minute}
		s.server.ReadLimit = limit.Quota{Calls: 100, Window: time.Minute}
	})
	good := newKey(t, keys, "good", tandem.Scopes...)
	ask := func(method, path, header string) int { return svc.do(method, path, bodies[path], header).status }
	for n, want := range []int{401, 401, 429} {
		for _, rt := range []struct{ method, path string }{{http.MethodPost, "/sync"}, {http.MethodGet, "/requests"}} {
			if got := ask(rt.method, rt.path, "Authorization: Bearer "+tandem.NewToken().Reveal()); got != want {
				t.Errorf("%s %s, wrong key %d: %d, want %d", rt.method, rt.path, n+1, got, want)
			}
			if got := ask(rt.method, rt.path, "X-Nothing: 1"); got != http.StatusUnauthorized {
				t.Errorf("%s %s, no key: %d", rt.method, rt.path, got)
			}
		}
	}
	for n, want := range []int{200, 200, 200, 200, 429} {
		if got := ask(http.MethodPost, "/sync", bearer(good)); got != want {
			t.Errorf("good key, call %d: %d, want %d", n+1, got, want)
		}
	}
	if got := ask(http.MethodGet, "/requests", bearer(good)); got != http.StatusOK {
		t.Errorf("good key, reading: %d", got)
	}
}

// TestKeysAreIgnoredWithoutAuth: where nobody is asked for a key, whatever is sent changes nothing.
func TestKeysAreIgnoredWithoutAuth(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for _, header := range []string{"X-Nothing: 1", "Authorization: Bearer nonsense", "Authorization: Bearer " +
		tandem.NewToken().Reveal()} {
		for _, path := range []string{"/requests", "/stats", "/metrics"} {
			if got := svc.do(http.MethodGet, path, "", header); got.status != http.StatusOK {
				t.Errorf("GET %s with %s: %d", path, header, got.status)
			}
		}
	}
}

// TestDocumentSaysWhatKeysAreFor: security of every operation, from the same table.
func TestDocumentSaysWhatKeysAreFor(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	var doc struct {
		Paths map[string]map[string]struct {
			Security  []map[string][]string     `json:"security"`
			Responses map[string]map[string]any `json:"responses"`
		} `json:"paths"`
	}
	svc.get("/openapi.json").decode(t, &doc)
	for _, rt := range server.Routes(sample(t).API()) {
		if rt.ID == "" {
			continue
		}
		op := doc.Paths[rt.Path][strings.ToLower(rt.Method)]
		want := []map[string][]string{}
		if rt.Scope != "" {
			want = []map[string][]string{{"api_key": {string(rt.Scope)}}}
		}
		if diff := cmp.Diff(want, op.Security); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", rt.Method, rt.Path, diff)
		}
		if (op.Responses["401"] != nil) != (rt.Scope != "") || rt.Scope != "" && op.Responses["403"] == nil {
			t.Errorf("%s %s: its answers do not fit its scope %q", rt.Method, rt.Path, rt.Scope)
		}
	}
}

// TestCallbacksAreSignedForTheirKey: with its secret, with both during an overlap, and when it is revoked as well.
func TestCallbacksAreSignedForTheirKey(t *testing.T) {
	t.Parallel()
	type arrival struct {
		header http.Header
		body   []byte
	}
	arrivals := make(chan arrival, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		arrivals <- arrival{r.Header, body}
	}))
	t.Cleanup(receiver.Close)
	deployment := tandem.NewSecret()
	svc, keys := withKeys(t, func(s *setup) { s.engine.Secrets = []tandem.Secret{deployment} })
	a, b := newKey(t, keys, "a", "submit"), newKey(t, keys, "b", "submit")
	// verified lists which secrets verify the callback of an order of a key.
	all := map[string]tandem.Secret{"deployment": deployment, "a": a.Secret, "b": b.Secret}
	verified := func(key string) (good []string, signatures int) {
		t.Helper()
		_, err := svc.engine.Submit(t.Context(),
			engine.Order{Task: "echo", Data: []byte(`{"a":1}`), Complexity: 1, CallbackURL: receiver.URL, KeyID: key})
		if err != nil {
			t.Fatal(err)
		}
		var got arrival
		select {
		case got = <-arrivals:
		case <-time.After(patience):
			t.Fatal("no callback")
		}
		for name, secret := range all {
			if secret.Verify(got.header, got.body, time.Now()) == nil {
				good = append(good, name)
			}
		}
		slices.Sort(good)
		return good, len(strings.Fields(got.header.Get(tandem.HeaderWebhookSignature)))
	}
	check := func(what, key string, want ...string) {
		t.Helper()
		if good, n := verified(key); !slices.Equal(good, want) || n != len(want) {
			t.Errorf("%s: %d signatures, verified by %v, want %v", what, n, good, want)
		}
	}
	check("no key", "", "deployment")
	check("a key that is gone", "key_gone", "deployment")
	check("a", a.Key.ID, "a")
	check("b", b.Key.ID, "b")
	var err error
	all["a2"], all["b2"] = tandem.NewSecret(), tandem.NewSecret()
	if _, err = keys.RotateSigning(t.Context(), "a", all["a2"], time.Hour); err != nil {
		t.Fatal(err)
	}
	check("a, rotated with an overlap", a.Key.ID, "a", "a2")
	if _, err := keys.Revoke(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	check("a, revoked", a.Key.ID, "a", "a2")
	if _, err = keys.RotateSigning(t.Context(), "b", all["b2"], 0); err != nil {
		t.Fatal(err)
	}
	check("b, rotated at once", b.Key.ID, "b2")
}

// BenchmarkAuth is what the key costs of a request that does next to nothing.
func BenchmarkAuth(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("keys=%t", with), func(b *testing.B) {
			svc, keys := withKeys(b, func(s *setup) {
				if !with {
					s.server.Keys = nil
				}
			})
			header := "Bearer " + newKey(b, keys, "a", "read").Token.Reveal()
			const unknown = "/requests/nobody" // answered without a look at the database
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodGet, unknown, nil)
				r.Header.Set("Authorization", header)
				svc.Config.Handler.ServeHTTP(w, r)
				if w.Code != http.StatusNotFound {
					b.Fatal(w.Code)
				}
			}
		})
	}
}
