package egress_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tandem/internal/egress"
)

// The name in a URL is complete: no search domain of resolv.conf is put behind it, whatever ndots says
// and whether or not the name ends in a dot.
func TestNamesAreNotLookedUpThroughTheSearchList(t *testing.T) { //nolint:paralleltest // not in the namespace
	if os.Getenv(inNamespace) == "" {
		t.Parallel()
		runInNamespace(t)
		return
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	const conf = "nameserver 127.0.0.1\nsearch corp.example\noptions ndots:5\n"
	if err := os.WriteFile(resolv, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""),
		everyAddressIsLocal(),
	)
	if err != nil {
		t.Skipf("%s needs a resolv.conf of its own: %v", t.Name(), err)
	}
	names := newNameServer(t)
	names.has("hooks.shop.example.corp.example.", "203.0.114.81") // a wildcard, as many networks have
	dialer, err := egress.NewDialer(egress.Policy{}, 0, names.resolver())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"hooks.shop.example", "hooks.shop.example.", "HOOKS.shop.example"} {
		conn, err := dialer.DialContext(t.Context(), "tcp", host+":80")
		if err == nil {
			t.Errorf("%s is %s", host, conn.RemoteAddr())
			conn.Close()
		}
	}
	names.mu.Lock()
	defer names.mu.Unlock()
	if asked := slices.Collect(maps.Keys(names.asked)); !slices.Equal(asked, []string{"hooks.shop.example."}) {
		t.Errorf("names looked up: %q, want the complete one only", asked)
	}
}
