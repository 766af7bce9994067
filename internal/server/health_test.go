package server_test

import (
	"encoding/json"
	"testing"
	"time"

	"tandem/internal/server"
)

// A time has at most three decimals as it is written, however long it is.
func TestSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0:                                       "0",
		499 * time.Microsecond:                  "0",
		500 * time.Microsecond:                  "0.001",
		2837 * time.Millisecond:                 "2.837", // 2 + 0.837 is 2.8369999999999997
		time.Minute:                             "60",
		30*24*time.Hour + 1100*time.Millisecond: "2592001.1",
	} {
		if got, err := json.Marshal(server.Seconds(d)); err != nil || string(got) != want {
			t.Errorf("%v is written %s (%v), want %s", d, got, err, want)
		}
	}
}
