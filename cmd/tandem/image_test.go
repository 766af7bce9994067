//go:build linux

package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
)

// TestImage does without Docker what the Dockerfile does with it: it runs the commands of the stage
// `build`, lays out what the last stage copies, and starts it there as its user, in production
// mode and with nothing else to be seen. HTTPS callbacks succeed to whom the binary's own roots or the
// operator's file vouch for, and to nobody else.
func TestImage(t *testing.T) {
	t.Parallel()
	embedded, stranger := newAuthority(t, "embedded"), newAuthority(t, "stranger")
	binary := buildImage(t, embedded.embedded(t))
	for _, test := range []struct {
		name      string
		authority *authority // of the receiver
		roots     bool       // a file with the authority's certificate is in /data, and SSL_CERT_FILE names it
		status    tandem.Status
		outcome   tandem.Outcome
	}{
		{"nobody vouches", stranger, false, tandem.StatusCallbackFailed, tandem.OutcomeTLS},
		{"a file of roots vouches", stranger, true, tandem.StatusCallbackSent, tandem.OutcomeDelivered},
		{"the embedded roots vouch", embedded, false, tandem.StatusCallbackSent, tandem.OutcomeDelivered},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			receiver := test.authority.receiver(t)
			j := newJail(t, binary)
			var extra []string
			if test.roots {
				j.write(t, "data/roots.pem", test.authority.pem())
				extra = []string{"SSL_CERT_FILE=/data/roots.pem"}
			}
			address, err := url.Parse(receiver.URL)
			if err != nil {
				t.Fatal(err)
			}
			p := j.start(t, extra, append(j.image.command, "--listen", "127.0.0.1:0", "--no-auth", "--callback-attempts", "1",
				"--allow-callback-cidr", "127.0.0.0/8", "--allow-callback-port", address.Port())...)
			p.awaitReady(t)
			health := j.start(t, nil, append(j.image.health[1:], "--url", p.url)...)
			if code := health.exitCode(t); code != 0 {
				t.Errorf("health check: exit code %d\n%s", code, health.stderr.String())
			}

			got := deliver(t, p.url, receiver.URL)
			if got.Status != test.status || len(got.Attempts) != 1 || got.Attempts[0].Outcome != test.outcome {
				t.Errorf("status %s, attempts %+v; want %s after one %s", got.Status, got.Attempts, test.status, test.outcome)
			}
			if unknown := strings.Contains(fmt.Sprint(got.Attempts), "unknown authority"); unknown != (test.outcome == tandem.OutcomeTLS) {
				t.Errorf("attempts %+v", got.Attempts)
			}
			p.signal(t, terminate)
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, p.stderr.String())
			}
			j.check(t)
		})
	}
}

// deliver asks for work with a callback, and returns the request when its callback is decided.
func deliver(t *testing.T, server, callback string) tandem.Request {
	t.Helper()
	if code := <-post(server+"/async", `{"data":{"n":1},"task":"echo","callback_url":"`+callback+`"}`); code != http.StatusAccepted {
		t.Fatalf("POST /async: %d", code)
	}
	var request tandem.Request
	err := poll("a decided callback", func() error {
		var newest []tandem.Request
		if err := fetch(server+"/requests?limit=1", &newest); err != nil {
			return err
		}
		if len(newest) != 1 || (newest[0].Status != tandem.StatusCallbackSent && newest[0].Status != tandem.StatusCallbackFailed) {
			return fmt.Errorf("newest is %+v", newest)
		}
		return fetch(server+"/requests/"+newest[0].ID, &request)
	})
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// fetch reads the JSON at a URL into into.
func fetch(url string, into any) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

// image is what the last stage of the Dockerfile says about running it.
type image struct {
	user, directory             string
	entrypoint, command, health []string
}

// readImage reads the Dockerfile.
func readImage(t *testing.T) image {
	t.Helper()
	var i image
	for _, step := range dockerStage(t, "") {
		switch step.word {
		case "USER":
			i.user = step.rest
		case "WORKDIR":
			i.directory = step.rest
		case "ENTRYPOINT":
			i.entrypoint = execForm(t, step.rest)
		case "CMD":
			i.command = execForm(t, step.rest)
		case "HEALTHCHECK":
			_, command, _ := strings.Cut(step.rest, "CMD ")
			i.health = execForm(t, command)
		}
	}
	want := image{"65532:65532", "/data", []string{"/tandem"}, []string{"serve", "--mode", "production"}, []string{"/tandem", "health"}}
	if diff := cmp.Diff(want, i, cmp.AllowUnexported(image{})); diff != "" {
		t.Fatalf("the Dockerfile's last stage (-want +got):\n%s", diff)
	}
	return i
}

// buildImage runs the commands of the Dockerfile's stage `build` with another directory in the place
// of /image and another go.mod in the place of the module's, and returns the binary.
func buildImage(t *testing.T, modfile string) string {
	t.Helper()
	target := t.TempDir()
	ran := 0
	for _, step := range dockerStage(t, "build") {
		if step.word != "RUN" {
			continue
		}
		// At a low priority: the other tests of this package run at the same time.
		cmd := exec.Command("nice", "-n", "10", "sh", "-c", strings.ReplaceAll(step.rest, "/image/", target+"/"))
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "VERSION=of-the-image", "GOFLAGS="+os.Getenv("GOFLAGS")+" -modfile="+modfile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("RUN %s: %v\n%s", step.rest, err, out)
		}
		ran++
	}
	if info, err := os.Stat(filepath.Join(target, "data")); err != nil || !info.IsDir() || ran != 2 {
		t.Fatalf("%d commands; the data directory: %v", ran, err)
	}
	return filepath.Join(target, "tandem")
}

// jail is a directory that is all a process in it can see.
type jail struct {
	root  string
	image image
}

// newJail lays out the image: the binary, and a data directory that belongs to the user.
func newJail(t *testing.T, binary string) *jail {
	t.Helper()
	j := &jail{root: t.TempDir(), image: readImage(t)}
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	j.write(t, "tandem", text)
	if err := errors.Join(
		os.Chmod(j.root, 0o755), os.Chmod(filepath.Join(j.root, "tandem"), 0o755), os.Mkdir(filepath.Join(j.root, "data"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(filepath.Join(j.root, "data"), j.uid(t), j.uid(t)); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// write puts a file into the jail that everybody may read.
func (j *jail) write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(j.root, name), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// uid is the image's user, who is also its group.
func (j *jail) uid(t *testing.T) int {
	t.Helper()
	user, group, _ := strings.Cut(j.image.user, ":")
	uid, err := strconv.Atoi(user)
	if err != nil || uid == 0 || group != user {
		t.Fatalf("user %s", j.image.user)
	}
	return uid
}

// start runs the entry point in the jail as the image's user. Without the rights of root it takes a
// name space of its own, in which that user stands for who runs the tests.
func (j *jail) start(t *testing.T, extra []string, args ...string) *process {
	t.Helper()
	uid := j.uid(t)
	attributes := &syscall.SysProcAttr{Chroot: j.root}
	if os.Getuid() == 0 {
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	} else {
		attributes.Cloneflags = syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}
	}
	cmd := exec.Command(j.image.entrypoint[0], args...)
	cmd.SysProcAttr = attributes
	p := &process{cmd: cmd, exited: make(chan struct{})}
	cmd.Dir, cmd.Env = j.image.directory, append([]string{"HOME=/"}, extra...)
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) && os.Getuid() != 0 {
		t.Skip("chroot wants root, or a kernel that lets everybody make user name spaces")
	} else if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, for which the cleanup waits
		p.err = cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.kill)
	return p
}

// check looks at what the process left: its database under /data, which belongs to its user, and nothing else.
func (j *jail) check(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(j.root)
	if err != nil || len(entries) != 2 {
		t.Errorf("beside /data and /tandem: %v, %v", entries, err)
	}
	info, err := os.Stat(filepath.Join(j.root, "data", "tandem.db"))
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if os.Getuid() == 0 && owner != uint32(j.uid(t)) {
		t.Errorf("the database belongs to %d", owner)
	}
}

// authority issues certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newAuthority makes an authority that nobody knows.
func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.certificate = a.issue(t, &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}, &key.PublicKey)
	return a
}

// issue signs a certificate for an hour either way; the first one is the authority's own.
func (a *authority) issue(t *testing.T, template *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := a.certificate
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// pem is the authority's certificate as a file of roots has it.
func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// receiver answers 200 over TLS, with a certificate of the authority for 127.0.0.1.
func (a *authority) receiver(t *testing.T) *httptest.Server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := a.issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}, &key.PublicKey)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // a handshake is refused: that is the point
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// embedded writes a go.mod beside which the authority is one of the roots that are compiled in, as one
// more entry of the list that x509roots/fallback embeds, and returns its name.
func (a *authority) embedded(t *testing.T) string {
	t.Helper()
	const module = "golang.org/x/crypto/x509roots/fallback"
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	read := func(name string) []byte {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(target, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(target, "roots"), os.DirFS(strings.TrimSpace(string(folder)))); err != nil {
		t.Fatal(err)
	}
	der := read(filepath.Join(target, "roots/bundle/bundle.der"))
	write("roots/bundle/bundle.der", append(der, a.certificate.Raw...))
	list, ok := strings.CutSuffix(string(read(filepath.Join(target, "roots/bundle/bundle.go"))), "}\n")
	if !ok {
		t.Fatal("bundle.go does not end with a list")
	}
	write("roots/bundle/bundle.go", fmt.Appendf(nil, "%s{cn: %q, certStartOff: %d, certLength: %d},\n}\n",
		list, a.certificate.Subject, len(der), len(a.certificate.Raw)))
	write("go.mod", fmt.Appendf(read("../../go.mod"), "\nreplace %s => %s\n", module, filepath.Join(target, "roots")))
	write("go.sum", read("../../go.sum"))
	return filepath.Join(target, "go.mod")
}
