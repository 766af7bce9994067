package store_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/tandemtest"
)

// A server that logs every statement with its parameters does not log the deployment's signing secret: neither the
// start that keeps it nor those after it.
func TestSigningSecretStaysOutOfTheServersLog(t *testing.T) {
	t.Parallel()
	database := emptyPostgres(t, tandemtest.Volatile)
	name := databaseOf(t, database)
	execPostgres(t, database, "ALTER DATABASE "+name+" SET log_min_messages = log")
	execPostgres(t, database, "ALTER DATABASE "+name+" SET log_min_duration_statement = 0")
	s := joinPostgres(t, database)
	kept, other := tandem.NewSecret(), tandem.NewSecret()
	for _, fresh := range []tandem.Secret{kept, other} {
		if secret, _, err := s.SigningSecret(t.Context(), fresh); err != nil || secret.Reveal() != kept.Reveal() {
			t.Fatal(secret, err)
		}
	}
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(address.Query().Get("host"), "log"))
	if err != nil {
		t.Fatal(err)
	}
	log := string(text)
	if !strings.Contains(log, "FROM settings WHERE name = 'signing_secret'") {
		t.Error("statements are not logged")
	}
	if strings.Contains(log, kept.Reveal()) || strings.Contains(log, other.Reveal()) {
		t.Error("the secret is in the log of the server")
	}
}
