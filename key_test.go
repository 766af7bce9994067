package tandem_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tandem"
)

// vectorToken was computed apart from this code: 43 digits for the number 1, and the CRC-32 of what is before.
const vectorToken = "tdm_0000000000000000000000000000000000000000001" + "3cZKQO"

func TestTokenForm(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^tdm_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	for range 1000 {
		token := tandem.NewToken()
		text := token.Reveal()
		if !form.MatchString(text) || seen[text] {
			t.Fatalf("%q", text)
		}
		seen[text] = true
		again, err := tandem.ParseToken(text)
		if err != nil || again.Reveal() != text || again.Hash() != token.Hash() ||
			token.Hash() != sha256.Sum256([]byte(text)) {
			t.Fatalf("%q: %v", text, err)
		}
	}
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	good := tandem.NewToken().Reveal()
	for name, text := range map[string]string{
		"empty": "", "the prefix": "tdm_", "cut short": good[:len(good)-1], "too long": good + "0", "space": " " + good,
		"another prefix": "tdn_" + good[4:], "no prefix": good[4:], "a secret": "whsec_" + good[4:],
		"other letters": strings.ToUpper(good),
	} {
		if token, err := tandem.ParseToken(text); !errors.Is(err, tandem.ErrNotAToken) || !token.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tandem.ParseToken(vectorToken); err != nil {
		t.Errorf("the vector: %v", err)
	}
}

// TestTokenMistyped: one character that is another, or two neighbours that have changed places, are noticed.
func TestTokenMistyped(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := []byte(tandem.NewToken().Reveal())
		i := rapid.IntRange(4, len(text)-2).Draw(t, "place")
		wrong := append([]byte(nil), text...)
		if rapid.Bool().Draw(t, "swap") {
			wrong[i], wrong[i+1] = wrong[i+1], wrong[i]
		} else {
			wrong[i] = rapid.ByteRange(0, 255).Draw(t, "character")
		}
		_, err := tandem.ParseToken(string(wrong))
		if same := string(wrong) == string(text); (err == nil) != same {
			t.Fatalf("%s for %s: %v", wrong, text, err)
		}
	})
}

func TestTokenNeverPrints(t *testing.T) {
	t.Parallel()
	token, err := tandem.ParseToken(vectorToken)
	if err != nil {
		t.Fatal(err)
	}
	type config struct{ Token tandem.Token }
	type hidden struct{ token tandem.Token }
	var printed []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, value := range []any{token, &token, config{token}, hidden{token}, []tandem.Token{token}} {
			printed = append(printed, fmt.Sprintf(verb, value))
		}
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "token", token, "config", config{token}, "hidden", hidden{token})
	encoded, err := json.Marshal(struct {
		Token tandem.Token `json:"token"`
	}{token})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range append(printed, log.String(), string(encoded)) {
		if strings.Contains(text, vectorToken[10:]) || strings.Contains(text, fmt.Sprintf("%x", vectorToken[40:])) {
			t.Errorf("%q shows the token", text)
		}
	}
	if (tandem.Token{}).Reveal() != "tdm_" || token.String() != "tdm_[redacted]" {
		t.Error("a token prints as something else")
	}
}

func TestKeyAllowsAndSees(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		scopes              string
		submit, read, admin bool
	}{
		{"", false, false, false},
		{"submit", true, false, false},
		{"read", false, true, false},
		{"admin", false, true, true},
		{"submit read", true, true, false},
		{"submit read admin", true, true, true},
	} {
		key := tandem.Key{ID: "key_a"}
		for scope := range strings.FieldsSeq(test.scopes) {
			key.Scopes = append(key.Scopes, tandem.Scope(scope))
		}
		got := [3]bool{key.Allows(tandem.ScopeSubmit), key.Allows(tandem.ScopeRead), key.Allows(tandem.ScopeAdmin)}
		if want := [3]bool{test.submit, test.read, test.admin}; got != want {
			t.Errorf("%q allows submit, read, admin: %v, want %v", test.scopes, got, want)
		}
		for owner, want := range map[string]bool{"key_a": true, "key_b": test.admin, "": test.admin} {
			if got := key.Sees(&tandem.Request{KeyID: owner}); got != want {
				t.Errorf("%q sees a request of %q: %v", test.scopes, owner, got)
			}
		}
	}
	var nobody *tandem.Key
	if !nobody.Sees(&tandem.Request{KeyID: "key_a"}) {
		t.Error("where nobody is asked for a key, not everything is seen")
	}
}
