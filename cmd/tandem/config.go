package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"tandem/internal/app"
	"tandem/internal/store/postgres"
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
// else from the file named by --config, else from the preset of the mode.
//
// Flags stand in the order in which --help and docs/configuration.md list them; kong takes groups and texts from
// the tags, and takePresets defaults from [app.Preset]. TestConfigurationPage compares the page.
type serveCommand struct {
	modeFlags          `group:"Server:"`
	app.Reach          `group:"Server:"`
	app.Storage        `group:"Storage:"`
	app.Work           `group:"Work:"`
	app.Callbacks      `group:"Callbacks:"`
	secretFlags        `group:"Callbacks:"`
	accessFlags        `group:"Security:"`
	app.Security       `group:"Security:"`
	observabilityFlags `group:"Observability:"`
	sampleFlags        `group:"Sample application (submissions):"`

	presets map[*kong.Flag]preset // those in which the modes differ
	config  app.Config            // what all flags say, checked
	givenDB string                // DB, before a file that it names was read
}

// preset is the text of a flag's value in each mode.
type preset struct{ demo, production string }

// text puts both into a format; a mode that sets nothing has "off".
func (p preset) text(format string) string {
	return fmt.Sprintf(format, p.demo, cmp.Or(p.production, "off"))
}

// modeFlags say where the other values come from.
type modeFlags struct {
	Mode   string     `enum:"demo,production" default:"demo" env:"TANDEM_MODE" help:"Preset: demo (in memory, no API keys, private callbacks allowed) or production."`
	Config configFile `placeholder:"FILE" env:"TANDEM_CONFIG" help:"YAML file whose keys are the long names of these flags."`
}

// secretFlags say who signs callbacks.
type secretFlags struct {
	SigningSecret string `placeholder:"whsec_…|@FILE" env:"TANDEM_SIGNING_SECRET" help:"Secret that signs callbacks. Default: generated at the first start, kept in the database, printed once."`
}

// accessFlags say who may call, and how often.
type accessFlags struct {
	NoAuth    bool   `env:"TANDEM_NO_AUTH" help:"Production without API keys: anyone who reaches the port may use it and read everything."`
	RateLimit string `placeholder:"CALLS/WINDOW|off" env:"TANDEM_RATE_LIMIT" help:"POSTs of one client in any window of time."`
	ReadLimit string `placeholder:"CALLS/WINDOW|off" env:"TANDEM_READ_LIMIT" help:"GETs of data (history, submissions, /stats, /metrics) of one client in any window of time."`
}

// observabilityFlags say what is logged. Metrics are always on.
type observabilityFlags struct {
	Debug bool `env:"TANDEM_DEBUG" help:"Log the steps of every request, including submitted data, for people."`
}

// sampleFlags belong to the submissions.
type sampleFlags struct {
	ExternalURL     string        `placeholder:"URL" env:"TANDEM_EXTERNAL_URL" help:"Service that receives every submission (default: a simulated one). Private addresses are allowed, metadata addresses never."`
	ExternalDelay   string        `placeholder:"TIME|FROM-TO" env:"TANDEM_EXTERNAL_DELAY" help:"Response time of the simulated service (default: ${default})."`
	ExternalTimeout time.Duration `env:"TANDEM_EXTERNAL_TIMEOUT" help:"Timeout of one call to the service. An unconfirmed submission is answered as pending and retried for 24 hours."`
	SubmissionLog   string        `placeholder:"FILE" env:"TANDEM_SUBMISSION_LOG" help:"Log with one JSON line per submission: ids and times, names only with --debug. Rotated at 64 MiB."`
}

// fill sets the flags to a configuration.
func (c *serveCommand) fill(cfg app.Config) {
	c.Mode = cfg.Mode
	c.Reach, c.Storage, c.Work, c.Callbacks, c.Security = cfg.Reach, cfg.Storage, cfg.Work, cfg.Callbacks, cfg.Security
	c.RateLimit, c.ReadLimit = cfg.RateLimit.String(), cfg.ReadLimit.String()
	c.ExternalDelay = fmt.Sprintf("%v-%v", cfg.ExternalDelay[0], cfg.ExternalDelay[1])
	c.ExternalTimeout = cfg.ExternalTimeout
}

// read makes a configuration of the flags, and reads those that are texts or name files.
func (c *serveCommand) read() (cfg app.Config, err error) {
	cfg = app.Preset(c.Mode)
	c.givenDB = c.DB
	if err := app.ReadDatabase("db", &c.DB); err != nil {
		return cfg, err
	}
	cfg.Reach, cfg.Storage, cfg.Work, cfg.Callbacks, cfg.Security = c.Reach, c.Storage, c.Work, c.Callbacks, c.Security
	cfg.NoAuth, cfg.Debug, cfg.SubmissionLog = c.NoAuth, c.Debug, c.SubmissionLog
	cfg.ExternalURL, cfg.ExternalTimeout = c.ExternalURL, c.ExternalTimeout
	if cfg.ExternalDelay, err = parseDelay(c.ExternalDelay); err != nil {
		return cfg, badArgument("", "--external-delay %s: %w", c.ExternalDelay, err)
	}
	if cfg.RateLimit, err = parseQuota(c.RateLimit); err != nil {
		return cfg, badArgument("", "--rate-limit %s: %w", c.RateLimit, err)
	}
	if cfg.ReadLimit, err = parseQuota(c.ReadLimit); err != nil {
		return cfg, badArgument("", "--read-limit %s: %w", c.ReadLimit, err)
	}
	if cfg.SigningSecret, err = app.ReadSecret(c.SigningSecret); err != nil {
		return cfg, badArgument("tandem prints a fresh one at the first start without --signing-secret",
			"--signing-secret: %w", err)
	}
	return cfg, nil
}

// newParser builds the parser of the command line.
func newParser(grammar *commandLine, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(grammar, append(options,
		kong.Name("tandem"),
		kong.Description("One engine, two ways to ask it for work: wait for the answer (sync), or be called back (async)."),
		kong.Resolvers(kong.ResolverFunc(resolve)),
		valueTypes(),
		kong.PostBuild(grammar.Serve.takePresets),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.ValueFormatter(grammar.Serve.describe),
	)...)
}

// takePresets gives the flags of serve the defaults and the presets that app has for them.
func (c *serveCommand) takePresets(k *kong.Kong) error {
	commands := k.Model.Children
	flags := commands[slices.IndexFunc(commands, func(n *kong.Node) bool { return n.Name == "serve" })].Flags
	valuesOf := func(mode string) map[string]string { // :: flag → text
		c.fill(app.Preset(mode))
		values := map[string]string{}
		for _, flag := range flags {
			values[flag.Name] = textOf(flag.Target)
		}
		return values
	}
	demo, production := valuesOf(app.Demo), valuesOf(app.Production)
	c.presets = map[*kong.Flag]preset{}
	for _, flag := range flags {
		switch p := (preset{demo[flag.Name], production[flag.Name]}); {
		case flag.HasDefault: // the mode itself
		case p.demo != p.production:
			c.presets[flag] = p
		case p.demo != "":
			flag.Default, flag.HasDefault = p.demo, true
		}
	}
	return nil
}

// describe is the text of a flag in --help: its meaning, its presets, its variable.
func (c *serveCommand) describe(value *kong.Value) string {
	if p, ok := c.presets[value.Flag]; ok {
		shown := *value
		shown.Help = strings.TrimSuffix(value.Help, ".") + p.text(" (demo: %s, production: %s).")
		value = &shown
	}
	return kong.DefaultHelpValueFormatter(value)
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
		if postgres.HasPassword(argument(parsed, flag)) {
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
		if strings.EqualFold(os.Getenv("ENVIRONMENT"), app.Production) {
			return app.Production, nil
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

// Validate makes a configuration of the flags and refuses what cannot work; kong calls it.
func (c *serveCommand) Validate(parsed *kong.Context) error {
	err := c.applyPresets(parsed.Selected().Flags)
	if err == nil {
		c.config, err = c.read()
	}
	if err == nil {
		err = c.config.Validate()
	}
	if err != nil {
		return asFailure(err)
	}
	return nil
}

// applyPresets sets what was given nowhere to the preset of the mode.
func (c *serveCommand) applyPresets(flags []*kong.Flag) error {
	for _, flag := range flags {
		p := c.presets[flag]
		value := p.demo
		if c.Mode == app.Production {
			value = p.production
		}
		if value == "" || !flag.Target.IsZero() {
			continue
		}
		if err := flag.Parse(kong.Scan().PushTyped(value, kong.FlagValueToken), flag.Target); err != nil {
			return fmt.Errorf("preset of --%s: %w", flag.Name, err)
		}
	}
	return nil
}
