package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"tandem/internal/server"
	"tandem/internal/tandemtest"
)

// identity is a certificate for 127.0.0.1 in two files.
type identity struct {
	certFile, keyFile string
	pool              *x509.CertPool
}

// newIdentity writes a certificate with a serial number into a folder, over the one that is there.
func newIdentity(t *testing.T, dir string, serial int64) identity {
	t.Helper()
	certificate := tandemtest.NewCertificate(t, serial, time.Now().Add(time.Hour))
	certFile, keyFile := certificate.Write(t, dir)
	return identity{certFile, keyFile, certificate.Pool}
}

// secureWeb serves a handler with a new certificate.
func secureWeb(t *testing.T, handler http.Handler, log *slog.Logger) (address string, id identity) {
	t.Helper()
	id = newIdentity(t, t.TempDir(), 1)
	certificate, err := server.LoadCertificate(id.certFile, id.keyFile, log)
	if err != nil {
		t.Fatal(err)
	}
	return web(t, handler, server.Config{Certificate: certificate, Connections: server.NewConnections(1_000, nil),
		Log: log}, nil), id
}

// secureClient speaks HTTP/2 or 1.1 with whom a pool trusts.
func secureClient(t *testing.T, pool *x509.CertPool, version int) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(version == 1)
	transport.Protocols.SetHTTP2(version == 2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestTLS(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	address, id := secureWeb(t, svc.Config.Handler, quiet())
	for version := 1; version <= 2; version++ {
		response, err := secureClient(t, id.pool, version).Post("https://"+address+"/sync", "application/json",
			strings.NewReader(`{"data":{"a":1},"task":"echo"}`))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK || response.ProtoMajor != version ||
			response.Header.Get("Strict-Transport-Security") != "max-age=31536000" {
			t.Errorf("HTTP/%d: %s %s %v", version, response.Proto, response.Status, response.Header)
		}
	}
	if a := svc.get("/livez"); a.header.Get("Strict-Transport-Security") != "" {
		t.Error("HSTS without TLS")
	}
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true,
		tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: id.pool, MinVersion: version, MaxVersion: version})
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// A renewed certificate is used without a restart; half of one, or none, changes nothing.
func TestCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	var log safeBuffer
	address, id := secureWeb(t, http.NotFoundHandler(), slog.New(slog.NewTextHandler(&log, nil)))
	dir := filepath.Dir(id.certFile)
	serial := func() int64 {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for !ok() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	if n := serial(); n != 1 {
		t.Fatalf("certificate %d", n)
	}
	newIdentity(t, dir, 2)
	until("the new certificate", func() bool { return serial() == 2 })

	other := newIdentity(t, t.TempDir(), 3)
	text, err := os.ReadFile(other.certFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(id.certFile, text, 0o600); err != nil { // without its key
		t.Fatal(err)
	}
	until("a complaint", func() bool { return serial() == 2 && strings.Contains(log.String(), "cannot be used") })
	if err := os.Remove(id.keyFile); err != nil {
		t.Fatal(err)
	}
	until("another complaint", func() bool { return serial() == 2 && strings.Count(log.String(), "cannot be used") == 2 })

	newIdentity(t, dir, 4)
	until("the next certificate", func() bool { return serial() == 4 })
	if n := strings.Count(log.String(), "cannot be used"); n != 2 {
		t.Errorf("%d complaints about two troubles:\n%s", n, log.String())
	}
}

func TestCertificateThatCannotBeRead(t *testing.T) {
	t.Parallel()
	id := newIdentity(t, t.TempDir(), 1)
	other := newIdentity(t, t.TempDir(), 2)
	for name, files := range map[string][2]string{
		"no file": {id.certFile + ".nothing", id.keyFile}, "no key": {id.certFile, id.keyFile + ".nothing"},
		"another key": {id.certFile, other.keyFile}, "swapped": {id.keyFile, id.certFile},
	} {
		_, err := server.LoadCertificate(files[0], files[1], quiet())
		if err == nil || strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// speaker writes the frames of HTTP/2 by hand.
type speaker struct {
	*http2.Framer
	t       *testing.T
	conn    *tls.Conn
	written int64 // bytes
}

func (s *speaker) Write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	s.written += int64(n)
	return n, err
}

// speak opens a connection and says the preface.
func speak(t *testing.T, address string, pool *x509.CertPool) *speaker {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &speaker{t: t, conn: conn}
	s.Framer = http2.NewFramer(s, conn)
	err = errors.Join(conn.SetDeadline(time.Now().Add(patience)))
	if err == nil {
		_, err = io.WriteString(conn, http2.ClientPreface)
	}
	if err = errors.Join(err, s.WriteSettings()); err != nil {
		t.Fatal(err)
	}
	return s
}

// header encodes one for GET /.
func header(t *testing.T, more ...hpack.HeaderField) []byte {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range append([]hpack.HeaderField{{Name: ":method", Value: "GET"},
		{Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/"}}, more...) {
		if err := encoder.WriteField(field); err != nil {
			t.Fatal(err)
		}
	}
	return block.Bytes()
}

// farewell reads what the server says until it ends the connection, and returns the code of its GOAWAY.
func (s *speaker) farewell() (http2.ErrCode, bool) {
	for {
		frame, err := s.ReadFrame()
		if err != nil {
			return 0, false
		}
		if away, ok := frame.(*http2.GoAwayFrame); ok {
			return away.ErrCode, true
		}
	}
}

// Streams that are reset as soon as they are opened (CVE-2023-44487) do not run more handlers than
// there may be streams, and end the connection.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int64
	release := make(chan struct{})
	stop := sync.OnceFunc(func() { close(release) })
	address, id := secureWeb(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			return
		}
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer running.Add(-1)
		<-release // work that goes on after its caller has gone
	}), quiet())
	t.Cleanup(stop)
	s := speak(t, address, id.pool)
	var reading sync.WaitGroup
	var code http2.ErrCode
	var ended bool
	reading.Go(func() { code, ended = s.farewell() })
	block := header(t)
	for stream := uint32(1); stream < 20_000; stream += 2 {
		err := s.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: true,
			EndStream: true})
		if err = errors.Join(err, s.WriteRSTStream(stream, http2.ErrCodeCancel)); err != nil {
			break // the server has ended it
		}
	}
	reading.Wait()
	if !ended || code != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("the connection ended with %v (%v), want %v", code, ended, http2.ErrCodeEnhanceYourCalm)
	}
	if n := most.Load(); n == 0 || n > 100 {
		t.Errorf("%d handlers at a time, want at most 100", n)
	}
	if response, err := secureClient(t, id.pool, 1).Get("https://" + address); err != nil || response.Body.Close() != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A header that goes on and on in CONTINUATION frames is not read to its end.
func TestContinuationFlood(t *testing.T) {
	t.Parallel()
	const most = 4 << 20 // bytes; what is on the way counts too
	address, id := secureWeb(t, http.NotFoundHandler(), quiet())
	s := speak(t, address, id.pool)
	var reading sync.WaitGroup
	reading.Go(func() { s.farewell() })
	err := s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header(t)})
	for i := 0; err == nil && s.written < 10*most; i++ {
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for n := range 10 {
			_ = encoder.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d-%d", i, n), Value: strings.Repeat("x", 1_000),
				Sensitive: true}) // a buffer takes everything
		}
		err = s.WriteContinuation(1, false, block.Bytes())
	}
	reading.Wait()
	if err == nil || s.written > most {
		t.Errorf("%d bytes of a header were taken (%v)", s.written, err)
	}
	if response, err := secureClient(t, id.pool, 2).Get("https://" + address); err != nil || response.Body.Close() != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A header beyond the limit is refused in HTTP/2 as in HTTP/1.1, and as many streams are open as may be.
func TestHTTP2Limits(t *testing.T) {
	t.Parallel()
	address, id := secureWeb(t, http.NotFoundHandler(), quiet())
	s := speak(t, address, id.pool)
	settings := map[http2.SettingID]uint32{}
	for len(settings) == 0 {
		frame, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if said, ok := frame.(*http2.SettingsFrame); ok && !said.IsAck() {
			_ = said.ForeachSetting(func(one http2.Setting) error { settings[one.ID] = one.Val; return nil }) // never fails
		}
	}
	if settings[http2.SettingMaxConcurrentStreams] != 100 || settings[http2.SettingMaxHeaderListSize] > 80<<10 {
		t.Errorf("settings %v", settings)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Large", strings.Repeat("x", 100<<10))
	response, err := secureClient(t, id.pool, 2).Do(request)
	if err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 100 KiB: %s", response.Status)
		}
	}
}
