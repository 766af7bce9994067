package tandem

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Scope is a permission of an API key.
type Scope string

// The scopes of a key.
const (
	ScopeSubmit Scope = "submit" // ask for work
	ScopeRead   Scope = "read"   // see its own requests
	ScopeAdmin  Scope = "admin"  // see everybody's requests, and the figures of the service
)

// Scopes lists every scope.
var Scopes = []Scope{ScopeSubmit, ScopeRead, ScopeAdmin}

// Key describes an API key, without its token and its signing secret.
type Key struct {
	ID         string    // key_ and 12 characters; it stays when the token is rotated
	Name       string    // for people; unique among keys not revoked
	Scopes     []Scope   // its permissions; at least one
	CreatedAt  time.Time // UTC
	ExpiresAt  time.Time // UTC; zero: never
	RevokedAt  time.Time // UTC; zero: it is not
	LastUsedAt time.Time // UTC, to about a minute; zero: never
}

// Allows reports whether the key has a scope. The scope admin includes read.
func (k *Key) Allows(scope Scope) bool {
	return slices.Contains(k.Scopes, scope) || scope == ScopeRead && slices.Contains(k.Scopes, ScopeAdmin)
}

// Sees reports whether the key may see a request: its own, or, for an admin, any. Without
// a key everything is seen: then nobody is asked for one.
func (k *Key) Sees(r *Request) bool {
	return k == nil || k.Allows(ScopeAdmin) || r.KeyID == k.ID
}

// The form of a token: a mark for secret scanners, 256 random bits, and a checksum over both, to tell a typing error
// from an unknown key.
const (
	tokenPrefix   = "tdm_"
	tokenDigits   = 43 // of base 62, for 256 bits
	checksumChars = 6  // of base 62, for 32 bits
	tokenLength   = len(tokenPrefix) + tokenDigits + checksumChars
)

// ErrNotAToken means a malformed token: cut short or mistyped.
var ErrNotAToken = errors.New("not an API key: its form or checksum is wrong; was it copied whole?")

// Token is the text of an API key. Only its owner has it; tandem keeps its hash. It prints as tdm_[redacted];
// [Token.Reveal] gives the text. It may be copied freely.
type Token struct {
	text func() string // nil: no token. A function, for the reason given at Secret
}

// NewToken makes a token of 256 random bits.
func NewToken() Token {
	bits := make([]byte, 32)
	rand.Read(bits) // never fails (crypto/rand)
	body := tokenPrefix + base62(new(big.Int).SetBytes(bits), tokenDigits)
	return tokenOf(body + checksum(body))
}

// ParseToken reads a token. Its error is [ErrNotAToken] and does not contain the text.
func ParseToken(text string) (Token, error) {
	if len(text) != tokenLength || !strings.HasPrefix(text, tokenPrefix) {
		return Token{}, ErrNotAToken
	}
	body := text[:len(text)-checksumChars]
	if checksum(body) != text[len(body):] {
		return Token{}, ErrNotAToken
	}
	return tokenOf(text), nil
}

func tokenOf(text string) Token { return Token{func() string { return text }} }

// base62 writes a number in digits and letters only: a double click selects all of it.
func base62(n *big.Int, width int) string {
	text := n.Text(62)
	return strings.Repeat("0", width-len(text)) + text
}

// checksum is the CRC-32 (IEEE) of text. It is no secret: it guards against slips only.
func checksum(text string) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	var out [checksumChars]byte
	sum := crc32.ChecksumIEEE([]byte(text))
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = digits[sum%62]
		sum /= 62
	}
	return string(out[:])
}

// Reveal returns the token as text.
func (t Token) Reveal() string {
	if t.IsZero() {
		return tokenPrefix
	}
	return t.text()
}

// Hash is the stored form of a token. SHA-256 without salt or stretching is enough: there is nothing to guess in 256
// random bits.
func (t Token) Hash() [sha256.Size]byte { return sha256.Sum256([]byte(t.Reveal())) }

// String hides the token.
func (t Token) String() string { return tokenPrefix + "[redacted]" }

// GoString hides the token from %#v as well.
func (t Token) GoString() string { return t.String() }

// IsZero reports whether there is no token.
func (t Token) IsZero() bool { return t.text == nil }
