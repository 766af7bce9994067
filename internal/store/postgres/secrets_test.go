package postgres_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// A server that logs every statement with its parameters logs no signing secret: not that of the deployment,
// neither at the start that keeps it nor at those after it, and not those of keys.
func TestSigningSecretsStayOutOfTheServersLog(t *testing.T) {
	t.Parallel()
	database := emptyPostgres(t, tandemtest.Volatile)
	name := databaseOf(t, database)
	storetest.ExecPostgres(t, database, "ALTER DATABASE "+name+" SET log_min_messages = log")
	storetest.ExecPostgres(t, database, "ALTER DATABASE "+name+" SET log_min_duration_statement = 0")
	s := joinPostgres(t, database)
	kept, other := tandem.NewSecret(), tandem.NewSecret()
	for _, fresh := range []tandem.Secret{kept, other} {
		if secret, _, err := s.SigningSecret(t.Context(), fresh); err != nil || secret.Reveal() != kept.Reveal() {
			t.Fatal(secret, err)
		}
	}
	k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: database, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	made, err := k.Create(t.Context(), keys.NewKey{Name: "a", Scopes: tandem.Scopes})
	if err != nil {
		t.Fatal(err)
	}
	secrets := []tandem.Secret{kept, other, made.Secret}
	for _, overlap := range []time.Duration{0, time.Hour} {
		rotated := tandem.NewSecret()
		if _, err := k.RotateSigning(t.Context(), "a", rotated, overlap); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, rotated)
	}
	got := k.SigningSecrets(made.Key.ID, time.Now())
	if len(got) != 2 || got[0].Reveal() != secrets[4].Reveal() || got[1].Reveal() != secrets[3].Reveal() {
		t.Error("the key has other secrets than it was given")
	}
	if left := storetest.AskPostgres(t, database, `SELECT count(*)::text FROM settings WHERE name = 'stashed'`); left != "0" {
		t.Error("a secret was left behind in settings")
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
	for i, secret := range secrets {
		if strings.Contains(log, secret.Reveal()) {
			t.Errorf("secret %d is in the log of the server", i)
		}
	}
}
