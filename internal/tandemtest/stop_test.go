package tandemtest_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tandem/internal/app"
	"tandem/internal/tandemtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whole services are started, asked from all sides and stopped in the middle of
// it, again and again: callers get an answer or a closed connection, never a defect of
// ours, and nothing stays behind (TestMain).
func TestStartAndStopOften(t *testing.T) {
	t.Parallel()
	for lane := range 4 {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			t.Parallel()
			for range 25 {
				t.Run("", func(t *testing.T) { // one after the other: each is gone before the next
					startAndStop(t)
				})
			}
		})
	}
}

func startAndStop(t *testing.T) {
	t.Helper()
	s := tandemtest.Start(t, app.Preset(app.Demo))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := fmt.Sprintf(`{"data":{"n":1},"task":"echo","callback_url":%q}`, s.URL+"/test-callback")
	served := make(chan struct{}, 1)
	var calling sync.WaitGroup
	for _, path := range []string{"/sync", "/async", "/sync", "/async"} {
		calling.Go(func() {
			for {
				answer, err := client.Post(s.URL+path, "application/json", strings.NewReader(body))
				if err != nil {
					return // nobody listens any more
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				switch answer.StatusCode {
				case http.StatusOK, http.StatusAccepted:
					select {
					case served <- struct{}{}:
					default:
					}
				case http.StatusServiceUnavailable: // draining
					return
				default:
					t.Errorf("%s answered %d while stopping", path, answer.StatusCode)
					return
				}
			}
		})
	}
	<-served
	var stopping sync.WaitGroup
	for range 2 {
		stopping.Go(s.Stop)
	}
	stopping.Wait()
	calling.Wait()
}
