package tandemtest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Guarded is a PostgreSQL of one test that is asked over TCP: anyone who comes that way needs a
// password, and TLS once there is a certificate.
type Guarded struct {
	Address string // HOST:PORT

	throwaway *throwaway
}

// NewGuarded starts it; it ends with the test. Where PostgreSQL is not installed the test is skipped.
func NewGuarded(t testing.TB) *Guarded {
	t.Helper()
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	must(t, "find a free port", err)
	s, ended := launchPostgres(t, Volatile, port)
	t.Cleanup(func() {
		s.alive.Close()
		if err := ended(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	g := &Guarded{Address: address, throwaway: s}
	g.admit(t, "host")
	return g
}

// freeAddress is where nobody listens, and below the ports that the system gives to anyone who wants one.
func freeAddress(t testing.TB) string {
	t.Helper()
	for {
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(10_000)))
		if err == nil {
			must(t, "find a free port", listener.Close())
			return listener.Addr().String()
		}
	}
}

// Exec runs statements as the superuser of the server.
func (g *Guarded) Exec(t testing.TB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		must(t, statement, g.throwaway.exec(ctx, statement))
		cancel()
	}
}

// Database makes an empty database, and a user who owns it and has a password.
func (g *Guarded) Database(t testing.TB, password string) *url.URL {
	t.Helper()
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	g.Exec(t, "CREATE USER "+name+" PASSWORD '"+password+"'", "CREATE DATABASE "+name+" OWNER "+name)
	return &url.URL{Scheme: "postgres", User: url.UserPassword(name, password), Host: g.Address, Path: "/" + name}
}

// Encrypt has the server use a certificate, and refuse from now on anyone who comes without TLS; and
// returns the file of the authority that vouches for it.
func (g *Guarded) Encrypt(t testing.TB, certificate Certificate) (authority string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	must(t, "write the certificate", err)
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Leaf.Raw})
	g.write(t, "server.crt", string(public))
	g.write(t, "server.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	g.Exec(t, "ALTER SYSTEM SET ssl = on")
	g.admit(t, "hostssl")
	authority = filepath.Join(t.TempDir(), "authority.pem")
	must(t, "write the authority", os.WriteFile(authority, public, 0o600))
	return authority
}

// admit says who may come over TCP: everybody who has a password (host), or who uses TLS as well (hostssl).
func (g *Guarded) admit(t testing.TB, how string) {
	t.Helper()
	const everybody = " all all " //nolint:dupword // databases, users
	g.write(t, "pg_hba.conf", "local"+everybody+"trust\n"+how+everybody+"127.0.0.1/32 scram-sha-256\n")
	g.reload(t)
}

// write puts a file into the server's folder, as the server's user.
func (g *Guarded) write(t testing.TB, name, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, g.throwaway.url("postgres"))
	must(t, "write "+name, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE TEMPORARY TABLE lines (number INTEGER, line TEXT)")
	must(t, "write "+name, err)
	_, err = conn.Exec(ctx, "INSERT INTO lines SELECT number, line FROM unnest($1::text[]) WITH ORDINALITY AS l "+
		"(line, number)", lines)
	must(t, "write "+name, err)
	_, err = conn.Exec(ctx, fmt.Sprintf("COPY (SELECT line FROM lines ORDER BY number) TO PROGRAM 'umask 077; rm -f "+
		"%[1]s; cat >%[1]s'", name))
	must(t, "write "+name, err)
}

// reload has the server read what was written, and returns when it has.
func (g *Guarded) reload(t testing.TB) {
	t.Helper()
	loaded := func() (at time.Time) {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		conn, err := pgx.Connect(ctx, g.throwaway.url("postgres"))
		must(t, "ask what PostgreSQL has read", err)
		defer conn.Close(ctx)
		must(t, "ask what PostgreSQL has read", conn.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&at))
		return at
	}
	before := loaded()
	g.Exec(t, "SELECT pg_reload_conf()")
	Eventually(t, "PostgreSQL has read its files", func() bool { return loaded().After(before) })
}
