package egress_test

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tandem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Clients are made, used from all sides, stopped in the middle of it and closed, again and
// again: every exchange ends as one that was made or one that was interrupted, and
// nothing stays behind (TestMain).
func TestStartAndStopOften(t *testing.T) {
	t.Parallel()
	good := receiver(t, func(http.ResponseWriter, *http.Request) {})
	hanging := receiver(t, hang(t))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 75 {
				startAndStop(t, good, hanging)
			}
		})
	}
	all.Wait()
}

func startAndStop(t *testing.T, good, hanging string) {
	t.Helper()
	client := newClient(t, demo())
	ctx, cancel := context.WithCancel(t.Context())
	var posting sync.WaitGroup
	delivered := make(chan struct{}, 100)
	for i := range 16 {
		target := hanging
		if i%4 == 0 {
			target = good
		}
		posting.Go(func() {
			permit, err := client.Reserve(ctx, target, "")
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("reserve: %v", err)
				}
				return
			}
			switch got := permit.Post(ctx, nil, nil); {
			case got.Interrupted:
			case got.Outcome == tandem.OutcomeDelivered && target == good:
				delivered <- struct{}{}
			default:
				t.Errorf("Post(%s) = %+v", target, got)
			}
		})
	}
	<-delivered
	cancel()
	posting.Wait()
	client.Close()
	for _, seen := range client.Destinations(10) {
		if seen.InFlight != 0 || seen.Waiting != 0 || seen.FailureCount != 0 {
			t.Errorf("at the end: %+v", seen)
		}
	}
}
