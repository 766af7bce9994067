package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/limit"
	"tandem/internal/server"
	"tandem/internal/store"
	"tandem/internal/term"
)

// The modes.
const (
	modeDemo       = "demo"
	modeProduction = "production"
)

// commandLine is the grammar of the command line.
type commandLine struct {
	Demo    demoCommand    `cmd:"" help:"See it work: a server, and the same work asked for both ways, in about 25 seconds."`
	Serve   serveCommand   `cmd:"" help:"Run the server."`
	Load    loadCommand    `cmd:"" help:"Put a service under load, both ways, and report what came of it."`
	Compare compareCommand `cmd:"" help:"Set reports of load against each other."`
	Audit   auditCommand   `cmd:"" help:"Audit the security of a deployment: SSRF, limits, keys, headers and more."`
	Keys    keysCommand    `cmd:"" help:"Make, list, revoke and rotate API keys, while the server runs or before."`
	Sink    sinkCommand    `cmd:"" help:"Receive callbacks: print, verify, and misbehave on demand."`
	Health  healthCommand  `cmd:"" help:"Ask a server whether it is well (for container checks)."`
	Migrate migrateCommand `cmd:"" help:"Bring a PostgreSQL database up to date, apart from a start."`
	Copy    copyCommand    `cmd:"" help:"Copy a database file to PostgreSQL, once one machine is no longer enough."`
	Version versionCommand `cmd:"" help:"Say which tandem this is."`
	Stage   stageCommand   `cmd:"" hidden:"" help:"The server of demo and of load --demo-mode."`
	Compute computeCommand `cmd:"" hidden:"" help:"A child process of the server, for work that computes."`
}

// serveCommand is the configuration of serve. A value comes from its flag, else
// from its TANDEM_ variable, else from ENVIRONMENT=production (mode) or DEBUG=true (debug),
// else from the file named by --config, else from the preset of the mode, else it is the default.
//
// Flags stand in the order in which --help and docs/configuration.md list them; kong takes groups and texts from
// the tags. A flag with tags named after the modes has a preset. TestConfigurationPage compares the page.
type serveCommand struct {
	serverFlags        `group:"Server:"`
	storageFlags       `group:"Storage:"`
	workFlags          `group:"Work:"`
	callbackFlags      `group:"Callbacks:"`
	securityFlags      `group:"Security:"`
	observabilityFlags `group:"Observability:"`
	sampleFlags        `group:"Sample application (submissions):"`

	givenDB string // DB, before a file that it names was read

	secret tandem.Secret // SigningSecret, read; zero: the database's
	quota  limit.Quota   // RateLimit, read
	reads  limit.Quota   // ReadLimit, read

	delay [2]time.Duration // ExternalDelay, read: the shortest and the longest
}

// serverFlags say how the server is reached.
type serverFlags struct {
	Mode           string         `enum:"demo,production" default:"demo" env:"TANDEM_MODE" help:"Preset: demo (in memory, no API keys, private callbacks allowed) or production."`
	Config         configFile     `placeholder:"FILE" env:"TANDEM_CONFIG" help:"YAML file whose keys are the long names of these flags."`
	Listen         string         `placeholder:"HOST:PORT" demo:"127.0.0.1:8000" production:":8000" env:"TANDEM_LISTEN" help:"Address to listen on."`
	BaseURL        string         `name:"base-url" placeholder:"URL" env:"TANDEM_BASE_URL" help:"URL that callers use (default: that of --listen), such as https://example.com/tandem. Its host is allowed, and links in answers start with its path."`
	TLSCert        string         `placeholder:"FILE" env:"TANDEM_TLS_CERT" help:"Certificate with its chain (PEM): serve HTTPS and HTTP/2. A renewed file is loaded within a second, without a restart."`
	TLSKey         string         `placeholder:"FILE" env:"TANDEM_TLS_KEY" help:"Private key of --tls-cert (PEM)."`
	MaxConnections int            `default:"10000" env:"TANDEM_MAX_CONNECTIONS" help:"Open connections. At the limit a new one replaces the one idle longest. One address may hold a quarter."`
	DrainDelay     *time.Duration `placeholder:"TIME" env:"TANDEM_DRAIN_DELAY" help:"After SIGTERM, keep serving this long while /readyz answers 503, so that load balancers stop sending (default: 5s on PostgreSQL, else 0s)."`
}

// storageFlags say where requests are kept, for how long, and how many.
type storageFlags struct {
	DB          string        `name:"db" placeholder:"URL" demo:":memory:" production:"file:tandem.db" env:"TANDEM_DB" help:"Database: a path, file:PATH, postgres://USER@HOST/DATABASE, a psql connection string (host=… dbname=…) or :memory:. @FILE reads it from a file. Nodes may share one PostgreSQL."`
	Retention   time.Duration `default:"30d" env:"TANDEM_RETENTION" help:"Delete finished requests older than this; 0: never."`
	MaxQueue    int64         `default:"1000000" env:"TANDEM_MAX_QUEUE" help:"Unfinished requests in the database. At the limit POST returns 503."`
	PerKey      int64         `name:"max-queue-per-key" default:"0" env:"TANDEM_MAX_QUEUE_PER_KEY" help:"Unfinished requests of one API key (without keys: of one client). At the limit POST returns 503 to that key; 0: a quarter of --max-queue."`
	BytesPerKey int64         `name:"max-bytes-per-key" default:"0" placeholder:"BYTES" env:"TANDEM_MAX_BYTES_PER_KEY" help:"Data and results of the unfinished requests of one API key. At the limit POST returns 429 QUOTA_EXCEEDED to that key; 0: no limit."`
}

// workFlags bound the work and what it is given.
type workFlags struct {
	Workers     int           `default:"0" env:"TANDEM_WORKERS" help:"Concurrency slots for CPU-bound work; 0: one per core."`
	IOWorkers   int           `default:"256" env:"TANDEM_IO_WORKERS" help:"Concurrency slots for work that waits."`
	TaskTimeout time.Duration `default:"30s" env:"TANDEM_TASK_TIMEOUT" help:"Timeout of one run of a task, and of a sync caller's wait."`
	MaxData     int64         `default:"10240" placeholder:"BYTES" env:"TANDEM_MAX_DATA" help:"Largest data of a request, at most 16 MiB (default: ${default})."`
	MaxDepth    int           `default:"10" env:"TANDEM_MAX_DEPTH" help:"Deepest nesting of data."`
}

// callbackFlags say where callbacks may go, how they are retried and who signs them.
type callbackFlags struct {
	CallbackAttempts        int            `default:"3" env:"TANDEM_CALLBACK_ATTEMPTS" help:"Attempts per callback."`
	CallbackBackoff         time.Duration  `default:"1s" env:"TANDEM_CALLBACK_BACKOFF" help:"Wait before the second attempt. It doubles with each further one, with jitter."`
	CallbackTimeout         time.Duration  `default:"10s" env:"TANDEM_CALLBACK_TIMEOUT" help:"Timeout of one attempt."`
	CallbackMaxAge          time.Duration  `default:"24h" env:"TANDEM_CALLBACK_MAX_AGE" help:"Give up on a callback this long after its work ended."`
	CallbackHostConcurrency int            `default:"10" env:"TANDEM_CALLBACK_HOST_CONCURRENCY" help:"Concurrent callbacks to one scheme, host and port."`
	AllowCallbackCIDR       []netip.Prefix `name:"allow-callback-cidr" placeholder:"CIDR" env:"TANDEM_ALLOW_CALLBACK_CIDR" help:"Private addresses that callbacks may reach."`
	AllowCallbackHost       []string       `placeholder:"HOST" env:"TANDEM_ALLOW_CALLBACK_HOST" help:"Host names whose private addresses callbacks may reach."`
	AllowCallbackPort       []uint16       `placeholder:"PORT" env:"TANDEM_ALLOW_CALLBACK_PORT" help:"Ports that callbacks may reach besides 80 and 443 (demo: any)."`
	SigningSecret           string         `placeholder:"whsec_…|@FILE" env:"TANDEM_SIGNING_SECRET" help:"Secret that signs callbacks. Default: generated at the first start, kept in the database, printed once."`
}

// securityFlags say who may call, and how often.
type securityFlags struct {
	NoAuth          bool           `env:"TANDEM_NO_AUTH" help:"Production without API keys: anyone who reaches the port may use it and read everything."`
	RateLimit       string         `placeholder:"CALLS/WINDOW|off" demo:"off" production:"50/60s" env:"TANDEM_RATE_LIMIT" help:"POSTs of one client in any window of time."`
	ReadLimit       string         `placeholder:"CALLS/WINDOW|off" demo:"off" production:"600/60s" env:"TANDEM_READ_LIMIT" help:"GETs of data (history, submissions, /stats, /metrics) of one client in any window of time."`
	TrustedProxy    []netip.Prefix `placeholder:"CIDR" env:"TANDEM_TRUSTED_PROXY" help:"Proxies whose X-Forwarded-For names the client and whose X-Forwarded-Prefix names the path they serve."`
	AllowedHost     []string       `placeholder:"HOST" env:"TANDEM_ALLOWED_HOST" help:"Host headers accepted without API keys, besides addresses, localhost and the hosts of --listen and --base-url. Others get 421."`
	CORSOrigin      []string       `name:"cors-origin" placeholder:"URL" demo:"http://localhost:3000,http://127.0.0.1:3000" env:"TANDEM_CORS_ORIGIN" help:"Origins whose pages may call the API."`
	SecurityContact string         `placeholder:"mailto:ADDRESS|URL" env:"TANDEM_SECURITY_CONTACT" help:"Where to report vulnerabilities, for /.well-known/security.txt."`
}

// observabilityFlags say what is logged. Metrics are always on.
type observabilityFlags struct {
	Debug bool `env:"TANDEM_DEBUG" help:"Log the steps of every request, including submitted data, for people."`
}

// sampleFlags belong to the submissions.
type sampleFlags struct {
	ExternalURL     string        `placeholder:"URL" env:"TANDEM_EXTERNAL_URL" help:"Service that receives every submission (default: a simulated one). Private addresses are allowed, metadata addresses never."`
	ExternalDelay   string        `default:"70ms-150ms" placeholder:"TIME|FROM-TO" env:"TANDEM_EXTERNAL_DELAY" help:"Response time of the simulated service (default: ${default})."`
	ExternalTimeout time.Duration `default:"5s" env:"TANDEM_EXTERNAL_TIMEOUT" help:"Timeout of one call to the service. An unconfirmed submission is answered as pending and retried for 24 hours."`
	SubmissionLog   string        `placeholder:"FILE" env:"TANDEM_SUBMISSION_LOG" help:"Log with one JSON line per submission: ids and times, names only with --debug. Rotated at 64 MiB."`
}

// newParser builds the parser of the command line.
func newParser(grammar *commandLine, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(grammar, append(options,
		kong.Name("tandem"),
		kong.Description("One engine, two ways to ask it for work: wait for the answer (sync), or be called back (async)."),
		kong.Resolvers(kong.ResolverFunc(resolve)),
		valueTypes(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.ValueFormatter(describe),
	)...)
}

// describe is the text of a flag in --help: its meaning, its presets, its variable.
func describe(value *kong.Value) string {
	if byMode := presets(value.Tag, "%s: %s"); byMode != nil {
		shown := *value
		shown.Help = strings.TrimSuffix(value.Help, ".") + " (" + strings.Join(byMode, ", ") + ")."
		value = &shown
	}
	return kong.DefaultHelpValueFormatter(value)
}

// presets lists the presets of a flag, each formatted with its mode and its value; a mode without one has "off".
func presets(tag *kong.Tag, format string) []string {
	if !tag.Has(modeDemo) {
		return nil
	}
	return []string{
		fmt.Sprintf(format, modeDemo, tag.Get(modeDemo)),
		fmt.Sprintf(format, modeProduction, cmp.Or(tag.Get(modeProduction), "off")),
	}
}

// dispatch reads the command line and runs its command.
func dispatch(ctx context.Context, args []string, t *terminal) error {
	var grammar commandLine
	helped, out := false, t.out
	if len(args) == 0 {
		args, out = []string{"--help"}, t.err
	}
	parser, err := newParser(&grammar,
		kong.Writers(out, t.err),
		kong.Exit(func(int) { helped = true }), // only --help asks for it; main alone ends the process
	)
	if err != nil {
		return fmt.Errorf("build the command line: %w", err)
	}
	parsed, err := parser.Parse(args)
	switch {
	case helped && out == t.err:
		return &failure{code: exitBadArgument, err: errors.New("no command"), silent: true}
	case helped:
		return nil
	case err != nil && errors.Is(err, out.Err()):
		return err // the help could not be printed
	case err != nil:
		return badCommandLine(err)
	}
	if given := argument(parsed, "signing-secret", "secret"); given != "" && !strings.HasPrefix(given, "@") {
		t.warnf("the signing secret stands in the arguments, where every user of this machine can read it (ps); " +
			"set TANDEM_SIGNING_SECRET or name a file: @FILE")
	}
	for _, flag := range []string{"api-key", "second-api-key", "admin-key"} {
		if given := argument(parsed, flag); given != "" && !strings.HasPrefix(given, "@") {
			t.warnf("the API key stands in the arguments, where every user of this machine can read it (ps); "+
				"set TANDEM_%s or name a file: @FILE", strings.ToUpper(strings.ReplaceAll(flag, "-", "_")))
		}
	}
	for flag, variable := range map[string]string{"db": "TANDEM_DB", "to": "TANDEM_COPY_TO"} {
		if store.HasPassword(argument(parsed, flag)) {
			t.warnf("the password of the database stands in the arguments, where every user of this machine can read it (ps); "+
				"set %s or PGPASSWORD, or name a file: --%s @FILE", variable, flag)
		}
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return parsed.Run(t)
}

// badCommandLine makes kong's errors ours, with a hint that fits the command.
func badCommandLine(err error) error {
	bad := &failure{code: exitBadArgument, err: err, hint: "tandem --help lists the commands"}
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		if command := parse.Context.Selected(); command != nil {
			bad.hint = "tandem " + strings.TrimPrefix(command.FullPath(), "tandem ") + " --help lists its flags"
		}
	}
	if ours, ok := errors.AsType[*failure](err); ok {
		bad.err = ours.err
		if ours.hint != "" {
			bad.hint = ours.hint
		}
	}
	return bad
}

// argument returns the value that one of the named flags was given in the
// arguments, "" when it was not.
func argument(parsed *kong.Context, names ...string) string {
	for _, element := range parsed.Path {
		if element.Flag != nil && !element.Resolved && slices.Contains(names, element.Flag.Name) {
			return fmt.Sprint(parsed.FlagValue(element.Flag))
		}
	}
	return ""
}

// resolve gives a flag its value from ENVIRONMENT, DEBUG or the configuration
// file. kong asks for flags that were not given, and would prefer the answer to the
// TANDEM_ variable, which it has read already: so there is no answer when that is set.
func resolve(parsed *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if parent.Command == nil || slices.ContainsFunc(flag.Envs, isSet) {
		return nil, nil //nolint:nilnil // kong's way to say "no answer"
	}
	switch parent.Command.Name + " " + flag.Name {
	case "serve mode":
		if strings.EqualFold(os.Getenv("ENVIRONMENT"), modeProduction) {
			return modeProduction, nil
		}
	case "serve debug":
		if debug, err := strconv.ParseBool(os.Getenv("DEBUG")); err == nil && debug {
			return true, nil
		}
	}
	for _, candidate := range parent.Command.Flags {
		if file, ok := parsed.FlagValue(candidate).(configFile); ok {
			if value, found, err := file.value(flag); found || err != nil {
				return value, err
			}
		}
	}
	return nil, nil //nolint:nilnil // as above
}

// isSet reports whether an environment variable is there; an empty one of ours is not.
func isSet(variable string) bool {
	_, ok := os.LookupEnv(variable)
	return ok
}

// AfterApply refuses what the configuration file says and serve does not know; kong calls it.
func (c *serveCommand) AfterApply(parsed *kong.Context) error {
	return c.Config.check(parsed.Selected().Flags)
}

// Validate fills in what depends on other flags and refuses what cannot work;
// kong calls it.
func (c *serveCommand) Validate(parsed *kong.Context) error {
	if err := c.applyPresets(parsed.Selected().Flags); err != nil {
		return err
	}
	c.givenDB = c.DB
	if err := readDatabase("db", &c.DB); err != nil {
		return err
	}
	if c.DrainDelay == nil {
		c.DrainDelay = new(time.Duration)
		if store.IsPostgres(c.DB) {
			*c.DrainDelay = 5 * time.Second
		}
	}
	if err := validAddress(c.Listen); err != nil {
		return badArgument("", "--listen %s: %w", c.Listen, err)
	}
	if c.asksForKeys() && store.Memory(c.DB) {
		return badArgument("name a file with --db, or serve with --no-auth", "--db :memory: has no API keys, and production mode asks for them")
	}
	if err := c.validBounds(); err != nil {
		return err
	}
	if err := c.validCallbacks(); err != nil {
		return err
	}
	if err := c.validExternal(); err != nil {
		return err
	}
	if err := server.ValidBaseURL(c.BaseURL); err != nil {
		return badArgument("", "--base-url %s: %w", c.BaseURL, err)
	}
	if err := server.ValidHosts(c.AllowedHost); err != nil {
		return badArgument("", "--allowed-host %w", err)
	}
	if err := server.ValidOrigins(c.CORSOrigin); err != nil {
		return badArgument("an origin is a scheme, a host and perhaps a port: https://app.example.com", "--cors-origin: %w", err)
	}
	if err := server.ValidProxies(c.TrustedProxy); err != nil {
		return badArgument("name the addresses of your proxies only", "--trusted-proxy %w", err)
	}
	var err error
	if c.quota, err = parseQuota(c.RateLimit); err != nil {
		return badArgument("", "--rate-limit %s: %w", c.RateLimit, err)
	}
	if c.reads, err = parseQuota(c.ReadLimit); err != nil {
		return badArgument("", "--read-limit %s: %w", c.ReadLimit, err)
	}
	if err := server.ValidContact(c.SecurityContact); err != nil {
		return badArgument("", "--security-contact %s: %w", c.SecurityContact, err)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return badArgument("", "--tls-cert and --tls-key: one needs the other")
	}
	if c.secret, err = readSecret(c.SigningSecret); err != nil {
		return badArgument("tandem prints a fresh one at the first start without --signing-secret", "--signing-secret: %w", err)
	}
	return nil
}

// applyPresets sets what was given nowhere to the preset of the mode.
func (c *serveCommand) applyPresets(flags []*kong.Flag) error {
	for _, flag := range flags {
		preset := flag.Tag.Get(c.Mode)
		if preset == "" || !flag.Target.IsZero() {
			continue
		}
		if err := flag.Parse(kong.Scan().PushTyped(preset, kong.FlagValueToken), flag.Target); err != nil {
			return fmt.Errorf("preset of --%s: %w", flag.Name, err)
		}
	}
	return nil
}

// asksForKeys reports whether callers need an API key.
func (c *serveCommand) asksForKeys() bool { return c.Mode == modeProduction && !c.NoAuth }

// readDatabase takes the URL of a database, the value of a flag, out of the file that it names, if it does, and
// refuses a kind of database that there is not.
func readDatabase(flag string, db *string) error {
	if name, ok := strings.CutPrefix(*db, "@"); ok {
		content, err := os.ReadFile(name)
		if err == nil && len(bytes.TrimSpace(content)) == 0 {
			err = fmt.Errorf("%s is empty", name)
		}
		if err != nil {
			return badArgument("@FILE holds the URL of the database, such as postgres://USER:PASSWORD@HOST/DATABASE", "--%s: %w", flag, err)
		}
		*db = strings.TrimSpace(string(content))
	}
	scheme, _, ok := strings.Cut(*db, "://")
	if ok && scheme != "file" && !store.IsPostgres(*db) {
		return badArgument("a database is file:tandem.db, a path, :memory:, or postgres://…", "--%s %s: unknown kind of database", flag, redact(*db))
	}
	return nil
}

// validBounds checks the numbers.
func (c *serveCommand) validBounds() error {
	for _, number := range []struct {
		flag          string
		value, lo, hi int64
	}{
		{"workers", int64(c.Workers), 0, 10_000},
		{"io-workers", int64(c.IOWorkers), 1, 10_000},
		{"max-queue", c.MaxQueue, 1, 1_000_000_000},
		{"max-queue-per-key", c.PerKey, 0, 1_000_000_000},
		{"max-bytes-per-key", c.BytesPerKey, 0, 1 << 50},
		{"max-data", c.MaxData, 1, 16 << 20},
		{"max-depth", int64(c.MaxDepth), 1, 1_000},
		{"max-connections", int64(c.MaxConnections), 1, 1_000_000},
		{"callback-attempts", int64(c.CallbackAttempts), 1, 1_000},
		{"callback-host-concurrency", int64(c.CallbackHostConcurrency), 1, 10_000},
	} {
		if number.value < number.lo || number.value > number.hi {
			return badArgument("", "--%s %d: want %d to %d", number.flag, number.value, number.lo, number.hi)
		}
	}
	if c.BytesPerKey > 0 && c.BytesPerKey < c.MaxData {
		return badArgument("", "--max-bytes-per-key %d: want 0, or at least --max-data, which is %d",
			c.BytesPerKey, c.MaxData)
	}
	for _, bound := range []struct {
		flag          string
		value, lo, hi time.Duration
	}{
		{"task-timeout", c.TaskTimeout, time.Millisecond, day},
		{"retention", c.Retention, 0, 100 * 365 * day},
		{"drain-delay", *c.DrainDelay, 0, time.Hour},
		{"callback-backoff", c.CallbackBackoff, time.Millisecond, day},
		{"callback-timeout", c.CallbackTimeout, time.Millisecond, time.Hour},
		{"callback-max-age", c.CallbackMaxAge, time.Millisecond, 365 * day},
	} {
		if bound.value < bound.lo || bound.value > bound.hi {
			return badArgument("", "--%s %v: want %v to %v", bound.flag, bound.value, bound.lo, bound.hi)
		}
	}
	return nil
}

// validCallbacks asks those who use the flags about callbacks whether they can.
func (c *serveCommand) validCallbacks() error {
	if slices.Contains(c.AllowCallbackPort, 0) {
		return badArgument("", "--allow-callback-port 0: want 1 to 65535")
	}
	if _, err := egress.NewDialer(c.policy(), 0, nil); err != nil {
		return badArgument("--allow-callback-host takes a name such as hooks.example.com, --allow-callback-cidr addresses such as 10.0.0.0/8", "%w", err)
	}
	if err := c.schedule().Validate(); err != nil {
		return badArgument("", "%w", err)
	}
	return nil
}

// policy says where callbacks may go, our own address aside.
func (c *serveCommand) policy() egress.Policy {
	demo := c.Mode == modeDemo
	return egress.Policy{AllowPrivate: demo, AnyPort: demo, Ports: c.AllowCallbackPort, CIDRs: c.AllowCallbackCIDR, Hosts: c.AllowCallbackHost}
}

// schedule says when a failed callback is tried again.
func (c *serveCommand) schedule() engine.Schedule {
	return engine.Schedule{Attempts: c.CallbackAttempts, Backoff: c.CallbackBackoff, MaxAge: c.CallbackMaxAge}
}

// validAddress checks HOST:PORT without looking a name up.
func validAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("want HOST:PORT, such as 127.0.0.1:8000 or :8000")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("want a port from 0 (any free one) to 65535")
	}
	return nil
}

// readSecret reads whsec_…, or @ and the name of a file that holds it. An empty
// text is the zero secret. Errors do not contain the text.
func readSecret(text string) (tandem.Secret, error) {
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

// redact hides the password and the parameters of a URL, or of a database named by keywords.
func redact(text string) string {
	if shown := store.Shown(text); shown != "" {
		return shown
	}
	if !strings.Contains(text, "://") {
		return text // a path
	}
	return term.RedactURL(text)
}
