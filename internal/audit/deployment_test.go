package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem"
	"tandem/internal/audit"
	"tandem/internal/egress"
	"tandem/internal/limit"
	"tandem/internal/server"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// deployment is a real service as production mode runs it, with API keys, and a receiver of the audit that the
// operator has opted in.
type deployment struct {
	*tandemtest.Service

	keys        *store.Keys
	receiver    *audit.Receiver
	callbackURL string
	otherURL    string // the same receiver at a port that nobody opted in
}

// production starts one; change, if there is one, has the last word about its configuration.
func production(t testing.TB, change func(*tandemtest.Config)) *deployment {
	t.Helper()
	return productionWith(t, change, nil)
}

// productionWith puts something between it and its receiver, if wrap is not nil.
func productionWith(t testing.TB, change func(*tandemtest.Config), wrap func(http.Handler) http.Handler) *deployment {
	t.Helper()
	d := &deployment{receiver: audit.NewReceiver()}
	var receiver http.Handler = d.receiver
	if wrap != nil {
		receiver = wrap(receiver)
	}
	d.callbackURL, d.otherURL = serve(t, receiver), serve(t, d.receiver)
	var err error
	d.keys, err = store.OpenKeys(t.Context(), store.KeysConfig{
		URL: filepath.Join(t.TempDir(), "keys.db"), Create: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.keys.Close(); err != nil {
			t.Errorf("close keys: %v", err)
		}
	})
	cfg := tandemtest.Config{
		Strict: true, Egress: egress.Config{Policy: receiverOnly(t, d.callbackURL)},
		Server: server.Config{
			Mode: "production", Keys: d.keys, SecurityContact: "mailto:security@example.com",
			RateLimit: limit.Quota{Calls: 5_000, Window: time.Minute},
			ReadLimit: limit.Quota{Calls: 50_000, Window: time.Minute},
		},
	}
	cfg.Engine.Keys = d.keys
	if change != nil {
		change(&cfg)
	}
	d.Service = tandemtest.Start(t, cfg)
	return d
}

// receiverOnly is the policy of production that lets callbacks go to one receiver on loopback, too.
func receiverOnly(t testing.TB, receiver string) egress.Policy {
	t.Helper()
	at, err := netip.ParseAddrPort(strings.TrimPrefix(receiver, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return egress.Policy{CIDRs: []netip.Prefix{netip.PrefixFrom(at.Addr(), 32)}, Ports: []uint16{at.Port()}}
}

// serve serves a receiver at a port of its own.
func serve(t testing.TB, receiver http.Handler) string {
	t.Helper()
	web := httptest.NewServer(receiver)
	t.Cleanup(web.Close)
	return web.URL
}

// ask is how to audit the deployment at an address, with three keys made for that.
func (d *deployment) ask(t testing.TB, address string) audit.Config {
	t.Helper()
	create := func(scopes ...tandem.Scope) store.Made {
		made, err := d.keys.Create(t.Context(), store.NewKey{Name: rand.Text(), Scopes: scopes})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	caller, second := create(tandem.ScopeSubmit, tandem.ScopeRead), create(tandem.ScopeSubmit, tandem.ScopeRead)
	return audit.Config{
		URL: address, APIKey: caller.Token.Reveal(), SecondKey: second.Token.Reveal(),
		AdminKey: create(tandem.ScopeAdmin).Token.Reveal(),
		Secret:   caller.Secret, Receiver: d.receiver, CallbackURL: d.callbackURL, OtherURL: d.otherURL,
		Rate: 5_000, Patience: 10 * time.Second, Settle: 300 * time.Millisecond,
	}
}

// front is a reverse proxy before a deployment that breaks one thing.
type front struct {
	double

	t    *testing.T
	keys audit.Config // of the audit
	pass http.Handler
}

// startFront puts a double before a service and returns its address and itself.
func startFront(t *testing.T, d double, service string, keys audit.Config) (string, http.Handler) {
	t.Helper()
	base, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{double: d, t: t, keys: keys}
	transport := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // audits break requests off
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(base)
			r.Out.Host = r.In.Host
			if f.before != nil {
				f.before(f, r.Out)
			}
		},
		ModifyResponse: func(response *http.Response) error {
			if f.after == nil {
				return nil
			}
			a := &reply{Status: response.StatusCode, Header: response.Header}
			if a.Body, err = io.ReadAll(response.Body); err != nil {
				return err
			}
			response.Body.Close()
			f.after(f, response.Request, a)
			response.StatusCode, response.Body = a.Status, io.NopCloser(bytes.NewReader(a.Body))
			if response.Request.Method != http.MethodHead {
				response.ContentLength = int64(len(a.Body))
				response.Header.Set("Content-Length", strconv.Itoa(len(a.Body)))
			}
			return nil
		},
	}
	f.pass = proxy
	web := httptest.NewUnstartedServer(f)
	web.Config.MaxHeaderBytes, web.Config.ReadHeaderTimeout = d.headerBytes, 0
	web.Start()
	t.Cleanup(func() {
		web.Close()
		transport.CloseIdleConnections()
	})
	return web.URL, f
}

// reply is an answer on its way back.
type reply struct {
	Status int
	Header http.Header
	Body   []byte
}

// ServeHTTP answers itself or passes on.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.instead != nil && f.instead(f, w, r) {
		return
	}
	f.pass.ServeHTTP(w, r)
}

// as sends a request on with another key.
func as(r *http.Request, key string) { r.Header.Set("Authorization", "Bearer "+key) }

// key is the one that a request came with; "" for none.
func key(r *http.Request) string { return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") }

// say answers instead of the service.
func say(w http.ResponseWriter, status int, media, text string) bool {
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
	return true
}

// dialTo reaches one address whatever is asked for.
func dialTo(address string) audit.DialFunc {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}
