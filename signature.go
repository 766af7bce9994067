package tandem

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of Standard Webhooks 1.0.0 on every callback.
const (
	HeaderWebhookID        = "Webhook-Id"        // the request id: drop repeats by it
	HeaderWebhookTimestamp = "Webhook-Timestamp" // seconds since 1970, of this attempt
	HeaderWebhookSignature = "Webhook-Signature" // one or more "v1,<base64>", separated by spaces
)

// SignatureTolerance is how far a callback's timestamp may be from the
// receiver's clock, either way (Standard Webhooks recommends 5 minutes).
const SignatureTolerance = 5 * time.Minute

const (
	secretPrefix   = "whsec_"
	signatureMark  = "v1,"
	minSecretBytes = 24 // Standard Webhooks: 24 to 64 bytes
	maxSecretBytes = 64
)

// Reasons [Secret.Verify] refuses a callback; tell them apart with errors.Is.
var (
	ErrSignatureMissing  = errors.New("webhook headers missing or malformed")
	ErrSignatureExpired  = errors.New("webhook timestamp too far from now")
	ErrSignatureMismatch = errors.New("webhook signature does not match")
)

// Secret is a signing secret. It prints as whsec_[redacted], to stay out of logs; [Secret.Reveal] gives the text. It
// may be copied freely.
type Secret struct {
	// nil: no secret. A function, because fmt looks into everything else: it calls no String method on an unexported
	// field, nor for verbs such as %d.
	key func() []byte
}

// NewSecret makes a secret of 32 random bytes.
func NewSecret() Secret {
	key := make([]byte, 32)
	rand.Read(key) // never fails (crypto/rand)
	return secretOf(key)
}

// ParseSecret reads "whsec_" followed by the base64 of 24 to 64 bytes. Its
// errors do not contain the text.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), secretPrefix)
	if !ok {
		return Secret{}, fmt.Errorf("signing secret: must start with %s", secretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return Secret{}, fmt.Errorf("signing secret: what follows %s is not base64", secretPrefix)
	}
	if len(key) < minSecretBytes || len(key) > maxSecretBytes {
		return Secret{}, fmt.Errorf("signing secret: %d bytes, want %d to %d", len(key), minSecretBytes, maxSecretBytes)
	}
	return secretOf(key), nil
}

func secretOf(key []byte) Secret { return Secret{func() []byte { return key }} }

// Reveal returns the secret as text.
func (s Secret) Reveal() string {
	if s.IsZero() {
		return secretPrefix
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(s.key())
}

// String hides the secret.
func (s Secret) String() string { return secretPrefix + "[redacted]" }

// GoString hides the secret from %#v as well.
func (s Secret) GoString() string { return s.String() }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.key == nil }

// Sign returns the signature "v1,<base64>" of one attempt: HMAC-SHA256 over "id.timestamp.body" (Standard Webhooks
// 1.0.0). It panics on the zero Secret, because that would sign with an empty key.
func (s Secret) Sign(id string, at time.Time, body []byte) string {
	if s.IsZero() {
		panic("tandem: sign with the zero Secret")
	}
	mac := hmac.New(sha256.New, s.key())
	mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	mac.Write(body)
	return signatureMark + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Verify checks a received callback: its three headers, a timestamp within [SignatureTolerance] of now, and one good
// signature. It takes the same time for every wrong signature. It proves the sender and the age of the body; the
// receiver drops repeats within the tolerance by their webhook-id.
func (s Secret) Verify(header http.Header, body []byte, now time.Time) error {
	id, stamp := header.Get(HeaderWebhookID), header.Get(HeaderWebhookTimestamp)
	signatures := strings.Fields(header.Get(HeaderWebhookSignature))
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if s.IsZero() || id == "" || err != nil || len(signatures) == 0 {
		return ErrSignatureMissing
	}
	at := time.Unix(seconds, 0)
	if at.Before(now.Add(-SignatureTolerance)) || at.After(now.Add(SignatureTolerance)) {
		return fmt.Errorf("%w: sent at %s, now %s", ErrSignatureExpired, at.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339))
	}
	want := []byte(s.Sign(id, at, body))
	for _, signature := range signatures {
		if hmac.Equal([]byte(signature), want) {
			return nil
		}
	}
	return ErrSignatureMismatch
}
