package app

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/limit"
	"tandem/internal/server"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
	"tandem/internal/submissions"
	"tandem/internal/term"
	"tandem/internal/work"
)

// The modes.
const (
	Demo       = "demo"
	Production = "production"
)

// presets are the settings in which the modes differ.
var presets = map[string]struct {
	listen, db  string
	posts, gets limit.Quota
	origins     []string
	open        bool // no API keys, callbacks to private addresses, /test-callback
}{
	Demo: {
		listen: "127.0.0.1:8000", db: ":memory:", open: true,
		origins: []string{"http://localhost:3000", "http://127.0.0.1:3000"},
	},
	Production: {
		listen: ":8000", db: "file:tandem.db",
		posts: limit.Quota{Calls: 50, Window: time.Minute}, gets: limit.Quota{Calls: 600, Window: time.Minute},
	},
}

// Preset returns the configuration of a mode.
func Preset(mode string) Config {
	preset, retry := presets[mode], engine.DefaultRetry
	return Config{
		Mode: mode, AllowPrivate: preset.open, TestCallback: preset.open,
		Reach:   Reach{Listen: preset.listen, MaxConnections: 10_000},
		Storage: Storage{DB: preset.db, Retention: 30 * day, MaxQueue: store.DefaultMaxQueue},
		Work: Work{
			IOWorkers: engine.DefaultIOWorkers, TaskTimeout: engine.DefaultTaskTimeout,
			MaxData: server.DefaultData, MaxDepth: server.DefaultDepth,
		},
		RateLimit: preset.posts, ReadLimit: preset.gets,
		Security: Security{CORSOrigin: preset.origins},
		Callbacks: Callbacks{
			CallbackAttempts: retry.Attempts, CallbackBackoff: retry.Backoff, CallbackMaxAge: retry.MaxAge,
			CallbackTimeout: egress.DefaultTimeout, CallbackHostConcurrency: egress.DefaultHostConcurrency,
		},
		ExternalDelay:   [2]time.Duration{70 * time.Millisecond, 150 * time.Millisecond},
		ExternalTimeout: submissions.DefaultTimeout,
	}
}

const day = 24 * time.Hour

// Config of a service. [Preset] fills it in: a zero field means zero, unless its text says otherwise. Most
// fields are flags of serve, and the tags of those say what they mean; errors name the flags.
type Config struct {
	Mode         string // Demo or Production; the latter asks for API keys unless NoAuth
	AllowPrivate bool   // callbacks may reach private addresses, this server and any port
	TestCallback bool   // serve /test-callback
	Reach
	Storage
	Work
	Callbacks
	SigningSecret tandem.Secret // signs callbacks; zero: the one in the database, made if there is none
	NoAuth        bool          // ask for no API keys in production
	RateLimit     limit.Quota   // of POSTs, per client; zero: no limit
	ReadLimit     limit.Quota   // of GETs of data, per client; zero: no limit
	Security
	Debug           bool             // tell callers, and the submission log, more
	ExternalURL     string           // gets every submission; "": simulated
	ExternalDelay   [2]time.Duration // of the simulator, shortest and longest; up to a minute
	ExternalTimeout time.Duration    // of one call; up to submissions.MaxTimeout
	SubmissionLog   string           // file with a line per submission; "": none

	KeysDB          string           // where the API keys are; "": in DB
	BreakerFailures int              // failures in a row that open the breaker of a destination; 0: 5
	Compute         []string         // command line of a compute process (see engine.Config); nil: none
	Reload          <-chan os.Signal // asks for the certificate to be read again; nil: never
	Log             *slog.Logger     // nil: slog.Default
}

// Reach says how callers reach the service.
type Reach struct {
	Listen         string         `placeholder:"HOST:PORT" env:"TANDEM_LISTEN" help:"Address to listen on."`
	BaseURL        string         `name:"base-url" placeholder:"URL" env:"TANDEM_BASE_URL" help:"URL that callers use (default: that of --listen), such as https://example.com/tandem. Its host is allowed, and links in answers start with its path."`
	TLSCert        string         `placeholder:"FILE" env:"TANDEM_TLS_CERT" help:"Certificate with its chain (PEM): serve HTTPS and HTTP/2. A renewed file is loaded within a second, without a restart."`
	TLSKey         string         `placeholder:"FILE" env:"TANDEM_TLS_KEY" help:"Private key of --tls-cert (PEM)."`
	MaxConnections int            `env:"TANDEM_MAX_CONNECTIONS" help:"Open connections. At the limit a new one replaces the one idle longest. One address may hold a quarter."`
	DrainDelay     *time.Duration `placeholder:"TIME" env:"TANDEM_DRAIN_DELAY" help:"After SIGTERM, keep serving this long while /readyz answers 503, so that load balancers stop sending (default: 5s on PostgreSQL, else 0s)."`
}

// Storage says where requests are kept, for how long, and how many.
type Storage struct {
	DB             string        `name:"db" placeholder:"URL" env:"TANDEM_DB" help:"Database: a path, file:PATH, postgres://USER@HOST/DATABASE, a psql connection string (host=… dbname=…) or :memory:. @FILE reads it from a file. Nodes may share one PostgreSQL."`
	Retention      time.Duration `env:"TANDEM_RETENTION" help:"Delete finished requests older than this; 0: never."`
	MaxQueue       int64         `env:"TANDEM_MAX_QUEUE" help:"Unfinished requests in the database. At the limit POST returns 503."`
	MaxQueuePerKey int64         `env:"TANDEM_MAX_QUEUE_PER_KEY" help:"Unfinished requests of one API key (without keys: of one client). At the limit POST returns 503 to that key; 0: a quarter of --max-queue."`
	MaxBytesPerKey int64         `placeholder:"BYTES" env:"TANDEM_MAX_BYTES_PER_KEY" help:"Data and results of the unfinished requests of one API key. At the limit POST returns 429 QUOTA_EXCEEDED to that key; 0: no limit."`
}

// Work bounds the work and what it is given.
type Work struct {
	Workers     int           `env:"TANDEM_WORKERS" help:"Concurrency slots for CPU-bound work; 0: one per core."`
	IOWorkers   int           `env:"TANDEM_IO_WORKERS" help:"Concurrency slots for work that waits."`
	TaskTimeout time.Duration `env:"TANDEM_TASK_TIMEOUT" help:"Timeout of one run of a task, and of a sync caller's wait."`
	MaxData     int64         `placeholder:"BYTES" env:"TANDEM_MAX_DATA" help:"Largest data of a request, at most 16 MiB (default: ${default})."`
	MaxDepth    int           `env:"TANDEM_MAX_DEPTH" help:"Deepest nesting of data."`
}

// Callbacks say where callbacks may go, and how they are retried.
type Callbacks struct {
	CallbackAttempts        int            `env:"TANDEM_CALLBACK_ATTEMPTS" help:"Attempts per callback."`
	CallbackBackoff         time.Duration  `env:"TANDEM_CALLBACK_BACKOFF" help:"Wait before the second attempt. It doubles with each further one, with jitter."`
	CallbackTimeout         time.Duration  `env:"TANDEM_CALLBACK_TIMEOUT" help:"Timeout of one attempt."`
	CallbackMaxAge          time.Duration  `env:"TANDEM_CALLBACK_MAX_AGE" help:"Give up on a callback this long after its work ended."`
	CallbackHostConcurrency int            `env:"TANDEM_CALLBACK_HOST_CONCURRENCY" help:"Concurrent callbacks to one scheme, host and port."`
	AllowCallbackCIDR       []netip.Prefix `name:"allow-callback-cidr" placeholder:"CIDR" env:"TANDEM_ALLOW_CALLBACK_CIDR" help:"Private addresses that callbacks may reach."`
	AllowCallbackHost       []string       `placeholder:"HOST" env:"TANDEM_ALLOW_CALLBACK_HOST" help:"Host names whose private addresses callbacks may reach."`
	AllowCallbackPort       []uint16       `placeholder:"PORT" env:"TANDEM_ALLOW_CALLBACK_PORT" help:"Ports that callbacks may reach besides 80 and 443 (demo: any)."`
}

// Security says whom the service believes and serves.
type Security struct {
	TrustedProxy    []netip.Prefix `placeholder:"CIDR" env:"TANDEM_TRUSTED_PROXY" help:"Proxies whose X-Forwarded-For names the client and whose X-Forwarded-Prefix names the path they serve."`
	AllowedHost     []string       `placeholder:"HOST" env:"TANDEM_ALLOWED_HOST" help:"Host headers accepted without API keys, besides addresses, localhost and the hosts of --listen and --base-url. Others get 421."`
	CORSOrigin      []string       `name:"cors-origin" placeholder:"URL" env:"TANDEM_CORS_ORIGIN" help:"Origins whose pages may call the API."`
	SecurityContact string         `placeholder:"mailto:ADDRESS|URL" env:"TANDEM_SECURITY_CONTACT" help:"Where to report vulnerabilities, for /.well-known/security.txt."`
}

// Error is one that the operator can do something about.
type Error struct {
	Err     error
	Hint    string // what to do about it; ""
	Invalid bool   // a setting cannot be used; Err names it as a flag
}

// Error is one line.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// invalid is the error about a setting that is bad; nil: it is not.
func invalid(bad bool, hint, format string, args ...any) error {
	if !bad {
		return nil
	}
	return &Error{fmt.Errorf(format, args...), hint, true}
}

// about is invalid for what somebody else has judged.
func about(hint, setting string, err error) error {
	return invalid(err != nil, hint, "--%s %w", setting, err)
}

// within is invalid for a number or a time that has bounds.
func within[T int | int64 | time.Duration](setting string, value, lo, hi T) error {
	return invalid(value < lo || value > hi, "", "--%s %v: want %v to %v", setting, value, lo, hi)
}

// Validate reports the first setting that cannot be used, as an *Error. It opens nothing.
func (cfg Config) Validate() error {
	const most = 1_000_000_000 // unfinished requests
	_, policy := egress.NewDialer(cfg.policy(netip.AddrPort{}), 0, nil)
	return cmp.Or(
		about("", "listen "+cfg.Listen+":", ValidAddress(cfg.Listen)),
		invalid(cfg.AsksForKeys() && sqlite.Memory(cfg.keysDB()), "name a file with --db, or serve with --no-auth",
			"--db :memory: has no API keys, and production mode asks for them"),

		within("workers", cfg.Workers, 0, engine.MaxWorkers),
		within("io-workers", cfg.IOWorkers, 1, engine.MaxWorkers),
		within("max-queue", cfg.MaxQueue, 1, most),
		within("max-queue-per-key", cfg.MaxQueuePerKey, 0, most),
		within("max-bytes-per-key", cfg.MaxBytesPerKey, 0, 1<<50),
		within("max-data", cfg.MaxData, 1, server.MostData),
		within("max-depth", cfg.MaxDepth, 1, server.MostDepth),
		within("max-connections", cfg.MaxConnections, 1, 1_000_000),
		within("callback-attempts", cfg.CallbackAttempts, 1, work.MaxAttempts),
		within("callback-host-concurrency", cfg.CallbackHostConcurrency, 1, 10_000),
		invalid(cfg.MaxBytesPerKey > 0 && cfg.MaxBytesPerKey < cfg.MaxData, "",
			"--max-bytes-per-key %d: want 0, or at least --max-data, which is %d", cfg.MaxBytesPerKey, cfg.MaxData),
		within("task-timeout", cfg.TaskTimeout, time.Millisecond, day),
		within("retention", cfg.Retention, 0, 100*365*day),
		within("drain-delay", cfg.drainDelay(), 0, time.Hour),
		within("callback-backoff", cfg.CallbackBackoff, time.Millisecond, work.MaxBackoff),
		within("callback-timeout", cfg.CallbackTimeout, time.Millisecond, time.Hour),
		within("callback-max-age", cfg.CallbackMaxAge, time.Millisecond, 365*day),

		invalid(slices.Contains(cfg.AllowCallbackPort, 0), "", "--allow-callback-port 0: want 1 to 65535"),
		invalid(policy != nil, "--allow-callback-host takes a name such as hooks.example.com, "+
			"--allow-callback-cidr addresses such as 10.0.0.0/8", "%w", policy),
		cfg.validExternal(),

		cfg.validAPI(),
		invalid((cfg.TLSCert == "") != (cfg.TLSKey == ""), "", "--tls-cert and --tls-key: one needs the other"),
	)
}

// validAPI has the server judge what is its own.
func (cfg Config) validAPI() error {
	if fault, ok := errors.AsType[*server.Fault](cfg.api().Validate()); ok {
		return invalid(true, fault.Hint, "--%w", fault)
	}
	return nil
}

// maxExternalDelay bounds the simulator: longer would only be a call that times out.
const maxExternalDelay = time.Minute

func (cfg Config) validExternal() error {
	shortest, longest := cfg.ExternalDelay[0], cfg.ExternalDelay[1]
	err := cmp.Or(
		invalid(shortest < 0 || longest < shortest || longest > maxExternalDelay, "",
			"--external-delay %v-%v: want 0 to %v, the shorter time first", shortest, longest, maxExternalDelay),
		within("external-timeout", cfg.ExternalTimeout, time.Millisecond, submissions.MaxTimeout),
	)
	if err != nil || cfg.ExternalURL == "" {
		return err
	}
	client, err := egress.New(cfg.externalCalls())
	if err != nil {
		return fmt.Errorf("set up calls of the external service: %w", err)
	}
	defer client.Close()
	err = client.Check(cfg.ExternalURL)
	return about("want the address of the service, such as https://crm.example.com/submissions",
		"external-url "+term.RedactURL(cfg.ExternalURL)+":", cmp.Or(errors.Unwrap(err), err)) // err speaks of a callback
}

// ValidAddress checks HOST:PORT without looking a name up.
func ValidAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("want HOST:PORT, such as 127.0.0.1:8000 or :8000")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("want a port from 0 (any free one) to 65535")
	}
	return nil
}

// AsksForKeys reports whether callers need an API key.
func (cfg Config) AsksForKeys() bool { return cfg.Mode == Production && !cfg.NoAuth }

func (cfg Config) keysDB() string { return cmp.Or(cfg.KeysDB, cfg.DB) }

func (cfg Config) drainDelay() time.Duration {
	switch {
	case cfg.DrainDelay != nil:
		return *cfg.DrainDelay
	case postgres.Names(cfg.DB):
		return 5 * time.Second
	default:
		return 0
	}
}
