package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Limits of a connection. A caller that is slower than this is cut off, with a
// 408 if it had at least sent its header.
const (
	readHeaderTimeout = 5 * time.Second  // a TLS handshake has as long
	readTimeout       = 15 * time.Second // header and body
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
	answerTime        = 15 * time.Second // to write what the task took TaskTimeout for

	// Of HTTP/2, which there is with TLS only. What net/http does not ask for it bounds itself:
	// streams that are reset before they are answered, and headers that go on and on.
	maxStreams       = 100       // requests at a time on one connection
	streamBuffer     = 256 << 10 // bytes of a body that nobody has read yet
	connectionBuffer = 1 << 20   // the same of all bodies of a connection
	pingAfter        = 30 * time.Second
	pingTimeout      = 15 * time.Second
)

// HTTPServer makes the server that the API is meant to run in; [Serve] runs it, and the caller
// shuts it down. Its write timeout leaves a sync request its TaskTimeout, which covers the wait for
// a slot as well, and an application its Application.AnswerTime.
func HTTPServer(handler http.Handler, cfg Config) *http.Server {
	cfg = cfg.withDefaults()
	web := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      readTimeout + max(cfg.TaskTimeout, cfg.Application.answerTime()) + answerTime,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: streamBuffer,
			MaxReceiveBufferPerConnection: connectionBuffer,
			SendPingTimeout:               pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: answerTime,
		},
	}
	web.Protocols.SetHTTP1(true)
	if cfg.Connections != nil {
		web.ConnState = cfg.Connections.state
	}
	if cfg.Certificate != nil {
		web.Protocols.SetHTTP2(true)
		web.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cfg.Certificate.current}
	}
	return web
}

// Serve runs a server that [HTTPServer] made with the same cfg. It returns as http.Server.Serve does.
func Serve(web *http.Server, listener net.Listener, cfg Config) error {
	if cfg.Connections != nil {
		listener = cfg.Connections.listen(listener)
	}
	var err error
	if web.TLSConfig != nil {
		err = web.ServeTLS(listener, "", "")
	} else {
		err = web.Serve(listener)
	}
	return fmt.Errorf("serve %s: %w", listener.Addr(), err)
}
