package tandem_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tandem"
)

// The test vector of the Standard Webhooks specification.
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorSeconds   = 1614265330
	vectorBody      = `{"test": 2432232314}`
	vectorSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

func parseSecret(t *testing.T, text string) tandem.Secret {
	t.Helper()
	secret, err := tandem.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// vectorHeader returns the headers of the vector with the signature given.
func vectorHeader(signature string) http.Header {
	header := http.Header{}
	header.Set("webhook-id", vectorID)
	header.Set("webhook-timestamp", strconv.Itoa(vectorSeconds))
	header.Set("webhook-signature", signature)
	return header
}

func TestSignVector(t *testing.T) {
	t.Parallel()
	secret := parseSecret(t, vectorSecret)
	// The timestamp is in whole seconds: what is left of a second must not matter.
	for _, at := range []time.Time{time.Unix(vectorSeconds, 0), time.Unix(vectorSeconds, 999_999_999)} {
		if got := secret.Sign(vectorID, at, []byte(vectorBody)); got != vectorSignature {
			t.Errorf("signature at %v: %s, want %s", at, got, vectorSignature)
		}
	}
	if err := secret.Verify(vectorHeader(vectorSignature), []byte(vectorBody), time.Unix(vectorSeconds, 0)); err != nil {
		t.Errorf("verify: %v", err)
	}
}

func TestVerifyTolerance(t *testing.T) {
	t.Parallel()
	secret := parseSecret(t, vectorSecret)
	sent := time.Unix(vectorSeconds, 0)
	for _, test := range []struct {
		offset time.Duration
		want   error
	}{
		{-5*time.Minute - 1, tandem.ErrSignatureExpired},
		{-5 * time.Minute, nil},
		{-5*time.Minute + 1, nil},
		{0, nil},
		{5*time.Minute - 1, nil},
		{5 * time.Minute, nil},
		{5*time.Minute + 1, tandem.ErrSignatureExpired},
		{24 * time.Hour, tandem.ErrSignatureExpired},
	} {
		err := secret.Verify(vectorHeader(vectorSignature), []byte(vectorBody), sent.Add(test.offset))
		if !errors.Is(err, test.want) {
			t.Errorf("clock %v from the timestamp: %v, want %v", test.offset, err, test.want)
		}
	}
}

func TestVerifySeveralSignatures(t *testing.T) {
	t.Parallel()
	secret := parseSecret(t, vectorSecret)
	other := tandem.NewSecret().Sign(vectorID, time.Unix(vectorSeconds, 0), []byte(vectorBody))
	for _, test := range []struct {
		signatures string
		want       error
	}{
		{vectorSignature, nil},
		{other + " " + vectorSignature, nil}, // the sender rotates its key
		{vectorSignature + " " + other, nil},
		{"v1a,bm90aGluZw== " + vectorSignature, nil}, // a scheme we do not know
		{"  " + vectorSignature + "  ", nil},
		{other, tandem.ErrSignatureMismatch},
		{other + " " + other, tandem.ErrSignatureMismatch},
		{strings.TrimPrefix(vectorSignature, "v1,"), tandem.ErrSignatureMismatch},
		{"v2," + strings.TrimPrefix(vectorSignature, "v1,"), tandem.ErrSignatureMismatch},
		{vectorSignature + "," + other, tandem.ErrSignatureMismatch}, // separated by spaces, not commas
		{vectorSignature[:len(vectorSignature)-1], tandem.ErrSignatureMismatch},
		{"v1,", tandem.ErrSignatureMismatch},
	} {
		err := secret.Verify(vectorHeader(test.signatures), []byte(vectorBody), time.Unix(vectorSeconds, 0))
		if !errors.Is(err, test.want) {
			t.Errorf("signatures %q: %v, want %v", test.signatures, err, test.want)
		}
	}
}

func TestVerifyHeaders(t *testing.T) {
	t.Parallel()
	secret := parseSecret(t, vectorSecret)
	stamp := strconv.Itoa(vectorSeconds)
	for _, test := range []struct {
		name, id, stamp, signature string
		want                       error
	}{
		{"whole", vectorID, stamp, vectorSignature, nil},
		{"no id", "", stamp, vectorSignature, tandem.ErrSignatureMissing},
		{"no timestamp", vectorID, "", vectorSignature, tandem.ErrSignatureMissing},
		{"no signature", vectorID, stamp, "", tandem.ErrSignatureMissing},
		{"blank signature", vectorID, stamp, "  ", tandem.ErrSignatureMissing},
		{"timestamp is no number", vectorID, "now", vectorSignature, tandem.ErrSignatureMissing},
		{"timestamp with a fraction", vectorID, stamp + ".0", vectorSignature, tandem.ErrSignatureMissing},
		{"timestamp too large", vectorID, "9999999999999999999", vectorSignature, tandem.ErrSignatureMissing},
		{"timestamp in milliseconds", vectorID, stamp + "000", vectorSignature, tandem.ErrSignatureExpired},
		{"least timestamp", vectorID, "-9223372036854775808", vectorSignature, tandem.ErrSignatureExpired},
		{"another id", vectorID + "x", stamp, vectorSignature, tandem.ErrSignatureMismatch},
		{"another second", vectorID, strconv.Itoa(vectorSeconds + 1), vectorSignature, tandem.ErrSignatureMismatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			header := http.Header{}
			for name, value := range map[string]string{
				tandem.HeaderWebhookID: test.id, tandem.HeaderWebhookTimestamp: test.stamp,
				tandem.HeaderWebhookSignature: test.signature,
			} {
				if value != "" {
					header.Set(name, value)
				}
			}
			if err := secret.Verify(header, []byte(vectorBody), time.Unix(vectorSeconds, 0)); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// TestVerifyTampered changes one byte of the body.
func TestVerifyTampered(t *testing.T) {
	t.Parallel()
	now := time.Unix(vectorSeconds, 0)
	rapid.Check(t, func(t *rapid.T) {
		secret := tandem.NewSecret()
		body := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "body")
		header := vectorHeader(secret.Sign(vectorID, now, body))
		if err := secret.Verify(header, body, now); err != nil {
			t.Fatalf("as sent: %v", err)
		}
		at := rapid.IntRange(0, len(body)-1).Draw(t, "at")
		body[at] ^= rapid.ByteRange(1, 255).Draw(t, "change")
		if err := secret.Verify(header, body, now); !errors.Is(err, tandem.ErrSignatureMismatch) {
			t.Fatalf("tampered: %v", err)
		}
	})
}

// TestZeroSecret: an empty key would accept what anybody can compute.
func TestZeroSecret(t *testing.T) {
	t.Parallel()
	var zero tandem.Secret
	if !zero.IsZero() || tandem.NewSecret().IsZero() {
		t.Error("IsZero does not tell the zero secret")
	}
	if err := zero.Verify(vectorHeader(vectorSignature), []byte(vectorBody), time.Unix(vectorSeconds, 0)); err == nil {
		t.Error("the zero secret verified a callback")
	}
	defer func() {
		if recover() == nil {
			t.Error("the zero secret signed")
		}
	}()
	zero.Sign(vectorID, time.Unix(vectorSeconds, 0), nil)
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	encode := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, test := range []struct {
		name, text string
		ok         bool
	}{
		{"23 bytes", encode(23), false},
		{"24 bytes", encode(24), true},
		{"32 bytes", encode(32), true},
		{"64 bytes", encode(64), true},
		{"65 bytes", encode(65), false},
		{"space around", " " + encode(24) + "\n", true},
		{"nothing", "", false},
		{"prefix alone", "whsec_", false},
		{"no prefix", strings.TrimPrefix(encode(24), "whsec_"), false},
		{"upper-case prefix", "WHSEC_" + strings.TrimPrefix(encode(24), "whsec_"), false},
		{"not base64", "whsec_" + strings.Repeat("!", 32), false},
		{"base64 of URLs", "whsec_" + strings.Repeat("-_", 16), false},
		{"padding missing", strings.TrimRight(encode(25), "="), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			secret, err := tandem.ParseSecret(test.text)
			if (err == nil) != test.ok {
				t.Fatalf("error %v, want ok %v", err, test.ok)
			}
			if test.ok && secret.Reveal() != strings.TrimSpace(test.text) {
				t.Errorf("reveals %q", secret.Reveal())
			}
			if encoded := strings.TrimPrefix(strings.TrimSpace(test.text), "whsec_"); err != nil && len(encoded) > 8 &&
				strings.Contains(err.Error(), encoded) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestNewSecret(t *testing.T) {
	t.Parallel()
	secret := tandem.NewSecret()
	if again := parseSecret(t, secret.Reveal()); again.Reveal() != secret.Reveal() {
		t.Error("what a new secret reveals does not parse to the same")
	}
	if tandem.NewSecret().Reveal() == secret.Reveal() {
		t.Error("two new secrets are the same")
	}
}

// TestSecretNeverPrints tries every verb and encoder by which a secret could slip into a log.
func TestSecretNeverPrints(t *testing.T) {
	t.Parallel()
	secret := parseSecret(t, vectorSecret)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(vectorSecret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	type config struct {
		Secret tandem.Secret `json:"secret"`
	}
	type hidden struct{ secret tandem.Secret } // fmt calls no methods on such a field
	type secrets struct{ List []tandem.Secret }
	var printed []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		for _, value := range []any{secret, &secret, config{secret}, &config{secret}, hidden{secret}, &hidden{secret},
			secrets{[]tandem.Secret{secret}}} {
			printed = append(printed, fmt.Sprintf(verb, value))
		}
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "secret", secret, "config", config{secret}, "hidden",
		hidden{secret})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "secret", secret, "config", config{secret}, "hidden",
		hidden{secret})
	encoded, err := json.Marshal(config{secret})
	if err != nil {
		t.Fatal(err)
	}
	printed = append(printed, log.String(), string(encoded))

	// The key as text, as hex (either case) and as a list of numbers.
	leaks := []string{
		strings.TrimPrefix(vectorSecret, "whsec_"),
		fmt.Sprintf("%x", key[:4]), fmt.Sprintf("%X", key[:4]),
		"49 242 144", "0x31, 0xf2", string(key[:4]),
	}
	for _, text := range printed {
		for _, leak := range leaks {
			if strings.Contains(text, leak) {
				t.Errorf("%q shows the secret", text)
			}
		}
	}
}
