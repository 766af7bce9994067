package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"tandem"
	"tandem/internal/app"
	"tandem/internal/audit"
	"tandem/internal/receiver"
	"tandem/internal/term"
)

const (
	auditWidth       = 100 // columns of the table, where there is room
	auditConnections = 64  // of the receiver, at once
)

// auditCommand is the command line of audit.
type auditCommand struct {
	URL   string      `name:"url" default:"http://127.0.0.1:8000" env:"TANDEM_AUDIT_URL" help:"The deployment, at the address that its callers use (default: ${default})."`
	Level audit.Level `enum:"quick,full" default:"quick" help:"quick: every route and a sample of callback URLs, at most 2,000 requests. full: every spelling and every callback URL, at most 5,000 (default: ${default})."`
	Only  []string    `placeholder:"GROUP|ID" help:"Run these groups or checks only."`
	List  bool        `help:"List the checks, and ask nothing."`

	APIKey        string `name:"api-key" placeholder:"KEY|@FILE" env:"TANDEM_API_KEY" help:"The key of an ordinary caller."`
	SecondAPIKey  string `name:"second-api-key" placeholder:"KEY|@FILE" env:"TANDEM_SECOND_API_KEY" help:"The key of another one: shows whether tenants are apart, and shares the work."`
	AdminKey      string `placeholder:"KEY|@FILE" env:"TANDEM_ADMIN_KEY" help:"A key that may read /stats."`
	SigningSecret string `placeholder:"whsec_…|@FILE" env:"TANDEM_SIGNING_SECRET" help:"Verifies callbacks. Without it only the form of signatures is looked at."`

	Receiver    string `placeholder:"HOST:PORT" help:"Receive callbacks at this address, for the checks that need some."`
	CallbackURL string `name:"callback-url" placeholder:"URL" help:"How the deployment reaches the receiver (default: http:// and the address)."`

	JSON   string `name:"json" placeholder:"FILE|-" help:"Write the report as JSON; - writes it to standard output, and the table to standard error."`
	JUnit  string `name:"junit" placeholder:"FILE" help:"Write the report as JUnit XML."`
	Strict bool   `help:"Exit 3 for undecided checks, too."`

	config audit.Config // all of this, read
}

// Validate reads the keys and refuses what cannot work; kong calls it.
func (c *auditCommand) Validate() error {
	if c.CallbackURL != "" && c.Receiver == "" {
		return badArgument("--receiver 0.0.0.0:9000 listens on every address", "--callback-url: there is no --receiver")
	}
	c.config = audit.Config{URL: c.URL, Level: c.Level, Only: c.Only, CallbackURL: c.CallbackURL, Tool: "tandem/" +
		tandem.Version + " audit"}
	if c.Receiver != "" {
		if err := app.ValidAddress(c.Receiver); err != nil {
			return badArgument("", "--receiver %s: %w", c.Receiver, err)
		}
		c.config.Receiver = new(receiver.Hooks)
		if c.CallbackURL == "" {
			c.config.CallbackURL = "http://" + c.Receiver // until the port is known
		}
	}
	for _, key := range []struct {
		flag, value string
		target      *string
	}{
		{"api-key", c.APIKey, &c.config.APIKey}, {"second-api-key", c.SecondAPIKey, &c.config.SecondKey}, {"admin-key",
			c.AdminKey, &c.config.AdminKey},
	} {
		var err error
		if *key.target, err = readKey(key.value); err != nil {
			return badArgument("", "--%s: %w", key.flag, err)
		}
	}
	var err error
	if c.config.Secret, err = app.ReadSecret(c.SigningSecret); err != nil {
		return badArgument("", "--signing-secret: %w", err)
	}
	if err := c.config.Validate(); err != nil {
		return badArgument("tandem audit --list shows groups and checks", "%w", err)
	}
	return nil
}

// Run audits and says what came of it: exit code 3 when a check failed.
func (c *auditCommand) Run(ctx context.Context, t *terminal) error {
	if c.List {
		c.list(t)
		return nil
	}
	files, err := c.openFiles()
	if err != nil {
		return err
	}
	defer files.close()
	progress := term.NewProgress(t.err, false)
	c.config.Progress = func(doing string) {
		switch {
		case progress.Live():
			progress.Show(term.Step{Name: doing, Share: -1})
		case strings.HasPrefix(doing, "waiting"):
			fmt.Fprintln(t.err, doing)
		}
	}
	report, runErr := c.audit(ctx)
	progress.Wipe()
	if report == nil {
		return runErr
	}
	out := t.out
	if c.JSON == "-" {
		out = t.err
	}
	width := cmp.Or(min(out.Columns(), auditWidth), auditWidth)
	if out.Color() {
		fmt.Fprint(out.Raw(), report.Table(width, paint))
	} else {
		fmt.Fprint(out, report.Table(width, nil))
	}
	if err := files.write(t.out, report); err != nil {
		return err
	}
	if runErr != nil {
		return runErr
	}
	return c.verdict(report)
}

// paint colours the word for an outcome.
func paint(outcome audit.Outcome, word string) string { return auditColors[outcome] + word + "\x1b[0m" }

// auditColors begin the colour of an outcome's word.
// :: outcome → escape sequence
var auditColors = map[audit.Outcome]string{audit.Pass: "\x1b[32m", audit.Fail: "\x1b[1;31m",
	audit.Undecided: "\x1b[33m", audit.Skipped: "\x1b[90m"}

// audit runs the checks, with the receiver beside them if there is one: at the address that was opted in for it, and
// at another port of the same host, where nothing must arrive.
func (c *auditCommand) audit(ctx context.Context) (*audit.Report, error) {
	if c.Receiver == "" {
		return audit.Run(ctx, c.config)
	}
	listener, err := app.Listen(ctx, c.Receiver)
	if err != nil {
		return nil, err
	}
	if c.CallbackURL == "" {
		c.config.CallbackURL = "http://" + app.LocalHost(listener.Addr())
	}
	listeners := []net.Listener{listener}
	if host, _, err := net.SplitHostPort(c.Receiver); err == nil {
		other, err := app.Listen(ctx, net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		listeners = append(listeners, other)
		c.config.OtherURL = otherURL(c.config.CallbackURL, other.Addr())
	}
	receiving, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	for _, at := range listeners {
		g.Go(func() error {
			return receiver.Serve(receiving, netutil.LimitListener(at, auditConnections), c.config.Receiver)
		})
	}
	report, err := audit.Run(ctx, c.config)
	stop()
	return report, errors.Join(err, g.Wait())
}

// otherURL is the host of a callback URL at another port.
func otherURL(callbackURL string, at net.Addr) string {
	base, err := url.Parse(callbackURL)
	tcp, ok := at.(*net.TCPAddr)
	if err != nil || !ok {
		return ""
	}
	return "http://" + net.JoinHostPort(base.Hostname(), strconv.Itoa(tcp.Port))
}

// verdict is the exit code.
func (c *auditCommand) verdict(report *audit.Report) error {
	s := report.Summary
	switch {
	case s.Fail > 0:
		return &failure{code: exitCheckFailed, err: fmt.Errorf("%d of %d checks failed", s.Fail, len(report.Findings))}
	case s.Undecided > 0 && c.Strict:
		return &failure{code: exitCheckFailed,
			err: fmt.Errorf("%d of %d checks are undecided (--strict)", s.Undecided, len(report.Findings))}
	default:
		return nil
	}
}

// list prints the table of checks.
func (c *auditCommand) list(t *terminal) {
	var rows [][]string
	var group audit.Group
	for _, check := range audit.Checks() {
		if check.Group != group {
			group = check.Group
			rows = append(rows, []string{string(group)})
		}
		rows = append(rows, []string{"  " + check.ID, string(check.Level), check.Title})
	}
	t.table(nil, rows)
}

// auditFiles are the files that a report goes to, opened before anything is asked: one that cannot
// be written is known in time.
type auditFiles []auditFile

type auditFile struct {
	name  string // "-": standard output
	file  *os.File
	write func(*audit.Report, io.Writer) error
}

func (c *auditCommand) openFiles() (auditFiles, error) {
	var files auditFiles
	for _, f := range []auditFile{
		{name: c.JSON, write: (*audit.Report).WriteJSON}, {name: c.JUnit, write: (*audit.Report).WriteJUnit},
	} {
		if f.name == "" {
			continue
		}
		if f.name != "-" {
			var err error
			f.file, err = os.OpenFile(f.name, os.O_WRONLY|os.O_CREATE, 0o644) //nolint:gosec // others read it; no secrets
			if err != nil {
				files.close()
				return nil, fmt.Errorf("write the report: %w", err)
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// write fills the files; what they held before goes only now.
func (fs auditFiles) write(stdout io.Writer, report *audit.Report) error {
	for _, f := range fs {
		if f.file == nil {
			if err := f.write(report, stdout); err != nil {
				return err
			}
			continue
		}
		if info, err := f.file.Stat(); err == nil && info.Mode().IsRegular() {
			if err := f.file.Truncate(0); err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
		}
		if err := errors.Join(f.write(report, f.file), f.file.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// close closes the files that were not written.
func (fs auditFiles) close() {
	for _, f := range fs {
		if f.file != nil {
			_ = f.file.Close()
		}
	}
}
