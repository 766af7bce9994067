package server

import (
	"crypto/tls"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateChecks is how often handshakes look whether the certificate was renewed, at most.
const certificateChecks = time.Second

// Certificate is a TLS certificate and its key, in two PEM files. One that was renewed is used from
// the next handshake on, a second later at most; while the new one cannot be read, the old one is.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // guards the fields below
	pair    *tls.Certificate
	version [2]fs.FileInfo // the files when pair was read
	checked time.Time
	trouble string // why the files could not be read; "": they could
}

// LoadCertificate reads both files.
func LoadCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log, checked: time.Now()}
	return c, c.load()
}

// load reads the files. After an error everything is as it was.
func (c *Certificate) load() error {
	version, err := c.look() // before reading: what is written meanwhile is seen as new
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("read the certificate: %w", err)
	}
	c.pair, c.version = &pair, version
	return nil
}

func (c *Certificate) look() (version [2]fs.FileInfo, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if version[i], err = os.Stat(name); err != nil {
			return version, fmt.Errorf("read the certificate: %w", err)
		}
	}
	return version, nil
}

// current is the certificate for a handshake.
func (c *Certificate) current(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= certificateChecks {
		c.checked = now
		c.renew()
	}
	return c.pair, nil
}

// Reload reads the files now and logs the outcome.
func (c *Certificate) Reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checked, c.trouble = time.Now(), ""
	c.renewed(c.load())
}

// renew reads the files if they have changed.
func (c *Certificate) renew() {
	version, err := c.look()
	if err == nil && same(version[0], c.version[0]) && same(version[1], c.version[1]) {
		c.trouble = ""
		return
	}
	if err == nil {
		err = c.load()
	}
	c.renewed(err)
}

// renewed logs the outcome of a load.
func (c *Certificate) renewed(err error) {
	switch {
	case err == nil:
		c.trouble = ""
		c.log.Info("the certificate was renewed", "until", c.pair.Leaf.NotAfter)
	case err.Error() != c.trouble: // once, not every second
		c.trouble = err.Error()
		c.log.Warn("the new certificate cannot be used; the old one still is", "error", err)
	}
}

// same reports whether a file is what it was.
func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
