package tandemtest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Receive serves a receiver, such as one of the faults of package receiver, on a free port of the loopback interface
// until the test ends. It returns its callback_url.
func Receive(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	ctx, cancel := context.WithCancel(context.Background())
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx } // of connections taken over from HTTP
	server.Start()
	t.Cleanup(func() {
		cancel()
		server.Close()
	})
	return server.URL + "/callback"
}

// Refusing returns the URL of a port on which nobody listens.
func Refusing(t testing.TB) string {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, "listen", err)
	must(t, "close listener", listener.Close())
	return fmt.Sprintf("http://%s/callback", listener.Addr())
}

// BadCertificate returns the https URL of a receiver whose certificate nobody signed.
func BadCertificate(t testing.TB) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // refused handshakes are the point
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL + "/callback"
}
