package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/audit"
	"tandem/internal/keys"
	"tandem/internal/limit"
	"tandem/internal/receiver"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// variant is a real service as production mode runs it, with API keys, and a receiver that the operator has opted in.
// change, if there is one, has the last word about its configuration. It is started for the first test that needs it
// and stopped after the last: starting one takes longer than most audits. Each audit has keys and a receiver of its
// own.
type variant struct {
	change func(*app.Config)

	once  sync.Once
	d     *deployment
	hooks sync.Map // :: first element of the path → http.Handler
}

// deployment is a variant that runs.
type deployment struct {
	*tandemtest.Service

	hooks              *sync.Map // see variant
	receiver, otherURL string    // bases of the receivers' addresses; nobody opted in the other port
}

// The variants that several tests share.
var (
	plain    = &variant{}
	tight    = &variant{change: limits(40, 60)} // used up in a moment
	open     = &variant{change: func(cfg *app.Config) { cfg.NoAuth = true }}
	careless = &variant{change: func(cfg *app.Config) { // every flag that a check asks for is off
		cfg.RateLimit, cfg.ReadLimit, cfg.SecurityContact, cfg.AllowPrivate = limit.Quota{}, limit.Quota{}, "", true
		cfg.CORSOrigin = []string{"https://attacker.invalid"}
	}}
	tireless = &variant{change: func(cfg *app.Config) { cfg.BreakerFailures = 1_000 }}
)

// limits are those of a client in a minute.
func limits(posts, gets int) func(*app.Config) {
	return func(cfg *app.Config) {
		cfg.RateLimit = limit.Quota{Calls: posts, Window: time.Minute}
		cfg.ReadLimit = limit.Quota{Calls: gets, Window: time.Minute}
	}
}

// start returns the running service.
func (v *variant) start() *deployment {
	v.once.Do(func() {
		d := &deployment{hooks: &v.hooks}
		d.receiver, d.otherURL = serve(untilTheEnd, d), serve(untilTheEnd, d)
		cfg := app.Preset(app.Production)
		cfg.DB, cfg.KeysDB = ":memory:", databaseWithKey(untilTheEnd)
		cfg.SecurityContact = "mailto:security@example.com"
		limits(20_000, 100_000)(&cfg)
		at := netip.MustParseAddrPort(strings.TrimPrefix(d.receiver, "http://"))
		cfg.AllowCallbackCIDR = []netip.Prefix{netip.PrefixFrom(at.Addr(), 32)}
		cfg.AllowCallbackPort = []uint16{at.Port()}
		if v.change != nil {
			v.change(&cfg)
		}
		d.Service = tandemtest.Start(untilTheEnd, cfg)
		v.d = d
	})
	return v.d
}

// ServeHTTP takes callbacks for the receivers of all audits.
func (d *deployment) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if hooks, known := d.hooks.Load(first); known {
		hooks.(http.Handler).ServeHTTP(w, r)
		return
	}
	http.NotFound(w, r)
}

// TestMain stops what tests have shared. Many of them wait for a deployment, so more of them run than there are cores.
func TestMain(m *testing.M) { goleak.VerifyTestMain(suite{m}) }

type suite struct{ *testing.M }

func (s suite) Run() int {
	defer untilTheEnd.stop()
	_ = flag.Set("test.parallel", "4") // which package testing has defined
	return s.M.Run()
}

// untilTheEnd is the test of what lives longer than a test.
var untilTheEnd = &lasting{}

// lasting is a testing.TB that ends when it is told to.
type lasting struct {
	testing.TB

	mu   sync.Mutex // guards ends
	ends []func()
}

func (*lasting) Helper()                      {}
func (*lasting) Context() context.Context     { return context.Background() }
func (*lasting) Output() io.Writer            { return io.Discard }
func (*lasting) Fatal(args ...any)            { panic(fmt.Sprint(args...)) }
func (*lasting) Fatalf(text string, a ...any) { panic(fmt.Sprintf(text, a...)) }
func (*lasting) Errorf(text string, a ...any) { panic(fmt.Sprintf(text, a...)) }

func (l *lasting) Cleanup(end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = append(l.ends, end)
}

func (l *lasting) TempDir() string {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		panic(err)
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (l *lasting) stop() {
	for _, end := range slices.Backward(l.ends) {
		end()
	}
}

// databaseWithKey makes a database with an API key: without one production mode does not start.
func databaseWithKey(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tandem.db")
	k, err := app.OpenKeys(t.Context(), store.HandleConfig{URL: file, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Create(t.Context(), keys.NewKey{Name: "first", Scopes: []tandem.Scope{tandem.ScopeAdmin}})
	if err := errors.Join(err, k.Close()); err != nil {
		t.Fatal(err)
	}
	return file
}

// serve serves a receiver at a port of its own.
func serve(t testing.TB, receiver http.Handler) string {
	t.Helper()
	web := httptest.NewServer(receiver)
	t.Cleanup(web.Close)
	return web.URL
}

// ask is how to audit the deployment at an address, with three keys and a receiver made for that.
func (d *deployment) ask(t testing.TB, address string) audit.Config {
	t.Helper()
	return d.askBehind(t, address, func(receiver http.Handler) http.Handler { return receiver })
}

// askBehind is ask with something between the deployment and the receiver.
func (d *deployment) askBehind(t testing.TB, address string, wrap func(http.Handler) http.Handler) audit.Config {
	t.Helper()
	create := func(scopes ...tandem.Scope) keys.Made {
		made, err := d.Keys.Create(t.Context(), keys.NewKey{Name: rand.Text(), Scopes: scopes})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	hooks, name := new(receiver.Hooks), rand.Text()
	d.hooks.Store(name, wrap(hooks))
	caller, second := create(tandem.ScopeSubmit, tandem.ScopeRead), create(tandem.ScopeSubmit, tandem.ScopeRead)
	return audit.Config{
		URL: address, APIKey: caller.Token.Reveal(), SecondKey: second.Token.Reveal(),
		AdminKey: create(tandem.ScopeAdmin).Token.Reveal(),
		Secret:   caller.Secret, Receiver: hooks, CallbackURL: d.receiver + "/" + name, OtherURL: d.otherURL + "/" + name,
		Rate: 5_000, Timeout: 10 * time.Second, Quiet: 300 * time.Millisecond,
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
