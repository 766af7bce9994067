package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/sqlite"
)

// keysCommand looks after API keys. What is shown once goes to standard output, alone, so that a
// script can take it; everything for people goes to standard error. It is shown before it counts: what nobody
// could read is not taken up, and a token that is in use stays the one that its owner has.
type keysCommand struct {
	DB string `name:"db" placeholder:"URL" default:"file:tandem.db" env:"TANDEM_DB" help:"Database of the server, which may be running: a file, file:PATH, or postgres://… (default: ${default})."`

	Create        keysCreateCommand        `cmd:"" help:"Make a key. Its token is shown this once."`
	List          keysListCommand          `cmd:"" help:"List keys, without anything secret."`
	Revoke        keysRevokeCommand        `cmd:"" help:"Make a key invalid, for good. Work that runs goes on."`
	Rotate        keysRotateCommand        `cmd:"" help:"Give a key a new token."`
	RotateSigning keysRotateSigningCommand `cmd:"" name:"rotate-signing" help:"Give a key a new secret for the signatures on callbacks."`
}

// Validate refuses databases that have no keys; kong calls it.
func (c *keysCommand) Validate() error {
	if sqlite.Memory(c.DB) {
		return badArgument(
			"--db names the database of a server in production mode, by default file:tandem.db",
			"--db :memory: has no API keys: demo mode asks for none",
		)
	}
	if err := app.ReadDatabase("db", &c.DB); err != nil {
		return asFailure(err)
	}
	return nil
}

// open opens the keys.
func (c *keysCommand) open(ctx context.Context, create bool) (*keys.Keys, error) {
	return app.OpenKeys(ctx, store.HandleConfig{URL: c.DB, Create: create})
}

// with opens the keys for f.
func (c *keysCommand) with(ctx context.Context, f func(*keys.Keys) error) error {
	keys, err := c.open(ctx, false)
	if err != nil {
		return err
	}
	return errors.Join(f(keys), keys.Close())
}

// keysCreateCommand makes a key.
type keysCreateCommand struct {
	Name    string         `required:"" help:"Whose it is, for people: unique among the keys that are not revoked."`
	Scopes  []tandem.Scope `required:"" help:"What it allows: submit (ask for work), read (its own requests), admin (everybody's, and the figures)."`
	Expires time.Duration  `placeholder:"TIME" help:"Valid for this long, such as 90d or 12h (default: until it is revoked)."`
	Plain   bool           `help:"Print the token and nothing else."`
}

// Validate refuses what cannot be made; kong calls it.
func (c *keysCreateCommand) Validate() error {
	if err := validLifetime("expires", c.Expires); err != nil {
		return err
	}
	if err := c.key(time.Now()).Validate(time.Now()); err != nil {
		return badArgument("tandem keys create --name reports --scopes submit,read --expires 90d", "%w", err)
	}
	return nil
}

func (c *keysCreateCommand) key(now time.Time) keys.NewKey {
	n := keys.NewKey{Name: c.Name, Scopes: c.Scopes}
	if c.Expires > 0 {
		n.ExpiresAt = now.Add(c.Expires)
	}
	return n
}

// Run makes it, and the database as well if there is none yet.
func (c *keysCreateCommand) Run(ctx context.Context, all *keysCommand, t *terminal) error {
	keys, err := all.open(ctx, true)
	if err != nil {
		return err
	}
	made, err := c.create(ctx, keys, t)
	if err = errors.Join(err, keys.Close()); err != nil {
		return nameTaken(err)
	}
	if !c.Plain {
		t.notef("key %s %q: %s; %s", made.Key.ID, made.Key.Name, scopesOf(made.Key), expiryOf(made.Key))
	}
	return nil
}

// create makes the key and shows its token and secret, so a token that was shown is valid even if the command is
// killed in the middle. A key whose token could not be shown is revoked: nobody could use it.
func (c *keysCreateCommand) create(ctx context.Context, keys *keys.Keys, t *terminal) (keys.Made, error) {
	made, err := keys.Create(ctx, c.key(time.Now()))
	if err != nil {
		return made, err
	}
	if !c.Plain {
		t.notef("the token of key %q, shown this once, for Authorization: Bearer or TANDEM_API_KEY:", c.Name)
	}
	t.printf("%s\n", made.Token.Reveal())
	if !c.Plain {
		t.notef("its callbacks are signed with a secret of its own; receive them and verify:")
		t.notef("%s", sinkLines(t.program, made.Secret))
	}
	if err := cmp.Or(t.out.Err(), t.err.Err()); err != nil {
		_, revoking := keys.Revoke(ctx, made.Key.ID)
		return made, errors.Join(fmt.Errorf("show the token of key %q, which is revoked again: %w", c.Name, err), revoking)
	}
	return made, nil
}

// once shows a secret, and uses it when all of that could be written.
func (t *terminal) once(show func(), use func() error) error {
	show()
	if err := cmp.Or(t.out.Err(), t.err.Err()); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	err := use()
	if err != nil {
		t.notef("what is shown above is not valid: it could not be stored")
	}
	return err
}

// findKey finds a key that is not revoked by its id or name.
func findKey(ctx context.Context, all *keys.Keys, which string) (tandem.Key, error) {
	list, err := all.List(ctx)
	if err != nil {
		return tandem.Key{}, err
	}
	for _, key := range list {
		if key.RevokedAt.IsZero() && (key.ID == which || key.Name == which) {
			return key, nil
		}
	}
	return tandem.Key{}, keys.ErrNotFound
}

// nameTaken adds what to do about a name that is taken.
func nameTaken(err error) error {
	if !errors.Is(err, keys.ErrExists) {
		return err
	}
	return &failure{
		code: exitCannotRun,
		err:  err,
		hint: "choose another name; `tandem keys rotate` gives a key a new token, `tandem keys revoke` frees its name",
	}
}

// keysListCommand lists keys.
type keysListCommand struct{}

// Run prints a table.
func (c *keysListCommand) Run(ctx context.Context, all *keysCommand, t *terminal) error {
	return all.with(ctx, func(keys *keys.Keys) error {
		list, err := keys.List(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		rows := [][]string{{"ID", "NAME", "SCOPES", "STATE", "CREATED", "EXPIRES", "LAST USED"}}
		for _, key := range list {
			rows = append(rows, []string{key.ID, key.Name, strings.Join(texts(key.Scopes), ","), stateOf(key, now),
				dateOf(key.CreatedAt, "-"), dateOf(key.ExpiresAt, "never"), dateOf(key.LastUsedAt, "never")})
		}
		t.table(nil, rows)
		return nil
	})
}

// keysRevokeCommand ends a key.
type keysRevokeCommand struct {
	Key string `arg:"" help:"Its id or name."`
}

// Run ends it.
func (c *keysRevokeCommand) Run(ctx context.Context, all *keysCommand, t *terminal) error {
	return all.with(ctx, func(keys *keys.Keys) error {
		key, err := keys.Revoke(ctx, c.Key)
		if err != nil {
			return unknownKey(err)
		}
		t.notef("revoked %s %q; a running server refuses it within a second", key.ID, key.Name)
		return nil
	})
}

// keysRotateCommand gives a key a new token.
type keysRotateCommand struct {
	Key     string        `arg:"" help:"Its id or name."`
	Overlap time.Duration `default:"0" placeholder:"TIME" help:"The old token stays valid for this long, such as 24h (default: not at all)."`
	Plain   bool          `help:"Print the token and nothing else."`
}

// Validate bounds the overlap; kong calls it.
func (c *keysRotateCommand) Validate() error { return validLifetime("overlap", c.Overlap) }

// Run prints the new token.
func (c *keysRotateCommand) Run(ctx context.Context, all *keysCommand, t *terminal) error {
	return all.with(ctx, func(keys *keys.Keys) error {
		key, err := findKey(ctx, keys, c.Key)
		if err != nil {
			return unknownKey(fmt.Errorf("rotate key %q: %w", c.Key, err))
		}
		token := tandem.NewToken()
		return t.once(func() {
			if !c.Plain {
				t.notef(
					"key %s %q: the old token is valid %s; the new one, shown this once:",
					key.ID,
					key.Name,
					overlapOf(c.Overlap),
				)
			}
			t.printf("%s\n", token.Reveal())
		}, func() error {
			_, err := keys.Rotate(ctx, key.ID, token, c.Overlap)
			return unknownKey(err)
		})
	})
}

// keysRotateSigningCommand gives a key a new signing secret.
type keysRotateSigningCommand struct {
	Key     string        `arg:"" help:"Its id or name."`
	Overlap time.Duration `default:"24h" placeholder:"TIME" help:"Callbacks carry the old signature as well for this long (default: ${default})."`
	Plain   bool          `help:"Print the secret and nothing else."`
}

// Validate bounds the overlap; kong calls it.
func (c *keysRotateSigningCommand) Validate() error { return validLifetime("overlap", c.Overlap) }

// Run prints the new secret.
func (c *keysRotateSigningCommand) Run(ctx context.Context, all *keysCommand, t *terminal) error {
	return all.with(ctx, func(keys *keys.Keys) error {
		key, err := findKey(ctx, keys, c.Key)
		if err != nil {
			return unknownKey(fmt.Errorf("rotate the signing secret of key %q: %w", c.Key, err))
		}
		secret := tandem.NewSecret()
		return t.once(func() {
			if !c.Plain {
				t.notef("key %s %q: the old secret signs %s; the new one, shown this once:", key.ID, key.Name, overlapOf(c.Overlap))
			}
			t.printf("%s\n", secret.Reveal())
		}, func() error {
			_, err := keys.RotateSigning(ctx, key.ID, secret, c.Overlap)
			return unknownKey(err)
		})
	})
}

// unknownKey adds where to look.
func unknownKey(err error) error {
	if !errors.Is(err, keys.ErrNotFound) {
		return err
	}
	return &failure{code: exitCannotRun, err: err, hint: "tandem keys list shows them"}
}

// maxLifetime is how far ahead a key's end may be.
const maxLifetime = 100 * 365 * day

// validLifetime refuses what no key can have.
func validLifetime(flag string, d time.Duration) error {
	if d < 0 || d > maxLifetime {
		return badArgument("", "--%s %v: want 0 to 100 years", flag, d)
	}
	return nil
}

func overlapOf(d time.Duration) string {
	switch {
	case d == 0:
		return "no more"
	case d%day == 0:
		return "for another " + plural(int(d/day), "day")
	default:
		return "for another " + d.String()
	}
}

// notef writes a line for people.
func (t *terminal) notef(format string, args ...any) { fmt.Fprintf(t.err, format+"\n", args...) }

func texts(scopes []tandem.Scope) []string {
	list := make([]string, len(scopes))
	for i, scope := range scopes {
		list[i] = string(scope)
	}
	return list
}

func scopesOf(key tandem.Key) string { return strings.Join(texts(key.Scopes), ", ") }

func expiryOf(key tandem.Key) string {
	if key.ExpiresAt.IsZero() {
		return "valid until it is revoked"
	}
	return "valid until " + key.ExpiresAt.Format(time.RFC3339)
}

// stateOf is one word.
func stateOf(key tandem.Key, now time.Time) string {
	switch {
	case !key.RevokedAt.IsZero():
		return "revoked"
	case !key.ExpiresAt.IsZero() && !now.Before(key.ExpiresAt):
		return "expired"
	default:
		return "valid"
	}
}

// dateOf shows a time to the minute.
func dateOf(at time.Time, zero string) string {
	if at.IsZero() {
		return zero
	}
	return at.UTC().Format("2006-01-02T15:04Z")
}
