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

// elsewhere reports whether an answer to another spelling of a path denies its existence, or redirects to the usual
// spelling (with a probe of its own).
func (a answer) elsewhere() bool {
	return a.denied() || slices.Contains([]int{
		http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented,
	}, a.Status) || a.Status >= 300 && a.Status < 400 && a.Status != http.StatusNotModified
}

// denied judges an answer to a caller without permission, for the usual spelling of a path or another.
func (v *verdict) denied(a answer, usual bool) {
	if a.Status >= http.StatusInternalServerError && a.Status != http.StatusNotImplemented {
		v.doubtf("%s", a)
		return
	}
	v.expect(a, a.denied() || !usual && a.elsewhere(), "want 401")
}

// expectDenied sends a forbidden probe, in its usual spelling and in others.
func (t *target) expectDenied(ctx context.Context, v *verdict, p probe) {
	v.denied(t.send(ctx, p), true)
	for _, path := range t.spellings(p.Path) {
		p.Path = path
		v.denied(t.send(ctx, p), false)
	}
}

// checkAuthRequired asks for every guarded operation without a key, in every spelling.
func checkAuthRequired(ctx context.Context, t *target, v *verdict) {
	for _, op := range t.guarded() {
		p := op.ask(t.ownID(ctx))
		p.NoKey = true
		t.expectDenied(ctx, v, p)
		if len(v.failed) > 2*mostShown {
			return
		}
	}
}

// unknownKey has the form of a key, but nobody has it.
func unknownKey() string { return "tdm_" + rand.Text() + rand.Text() }

// checkWrongKeys tries nearly right keys on one route, and an unknown one on every route.
func checkWrongKeys(ctx context.Context, t *target, v *verdict) {
	wrong := [][2]string{
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
		wrong = append(wrong, [][2]string{
			{"the key with another last character", "Bearer " + key[:len(key)-1] + last},
			{"the key cut short", "Bearer " + key[:len(key)-1]},
			{"the key in other case", "Bearer " + swapCase(key)},
		}...)
	}
	for _, w := range wrong {
		p := probe{Path: "/requests?limit=1", NoKey: true, Shown: "GET /requests with " + w[0]}
		v.judge(t.send(ctx, p.with("Authorization", w[1])), status(http.StatusUnauthorized))
	}
	for _, op := range t.guarded() {
		if op.Method == http.MethodHead {
			continue // each costs our address a POST
		}
		p := op.ask(unknownID)
		p.Key = unknownKey()
		v.judge(t.send(ctx, p), isDenied)
	}
}

// swapCase turns lower case into upper case and the other way round, except in the prefix of a key.
func swapCase(key string) string {
	prefix, rest := key[:min(len(key), 4)], key[min(len(key), 4):]
	return prefix + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r ^ ('a' ^ 'A')
		}
		return r
	}, rest)
}

// checkHeadersForKeys sends headers often trusted by proxies and applications: about the origin of a request, its
// sender, and its real target.
func checkHeadersForKeys(ctx context.Context, t *target, v *verdict) {
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
			v.judge(t.send(ctx, probe{Path: path, NoKey: true, Header: header}), isDenied)
		}
	}
	live := probe{Path: "/livez", NoKey: true}
	plain := t.send(ctx, live)
	same := must(func(a answer) bool {
		return a.Status == plain.Status && a.Header.Get("Content-Type") == plain.Header.Get("Content-Type") &&
			len(a.Body) == len(plain.Body)
	}, "another answer than without the header")
	for _, to := range []string{"/requests", "/stats"} {
		for _, name := range []string{"X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri"} {
			v.judge(t.send(ctx, live.with(name, to)), same)
		}
	}
}

func checkChallenge(ctx context.Context, t *target, v *verdict) {
	key := unknownKey()
	a := t.send(ctx, probe{Path: "/requests?limit=1", Key: key})
	switch {
	case a.Err == nil && a.Status != http.StatusUnauthorized:
		v.doubtf("%s: keys are not asked for", a)
	case strings.Contains(string(a.Body), key):
		v.expect(a, false, "the answer repeats the key")
	case a.code() == "":
		v.expect(a, false, "no problem with a code")
	default:
		v.expect(a, strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer"), "no WWW-Authenticate: Bearer")
	}
}

func checkKeyInURL(ctx context.Context, t *target, v *verdict) {
	if t.open {
		v.doubtf("GET /requests is answered without any key")
		return
	}
	for _, name := range []string{"api_key", "key", "access_token", "token"} {
		v.judge(t.send(ctx, probe{
			Path: "/requests/" + unknownID + "?" + name + "=" + url.QueryEscape(t.cfg.APIKey), NoKey: true,
			Shown: "GET /requests/{id}?" + name + "=[key]",
		}), status(http.StatusUnauthorized))
	}
}

// checkScopes asks for the operator's operations with callers' keys, in every spelling.
func checkScopes(ctx context.Context, t *target, v *verdict) {
	for _, op := range t.guarded() {
		if !op.admin() {
			continue
		}
		p := op.ask(unknownID)
		t.expectDenied(ctx, v, p)
		if p.Key = t.cfg.SecondKey; p.Key != "" {
			v.denied(t.send(ctx, p), true)
		}
	}
}

func checkSigned(ctx context.Context, t *target, v *verdict) {
	h, a, ok := t.deliver(ctx, v, http.StatusOK, "")
	if !ok {
		return
	}
	if !h.Wait(ctx, t.cfg.Timeout) {
		v.doubtf("%s: no callback within %v; is --callback-url right?", a, t.cfg.Timeout)
		return
	}
	got := h.Calls()[0]
	id, sent := got.Header.Get(tandem.HeaderWebhookID), got.Header.Get(tandem.HeaderWebhookTimestamp)
	if id == "" || id != a.requestID() {
		v.failf("webhook-id is %q, want %s", oneLine(id), oneLine(a.requestID()))
	}
	seconds, err := strconv.ParseInt(sent, 10, 64)
	if off := got.At.Sub(time.Unix(seconds, 0)).Abs(); err != nil || off > tandem.SignatureTolerance {
		v.failf("webhook-timestamp %q is not within %v of our clock", oneLine(sent), tandem.SignatureTolerance)
	}
	signatures := strings.Fields(got.Header.Get(tandem.HeaderWebhookSignature))
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
		v.passf("a callback with id, time and signature; without --signing-secret the signature itself is not checked")
	} else if err := t.cfg.Secret.Verify(got.Header, got.Body, got.At); err != nil {
		v.failf("the signature does not verify with --signing-secret: %v", err)
	} else {
		v.passf("a callback with a signature by --signing-secret")
	}
}
