package egress_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"tandem/internal/egress"
)

// FuzzRetryAfter reads what strangers answer: never a pause below zero or beyond a
// year, and what both forms of the header say is taken at its word.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for _, seed := range []string{
		"", "0", "120", "-1", "+5", " 5", "5 ", "1.5", "007", "18446744073709551615", "18446744073709551616",
		"99999999999999999999999", "1e3", "٣",
		"Sat, 31 Jan 2026 12:02:00 GMT", "Sat, 31 Jan 2026 11:59:00 GMT", "Saturday, 31-Jan-26 12:02:00 GMT",
		"Sat Jan 31 12:02:00 2026", "Fri, 31 Dec 9999 23:59:59 GMT", "soon",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		const most = 365 * 24 * time.Hour
		got := egress.RetryAfter(value, now)
		if got < 0 || got > most {
			t.Fatalf("%q means %v", value, got)
		}
		want := time.Duration(0)
		if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
			want = min(time.Duration(seconds)*time.Second, most)
		} else if at, err := http.ParseTime(value); err == nil {
			want = min(max(at.Sub(now), 0), most)
		} else if _, err := strconv.ParseFloat(value, 64); err == nil {
			return // a number of another kind: any pause within the bounds
		}
		if got != want {
			t.Fatalf("%q means %v, want %v", value, got, want)
		}
	})
}
