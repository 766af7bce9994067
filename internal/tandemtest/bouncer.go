package tandemtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Bouncer starts a PgBouncer in front of a database of [Postgres] and returns the URL of the database
// behind it. mode is its pool_mode: session, transaction or statement. It ends with the test. Where
// PgBouncer is not installed the test is skipped.
func Bouncer(t testing.TB, database, mode string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
		}
	}
	direct, err := pgx.ParseConfig(database)
	must(t, "read the URL of the database", err)
	folder, err := os.MkdirTemp("", "tandem-bouncer-") //nolint:usetesting // its owner removes it
	must(t, "make a folder for PgBouncer", err)
	configuration := fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = %s
auth_type = any
pool_mode = %s
default_pool_size = 40
`, direct.Host, direct.Port, direct.User, folder, mode)
	must(t, "configure PgBouncer", os.WriteFile(filepath.Join(folder, "ini"), []byte(configuration), 0o644))
	// It ends when its standard input does, however this process ends.
	cmd := exec.Command("sh", "-c", `"$1" "$2/ini" >"$2/log" 2>&1 & read -r _; kill -INT $!; wait; rm -rf "$2"`,
		"sh", program, folder)
	must(t, "give the folder away", unprivileged(cmd, folder))
	alive, err := cmd.StdinPipe()
	must(t, "make a pipe", err)
	must(t, "start PgBouncer", cmd.Start())
	t.Cleanup(func() {
		alive.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("stop PgBouncer: %v", err)
		}
	})
	query := url.Values{"host": {folder}, "port": {"6432"}, "user": {direct.User}}
	pooled := "postgres:///" + direct.Database + "?" + query.Encode()
	Eventually(t, "PgBouncer takes connections", func() bool {
		conn, err := pgx.Connect(context.Background(), pooled)
		if err != nil {
			return false
		}
		return conn.Close(context.Background()) == nil
	})
	return pooled
}
