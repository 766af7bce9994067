package tandem_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem"
)

// fuzzSecret signs what the fuzz targets verify.
const fuzzSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// FuzzVerify feeds a receiver headers and bodies of a stranger. Nothing passes
// but what was signed, and a good signature passes whatever stands beside it.
func FuzzVerify(f *testing.F) {
	f.Add("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		`{"test": 2432232314}`)
	f.Add("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,x v1a,y v2,z", `{"test": 2432232314}`)
	f.Add("", "", "", "")
	f.Add("x", "+1614265330", "v1,", "{}")
	f.Add("x", "99999999999999999999", "v1,AA==", "{}")
	f.Add("x.1614265330", "-9223372036854775808", " \t ", "\xff")
	secret, err := tandem.ParseSecret(fuzzSecret)
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1_614_265_330, 0)
	f.Fuzz(func(t *testing.T, id, stamp, signature, body string) {
		header := http.Header{}
		header.Set(tandem.HeaderWebhookID, id)
		header.Set(tandem.HeaderWebhookTimestamp, stamp)
		header.Set(tandem.HeaderWebhookSignature, signature)
		genuine := secret.Sign(id, now, []byte(body))
		passed := secret.Verify(header, []byte(body), now) == nil
		recent := false
		for offset := -tandem.SignatureTolerance; offset <= tandem.SignatureTolerance; offset += time.Second {
			if !passed || recent {
				break
			}
			recent = slices.Contains(strings.Fields(signature), secret.Sign(id, now.Add(offset), []byte(body)))
		}
		if passed && !recent {
			t.Fatalf("%q %q %q %q passed unsigned", id, stamp, signature, body)
		}
		header.Set(tandem.HeaderWebhookTimestamp, "1614265330")
		header.Set(tandem.HeaderWebhookSignature, signature+" "+genuine)
		if err := secret.Verify(header, []byte(body), now); (err == nil) != (id != "") {
			t.Fatalf("signed, beside %q: %v", signature, err)
		}
		if secret.Verify(header, []byte(body+" "), now) == nil &&
			!strings.Contains(signature, secret.Sign(id, now, []byte(body+" "))) {
			t.Fatalf("a changed body %q passed", body)
		}
	})
}

// FuzzSecret reads secrets: what is accepted is read again from its own text, and
// errors never repeat what may have been one.
func FuzzSecret(f *testing.F) {
	for _, seed := range []string{
		fuzzSecret, " " + fuzzSecret + "\r\n", "", "whsec_", "whsec_AAAA", "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_", "whsec_" + strings.Repeat("A", 84) + "AA==",
		"whsec_" + strings.Repeat("A", 88), "whsec_MfKQ9r8GKYqrTwjUP\nD8ILPZIo2LaLaSw",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		secret, err := tandem.ParseSecret(text)
		if err != nil {
			if hidden := strings.TrimPrefix(strings.TrimSpace(text), "whsec_"); len(hidden) >= 32 &&
				strings.Contains(err.Error(), hidden) {
				t.Fatalf("%q shows in %v", text, err)
			}
			return
		}
		again, err := tandem.ParseSecret(secret.Reveal())
		if err != nil || again.Reveal() != secret.Reveal() {
			t.Fatalf("%q is revealed as %q, which is read as %q (%v)", text, secret.Reveal(), again.Reveal(), err)
		}
		now := time.Unix(1, 0)
		if again.Sign("a", now, nil) != secret.Sign("a", now, nil) || secret.IsZero() {
			t.Fatalf("%q signs differently after being revealed", text)
		}
	})
}

// FuzzIDTime reads request ids: one that is accepted has one spelling, and its
// time puts it where it sorts.
func FuzzIDTime(f *testing.F) {
	for _, seed := range []string{
		"req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f", "req_00000000000070000000000000000000",
		"req_ffffffffffff7fffffffffffffffffff", "req_01938F7E2B6A7C5D8E9F0A1B2C3D4E5F",
		"01938f7e2b6a7c5d8e9f0a1b2c3d4e5f", "req_", "", "req_01938f7e-2b6a-7c5d-8e9f-0a1b2c3d4e5f",
		"req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5", "req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		made, err := tandem.IDTime(id)
		if err != nil {
			if len(err.Error()) > 400 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		order, err := tandem.IDOrder(id)
		switch {
		case err != nil:
			t.Fatalf("%q has a time and no order: %v", id, err)
		case len(id) != 36 || id != strings.ToLower(id) || !strings.HasPrefix(id, "req_"):
			t.Fatalf("accepted %q", id)
		case made.Location() != time.UTC || made.UnixMilli() < 0 || made.Nanosecond()%int(time.Millisecond) != 0:
			t.Fatalf("%q was made at %v", id, made)
		case order < tandem.OrderOf(made) || order >= tandem.OrderOf(made.Add(time.Millisecond)):
			t.Fatalf("%q has order %d, not within its millisecond from %d", id, order, tandem.OrderOf(made))
		}
	})
}
