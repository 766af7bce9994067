package load_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// floorVariable makes TestMain serve the floor instead of running tests.
const floorVariable = "TANDEM_TEST_FLOOR"

func TestMain(m *testing.M) {
	if os.Getenv(floorVariable) != "" {
		if err := serveFloor(); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serveFloor is the least that can be put under load: a bare net/http handler. It prints its
// address, and ends when its standard input does.
func serveFloor() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"status":"healthy","timestamp":%q,"version":"floor"}`, time.Now().UTC().Format(time.RFC3339Nano))
	})
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"request_id":"req_0","result":{"number":1},"processing_time_ms":0.1,`+
			`"timestamp":"2026-01-01T00:00:00Z"}`)
	})
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		listener.Close()
	}()
	_ = (&http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}).Serve(listener)
	return nil
}
