package audit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tandem"
)

const mendKeys = "make keys with `tandem keys create`, and do not serve with --no-auth"

func authChecks() []Check {
	return []Check{
		{
			ID: "auth-required", Group: GroupAuth, Title: "Work and history need a key", Level: LevelQuick, Mend: mendKeys,
			Run: checkAuthRequired,
		},
		{
			ID: "auth-wrong-key", Group: GroupAuth, Title: "A wrong key is refused", Level: LevelQuick, Mend: mendKeys,
			Run: checkWrongKeys,
		},
		{
			ID: "auth-challenge", Group: GroupAuth, Title: "A refusal says which scheme is wanted, and no more", Level: LevelQuick, Mend: "upgrade tandem; let the proxy pass 401 on as it is",
			Run: checkChallenge,
		},
		{
			ID: "auth-key-in-url", Group: GroupAuth, Title: "A key in a URL is no key", Level: LevelQuick, Needs: []Need{NeedKey}, Mend: "take the rule out of the proxy that makes a header of it",
			Run: checkKeyInURL,
		},
		{
			ID: "auth-scopes", Group: GroupAuth, Title: "A caller's key does not read the operator's figures", Level: LevelQuick, Needs: []Need{NeedKey}, Mend: "hand out keys without the scope admin",
			Run: checkScopes,
		},
		{
			ID: "callback-signed", Group: GroupAuth, Title: "Callbacks are signed and recent", Level: LevelQuick, Needs: []Need{NeedCaller, NeedReceiver}, Mend: "set the clock (NTP); let no proxy rewrite callbacks",
			Run: checkSigned,
		},
	}
}

// guarded are paths that nobody but a caller may use.
func guarded() []Order {
	return []Order{
		{Path: "/requests?limit=1"}, {Path: "/requests/req_00000000000000000000000000000000"},
		post("/sync", `{}`), post("/async", `{}`),
	}
}

func checkAuthRequired(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, o := range guarded() {
		o.NoKey = true
		a := t.send(ctx, o)
		a.Sent += " without a key"
		v.expect(a, a.Status == http.StatusUnauthorized, "want 401")
	}
	return v.finding()
}

// unknownKey has the form of a key, and is none.
func unknownKey() string { return "tdm_" + rand.Text() + rand.Text() }

func checkWrongKeys(ctx context.Context, t *Target) Finding {
	var v verdict
	wrong := []struct{ name, value string }{
		{"an unknown key", "Bearer " + unknownKey()},
		{"an empty key", "Bearer "},
		{"a password", "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:admin"))},
		{"SQL for a key", "Bearer tdm_' OR '1'='1"},
	}
	if key := t.cfg.APIKey; key != "" {
		last := "A"
		if strings.HasSuffix(key, last) {
			last = "B"
		}
		wrong = append(wrong, []struct{ name, value string }{
			{"the key with another last character", "Bearer " + key[:len(key)-1] + last},
			{"the key cut short", "Bearer " + key[:len(key)-1]},
		}...)
	}
	for _, w := range wrong {
		a := t.send(ctx, Order{Path: "/requests?limit=1", NoKey: true, Header: map[string]string{"Authorization": w.value}})
		a.Sent = "GET /requests with " + w.name
		v.expect(a, a.Status == http.StatusUnauthorized, "want 401")
	}
	return v.finding()
}

func checkChallenge(ctx context.Context, t *Target) Finding {
	var v verdict
	key := unknownKey()
	a := t.send(ctx, Order{Path: "/requests?limit=1", Key: key})
	a.Sent = "GET /requests with an unknown key"
	switch {
	case a.Err == nil && a.Status != http.StatusUnauthorized:
		v.doubtf("%s: keys are not asked for", a)
	case strings.Contains(string(a.Body), key):
		v.expect(a, false, "the answer repeats the key")
	case a.Code() == "":
		v.expect(a, false, "no problem with a code")
	default:
		v.expect(a, strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer"), "no WWW-Authenticate: Bearer")
	}
	return v.finding()
}

func checkKeyInURL(ctx context.Context, t *Target) Finding {
	var v verdict
	if t.open {
		v.doubtf("GET /requests is answered without any key")
		return v.finding()
	}
	for _, name := range []string{"api_key", "key", "access_token", "token"} {
		a := t.send(ctx, Order{Path: "/requests/req_00000000000000000000000000000000?" + name + "=" + url.QueryEscape(t.cfg.APIKey), NoKey: true})
		a.Sent = "GET /requests/{id}?" + name + "=[key]"
		v.expect(a, a.Status == http.StatusUnauthorized, "want 401")
	}
	return v.finding()
}

func checkScopes(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, path := range []string{"/stats", "/metrics", "/api/stats"} {
		a := t.send(ctx, Order{Path: path})
		v.expect(a, a.denied(), "it names hosts and people; want 403")
	}
	return v.finding()
}

func checkSigned(ctx context.Context, t *Target) Finding {
	var v verdict
	h := t.cfg.Receiver.hook(http.StatusOK, "")
	a := t.submit(ctx, t.callback(h))
	if !t.taken(&v, a) {
		return v.finding()
	}
	if h.wait(ctx.Done(), 1, t.cfg.Patience) == 0 {
		v.doubtf("%s: no callback within %v; is --callback-url right?", a, t.cfg.Patience)
		return v.finding()
	}
	got := h.seen()[0]
	header := got.header
	if id := header.Get(tandem.HeaderWebhookID); id == "" || id != a.requestID() {
		v.failf("webhook-id is %q, want %s", oneLine(id), oneLine(a.requestID()))
	}
	seconds, err := strconv.ParseInt(header.Get(tandem.HeaderWebhookTimestamp), 10, 64)
	if off := got.at.Sub(time.Unix(seconds, 0)).Abs(); err != nil || off > tandem.SignatureTolerance {
		v.failf("webhook-timestamp %q is not within %v of our clock", oneLine(header.Get(tandem.HeaderWebhookTimestamp)), tandem.SignatureTolerance)
	}
	signatures := strings.Fields(header.Get(tandem.HeaderWebhookSignature))
	if len(signatures) == 0 {
		v.failf("there is no webhook-signature")
	}
	for _, signature := range signatures {
		encoded, ok := strings.CutPrefix(signature, "v1,")
		mac, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil || len(mac) != 32 {
			v.failf("webhook-signature %q is not v1 and an HMAC-SHA256", oneLine(signature))
		}
	}
	if t.cfg.Secret.IsZero() {
		v.passf("a callback with id, time and signature; the signature itself is not checked without --signing-secret")
	} else if err := t.cfg.Secret.Verify(header, got.body, got.at); err != nil {
		v.failf("the signature is not that of --signing-secret: %v", err)
	} else {
		v.passf("a callback whose signature is that of --signing-secret")
	}
	return v.finding()
}

func tenantChecks() []Check {
	both := []Need{NeedKey, NeedSecondKey}
	const mend = "hand out a key per tenant, without the scope admin"
	return []Check{
		{
			ID: "tenant-request", Group: GroupTenants, Title: "Another's request looks like one that does not exist", Level: LevelQuick, Needs: both, Mend: mend,
			Run: checkForeignRequest,
		},
		{
			ID: "tenant-list", Group: GroupTenants, Title: "Another's requests are in no list", Level: LevelQuick, Needs: both, Mend: mend,
			Run: checkForeignList,
		},
		{
			ID: "tenant-submissions", Group: GroupTenants, Title: "Another's submissions are in no list", Level: LevelQuick, Needs: both, Mend: mend,
			Run: checkForeignSubmissions,
		},
	}
}

// own does a piece of work with the first key, and checks that this key sees it: else nothing
// could be said about the second.
func (t *Target) own(ctx context.Context, v *verdict) (id string, ok bool) {
	a := t.send(ctx, post("/sync", `{"data":{"audit":1},"task":"echo"}`))
	if id = a.requestID(); a.Err != nil || a.Status != http.StatusOK || id == "" {
		v.doubtf("make a request with --api-key: %s", a)
		return "", false
	}
	seen := t.send(ctx, Order{Path: "/requests/" + url.PathEscape(id)})
	if seen.Err != nil || seen.Status != http.StatusOK {
		v.doubtf("its own key does not see it: %s", seen)
		return "", false
	}
	return id, true
}

func checkForeignRequest(ctx context.Context, t *Target) Finding {
	var v verdict
	id, ok := t.own(ctx, &v)
	if !ok {
		return v.finding()
	}
	foreign := t.send(ctx, Order{Path: "/requests/" + url.PathEscape(id), Key: t.cfg.SecondKey})
	v.expect(foreign, foreign.Status == http.StatusNotFound, "want 404")
	unknown := t.send(ctx, Order{Path: "/requests/req_00000000000000000000000000000000", Key: t.cfg.SecondKey})
	same := unknown.Status == foreign.Status && strings.ReplaceAll(refusalText(unknown), "req_00000000000000000000000000000000", id) == refusalText(foreign)
	v.expect(unknown, same, "told apart from another's: "+oneLine(refusalText(foreign)))
	return v.finding()
}

func checkForeignList(ctx context.Context, t *Target) Finding {
	var v verdict
	id, ok := t.own(ctx, &v)
	if !ok {
		return v.finding()
	}
	for _, path := range []string{"/requests?limit=100", "/requests?limit=100&mode=sync&task=echo"} {
		a := t.send(ctx, Order{Path: path, Key: t.cfg.SecondKey})
		if a.Err == nil && a.Status != http.StatusOK {
			v.doubtf("%s with --second-api-key", a)
			continue
		}
		v.expect(a, !strings.Contains(string(a.Body), id), "it lists "+id)
	}
	return v.finding()
}

func checkForeignSubmissions(ctx context.Context, t *Target) Finding {
	var v verdict
	marker := "Audit" + rand.Text()[:10]
	made := t.send(ctx, post("/api/submit", `{"firstName":"`+marker+`","lastName":"Audit"}`))
	if made.Err != nil || made.Status != http.StatusOK {
		v.doubtf("make a submission with --api-key: %s", made)
		return v.finding()
	}
	lists := make(map[string]bool) // :: key → lists it
	for _, key := range []string{t.cfg.APIKey, t.cfg.SecondKey} {
		a := t.send(ctx, Order{Path: "/api/submissions?limit=100", Key: key})
		var page struct {
			Submissions []json.RawMessage `json:"submissions"`
		}
		if a.Err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &page) != nil {
			v.doubtf("%s", a)
			return v.finding()
		}
		lists[key] = strings.Contains(string(a.Body), marker)
	}
	switch {
	case lists[t.cfg.SecondKey]:
		v.failf("GET /api/submissions with --second-api-key lists what --api-key submitted")
	case !lists[t.cfg.APIKey]:
		v.doubtf("GET /api/submissions does not list it for its own key either")
	default:
		v.passf("GET /api/submissions lists it for its own key only")
	}
	return v.finding()
}
