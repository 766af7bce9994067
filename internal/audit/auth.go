package audit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem"
)

// What to do about findings that several checks share.
const (
	fixKeys  = "make keys with `tandem keys create`, and serve without --no-auth"
	fixShown = "replace what was shown with `tandem keys rotate` and `tandem keys rotate-signing`, " +
		"and report it as SECURITY.md says"
	fixReport = "no flag of tandem allows this: look at what stands before it, else report it as SECURITY.md says"
)

func authChecks() []Check {
	return []Check{
		{
			ID: "auth-required", Group: GroupAuth,
			Title: "Every route but those for everybody needs a key",
			Level: LevelQuick,
			Remediation: fixKeys + "; if only another spelling of a path gets through, " +
				"the proxy and tandem read it differently: let the proxy pass paths on as they are",
			Run: checkAuthRequired,
		},
		{
			ID: "auth-wrong-key", Group: GroupAuth,
			Title: "A wrong key is refused",
			Level: LevelQuick, Remediation: fixKeys, Run: checkWrongKeys,
		},
		{
			ID: "auth-headers", Group: GroupAuth, Title: "No header stands in for a key", Level: LevelQuick,
			Remediation: "take the rule out of the proxy that believes this header; " +
				"have it remove X-Original-URL, X-Rewrite-URL and X-HTTP-Method-Override",
			Run: checkHeadersForKeys,
		},
		{
			ID: "auth-challenge", Group: GroupAuth,
			Title:       "A refusal says which scheme is wanted, and no more",
			Level:       LevelQuick,
			Remediation: "let the proxy pass 401 and WWW-Authenticate on as they are", Run: checkChallenge,
		},
		{
			ID: "auth-key-in-url", Group: GroupAuth,
			Title: "A key in a URL is no key",
			Level: LevelQuick, Needs: []Need{NeedKey},
			Remediation: "take the rule out of the proxy that makes a header of it", Run: checkKeyInURL,
		},
		{
			ID: "auth-scopes", Group: GroupAuth,
			Title: "A caller's key does not read what is the operator's",
			Level: LevelQuick, Needs: []Need{NeedKey},
			Remediation: "issue keys without the scope admin (`tandem keys create --scopes submit,read`)",
			Run:         checkScopes,
		},
		{
			ID: "callback-signed", Group: GroupAuth,
			Title: "Callbacks are signed and recent",
			Level: LevelQuick, Needs: []Need{NeedCaller, NeedReceiver},
			Remediation: "set the clock (NTP); let no proxy rewrite callbacks; " +
				"give the audit the --signing-secret of its key",
			Run: checkSigned,
		},
	}
}

// elsewhere reports whether an answer to another spelling of a path says that nothing is there, or redirects to
// the usual spelling, which is asked for itself.
func elsewhere(a Answer) bool {
	return a.denied() || a.Status == http.StatusBadRequest || a.Status == http.StatusMethodNotAllowed ||
		a.Status == http.StatusNotImplemented ||
		a.Status >= 300 && a.Status < 400 && a.Status != http.StatusNotModified
}

// turnedAway judges an answer to a caller who may not, for the usual spelling of a path or another.
func (v *verdict) turnedAway(a Answer, usual bool) {
	if a.Err == nil && a.Status >= http.StatusInternalServerError && a.Status != http.StatusNotImplemented {
		v.doubtf("%s", a)
		return
	}
	v.expect(a, a.denied() || !usual && elsewhere(a), "want 401")
}

// checkAuthRequired asks without a key for everything that needs one, in every spelling.
func checkAuthRequired(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.guarded() {
		o := op.ask(t.ownID(ctx))
		o.NoKey = true
		for i, path := range slices.Concat([]string{o.Path}, t.spellings(o.Path)) {
			o.Path = path
			a := t.send(ctx, o)
			a.Sent += " without a key"
			v.turnedAway(a, i == 0)
		}
		if len(v.failed) > 2*mostShown {
			break
		}
	}
	return v.finding()
}

// unknownKey has the form of a key, and is none.
func unknownKey() string { return "tdm_" + rand.Text() + rand.Text() }

// checkWrongKeys tries keys that are nearly right on one route, and one that nobody has on every route.
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
			{"the key in other case", "Bearer " + swapCase(key)},
		}...)
	}
	for _, w := range wrong {
		a := t.send(ctx, Order{Path: "/requests?limit=1", NoKey: true, Header: map[string]string{"Authorization": w.value}})
		a.Sent = "GET /requests with " + w.name
		v.expect(a, a.Status == http.StatusUnauthorized, "want 401")
	}
	for _, op := range t.guarded() {
		if op.Method == http.MethodHead {
			continue // each costs our address a POST
		}
		o := op.ask(unknownID)
		o.Key = unknownKey()
		a := t.send(ctx, o)
		a.Sent = op.Method + " " + o.Path + " with an unknown key"
		v.expect(a, a.denied(), "want 401")
	}
	return v.finding()
}

// swapCase turns small letters into capitals and the other way round; the prefix of a key is left as it is.
func swapCase(key string) string {
	prefix, rest := key[:min(len(key), 4)], key[min(len(key), 4):]
	return prefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return r
		}
	}, rest)
}

// checkHeadersForKeys sends what proxies and applications behind them have believed: where a request comes from,
// who sends it, and where it really goes.
func checkHeadersForKeys(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, header := range []map[string]string{
		{"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1",
			"True-Client-IP": "127.0.0.1"},
		{"X-Forwarded-Host": "localhost", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "443"},
		{"X-Forwarded-User": "admin", "X-Remote-User": "admin", "Remote-User": "admin", "X-Authenticated-User": "admin",
			"X-Admin": "true"},
		{"X-HTTP-Method-Override": "OPTIONS", "X-Method-Override": "OPTIONS"},
		{"Cookie": "session=admin; auth=1"},
	} {
		for _, path := range []string{"/requests?limit=1", "/stats"} {
			a := t.send(ctx, Order{Path: path, NoKey: true, Header: header})
			v.expect(a, a.denied(), "want 401")
		}
	}
	plain := t.send(ctx, Order{Path: "/livez", NoKey: true})
	for _, to := range []string{"/requests", "/stats"} {
		for _, name := range []string{"X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri"} {
			a := t.send(ctx, Order{Path: "/livez", NoKey: true, Header: map[string]string{name: to}})
			same := a.Status == plain.Status && a.Header.Get("Content-Type") == plain.Header.Get("Content-Type") &&
				len(a.Body) == len(plain.Body)
			v.expect(a, same, "another answer than without the header")
		}
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

// checkScopes asks with callers' keys for what is the operator's, in every spelling.
func checkScopes(ctx context.Context, t *Target) Finding {
	var v verdict
	for _, op := range t.guarded() {
		if !op.admin() {
			continue
		}
		o := op.ask(unknownID)
		usual := o.Path
		for i, path := range slices.Concat([]string{usual}, t.spellings(usual)) {
			o.Path = path
			v.turnedAway(t.send(ctx, o), i == 0)
		}
		if t.cfg.SecondKey != "" {
			o.Path, o.Key = usual, t.cfg.SecondKey
			a := t.send(ctx, o)
			a.Sent += " with --second-api-key"
			v.turnedAway(a, true)
		}
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
	if h.wait(ctx.Done(), t.cfg.Patience) == 0 {
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
