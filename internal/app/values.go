package app

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"tandem"
	"tandem/internal/store/postgres"
	"tandem/internal/term"
)

// ReadDatabase replaces @FILE, the value of a flag, by the URL of a database that the file holds. It refuses a kind of
// database that there is not, with an *Error.
func ReadDatabase(flag string, db *string) error {
	if name, ok := strings.CutPrefix(*db, "@"); ok {
		content, err := os.ReadFile(name)
		if err == nil && len(bytes.TrimSpace(content)) == 0 {
			err = fmt.Errorf("%s is empty", name)
		}
		if err != nil {
			return about("@FILE holds the URL of the database, such as postgres://USER:PASSWORD@HOST/DATABASE", flag+":", err)
		}
		*db = strings.TrimSpace(string(content))
	}
	scheme, _, ok := strings.Cut(*db, "://")
	unknown := ok && scheme != "file" && !postgres.Names(*db)
	return invalid(unknown, "a database is file:tandem.db, a path, :memory:, or postgres://…",
		"--%s %s: unknown kind of database", flag, Redact(*db))
}

// ReadSecret reads whsec_…, or @ and the name of a file that holds it. An empty
// text is the zero secret. Errors do not contain the text.
func ReadSecret(text string) (tandem.Secret, error) {
	if text == "" {
		return tandem.Secret{}, nil
	}
	if name, ok := strings.CutPrefix(text, "@"); ok {
		content, err := os.ReadFile(name)
		if err != nil {
			return tandem.Secret{}, err
		}
		text = string(content)
	}
	return tandem.ParseSecret(text)
}

// Redact hides the password and the parameters of a URL, or of a database named by keywords.
func Redact(text string) string {
	if shown := postgres.Shown(text); shown != "" {
		return shown
	}
	if !strings.Contains(text, "://") {
		return text // a path
	}
	return term.RedactURL(text)
}
