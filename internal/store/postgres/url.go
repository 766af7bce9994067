package postgres

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Names reports whether text names a PostgreSQL database: by a URL, or by keywords and values as
// in host=db.example.com dbname=tandem. A file whose name looks like that is named as file:NAME.
func Names(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") ||
		byKeywords.MatchString(text)
}

// byKeywords matches what begins with a keyword and its value.
var byKeywords = regexp.MustCompile(`^\s*[A-Za-z_]+\s*=`)

// says reports whether the name of a database gives a parameter.
func says(text, parameter string) bool {
	return regexp.MustCompile(`(^|[?&\s])` + regexp.QuoteMeta(parameter) + `\s*=`).MatchString(text)
}

// parseURL reads a URL, or keywords and values, and sets what is not said there.
func parseURL(text string) (*pgxpool.Config, error) {
	if _, err := url.Parse(text); err != nil && !byKeywords.MatchString(text) { // in words that might quote a password
		return nil, errors.New("the URL cannot be read; give postgres://USER:PASSWORD@HOST:PORT/DATABASE, and a password with %40 for @, %2F for / and the like")
	}
	cfg, err := pgxpool.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("the URL cannot be used: %s", withoutURL(err))
	}
	if !says(text, "pool_max_conns") {
		cfg.MaxConns = defaultConns
	}
	if cfg.MaxConns < minConns {
		return nil, fmt.Errorf("pool_max_conns %d: want at least %d", cfg.MaxConns, minConns)
	}
	if cfg.ConnConfig.ConnectTimeout == 0 || !says(text, "connect_timeout") {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	if cfg.ConnConfig.RuntimeParams["synchronous_commit"] == "off" {
		return nil, errors.New("synchronous_commit=off: what is accepted has to be on disk; leave it out")
	}
	setDefaults(cfg, ourParameters())
	return cfg, nil
}

// withoutURL is what pgx says is wrong with a URL, without the URL before it.
func withoutURL(err error) string {
	text := err.Error()
	if _, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		text = text[strings.LastIndex(text, "`: ")+1:]
	}
	return strings.TrimPrefix(text, ": ")
}

// setDefaults sets parameters of the session that the URL does not.
func setDefaults(cfg *pgxpool.Config, parameters map[string]string) {
	for name, value := range parameters {
		if _, ok := cfg.ConnConfig.RuntimeParams[name]; !ok {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
}

func inSeconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

func inMillis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// PlainText reports whether what is said to a database, passwords of ours and data of others, may travel
// unencrypted over a network: it is on another machine, and TLS is off or given up when somebody on the way says so.
func PlainText(text string) bool {
	if !Names(text) {
		return false
	}
	cfg, err := pgxpool.ParseConfig(text)
	if err != nil {
		return false // nothing will be said to it
	}
	plain := cfg.ConnConfig.TLSConfig == nil && !onThisMachine(cfg.ConnConfig.Host)
	for _, next := range cfg.ConnConfig.Fallbacks {
		plain = plain || next.TLSConfig == nil && !onThisMachine(next.Host)
	}
	return plain
}

// onThisMachine reports whether a host is the folder of a socket, or loopback.
func onThisMachine(host string) bool {
	address, err := netip.ParseAddr(host)
	return filepath.IsAbs(host) || host == "localhost" || err == nil && address.IsLoopback()
}

// tooOld refuses servers of old versions.
func tooOld(version int) error {
	if version < oldestPostgres {
		return fmt.Errorf("the server is PostgreSQL %d; tandem needs %d or newer", version, oldestPostgres)
	}
	return nil
}

// postgresHint says what to do about an error, by PostgreSQL's code of it; "" where that says nothing more.
func hint(code string) string {
	switch code {
	case "28P01", "28000":
		return "the server does not let this user in; check user, password and pg_hba.conf"
	case "3D000":
		return "there is no such database; make it first (createdb)"
	case "42501":
		return "this user may not do that; let it own the database"
	case "53100":
		return "the disk of the database is full; make room"
	case "53300":
		return "the server has no connection left; raise its max_connections or lower pool_max_conns"
	case "57P03":
		return "the server is starting or stopping; try again soon"
	case "25006":
		return "the server takes no writes; if it is a standby, name the primary"
	case "55P03":
		return "a lock was not to be had within lock_timeout, " + writeTimeout.String() + " unless the URL says otherwise"
	case "57014":
		return "a statement took longer than statement_timeout, " + readTimeout.String() + " unless the URL says otherwise"
	default:
		return ""
	}
}

// Explain turns PostgreSQL's codes into what to do next, on one line.
func Explain(err error) error {
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok {
		if hint := hint(cause.Code); hint != "" {
			return fmt.Errorf("%s: %s", hint, cause.Message)
		}
		return err
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); !ok {
		return err
	}
	hint := "no connection; check that the server runs and that host, port and sslmode are right"
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, misnamed := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case unknown:
		hint = "the server's certificate is from an authority that is not trusted here; name the right one with sslrootcert=FILE"
	case misnamed:
		hint = "the server's certificate is for another name; connect by one that it is for"
	case invalid:
		hint = "the server's certificate is not valid"
	}
	return fmt.Errorf("%s: %w", hint, oneLine{err})
}

// oneLine is an error whose text, which may list attempts, is put on one line.
type oneLine struct{ error }

func (e oneLine) Unwrap() error { return e.error }

func (e oneLine) Error() string {
	var lines []string
	for line := range strings.Lines(e.error.Error()) {
		if line = strings.TrimSpace(line); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Replace(strings.Join(lines, "; "), ":; ", ": ", 1)
}

// HasPassword reports whether the name of a database contains its password.
func HasPassword(text string) bool {
	if !Names(text) {
		return false
	}
	if byKeywords.MatchString(text) {
		return says(text, "password") || says(text, "sslpassword")
	}
	address, err := url.Parse(text)
	if err != nil {
		return false
	}
	_, found := address.User.Password()
	for name := range address.Query() {
		found = found || strings.Contains(name, "password")
	}
	return found
}

// Shown is a database that is named by keywords as a URL that may be shown: where it is, and whose. It is
// "" for one that is named by a URL.
func Shown(text string) string {
	if !byKeywords.MatchString(text) {
		return ""
	}
	cfg, err := pgconn.ParseConfig(text)
	if err != nil {
		return "postgres://…"
	}
	shown := url.URL{Scheme: "postgres", User: url.User(cfg.User), Path: "/" + cfg.Database}
	if filepath.IsAbs(cfg.Host) {
		shown.RawQuery = url.Values{"host": {cfg.Host}}.Encode()
	} else {
		shown.Host = net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	}
	return shown.String()
}

// WithoutPassword returns the name of a database, as it may be shown.
func WithoutPassword(text string) string {
	if shown := Shown(text); shown != "" {
		return shown
	}
	parsed, err := url.Parse(text)
	if err != nil {
		return "postgres://…"
	}
	query := parsed.Query()
	for name := range query {
		if strings.Contains(strings.ToLower(name), "password") {
			query.Set(name, "xxxxx")
		}
	}
	parsed.RawQuery = query.Encode()
	return parsed.Redacted()
}
